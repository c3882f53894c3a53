"""Disjoint train, select and test examples: the splits of the file, or drawn by a seed."""

from collections import Counter
from collections.abc import Sequence

import torch

from frenet._errors import UsageError
from frenet.geometry import rng
from frenet.network.data.schemas import Record
from frenet.network.tasks import Split

SPLITS: tuple[Split, ...] = ("train", "select", "test")
DRAWN_SHARE = 0.15


def own_splits(rows: Sequence[Record]) -> tuple[dict[Split, list[Record]], list[str]]:
    """Rows by the splits of the file, and notes on how its splits are used.

    Train and test rows keep their split; dev and val rows become select. If a file has only dev
    and val, dev is train and val is test. Without splits all rows are train.
    """
    stages: dict[str, list[Record]] = {}
    for row in rows:
        stages.setdefault(row.split or "train", []).append(row)
    roles, notes = _roles(set(stages))
    parts: dict[Split, list[Record]] = {split: [] for split in SPLITS}
    for stage, part in stages.items():
        parts[roles[stage]] += part
    return parts, notes


def completed(
    parts: dict[Split, list[Record]], *, name: str, seed: int
) -> tuple[dict[Split, list[Record]], list[str]]:
    """All three splits without a shared prompt, and notes on what was dropped or drawn.

    A missing split is drawn from train, whole prompts at a time, in an order that ``seed`` fixes:
    15% of the prompts for test, 15% for select, and at most half of train each time.

    Raises:
        ValueError: there are too few prompts for three splits.
    """
    parts, notes = _without_shared_prompts(parts)
    order = rng.generator(seed, "splits", name)
    total = len({_key(row) for part in parts.values() for row in part})
    for split in ("test", "select"):
        if not parts[split]:
            parts = _carve(parts, split, count=round(DRAWN_SHARE * total), generator=order)
            notes.append(f"{split}: {len(parts[split])} rows drawn from train, split seed {seed}")
    empty = [split for split in SPLITS if not parts[split]]
    if empty:
        raise UsageError(
            f"task {name!r} has {total} distinct prompts and none is left for "
            f"{' and '.join(empty)}; pass at least 3"
        )
    return parts, notes


def _roles(stages: set[str]) -> tuple[dict[str, Split], list[str]]:
    """The use of each split of the file, and a note if it differs from the name."""
    if len(stages) == 1:
        (only,) = stages
        note = [] if only == "train" else [f"the file has only {only} rows: they are divided"]
        return {only: "train"}, note
    roles: dict[str, Split] = {"train": "train", "dev": "select", "val": "select", "test": "test"}
    notes = []
    if "train" not in stages:
        source = "dev" if "dev" in stages else "val"
        roles[source] = "train"
        if "test" not in stages:
            roles["val"] = "test"
        others = ", ".join(f"{s} as {roles[s]}" for s in sorted(stages))
        notes = [f"the file has no train rows: {others}"]
    return roles, notes


def _key(row: Record) -> str:
    """The text that may not occur in two splits: the prompt, or all of it without a prompt."""
    return row.key or row.prompt or row.completion


def _without_shared_prompts(
    parts: dict[Split, list[Record]],
) -> tuple[dict[Split, list[Record]], list[str]]:
    """Each row once, each prompt in one split: rather in test than select, in select than train."""
    taken: set[str] = set()
    unique: dict[Split, list[Record]] = {}
    repeated: Counter[str] = Counter()
    shared: Counter[str] = Counter()
    for split in reversed(SPLITS):
        seen: set[tuple[str, str]] = set()
        unique[split] = []
        for row in parts[split]:
            pair = (row.prompt, row.completion)
            if _key(row) in taken:
                shared[split] += 1
            elif pair in seen:
                repeated[split] += 1
            else:
                seen.add(pair)
                unique[split].append(row)
        taken |= {_key(row) for row in unique[split]}
    notes = [f"{split}: {n} repeated rows dropped" for split, n in repeated.items()]
    notes += [
        f"{split}: {n} rows dropped because a later split has their prompt"
        for split, n in shared.items()
    ]
    return {split: unique[split] for split in SPLITS}, notes


def _carve(
    parts: dict[Split, list[Record]], split: Split, *, count: int, generator: torch.Generator
) -> dict[Split, list[Record]]:
    """Move ``count`` prompts, from one to half of all, with all their rows from train."""
    prompts = list(dict.fromkeys(_key(row) for row in parts["train"]))
    order = torch.randperm(len(prompts), generator=generator).tolist()
    chosen = {prompts[i] for i in order[: max(1, min(count, len(prompts) // 2))]}
    return {
        **parts,
        split: [row for row in parts["train"] if _key(row) in chosen],
        "train": [row for row in parts["train"] if _key(row) not in chosen],
    }
