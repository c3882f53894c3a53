"""Task vectors of checkpoints on disk against reading the files once.

    python benchmarks/bench_task_vectors.py [--layers 30] [--repeats 5]

Checkpoints of random float32 tensors, shaped like a Llama of 135 million parameters, lie in a
temporary folder and in the page cache. Reading copies every tensor of both once. All take
turns in one run; a ratio is the median of the turns.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench_gradients import ratio, show, turns
from frenet.methods.merged import save_merged
from frenet.methods.task_vectors import TaskVector, from_checkpoints
from frenet.network.tensor_files import TensorFiles

WIDTH, MLP, VOCABULARY = 576, 1536, 49_152


def checkpoint(folder: Path, layers: int, seed: int) -> Path:
    """A Llama of random weights in a folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=layers,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


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


def peak_alone(base: Path, tuned: Path) -> int:
    """What ``differences`` gives in a process of its own, without freed memory to use again."""
    command = [sys.executable, __file__, "--peak-of", str(base), str(tuned)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def private_bytes() -> int:
    """Memory of this process that is no mapped file, by Linux's own count."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def merged(base: Path, tuned: list[Path], out: Path) -> None:
    """base + (first - base) + (second - base) / 2 as a checkpoint."""
    first, second = (from_checkpoints(base, path) for path in tuned)
    save_merged(base, first + 0.5 * second, out)


def merged_by_mergekit(base: Path, tuned: list[Path], out: Path) -> None:
    """The same by mergekit."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    models = [
        {"model": str(path), "parameters": {"weight": weight}}
        for path, weight in zip(tuned, (1.0, 0.5), strict=True)
    ]
    config = {
        "merge_method": "task_arithmetic", "base_model": str(base), "models": models,
        "dtype": "float32", "parameters": {"normalize": False},
    }  # fmt: skip
    run_merge(
        MergeConfiguration.model_validate(config), str(out),
        MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False),
    )  # fmt: skip


def run(layers: int = 30, *, repeats: int = 5) -> list[dict[str, Any]]:
    """Rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        base, *tuned = (checkpoint(Path(folder) / f"{i}", layers, seed=i) for i in range(3))
        files = [TensorFiles(path) for path in (base, tuned[0])]
        vector = from_checkpoints(base, tuned[0])
        routines: dict[str, Callable[[], Any]] = {
            "read": lambda: read_both(files),
            "difference": lambda: differences(vector),
            "norm": lambda: vector.norm(),
            "merged": lambda: merged(base, tuned, Path(folder) / "ours"),
        }
        if importlib.util.find_spec("mergekit"):
            theirs = Path(folder) / "theirs"
            routines["mergekit"] = lambda: merged_by_mergekit(base, tuned, theirs)
        seconds = turns(routines, repeats)
        memory = peak_alone(base, tuned[0])
    sizes = [torch.Size(shape).numel() for shape in vector.shapes.values()]
    size = f"{sum(sizes) / 1e6:.0f} million float32 parameters, median of {repeats}"
    pairs = {
        "task vector of two checkpoints / reading both": ("difference", "read", "1.3"),
        "its norm / reading both": ("norm", "read", ""),
        "sum of two vectors, written as a checkpoint / mergekit": ("merged", "mergekit", "1"),
    }
    rows = [
        {"name": name, "ratio": ratio(seconds[ours], seconds[other]), "aim": aim,
         "detail": f"{statistics.median(seconds[ours]):.2f} s against "
                   f"{statistics.median(seconds[other]):.2f} s; {size}"}
        for name, (ours, other, aim) in pairs.items()
        if other in seconds
    ]  # fmt: skip
    largest = 4 * max(sizes)
    held = {"name": "memory of the differences / the largest tensor", "ratio": memory / largest}
    return [*rows, {**held, "aim": "1", "detail": f"{largest / 2**20:.0f} MiB"}]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak_of:
        print(differences(from_checkpoints(*given.peak_of)))
    else:
        show(run(given.layers, repeats=given.repeats))
