"""Task vectors of checkpoints on disk, compared with reading the files once.

    python benchmarks/bench_task_vectors.py [--layers 30] [--repeats 5]

Checkpoints of random float32 tensors, shaped like a Llama of 135 million parameters, are in a
temporary folder and in the page cache. Reading copies every tensor of both once. All take
turns in one run; a ratio is the median of the turns.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from frenet.methods.merge import save_merged
from frenet.methods.task_vectors import TaskVector, from_checkpoints
from frenet.network.checkpoints.tensor_files import TensorFiles
from timing import Row, alone, attempted, from_status, ratios, show, times, turns
from units import size

WIDTH, MLP, VOCABULARY = 576, 1536, 49_152


def checkpoint(folder: Path, layers: int, seed: int) -> Path:
    """A Llama with random weights in a folder."""
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
    """Read every tensor of the vector; returns the peak of private memory above the start."""
    before, most = from_status("RssAnon"), 0
    for name in vector.shapes:
        change = vector.read(name)
        most = max(most, from_status("RssAnon") - before)
        del change
    return most


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


def on_disk(folder: Path) -> None:
    """Wait until every file of a folder would survive a power cut, as a checkpoint of ours does."""
    for file in folder.iterdir():
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def run(layers: int = 30, *, repeats: int = 5) -> Iterator[Row]:
    """Ratios to reading both files, to mergekit, and to the largest tensor."""
    with tempfile.TemporaryDirectory() as folder:
        base, *tuned = (checkpoint(Path(folder) / f"{i}", layers, seed=i) for i in range(3))
        vector = from_checkpoints(base, tuned[0])
        sizes = [torch.Size(shape).numel() for shape in vector.shapes.values()]
        what = f"{sum(sizes) / 1e6:.0f} million float32 parameters, median of {repeats}"
        yield from attempted(
            "task vector of two checkpoints",
            lambda: reading(vector, [base, tuned[0]], repeats, what),
        )
        yield from attempted(
            "sum of two task vectors against mergekit",
            lambda: merging(base, tuned, Path(folder), repeats, what),
        )
        yield from attempted(
            "memory of the differences", lambda: memory(base, tuned[0], largest=4 * max(sizes))
        )


def reading(vector: TaskVector, paths: list[Path], repeats: int, what: str) -> Iterator[Row]:
    """The vector and its norm, compared with reading both checkpoints."""
    files = [TensorFiles(path) for path in paths]
    seconds = turns(
        {
            "read": lambda: read_both(files),
            "task vector of two checkpoints": lambda: differences(vector),
            "norm of a task vector": lambda: vector.norm(),
        },
        repeats,
    )
    base = seconds.pop("read")
    for name, values in seconds.items():
        yield {
            "name": f"{name} against reading both",
            "model": "random Llama",
            **ratios(values, base),
            "aim": "at most 1.3" if name.startswith("task") else "",
            "detail": f"{times(values, base)}; {what}",
        }


def merging(base: Path, tuned: list[Path], folder: Path, repeats: int, what: str) -> Iterator[Row]:
    """A sum written as a checkpoint, compared with mergekit, which leaves it in the page cache."""
    theirs = folder / "theirs"

    def stored() -> None:
        merged_by_mergekit(base, tuned, theirs)
        on_disk(theirs)

    seconds = turns(
        {
            "ours": lambda: merged(base, tuned, folder / "ours"),
            "in the page cache": lambda: merged_by_mergekit(base, tuned, theirs),
            "on disk, as ours": stored,
        },
        repeats,
    )
    ours = seconds.pop("ours")
    for where, values in seconds.items():
        yield {
            "name": "sum of two task vectors, written as a checkpoint, against mergekit "
            f"{version('mergekit')}, {where}",
            "model": "random Llama",
            **ratios(ours, values),
            "aim": "at most 1",
            "detail": f"{times(ours, values)}; {what}",
        }


def memory(base: Path, tuned: Path, *, largest: int) -> Iterator[Row]:
    """Peak memory of the differences, in a separate process, since freed memory is reused."""
    held = alone(__file__, "--peak-of", base, tuned)
    yield {
        "name": "private memory of the differences against the largest tensor",
        "model": "random Llama",
        "ratio": held / largest,
        "aim": "about 1",
        "detail": f"{size(held)} for a tensor of {size(largest)}",
    }


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
