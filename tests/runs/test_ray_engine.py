"""Searches and cells on a Ray cluster of two workers are those of one process, also if one dies."""

import os
import sys
import warnings
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
from ray import cloudpickle
from toy_experiment import EXPERIMENT, Config

from frenet.geometry.rng import generator
from frenet.methods.candidates import Noise
from frenet.methods.search import Selection, random_search
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, SyntheticTransformer
from frenet.runs import run_experiment
from frenet.runs.ray_cluster import TRIES, Fleet, Work, handed_out, processors, shared_out
from frenet.runs.ray_cluster import cluster as joined
from frenet.runs.ray_engine import ray_engine

TASK = SyntheticTask("reverse")


class Linear:
    """A linear score that ends its process at a candidate, once for each file in a folder."""

    def __init__(self, space: ParamSpace, deaths: Path, *, at: int | None = None) -> None:
        self.space, self.deaths = space, deaths
        self.slope = torch.randn(space.dim, generator=generator(0, "slope"))
        self.here = os.getpid()
        self.limit = at

    def __call__(self, model, batch) -> float:
        value = float(self.space.read(model) @ self.slope)
        if self.limit is not None and os.getpid() != self.here and value > 0:
            for marker in sorted(self.deaths.iterdir()):
                marker.unlink()
                os._exit(1)
        return value


@pytest.fixture(scope="module")
def model():
    return SyntheticTransformer(SyntheticConfig(width=16), seed=0)


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine with two processors; its workers get this module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield
        ray.shutdown()


def search(model, score, engine, *, count=160):
    return random_search(
        model, TASK, ParamSpace.select(model, "ln_f"), noise=Noise(0.5, seed=3),
        num_candidates=count, selection=Selection(score, select_size=2, test_size=4), engine=engine,
    )  # fmt: skip


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")
def test_two_workers_of_whom_one_dies_find_what_one_process_finds(model, tmp_path):
    space = ParamSpace.select(model, "ln_f")
    alone = search(model, Linear(space, tmp_path), None)
    (tmp_path / "one").touch()
    score = Linear(space, tmp_path, at=1)
    found = search(model, score, ray_engine(workers=2, threads=1))
    assert not list(tmp_path.iterdir())
    assert found.order == alone.order
    torch.testing.assert_close(found.scores, alone.scores, rtol=1e-5, atol=1e-5)
    assert found.held_out == alone.held_out


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")
def test_what_ends_every_worker_is_given_up(model, tmp_path):
    for i in range(3):
        (tmp_path / str(i)).touch()
    score = Linear(ParamSpace.select(model, "ln_f"), tmp_path, at=1)
    with pytest.raises(RuntimeError, match="killed 3 workers, one after the other"):
        search(model, score, ray_engine(workers=1, threads=1), count=32)


@pytest.mark.parametrize(
    ("address", "error", "match"),
    [
        ("ray://127.0.0.1:1", ConnectionError, "no Ray cluster answers at ray://127.0.0.1:1"),
        ("somewhere", ValueError, "address='somewhere'; pass ray://host:10001"),
    ],
)
def test_a_cluster_that_is_not_there_is_said_before_anything_is_done(address, error, match):
    with pytest.raises(error, match=match):
        ray_engine(address=address)


@pytest.mark.parametrize("name", ["workers", "threads"])
def test_none_at_all_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0 is not possible"):
        ray_engine(**{name: 0})


@pytest.mark.parametrize(
    ("machines", "workers", "threads", "expected"),
    [
        ([3, 3, 3], None, 2, (3, 2)),  # not 9 // 2, of whom the fourth would wait for ever
        ([3, 3, 3], 4, 2, (4, 1)),
        ([3, 3, 3], 3, 2, (3, 2)),
        ([8, 8], None, 32, (2, 8)),
        ([8, 8], 3, 8, (3, 4)),
        ([0, 5, 4], None, 2, (4, 2)),
        ([1], None, 2, (1, 1)),
    ],
)
def test_every_worker_fits_on_a_machine(machines, workers, threads, expected):
    assert shared_out(machines, workers, threads) == expected


@pytest.mark.parametrize(
    ("machines", "workers", "threads", "match"),
    [
        ([8, 8], None, 9, "threads=9, but no machine of the cluster has more than 8 CPUs; pass at"),
        ([2, 2], 5, 1, "workers=5, but the cluster has 4 CPUs; pass at most 4"),
        ([0, 0], None, 1, "no machine of the Ray cluster offers a CPU; start one with --num-cpus"),
        ([], None, 1, "no machine of the Ray cluster offers a CPU"),
    ],
)
def test_workers_that_would_wait_for_ever_are_refused(machines, workers, threads, match):
    with pytest.raises(ValueError, match=match):
        shared_out(machines, workers, threads, given=True)


def test_without_an_address_no_cluster_that_is_there_is_joined(monkeypatch):
    """Ray's default is the cluster of RAY_ADDRESS, or one that was left running."""
    asked = []
    fake = SimpleNamespace(
        is_initialized=lambda: False, init=lambda **given: asked.append(given), shutdown=list
    )
    monkeypatch.setattr("frenet.runs.ray_cluster.require_ray", lambda: fake)
    for address, workers in ((None, None), (None, 3), ("auto", 3)):
        with joined(address, workers, 2):
            pass
    assert [given["address"] for given in asked] == ["local", "local", "auto"]
    assert [given.get("num_cpus") for given in asked] == [None, 6, None]


def machine(name, cpus, *, alive=True):
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": float(cpus)} if cpus else {}}


def test_machines_that_are_gone_or_without_processors_do_not_count():
    nodes = [machine("a", 4), machine("b", 8, alive=False), machine("c", 0)]
    assert processors(SimpleNamespace(nodes=lambda: nodes)) == {"a": 4, "c": 0}


class Fake:
    """Ray that does a task when it is waited for; machines and deaths follow a script.

    ``machines[i]`` are those at the i-th count, the last ones ever after. ``ends`` are the errors
    in which the first results end.
    """

    exceptions = ray.exceptions

    def __init__(self, machines, ends=()):
        self.machines, self.ends = list(machines), list(ends)
        self.at_once = []
        self.cancelled = []

    def nodes(self):
        now = self.machines.pop(0) if len(self.machines) > 1 else self.machines[0]
        return [machine(name, cpus) for name, cpus in now.items()]

    def remote(self, function):
        handle = SimpleNamespace(remote=lambda perform, shared, item, threads: ("ref", item))
        return SimpleNamespace(options=lambda **given: handle)

    def put(self, subject):
        return subject

    def wait(self, running, num_returns, timeout):
        self.at_once.append(len(running))
        return running[:num_returns], running[num_returns:]

    def get(self, reference):
        if self.ends:
            raise self.ends.pop(0)
        return reference[1]

    def cancel(self, reference, force):
        self.cancelled.append(reference)


WORK = Work(
    perform=lambda subject, item: item, pack=lambda item: item, name=str,
    killed=lambda item, error: "given up", remedy="",
)  # fmt: skip


def done(fake, items, said, *, workers=None, monkeypatch=None):
    if monkeypatch is not None:
        monkeypatch.setattr("frenet.runs.ray_cluster.LOOK_S", 0.0)
    fleet = Fleet(fake, workers=workers, each=2, say=said.append)
    return list(handed_out(fake, deque(items), WORK, fleet=fleet))


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.OutOfMemoryError("the memory monitor"),
        ray.exceptions.NodeDiedError("gone"),
        ray.exceptions.WorkerCrashedError(),
        ray.exceptions.ObjectLostError("00" * 28, None, ""),
    ],
)
def test_what_a_worker_had_that_was_lost_is_tried_again(error):
    for deaths, expected in ((TRIES - 1, "item"), (TRIES, "given up")):
        said = []
        assert done(Fake([{"a": 2}], [error] * deaths), ["item"], said) == [("item", expected)]
        assert said == ["a worker was lost during item: trying again"] * (TRIES - 1)


def test_as_many_items_are_out_as_workers_fit_on_the_machines_that_are_there_now(monkeypatch):
    """5 + 4 processors hold 2 + 2 workers of 2; then one machine is gone, then another joins."""
    fake = Fake([{"a": 5, "b": 4}, {"a": 5}, {"a": 5, "c": 2}])
    said = []
    assert len(done(fake, range(8), said, monkeypatch=monkeypatch)) == 8
    # One ends at a time: 4 are out, of whom 3 are left when one machine is gone, and so on.
    assert fake.at_once == [4, 3, 3, 3, 3, 3, 2, 1]
    assert [line.partition(":")[2].split() for line in said] == [
        ["1", "machine", "with", "5", "processors", "left"],
        ["2", "machines", "with", "7", "processors", "now"],
    ]
    few = Fake([{"a": 5, "b": 4}])
    assert len(done(few, range(4), [], workers=1)) == 4
    assert few.at_once == [1, 1, 1, 1]


def test_a_cluster_without_machines_is_waited_for_and_given_up(monkeypatch):
    assert done(Fake([{"a": 1}, {"a": 1}, {"b": 2}]), ["item"], [], monkeypatch=monkeypatch) == [
        ("item", "item")
    ]
    monkeypatch.setattr("frenet.runs.ray_cluster.ABANDONED_S", -1.0)
    with pytest.raises(RuntimeError, match="no machine of the Ray cluster has 2 processors"):
        done(Fake([{"a": 1}]), ["item"], [], monkeypatch=monkeypatch)


def test_what_is_out_is_called_off_with_the_work():
    fake = Fake([{"a": 4}])
    fleet = Fleet(fake, workers=None, each=2, say=lambda text: None)
    outcomes = handed_out(fake, deque(range(5)), WORK, fleet=fleet)
    assert next(outcomes) == (0, 0)
    outcomes.close()
    assert fake.cancelled == [("ref", 1)]


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")
def test_cells_on_a_cluster_give_the_rows_of_one_process(tmp_path):
    config = Config(tasks=("copy", "sort", "fail"), seeds=(0, 1, 13))
    here = run_experiment(EXPERIMENT, config, tmp_path / "here", workers=1, threads=1)
    there = run_experiment(EXPERIMENT, config, tmp_path / "there", engine="ray", threads=1)
    rows = [(folder / "rows.jsonl").read_bytes() for folder in (here.path, there.path)]
    assert rows[0] == rows[1] != b""
    assert there.failures == here.failures
    assert len(here.failures) == 2 + 3  # a failed cell of each seed; a seed that is not prepared


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")
def test_a_cell_that_ends_every_worker_is_a_failed_cell(tmp_path):
    config = Config(tasks=("kill", "copy"), seeds=(0,))
    found = run_experiment(
        EXPERIMENT, config, tmp_path / "run", engine="ray", workers=2, threads=1, quiet=True
    )
    assert [failure["type"] for failure in found.failures] == ["WorkerKilled"]
    assert {row["task"] for row in found.rows} == {"copy"}


def test_a_cluster_that_is_not_there_stops_a_run(tmp_path):
    with pytest.raises(ConnectionError, match="no Ray cluster answers at ray://127"):
        run_experiment(
            EXPERIMENT, Config(), tmp_path, engine="ray", address="ray://127.0.0.1:1", threads=1
        )


class Elsewhere:
    """A score that can be sent and not be received: its module is on this machine alone."""

    def __init__(self):
        self.here = os.getpid()

    def __reduce__(self):
        return _only_in, (self.here,)

    def __call__(self, model, batch) -> float:
        return 0.0


def _only_in(process: int) -> Elsewhere:
    if os.getpid() != process:
        raise ModuleNotFoundError("No module named 'my_scores'")
    return Elsewhere()


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_cannot_read_what_it_is_sent_says_so(model):
    with pytest.raises(RuntimeError, match="No module named 'my_scores'; define a custom score"):
        search(model, Elsewhere(), ray_engine(workers=1, threads=1), count=32)
