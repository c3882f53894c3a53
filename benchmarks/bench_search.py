"""Candidates of a random search, compared with plain inference and with the usual loop.

    python benchmarks/bench_search.py [--model FOLDER] [--repeats 5]

Plain inference runs the same tokens through the unperturbed model in the same batches. The loop of
published code adds seeded noise to the weights in place, evaluates, and subtracts it. All take
turns in one run, and a ratio is the median of the ratios of the turns; above 1 frenet is faster.
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from frenet.geometry import rng
from frenet.methods.candidates import Noise, space_of
from frenet.methods.evaluation import Evaluator
from frenet.network.blocks import block_list
from frenet.network.checkpoints.load import load
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch, token_loss
from timing import (
    STORIES,
    RandomTokens,
    Row,
    adapted,
    alone,
    attempted,
    high_water,
    model_name,
    ratios,
    run_of,
    show,
    times,
    turns,
)
from units import size

# Rows and tokens of the batch that scores every candidate.
SHAPES = ((2, 16), (8, 32), (32, 64))
NOISE = Noise(1e-3)


def plain(model: nn.Module, batch: Batch, count: int, group: int) -> None:
    """The same tokens, as many at a time as ``group`` candidates have, without a candidate."""
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
                    device = parameter.device
                    generator = torch.Generator(device).manual_seed(index)
                    noise = torch.randn(parameter.shape, generator=generator, device=device)
                    parameter.add_(noise, alpha=sign * NOISE.sigma)
                if sign == 1:
                    float(token_loss(model, batch))


def shaped(vocabulary: int, rows: int, tokens: int) -> Batch:
    """Rows of random tokens, a quarter of them targets."""
    task = RandomTokens(vocabulary, context=tokens - tokens // 4, target=tokens // 4)
    return next(task.batches("select", rows, 0))


def adapters(
    source: str | Path, repeats: int, shapes: Sequence[tuple[int, int]], most: int
) -> Iterator[Row]:
    """Rank-4 adapters, in all blocks and in the last third of them."""
    model, tokens, space = adapted(source)
    count = len(block_list(model))
    late = {f".{i}." for i in range(count - count // 3, count)}
    places = {
        "all blocks": space,
        "the last third": ParamSpace.select(
            model, lambda name, _: "lora_" in name and any(part in name for part in late)
        ),
    }
    for rows, length in shapes:
        batch = shaped(tokens.vocabulary, rows, length)
        for where, part in places.items():
            # As in a search, which decides for all candidates on two of them.
            evaluator = Evaluator(part, NOISE, "loss", batch).decide(model)
            n = max(min(8, most), min(most, evaluator.most))
            seconds = turns(_routines(model, evaluator, n), repeats)
            what = f"{rows} x {length} tokens, {where}"
            yield from _rows(seconds, model_name(source), part, what, n)


def _routines(model: Any, evaluator: Evaluator, n: int) -> dict[str, Callable[[], Any]]:
    batch, space = evaluator.batch, space_of(evaluator.where)

    def unperturbed() -> None:
        with model.disable_adapter():
            plain(model, batch, n, evaluator.most)

    return {
        "ours": lambda: evaluator(model, range(n)),
        "plain inference": unperturbed,
        "perturb, evaluate, subtract": lambda: loop(model, space, batch, n),
    }


def _rows(
    seconds: dict[str, list[float]], model: str, space: ParamSpace, what: str, n: int
) -> Iterator[Row]:
    ours = seconds.pop("ours")
    rate = n / statistics.median(ours)
    late, small = "last third" in what, what.startswith("2 x")
    aims = {
        "plain inference": "above 1" if late else "at least 0.95",
        "perturb, evaluate, subtract": "at least 1.8" if small else "at least 1",
    }
    for name, other in seconds.items():
        yield {
            "name": f"candidates per second against {name}, {what}",
            "model": model,
            **ratios(other, ours),
            "aim": aims[name],
            "detail": f"{rate:.1f} candidates a second; d = {space.dim:,}, N = {n}, "
            f"{run_of(len(ours))}",
        }


def full_weights(
    source: str | Path, repeats: int, shape: tuple[int, int], count: int
) -> Iterator[Row]:
    """Noise on all weights, in place."""
    model = load(source).model
    space = ParamSpace.select(model)
    batch = shaped(model.config.vocab_size, *shape)
    evaluator = Evaluator(space, NOISE, "loss", batch).decide(model)
    routines = {
        "ours": lambda: evaluator(model, range(count)),
        "unperturbed evaluation": lambda: plain(model, batch, count, 1),
        "perturb, evaluate, subtract": lambda: loop(model, space, batch, count),
    }
    seconds = turns(routines, repeats)
    ours = seconds.pop("ours")
    # Drawing and writing weigh the more the fewer tokens there are.
    first = "at most 1.15" if shape == SHAPES[-1] else "at most 1.5"
    for (name, other), aim in zip(seconds.items(), (first, "below 1"), strict=True):
        yield {
            "name": f"full-weight candidates: time against {name}, {shape[0]} x {shape[1]} tokens",
            "model": model_name(source),
            **ratios(ours, other),
            "aim": aim,
            "detail": f"{times(ours, other)}; d = {space.dim:,}, N = {count}, {run_of(repeats)}",
        }


def drawing(repeats: int, count: int = 2**24) -> Iterator[Row]:
    """Random numbers alone, compared with the draw of version 0.1.0 and with torch's."""
    out = torch.empty(count)
    seconds = turns(
        {
            "ours": lambda: rng.stream(0, "bench").fill(out),
            "Philox and ziggurat of NumPy, as in 0.1.0": lambda: philox(out.numpy()),
            "torch.randn": lambda: torch.randn(count, generator=rng.generator(0), out=out),
        },
        repeats,
    )
    ours = seconds.pop("ours")
    for name, other in seconds.items():
        yield {
            "name": f"time to draw normal numbers against {name}",
            "model": "-",
            **ratios(ours, other),
            "aim": "below 1",
            "detail": f"{times(ours, other)}; {count:,} numbers, {run_of(repeats)}",
        }


def philox(out: np.ndarray, block: int = 2**18) -> None:
    """Every block from a generator of its own, in as many threads as torch uses."""

    def fill(start: int) -> None:
        numbers = np.random.Generator(np.random.Philox(key=start))
        numbers.standard_normal(out=out[start : start + block], dtype=np.float32)

    rng.side_by_side(fill, [(start,) for start in range(0, len(out), block)])


def memory() -> Iterator[Row]:
    """Peak of a search in all weights of a random network, above plain evaluation."""
    plain_peak, searched, weights = (
        alone(__file__, "--peak-of", what) for what in ("plain", "search", "weights")
    )
    yield {
        "name": "peak memory of a search above plain evaluation, against the weights it moves",
        "model": "random Llama",
        "ratio": (searched - plain_peak) / weights,
        "aim": "at most 1.5",
        "detail": f"{size(searched - plain_peak)} for weights of {size(weights)}: a saved copy, "
        "and blocks of noise; 8 x 32 tokens",
    }


def peak(what: str) -> int:
    """Bytes of the ``weights``, or the peak during a ``plain`` evaluation or a ``search``."""
    config = LlamaConfig(
        vocab_size=16384, hidden_size=512, intermediate_size=2048, num_hidden_layers=12,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().to("cuda" if torch.cuda.is_available() else "cpu")
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


def run(
    source: str | Path = STORIES,
    repeats: int = 5,
    *,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    most: int = 64,
    whole: int = 8,
    whole_shapes: Sequence[tuple[int, int]] = SHAPES[1:],
) -> Iterator[Row]:
    """At most ``most`` candidates of adapters per turn, ``whole`` of all weights."""
    name = model_name(source)
    yield from attempted(
        "candidates of adapters", lambda: adapters(source, repeats, shapes, most), model=name
    )
    for shape in whole_shapes:
        routine = functools.partial(full_weights, source, repeats, shape, whole)
        yield from attempted("full-weight candidates", routine, model=name)
    if source == STORIES:
        yield from attempted("drawing", lambda: drawing(repeats))
        yield from attempted("peak memory of a search", memory)


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
