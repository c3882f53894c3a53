"""Candidates of a random search against plain inference, and against the usual loop.

    python benchmarks/bench_search.py [--model FOLDER] [--repeats 5]

Plain inference runs the same tokens through the unperturbed model in the same batches. The loop is
what published code does: add seeded noise to the weights in place, evaluate, subtract it. All take
turns in one run, and a ratio is the median of the ratios of the turns; above 1 frenet is faster.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bench_gradients import STORIES, RandomTokens, adapted, high_water, ratio, show, turns
from frenet.methods.candidates import Candidates, Noise
from frenet.methods.evaluation import Evaluator, group_size
from frenet.network.blocks import block_list
from frenet.network.context import measuring
from frenet.network.load import load
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, token_loss

SHAPES = ((2, 16), (8, 32), (32, 64))
NOISE = Noise(1e-3)


def plain(model: nn.Module, batch: Batch, count: int, group: int) -> None:
    """The same tokens, ``group`` candidates' worth at a time, without any candidate."""
    with measuring(model), torch.no_grad():
        for start in range(0, count, group):
            copies = min(group, count - start)
            token_loss(model, {key: value.repeat(copies, 1) for key, value in batch.items()})


def loop(model: nn.Module, space: ParamSpace, batch: Batch, count: int) -> None:
    """Perturb, evaluate, subtract; one generator for each tensor."""
    parameters = space.parameters(model)
    with measuring(model), torch.no_grad():
        for index in range(count):
            for sign in (1, -1):
                for parameter in parameters:
                    generator = torch.Generator().manual_seed(index)
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(noise, alpha=sign * NOISE.sigma)
                if sign == 1:
                    float(token_loss(model, batch))


def shaped(vocabulary: int, rows: int, tokens: int) -> Batch:
    """Rows of random tokens, a quarter of them targets."""
    task = RandomTokens(vocabulary, context=tokens - tokens // 4, target=tokens // 4)
    return next(task.batches("select", rows, 0))


def adapters(source: str | Path, repeats: int) -> list[dict[str, Any]]:
    """Rank-4 adapters, in all blocks and in the last third of them."""
    model, tokens, space = adapted(source)
    base: Any = model
    count = len(block_list(model))
    late = {f".{i}." for i in range(count - count // 3, count)}
    places = {
        "all blocks": space,
        "the last third": ParamSpace.select(
            model, lambda name, _: "lora_" in name and any(part in name for part in late)
        ),
    }
    found = []
    for rows, length in SHAPES:
        batch = shaped(tokens.vocabulary, rows, length)
        for where, part in places.items():
            with Candidates(model, part, NOISE) as candidates:
                group = group_size(candidates, batch)
            n = max(8, min(64, group))
            seconds = turns(_routines(base, part, batch, n, group), repeats)
            found += _rows(seconds, source, part, f"{rows} x {length} tokens, {where}", n)
    return found


def _routines(
    model: Any, space: ParamSpace, batch: Batch, n: int, group: int
) -> dict[str, Callable[[], Any]]:
    evaluator = Evaluator(space, NOISE, "loss", batch)

    def unperturbed() -> None:
        with model.disable_adapter():
            plain(model, batch, n, group)

    return {
        "ours": lambda: evaluator(model, range(n)),
        "plain inference": unperturbed,
        "perturb, evaluate, subtract": lambda: loop(model, space, batch, n),
    }


def _rows(
    seconds: dict[str, list[float]], source: str | Path, space: ParamSpace, what: str, n: int
) -> list[dict[str, Any]]:
    ours = seconds.pop("ours")
    rate = n / statistics.median(ours)
    late, small = "last third" in what, what.startswith("2 x")
    aims = {
        "plain inference": "above 1" if late else "at least 0.95",
        "perturb, evaluate, subtract": "at least 1.8" if small else "at least 1",
    }
    return [
        {
            "name": f"candidates per second against {name}, {what}",
            "ratio": ratio(other, ours),
            "aim": aims[name],
            "detail": f"{rate:.1f} candidates a second; {Path(source).name}, d = {space.dim:,}, "
            f"N = {n}, {torch.get_num_threads()} threads, median of {len(ours)}",
        }
        for name, other in seconds.items()
    ]


def full_weights(source: str | Path, repeats: int) -> dict[str, Any]:
    """Noise on all weights in place, at an evaluation batch of 2,048 tokens."""
    model = load(source).model
    space = ParamSpace.select(model)
    batch = shaped(model.config.vocab_size, 32, 64)
    evaluator = Evaluator(space, NOISE, "loss", batch)
    seconds = turns(
        {"ours": lambda: evaluator(model, range(8)), "plain": lambda: plain(model, batch, 8, 1)},
        repeats,
    )
    return {
        "name": "full-weight candidates: time against unperturbed evaluation",
        "ratio": ratio(seconds["ours"], seconds["plain"]),
        "aim": "at most 1.15",
        "detail": f"{Path(source).name}, d = {space.dim:,}, 32 x 64 tokens, "
        f"{torch.get_num_threads()} threads, median of {repeats}",
    }


def memory() -> dict[str, Any]:
    """Peak of a search in all weights of a random network, above plain evaluation of its batch."""
    found = []
    for what in ("plain", "search", "weights"):
        command = [sys.executable, __file__, "--peak-of", what]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(int(done.stdout))
    plain_peak, searched, weights = found
    return {
        "name": "peak memory of a search above plain evaluation, against the weights it moves",
        "ratio": (searched - plain_peak) / weights,
        "aim": "at most 1.5",
        "detail": f"{(searched - plain_peak) / 2**20:.0f} MB for weights of {weights / 2**20:.0f} "
        "MB: a saved copy, and the noise of one tensor; Llama architecture, random weights, 8 x 32 "
        "tokens",
    }


def peak(what: str) -> int:
    """Bytes of the ``weights``, or at most during a ``plain`` evaluation or a ``search``."""
    config = LlamaConfig(
        vocab_size=16384, hidden_size=512, intermediate_size=2048, num_hidden_layers=12,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    space = ParamSpace.select(model)
    if what == "weights":
        return 4 * space.dim
    batch = shaped(config.vocab_size, 8, 32)
    plain(model, batch, 1, 1)
    evaluator = Evaluator(space, NOISE, "loss", batch)
    routine = (
        (lambda: evaluator(model, range(2)))
        if what == "search"
        else (lambda: plain(model, batch, 2, 1))
    )
    return high_water(routine)


def run(source: str | Path = STORIES, repeats: int = 5) -> list[dict[str, Any]]:
    """Rows for the table of all benchmarks."""
    return [*adapters(source, repeats), full_weights(source, repeats), memory()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=STORIES, help="model folder, or GGUF file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of is not None:
        print(peak(options.peak_of))
    else:
        show(run(options.model, options.repeats))
