"""Two processes with averaged gradients: one records, and the weights do not change."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import multiprocessing

from frenet.integrations.trainer import read_trajectory
from frenet.runs import read_run
from integrations.watching import LOOKS, STEPS, model_of, probes, train, weights

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch was built without gloo",
)


def worker(rank: int, port: int, folder: str) -> None:
    """One of two processes that train together, watched and not."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    place = Path(folder)
    watch = {"probes": probes(), "out": place / "out", "every": 3, "k": 2, "n": 4}
    watch["gradients"] = True
    settings = {"ddp_backend": "gloo", "per_device_train_batch_size": 2}
    for name, watched in (("plain", None), ("watched", watch)):
        trainer = train(model_of("lora"), place / name, watch=watched, **settings)
        torch.save(weights(trainer.model), place / f"{name}-{rank}.pt")
    torch.distributed.destroy_process_group()


def test_the_main_process_records_and_both_end_as_they_would_have(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, (port, str(tmp_path)), nprocs=2)
    ends = {
        (name, rank): torch.load(tmp_path / f"{name}-{rank}.pt")
        for name in ("plain", "watched")
        for rank in (0, 1)
    }
    for end in ends.values():
        assert all(torch.equal(end[key], value) for key, value in ends["plain", 0].items())
    path = read_trajectory(tmp_path / "out")
    assert len(path) == STEPS
    end = path.space.flatten(ends["plain", 0])
    torch.testing.assert_close(path.theta(STEPS), end, rtol=0, atol=1e-7)
    drift = [row["step"] for row in read_run(tmp_path / "out").rows if row["table"] == "drift"]
    assert drift[::2] == drift[1::2] == LOOKS
