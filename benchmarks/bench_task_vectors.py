"""Task vectors of checkpoints on disk against reading the files once.

    python benchmarks/bench_task_vectors.py [--parameters 135000000] [--repeats 5]

Two checkpoints of random float32 tensors, shaped like those of a Llama of 135 million parameters,
lie in a temporary folder and in the page cache. Reading copies every tensor of both once. All take
turns in one run; a ratio is the median of the turns.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench_gradients import ratio, show, turns
from frenet.geometry import rng
from frenet.methods.task_vectors import TaskVector, from_checkpoints, save_task_vector
from frenet.network.tensor_files import TensorFiles

WIDTH, MLP, KEYS, VOCABULARY = 576, 1536, 192, 49_152


def shapes(parameters: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama of at least so many parameters."""
    yield "embed", (VOCABULARY, WIDTH)
    left, layer = parameters - VOCABULARY * WIDTH, 0
    own = {
        "q": (WIDTH, WIDTH), "k": (KEYS, WIDTH), "v": (KEYS, WIDTH), "o": (WIDTH, WIDTH),
        "gate": (MLP, WIDTH), "up": (MLP, WIDTH), "down": (WIDTH, MLP), "norm": (WIDTH,),
    }  # fmt: skip
    while left > 0:
        for name, shape in own.items():
            yield f"{layer}.{name}", shape
            left -= torch.Size(shape).numel()
        layer += 1


def checkpoint(path: Path, parameters: int, seed: int) -> Path:
    """A file of random tensors."""
    draw = rng.generator(seed, "bench", "task vectors")
    save_file({n: torch.randn(s, generator=draw) for n, s in shapes(parameters)}, path)
    return path


def read_both(files: list[TensorFiles]) -> None:
    """Every tensor of every file, copied once."""
    for file in files:
        for name in file.shapes:
            file.read(name).clone()


def differences(vector: TaskVector) -> int:
    """Every tensor of the vector, and the most private memory that was held beyond that before."""
    before, most = private_bytes(), 0
    for name in vector.shapes:
        kept = vector.read(name)
        most = max(most, private_bytes() - before)
        del kept
    return most


def private_bytes() -> int:
    """Memory of this process that is no mapped file, by Linux's own count."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def run(parameters: int = 135_000_000, *, repeats: int = 5) -> list[dict[str, Any]]:
    """Rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            checkpoint(Path(folder) / f"{i}.safetensors", parameters, seed=i) for i in range(2)
        ]
        files, vector = [TensorFiles(path) for path in paths], from_checkpoints(*paths)
        out = Path(folder) / "out.safetensors"
        seconds = turns(
            {
                "read": lambda: read_both(files),
                "difference": lambda: differences(vector),
                "norm": lambda: vector.norm(),
                "saved": lambda: save_task_vector(vector, out),
            },
            repeats,
        )
        memory = differences(vector)
    largest = 4 * max(torch.Size(shape).numel() for shape in vector.shapes.values())
    size = f"{parameters / 1e6:.0f} million float32 parameters"
    what = {
        "difference": ("task vector of two checkpoints / reading both", "1.3"),
        "norm": ("its norm / reading both", ""),
        "saved": ("written to a third file / reading both", ""),
    }
    rows = [
        {"name": f"{name}, {size}", "ratio": ratio(seconds[key], seconds["read"]), "aim": aim,
         "detail": ""}
        for key, (name, aim) in what.items()
    ]  # fmt: skip
    held = {"name": "memory of the differences / the largest tensor", "ratio": memory / largest}
    return [*rows, {**held, "aim": "1", "detail": f"{largest / 2**20:.0f} MiB"}]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=135_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    show(run(given.parameters, repeats=given.repeats))
