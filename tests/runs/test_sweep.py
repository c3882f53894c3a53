"""The order in which cells are done: long ones are not left for the end."""

import heapq
from collections import deque

from toy_experiment import EXPERIMENT, Config, cells

from frenet.runs import sweep
from frenet.runs.worker import Job, Outcome

SECONDS = {"copy": 1.0, "sort": 1.0, "count": 4.0}


def waiting(config):
    return deque(Job("run", EXPERIMENT.run, config, cell, {}, 1) for cell in cells(config))


def test_what_took_longest_comes_first_and_what_is_unknown_before_it():
    queue = waiting(Config(tasks=("a", "b", "new", "c"), seeds=(0, 1)))
    took = {(("task", task),): seconds for task, seconds in (("a", 1.0), ("b", 3.0), ("c", 2.0))}
    sweep.longest_first(queue, took)
    order = [(job.cell["task"], job.cell["seed"]) for job in queue]
    tasks = ("new", "b", "c", "a")
    assert order == [(task, seed) for task in tasks for seed in (0, 1)]


def test_two_workers_end_together(tmp_path, monkeypatch, unchecked):
    """9 cells of 1, 1 and 4 seconds, in this order for each of 3 seeds: 18 seconds of work.

    In the order of the cells the last of 4 seconds is begun when nothing else is left.
    """

    def two_workers(queue, **_):
        """Outcomes as of two workers, on a simulated clock."""
        clock, running = 0.0, []
        while queue or running:
            while queue and len(running) < 2:
                job = queue.popleft()
                heapq.heappush(running, (clock + SECONDS[job.cell["task"]], id(job), job))
            clock, _, job = heapq.heappop(running)
            ends.append(clock)
            yield job, Outcome((), SECONDS[job.cell["task"]])

    class Store:
        path = tmp_path

        def store(self, *_, **__):
            pass

    class Said:
        def __getattr__(self, name):
            return lambda *_: None

    monkeypatch.setattr(sweep, "in_workers", two_workers)
    config = Config(tasks=tuple(SECONDS), seeds=(0, 1, 2))
    found = {}
    for name, rule in (("longest first", sweep.longest_first), ("as given", lambda *_: None)):
        monkeypatch.setattr(sweep, "longest_first", rule)
        ends: list[float] = []
        crew = sweep.WorkerSpec(2, 1)
        sweep.sweep(Store(), [], pending=list(waiting(config)), crew=crew, watch=Said(), pool=None)
        found[name] = max(ends)
    assert found == {"longest first": 9.0, "as given": 11.0}
