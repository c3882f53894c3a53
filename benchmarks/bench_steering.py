"""Activations, Jacobian-vector products and steered generation against plain forward passes.

    python benchmarks/bench_steering.py [--model FOLDER] [--repeats 5]

Plain passes run the same tokens through the same model in the same bucketed batches, the output
head on the last column only. All take turns in one run; a ratio is the median of the turns.
"""

import argparse
import importlib.util
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench_gradients import STORIES, ratio, show, turns
from frenet.geometry import rng
from frenet.measure.activations import TOKENS, last_activations, length_groups, run_blocks
from frenet.measure.shift import activation_shift
from frenet.methods.steered_generation import generate_steered
from frenet.methods.steering import caa
from frenet.network.blocks import residual_blocks
from frenet.network.context import measuring
from frenet.network.contrast import Contrast, Item
from frenet.network.load import load
from frenet.network.space import ParamSpace
from frenet.network.tasks import collate

PAIRS, JVP_ROWS, NEW = 256, 64, 48
# Lengths of short statements.
SHORTEST, LONGEST = 8, 24


def prompts(vocabulary: int, count: int) -> list[list[int]]:
    """Random tokens: what they say costs nothing, their number does."""
    draw = rng.generator(0, "bench", "steering")
    sizes = torch.randint(SHORTEST, LONGEST + 1, (count,), generator=draw).tolist()
    return [torch.randint(vocabulary, (size,), generator=draw).tolist() for size in sizes]


def plain(model: nn.Module, rows: list[list[int]]) -> None:
    """Forward passes of the rows, bucketed by length."""
    with measuring(model), torch.no_grad():
        for group in length_groups(rows, TOKENS):
            run_blocks(model, collate([(rows[i], []) for i in group], padding_side="right"))


def generated(model: Any, prompt: list[int]) -> Any:
    """Greedy generation by transformers, without anything of ours."""
    ids = torch.tensor([prompt])
    with measuring(model), torch.no_grad():
        return model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
            max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0,
        )  # fmt: skip


@contextmanager
def without_end(model: Any) -> Iterator[None]:
    """Inside, generation does not stop early: all routines make the same number of tokens."""
    own = model.generation_config.eos_token_id, model.config.eos_token_id
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    try:
        yield
    finally:
        model.generation_config.eos_token_id, model.config.eos_token_id = own


def run(source: str | Path = STORIES, repeats: int = 5) -> list[dict[str, Any]]:
    """Rows for the table of all benchmarks."""
    model = load(source).model
    vocabulary, count = model.config.vocab_size, len(residual_blocks(model)[1])
    rows, few = prompts(vocabulary, 2 * PAIRS), prompts(vocabulary, JVP_ROWS)
    asked = list(range(0, count, max(1, count // 4)))
    space = ParamSpace.select(model, lambda _, p: p.is_floating_point())
    step = 1e-3 * space.read(model)
    prompt, width = rows[0], model.config.hidden_size
    vector = torch.zeros(1, width)
    routines: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain(model, rows),
        "activations": lambda: last_activations(model, rows, asked),
        "plain, few": lambda: plain(model, few),
        "shift": lambda: activation_shift(model, few, step, space=space, blocks=asked),
    }
    seconds = turns(routines, repeats)
    with without_end(model):
        seconds |= turns(
            {
                "generate": lambda: generated(model, prompt),
                "steered": lambda: generate_steered(
                    model, prompt, vector, block=count // 2, new_tokens=NEW
                ),
            },
            repeats,
        )
    where = f"{Path(source).name}, {torch.get_num_threads()} threads, median of {repeats}"
    return [
        _row("activations of contrast pairs", seconds, ("activations", "plain"),
             "at most 1.05", f"{PAIRS} pairs of {SHORTEST} to {LONGEST} tokens, {len(asked)} of "
             f"{count} blocks; {where}"),
        _row("Jacobian-vector product", seconds, ("shift", "plain, few"), "at most 3",
             f"{JVP_ROWS} prompts, all {space.dim:,} weights; {where}"),
        _row("steered generation", seconds, ("steered", "generate"), "at most 1.03",
             f"{NEW} new tokens; {where}"),
        *peers(source, repeats),
    ]  # fmt: skip


SENTENCE = "the city of Paris is in France and a river runs through it on its way to the sea"


def texts(count: int) -> list[tuple[str, str]]:
    """Pairs of short texts of unlike length."""
    words = SENTENCE.split()
    draw = rng.generator(0, "bench", "texts")
    sizes = torch.randint(SHORTEST, LONGEST + 1, (count,), generator=draw).tolist()
    bodies = [
        " ".join(words[i] for i in torch.randint(len(words), (size,), generator=draw).tolist())
        for size in sizes
    ]
    return [(f"{body} yes", f"{body} no") for body in bodies]


def peers(source: str | Path, repeats: int) -> list[dict[str, Any]]:
    """Contrast vectors at all blocks, against the package steering-vectors; without it no row."""
    if importlib.util.find_spec("steering_vectors") is None:
        return []
    from importlib.metadata import version

    from steering_vectors import train_steering_vector

    loaded = load(source)
    model, pairs = loaded.model, texts(PAIRS)
    if loaded.tokenizer.pad_token is None:
        loaded.tokenizer.pad_token = loaded.tokenizer.eos_token or loaded.tokenizer.unk_token
    items = [
        Item(first, [], (ids[0], ids[1]), None, None, i)
        for i, (first, second) in enumerate(pairs)
        for ids in [[loaded.tokenizer(text).input_ids for text in (first, second)]]
    ]
    contrast = Contrast("bench", "pairs", (), tuple(items))

    def theirs(batch_size: int) -> Any:
        return train_steering_vector(
            model, loaded.tokenizer, pairs, batch_size=batch_size, show_progress=False
        )

    seconds = turns(
        {"ours": lambda: caa(model, contrast), "32": lambda: theirs(32), "1": lambda: theirs(1)},
        repeats,
    )
    where = f"{Path(source).name}, {torch.get_num_threads()} threads, median of {repeats}"
    return [
        {
            "name": f"contrast vector against steering-vectors {version('steering-vectors')}, "
            f"batch of {size}",
            "ratio": ratio(seconds["ours"], seconds[size]),
            "aim": "below 1",
            "detail": f"{statistics.median(seconds['ours']):.2f} s against "
            f"{statistics.median(seconds[size]):.2f} s; {PAIRS} pairs, all blocks; {where}",
        }
        for size in ("32", "1")
    ]


def _row(
    name: str, seconds: dict[str, list[float]], pair: tuple[str, str], aim: str, detail: str
) -> dict[str, Any]:
    ours, base = (seconds[key] for key in pair)
    times = " against ".join(f"{statistics.median(part):.3f} s" for part in (ours, base))
    return {
        "name": f"{name} against plain {'generation' if 'gener' in name else 'forward passes'}",
        "ratio": ratio(ours, base),
        "aim": aim,
        "detail": f"{times}; {detail}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=STORIES, help="model folder, or GGUF file")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    show(run(options.model, options.repeats))
