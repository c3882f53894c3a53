"""Machines of a Ray cluster go and come while they work: same rows, no hang, and a line about it.

Two raylets on this machine stand for two machines with one processor each.
"""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import closing
from pathlib import Path

import pytest
import torch
from toy_experiment import EXPERIMENT, Config

from frenet.cli.codes import TERMINATED
from frenet.geometry.rng import generator
from frenet.methods.candidates import Noise
from frenet.methods.search import Selection, random_search
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, SyntheticTransformer
from frenet.runs.engine import cells_of, jobs
from frenet.runs.pool import here
from frenet.runs.ray_cells import in_cluster
from frenet.runs.ray_engine import ray_engine

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
# A machine that is killed is missed after 1.5 s, and not after half a minute.
HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}
LONGEST_S = 240


@pytest.fixture
def cluster(monkeypatch):
    """Two machines with one processor each; a test that hangs ends with an error."""
    from ray.cluster_utils import Cluster

    def hangs(signum, frame):
        raise TimeoutError(f"the work did not end in {LONGEST_S} s")

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": HEALTH},
    )
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(LONGEST_S)
    yield made
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    made.shutdown()


def kill(cluster, machine):
    cluster.remove_node(machine, allow_graceful=False)


def swept(cluster, *, act=lambda: None, at=3):
    """Rows of 12 cells on the cluster, and here; the messages; ``act`` after the third outcome."""
    config = Config(tasks=("copy", "sort", "count"), seeds=(0, 1, 2, 3), seconds=0.5)
    todo = [
        job
        for job in jobs(EXPERIMENT, config, cells_of(EXPERIMENT, config), threads=1)
        if job.stage == "run"
    ]
    said: list[str] = []
    work = in_cluster(
        deque(todo), address=cluster.address, workers=None, threads=1, given=True, say=said.append
    )
    found = {}
    with closing(work) as outcomes:
        for job, outcome in outcomes:
            assert outcome.failure is None
            found[job.cell] = outcome.lines
            if len(found) == at:
                act()
    alone = {job.cell: outcome.lines for job, outcome in here(deque(todo))}
    assert found == alone
    return said


def test_a_machine_that_is_killed_for_good_is_done_without(cluster):
    """A search: what the machine had is given to the one that is left, score for score."""
    second = cluster.add_node(num_cpus=1)
    model = SyntheticTransformer(SyntheticConfig(width=16), seed=0)
    space = ParamSpace.select(model, "ln_f")
    said: list[str] = []
    own = ray_engine(address=cluster.address, threads=1, say=said.append)

    def engine(model, evaluator, chunks):
        for i, outcome in enumerate(own(model, evaluator, chunks)):
            if i == 2:
                kill(cluster, second)
            yield outcome

    def search(engine):
        return random_search(
            model, SyntheticTask("reverse"), space, noise=Noise(0.5, seed=3), num_candidates=320,
            selection=Selection(Slow(space), select_size=2, test_size=4), engine=engine,
        )  # fmt: skip

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        there, alone = search(engine), search(None)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(there.scores, alone.scores)
    assert there.order == alone.order
    assert said[0] == (
        "2 workers with 1 processor each, on a Ray cluster of 2 machines with 2 processors"
    )
    assert "the Ray cluster lost 1 machine: 1 machine with 1 processor left" in said


def test_a_machine_that_comes_back_works_again(cluster):
    second = cluster.add_node(num_cpus=1)

    def comes_back():
        kill(cluster, second)
        cluster.add_node(num_cpus=1)

    said = swept(cluster, act=comes_back)
    # The cluster may report the loss and the new machine at once, or one before the other.
    changes = [line for line in said if "the Ray cluster" in line]
    assert any(line.startswith("the Ray cluster lost 1 machine: ") for line in changes)
    assert any(line.startswith("1 machine joined the Ray cluster: ") for line in changes)
    assert "2 machines with 2 processors" in changes[-1]


def test_a_machine_that_joins_is_given_work(cluster):
    said = swept(cluster, act=lambda: cluster.add_node(num_cpus=1), at=1)
    assert said[0].startswith("1 worker with 1 processor each")
    assert said[1:] == ["1 machine joined the Ray cluster: 2 machines with 2 processors now"]


class Slow:
    """A linear score that takes its time on the cluster."""

    def __init__(self, space: ParamSpace) -> None:
        self.space, self.here = space, os.getpid()
        self.slope = torch.randn(space.dim, generator=generator(0, "slope"))

    def __call__(self, model, batch) -> float:
        if os.getpid() != self.here:
            time.sleep(0.01)
        return float(self.space.read(model) @ self.slope)


def test_the_end_of_the_driver_by_sigterm_is_a_line_and_no_stack(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("toy_experiment.py"), "run", "toy-sums",
         "--engine", "ray", "--workers", "1", "--seconds", "2", "--out", tmp_path / "run"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("[1/"):
            process.terminate()
    process.stdout.close()
    assert process.wait() == TERMINATED
    assert "1 of 6 cells are finished and stored in" in lines[-1]
    assert not [line for line in lines if "SIGTERM" in line or "@  " in line]
