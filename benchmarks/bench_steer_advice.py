"""Does the advised dose of a steering vector reach what a dense sweep reaches?

    python benchmarks/bench_steer_advice.py [--model stories260K] [--rows 32]
        [--tasks FILE.jsonl --only NAME ...]

`frenet steer recommend` chooses block and dose of every contrast on some prompts and neutral texts.
A sweep then tries every block at 24 doses on the prompts and texts that were held out. The ratio is
the change of P(positive answer) by the advised dose, over the largest one in the sweep at a cost
within the same limit, by the same rule: the upper end of its one-sided 95% interval over texts. The
sweep's best is chosen on the prompts that it is reported on, which favours it.

Without --tasks there are five contrasts made of templates that children's stories have; the labels
of the last one are drawn at random, so that the right advice is "no dose".
"""

import argparse
import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frenet.experiments.experiment import number
from frenet.experiments.steer_command import Settings
from frenet.experiments.steer_command.measure import rows_of
from frenet.experiments.steer_command.subject import Subject, subject_of
from frenet.experiments.steer_command.trials import LEVEL
from frenet.methods.steering_dose import Asked, NeutralTexts, TextCosts, shares
from frenet.network.checkpoints.load import load
from frenet.network.data.contrast import Contrast
from frenet.network.data.contrasts import contrasts
from timing import STORIES, Row, model_name, show

NAMES = ("Lily", "Tom", "Sue", "Ben", "Mia", "Max", "Anna", "Tim", "Sam", "Lucy", "Jack", "Amy")
GIRLS = {"Lily", "Sue", "Mia", "Anna", "Lucy", "Amy"}
GOOD = (
    "got a new toy", "saw a big rainbow", "found a shiny coin", "ate a yummy cake",
    "played with a puppy", "went to a fun party", "won the race", "got a big hug",
)  # fmt: skip
BAD = (
    "lost a toy", "fell and got hurt", "broke the cup", "dropped the ice cream",
    "could not find mom", "got sick in bed", "had a bad dream", "was all alone",
)  # fmt: skip
BIG = ("elephant", "whale", "house", "truck", "tree", "mountain", "bear", "ship")
SMALL = ("mouse", "ant", "button", "bee", "seed", "kitten", "bug", "crumb")
NIGHT = ("It was dark.", "The moon was up.", "The stars were bright.", "It was very late.")
DAY = ("The sun was up.", "It was morning.", "The sky was blue.", "It was a sunny day.")
# Of the sweep.
DOSES = tuple(float(f"{0.02 * 1.2**i:.3g}") for i in range(24))


def made() -> dict[str, list[dict[str, str]]]:
    """Prompts and labels of five contrasts."""
    moods = [
        (f"One day {name} {what}. {name} felt very", label)
        for name in NAMES
        for label, deeds in (("happy", GOOD), ("sad", BAD))
        for what in deeds
    ]
    pronouns = [
        (f"Once upon a time, {name} {what}. Then", "she" if name in GIRLS else "he")
        for name, what in itertools.product(NAMES, GOOD + BAD)
    ]
    sizes = [
        (f"{name} saw the {thing}. It was very", label)
        for name in NAMES
        for label, things in (("big", BIG), ("small", SMALL))
        for thing in things
    ]
    times = [
        (f"{what} {name} wanted to", label)
        for name in NAMES
        for label, skies in (("sleep", NIGHT), ("play", DAY))
        for what in skies
    ]
    coin = np.random.default_rng(0).permutation(len(moods)) % 2
    random = [
        (prompt, ("happy", "sad")[side]) for (prompt, _), side in zip(moods, coin, strict=True)
    ]
    named = {
        "mood": moods, "pronoun": pronouns, "size": sizes, "time": times, "random labels": random,
    }  # fmt: skip
    return {
        name: [{"prompt": prompt, "label": label} for prompt, label in rows]
        for name, rows in named.items()
    }


class Sweep:
    """Every block at every dose, on held-out prompts and texts."""

    def __init__(self, subject: Subject) -> None:
        self.subject, test = subject, Asked.of(subject.model, subject.test)
        before = float(shares(test.before).mean())
        self.changes = {
            block: shares(
                test.odds(block, torch.stack([subject.added(block, dose) for dose in DOSES]))
            ).mean(0)
            - before
            for block in subject.blocks
        }
        self.texts = NeutralTexts(subject.model, subject.held_out)
        self.costs: dict[tuple[int, float], TextCosts] = {}

    def cost(self, block: int, dose: float, rule: str) -> float:
        """Mean cost, or the upper end of its interval."""
        if (block, dose) not in self.costs:
            added = self.subject.added(block, dose)
            self.costs[block, dose] = self.texts.costs(block, added, level=LEVEL)
        return float(getattr(self.costs[block, dose].kl, rule))

    def best(self, rule: str) -> tuple[float, int, float]:
        """The largest change within the limit of the cost, with its block and dose."""
        limit, found = self.subject.settings.max_cost, []
        for block, changes in self.changes.items():
            count = bisect_right(DOSES, limit, key=partial(self.cost, block, rule=rule))
            found += [(float(changes[i]), block, DOSES[i]) for i in range(count)]
        return max(found)


def measured(subject: Subject, model: str) -> Row:
    """The row of one contrast."""
    rows = list(rows_of(subject, lambda _: None))
    (advice,) = [row for row in rows if row["table"] == "advice"]
    name, sizes = subject.name, f"{len(subject.test.items)} held-out prompts"
    aim = "at most 0" if name.startswith("random") else "at least 0.9"
    if advice["reason"]:
        said = f"no dose ({advice['reason']})"
        if advice.get("lead") is not None:
            said += f": best {advice['share']:.3f}, largest null vector {advice['null']:.3f}"
        return {
            "name": f"advised dose, {name}", "model": model, "ratio": 0.0, "aim": aim,
            "detail": f"{said}; {sizes}",
        }  # fmt: skip
    sweep, change = Sweep(subject), number(advice, "change")
    null = number(advice, "null") - number(advice, "before")
    same, mean = sweep.best("high"), sweep.best("value")
    return {
        "name": f"effect of the advised dose against the best of a sweep, {name}",
        "model": model,
        "ratio": change / same[0],
        "aim": aim,
        "detail": f"block {advice['block']}, dose {advice['dose']:g}: {change:+.3f}, largest null "
        f"{null:+.3f}, cost {advice['cost']:.3f}; sweep: block "
        f"{same[1]}, dose {same[2]:g}: {same[0]:+.3f}; {change / mean[0]:.2f} of its best by the "
        f"mean cost, {mean[0]:+.3f}; {sizes}",
    }


def run(
    model: str | Path = STORIES,
    rows: int = 32,
    draws: int = 16,
    tasks: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Iterator[Row]:
    """A row for every contrast."""
    loaded = load(model)
    found: dict[str, Contrast] = {}
    if tasks:
        for file in tasks:
            found |= contrasts(file, loaded.tokenizer, max_length=256)
    else:
        for name, prompts in made().items():
            (contrast,) = contrasts(prompts, loaded.tokenizer, max_length=256).values()
            found[name] = Contrast(name, contrast.kind, contrast.words, contrast.items)
    settings: dict[str, Any] = {"rows": rows, "draws": draws}
    for name in only or found:
        subject = subject_of(
            loaded.model, found[name], loaded.tokenizer, settings=Settings(**settings)
        )
        yield measured(subject, model_name(model))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=STORIES)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tasks", nargs="*", default=())
    parser.add_argument("--only", nargs="*", default=())
    given = parser.parse_args()
    show(run(given.model, given.rows, tasks=given.tasks, only=given.only))
