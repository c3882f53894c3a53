"""Rows of `frenet steer recommend`: doses that were tried, and the chosen one on other prompts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from frenet.experiments.experiment import Cell, Row, number
from frenet.experiments.setup.knowledge import agreement
from frenet.experiments.steer_command import Config
from frenet.experiments.steer_command.subject import Subject, load_subject
from frenet.experiments.steer_command.trials import (
    FINALISTS,
    Candidate,
    Trials,
    chosen,
    halved,
    nulls_at,
    spread,
)
from frenet.methods.steering_dose import NULLS, Asked, NeutralTexts, TextCosts, largest_null, shares
from frenet.statistics.intervals import Estimate, mean_interval

# Doses whose cost is measured at a block, about: the last one within its limit, and the next.
LOOKS = 3
# Doses that are reported at the chosen block, besides the first one beyond the cost.
REPORTED = 5


def prepare(config: Config, cell: Cell) -> None:
    """Load the model, also if files of the same names were loaded before."""
    load_subject.cache_clear()
    load_subject(config)


def run(config: Config, cell: Cell, say: Callable[[str], None] | None = None) -> Iterator[Row]:
    """The rows of the contrast.

    Args:
        config: what to measure.
        cell: the contrast.
        say: takes what a person should know before a long step.
    """
    yield from rows_of(load_subject(config), say or (lambda _: None))


def rows_of(subject: Subject, say: Callable[[str], None]) -> Iterator[Row]:
    """The tables notes, tried, dose and advice."""
    for note in subject.notes:
        yield {"table": "notes", "note": note}
    say(_announced(subject))
    trials = Trials(subject)
    best = chosen(trials)
    yield from trials.rows()
    if best is None:
        yield _advice(subject, trials) | {"reason": "cost"}
        return
    test = Asked.of(subject.model, subject.test, path=subject.path)
    say(f"testing block {best.block}, dose {best.dose:g}, on other prompts and texts")
    doses = list(_dose_rows(subject, test, best))
    yield from doses
    yield _advised(subject, trials, test, best, doses)


def _announced(subject: Subject) -> str:
    """What the measurement costs, beforehand."""
    settings = subject.settings
    prompts = sum(len(part.items) for part in (subject.select, subject.test))
    blocks, step = spread(subject.blocks)
    tried = len(subject.blocks) if settings.blocks else len(blocks) + 2 * (step.bit_length() - 1)
    texts = len(subject.neutral) * (tried * LOOKS + 1) + 2 * len(subject.held_out) * (REPORTED + 1)
    nulls = 4 * settings.draws + 2 * len(subject.others)
    leads = FINALISTS * (1 + len(halved(settings.doses, max(settings.doses))))
    single = len(subject.select.items) * (tried * len(settings.doses) + leads * nulls)
    single += len(subject.test.items) * (REPORTED + 1) * (nulls + 1)
    return (
        f"{subject.name}: at most {tried} of {len(subject.blocks)} blocks and "
        f"{len(settings.doses)} doses; about {2 * prompts + texts:,} forward passes of a prompt or "
        f"neutral text, and up to {single:,} of one token that go on from cached prompts"
    )


def _dose_rows(subject: Subject, test: Asked, best: Candidate) -> Iterator[Row]:
    """The table dose: the chosen block on the test prompts, at the chosen dose and around it."""
    doses = _reported(subject.settings.doses, best.dose)
    block, rho = best.block, subject.vector.norms[best.block]
    nulls = nulls_at(subject, block)
    before = shares(test.before)
    after = shares(test.odds(block, torch.stack([subject.added(block, d) for d in doses])))
    random = nulls["matched"][0]
    texts = NeutralTexts(subject.model, subject.held_out, path=subject.path)
    for i, dose in enumerate(doses):
        null = largest_null(test, block, nulls, dose * rho)
        yield {
            "table": "dose", "contrast": subject.name, "block": block, "dose": dose,
            **_share(after[:, i], before), **_lead(after[:, i] - null.shares),
            "null": float(null.shares.mean()), "null_kind": NULLS[null.kind],
            "nulls": null.drawn,
            **_cost(
                texts.costs(block, subject.added(block, dose)),
                texts.costs(block, dose * rho * random),
            ),
            "max_cost": subject.settings.max_cost, "chosen": dose == best.dose,
        }  # fmt: skip


def _reported(doses: Sequence[float], best: float) -> list[float]:
    """The chosen dose, some smaller ones and the next larger one.

    >>> _reported((0.05, 0.1, 0.2, 0.4, 0.8, 1.6), 0.3)
    [0.05, 0.1, 0.2, 0.3, 0.4]
    """
    smaller = sorted(dose for dose in doses if dose < best)
    larger = sorted(dose for dose in doses if dose > best)
    kept = smaller[-1::-2] if len(smaller) >= REPORTED else smaller
    return sorted([*kept[: REPORTED - 1], best, *larger[:1]])


def _share(after: np.ndarray, before: np.ndarray) -> Row:
    change = mean_interval((after - before).tolist())
    return {
        "share": float(after.mean()), "before": float(before.mean()), "change": change.value,
        "change_low": change.low, "change_high": change.high, "none": 0.0,
    }  # fmt: skip


def _lead(lead: np.ndarray) -> Row:
    found = mean_interval(lead.tolist())
    return {"lead": found.value, "lead_low": found.low, "lead_high": found.high}


def _cost(cost: TextCosts, random: TextCosts) -> Row:
    def ends(name: str, found: Estimate) -> Row:
        # Neither mean nor interval of a divergence lies below 0.
        low = found.low if name == "loss_change" or found.low is None else max(found.low, 0.0)
        return {name: found.value, f"{name}_low": low, f"{name}_high": found.high}

    return {
        **ends("cost", cost.kl), "cost_random": random.kl.value, **ends("loss_change", cost.loss),
        "loss_change_random": random.loss.value,
    }  # fmt: skip


def _advice(subject: Subject, trials: Trials) -> Row:
    """What the row of the advice holds in any case."""
    settings = subject.settings
    return {
        "table": "advice", "contrast": subject.name, "answer": subject.answer,
        **agreement(subject.select, trials.asked.before),
        "max_cost": settings.max_cost, "least_dose": min(settings.doses),
    }  # fmt: skip


def _advised(
    subject: Subject, trials: Trials, test: Asked, best: Candidate, doses: Sequence[Row]
) -> Row:
    """The row of the advice: the chosen dose on the test prompts, or why there is none."""
    (row,) = [row for row in doses if row["chosen"]]
    both = replace(subject.select, items=subject.select.items + subject.test.items)
    good = [number(each, "dose") for each in doses if not _refused(each)]
    served = shares(test.everywhere(best.block, subject.added(best.block, best.dose)))
    measured = {key: value for key, value in row.items() if key not in ("table", "chosen")}
    return {
        **_advice(subject, trials), **measured,
        **agreement(both, np.concatenate([trials.asked.before, test.before])),
        "reason": _refused(row), "at_edge": best.at_edge,
        "dose_low": min(good, default=None), "dose_high": max(good, default=None),
        "served": float(served.mean()), "stream_norm": subject.vector.norms[best.block],
        "vector_norm": float(subject.vector.at(best.block).norm()),
    }  # fmt: skip


def _refused(row: Row) -> str:
    """Why a dose is not advised: a word for the reason, or empty."""
    if row["lead_low"] is None or number(row, "lead_low") <= 0:
        return "null"
    return "held-out cost" if number(row, "cost") > number(row, "max_cost") else ""
