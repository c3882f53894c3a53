"""Activations, Jacobian-vector products and steered generation, compared with forward passes.

    python benchmarks/bench_steering.py [--model FOLDER] [--repeats 5]

Plain passes run the same tokens through the same model in the same bucketed batches, with the
output head on the last column only. All take turns in one run; a ratio is the median of the turns.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frenet.geometry import rng
from frenet.measure.activation_shift import activation_shift
from frenet.measure.activations import last_activations
from frenet.measure.forward_passes import TOKENS, length_groups, run_blocks
from frenet.methods.steered_generation import generate_steered
from frenet.methods.steering import caa
from frenet.network.blocks import residual_blocks
from frenet.network.checkpoints.load import Loaded, load
from frenet.network.data.contrast import Contrast, Item
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import collate
from timing import STORIES, Row, attempted, model_name, ratios, run_of, show, times, turns

PAIRS, JVP_ROWS, NEW = 256, 64, 48
Routines = dict[str, Callable[[], Any]]
# Lengths of short statements.
SHORTEST, LONGEST = 8, 24


def prompts(vocabulary: int, count: int) -> list[list[int]]:
    """Random tokens: only their number affects the cost."""
    draw = rng.generator(0, "bench", "steering")
    sizes = torch.randint(SHORTEST, LONGEST + 1, (count,), generator=draw).tolist()
    return [torch.randint(vocabulary, (size,), generator=draw).tolist() for size in sizes]


def plain(model: nn.Module, rows: list[list[int]]) -> None:
    """Forward passes of the rows, bucketed by length."""
    with measuring(model), torch.no_grad():
        for group in length_groups(rows, TOKENS):
            run_blocks(model, collate([(rows[i], []) for i in group], padding_side="right"))


def generated(model: Any, prompt: list[int]) -> Any:
    """Greedy generation by transformers alone."""
    ids = torch.tensor([prompt], device=model.device)
    with measuring(model), torch.no_grad():
        return model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
            max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0,
        )  # fmt: skip


@contextmanager
def without_end(model: Any) -> Iterator[None]:
    """Generation without an end-of-sequence token: all routines make the same number of tokens."""
    ends = model.generation_config.eos_token_id, model.config.eos_token_id
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    try:
        yield
    finally:
        model.generation_config.eos_token_id, model.config.eos_token_id = ends


def run(
    source: str | Path = STORIES, repeats: int = 5, *, pairs: int = PAIRS, few: int = JVP_ROWS
) -> Iterator[Row]:
    """Contrasts with ``pairs`` pairs, Jacobian-vector products of ``few`` prompts."""
    name = model_name(source)
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "activations and products": lambda: forward(source, repeats, pairs, few),
        "steered generation": lambda: generation(source, repeats),
        "contrast vector against steering-vectors": lambda: peer(
            source, repeats, pairs, by_steering_vectors
        ),
        "contrast vector against repeng": lambda: peer(source, repeats, pairs, by_repeng),
    }
    for part, rows in parts.items():
        yield from attempted(part, rows, model=name)


def forward(source: str | Path, repeats: int, pairs: int, few: int) -> Iterator[Row]:
    """Activations and products, compared with the plain forward passes."""
    model = load(source).model
    vocabulary, count = model.config.vocab_size, len(residual_blocks(model)[1])
    rows, some = prompts(vocabulary, 2 * pairs), prompts(vocabulary, few)
    blocks = list(range(0, count, max(1, count // 4)))
    space = ParamSpace.select(model, lambda _, p: p.is_floating_point())
    step = 1e-3 * space.read(model)
    seconds = turns(
        {
            "plain": lambda: plain(model, rows),
            "activations": lambda: last_activations(model, rows, blocks),
            "plain, few": lambda: plain(model, some),
            "shift": lambda: activation_shift(model, some, step, space=space, blocks=blocks),
        },
        repeats,
    )
    yield _row(
        "activations of contrast pairs against plain forward passes", source,
        (seconds["activations"], seconds["plain"]), "at most 1.05",
        f"{pairs} pairs of {SHORTEST} to {LONGEST} tokens, {len(blocks)} of {count} blocks",
    )  # fmt: skip
    yield _row(
        "Jacobian-vector product against plain forward passes", source,
        (seconds["shift"], seconds["plain, few"]), "at most 3",
        f"{few} prompts, all {space.dim:,} weights",
    )  # fmt: skip


def generation(source: str | Path, repeats: int) -> Iterator[Row]:
    """Generation with a vector added at every token, compared with plain generation."""
    model = load(source).model
    prompt, block = prompts(model.config.vocab_size, 1)[0], len(residual_blocks(model)[1]) // 2
    vector = torch.zeros(1, model.config.hidden_size)
    with without_end(model):
        seconds = turns(
            {
                "plain": lambda: generated(model, prompt),
                "steered": lambda: generate_steered(
                    model, prompt, vector, block=block, new_tokens=NEW
                ),
            },
            repeats,
        )
    pair = seconds["steered"], seconds["plain"]
    yield _row(
        "steered generation against plain generation", source, pair, "at most 1.03",
        f"{NEW} new tokens",
    )  # fmt: skip


SENTENCE = "the city of Paris is in France and a river runs through it on its way to the sea"


def texts(count: int) -> list[tuple[str, str]]:
    """Pairs of short texts of different length."""
    words = SENTENCE.split()
    draw = rng.generator(0, "bench", "texts")
    sizes = torch.randint(SHORTEST, LONGEST + 1, (count,), generator=draw).tolist()
    bodies = [
        " ".join(words[i] for i in torch.randint(len(words), (size,), generator=draw).tolist())
        for size in sizes
    ]
    return [(f"{body} yes", f"{body} no") for body in bodies]


def peer(
    source: str | Path,
    repeats: int,
    count: int,
    routines: Callable[[Loaded, list[tuple[str, str]]], Routines],
) -> Iterator[Row]:
    """Contrast vectors at all blocks, compared with the routines of another package."""
    loaded, pairs = load(source), texts(count)
    if loaded.tokenizer.pad_token is None:
        loaded.tokenizer.pad_token = loaded.tokenizer.eos_token or loaded.tokenizer.unk_token
    items = [
        Item(first, [], (ids[0], ids[1]), None, i)
        for i, (first, second) in enumerate(pairs)
        for ids in [[loaded.tokenizer(text).input_ids for text in (first, second)]]
    ]
    contrast = Contrast("bench", "pairs", (), tuple(items))
    ours: Routines = {"ours": lambda: caa(loaded.model, contrast)}
    seconds = turns(ours | routines(loaded, pairs), repeats)
    mine = seconds.pop("ours")
    for name, theirs in seconds.items():
        yield _row(
            f"contrast vector against {name}", source, (mine, theirs), "below 1",
            f"{count} pairs, all blocks",
        )  # fmt: skip


def by_steering_vectors(loaded: Loaded, pairs: list[tuple[str, str]]) -> Routines:
    """The package steering-vectors, in batches of 32 and of its default of 1."""
    from steering_vectors import train_steering_vector

    def train(size: int) -> Any:
        return train_steering_vector(
            loaded.model, loaded.tokenizer, pairs, batch_size=size, show_progress=False
        )

    package = f"steering-vectors {version('steering-vectors')}, batch of"
    return {f"{package} 32": lambda: train(32), f"{package} 1": lambda: train(1)}


def by_repeng(loaded: Loaded, pairs: list[tuple[str, str]]) -> Routines:
    """The package repeng: its direction is a principal component of the differences."""
    from repeng import ControlVector, DatasetEntry

    entries = [DatasetEntry(positive=a, negative=b) for a, b in pairs]
    return {
        f"repeng {version('repeng')}": lambda: ControlVector.train(
            loaded.model, loaded.tokenizer, entries
        )
    }


def _row(
    name: str,
    source: str | Path,
    pair: tuple[list[float], list[float]],
    aim: str,
    detail: str,
) -> Row:
    ours, base = pair
    return {
        "name": name,
        "model": model_name(source),
        **ratios(ours, base),
        "aim": aim,
        "detail": f"{times(ours, base)}; {detail}, {run_of(len(ours))}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=STORIES, help="model folder, or GGUF file")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    show(run(options.model, options.repeats))
