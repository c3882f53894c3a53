"""The coefficient and the ranks that a probe advises for an adapter, against dense sweeps.

    python benchmarks/bench_advice.py [--model FOLDER] [--data FOLDER] [--rows 96]

Each adapter is trained on the train rows of a file. The coefficient and the ranks are chosen on
select rows and judged on the first 32 test rows, as `frenet probe` does. The sweep runs on the
other test rows, which no choice has seen: 40 coefficients from 0.1 to 4, and every rank that is
the same for all weights. A ratio is what the advice takes off their loss, over the most that any
point of the sweep takes off. For a negated adapter the right advice is none.
"""

import argparse
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import nn

from frenet.experiments.direction_scale import PROBE
from frenet.measure.displaced import DisplacedLosses, LossCurve, moving
from frenet.measure.trajectory import Training, train_and_record
from frenet.methods.coefficient import Advice, best_coefficient
from frenet.methods.rank_choice import (
    CutLosses,
    RankAdvice,
    choose_ranks,
    cut_losses,
    factored_parts,
)
from frenet.methods.task_vectors import TaskVector, from_adapter
from frenet.network.adapters import attach_lora
from frenet.network.checkpoints.load import load
from frenet.network.data.text import TextTask, text_tasks
from frenet.network.space import ParamSpace
from frenet.network.tasks import Batch
from timing import STORIES, Row, attempted, model_name, show

DATA = STORIES.parents[1] / "data"
# Files of the tasks, and training steps of 8 rows: the third adapter is far from the end of its
# training, so that a larger coefficient is better.
ADAPTERS = {"clinc_domain": 100, "sentiment_uci": 60, "tatoeba_en_fr": 8, "snli": 60}
RANK, TARGETS, OPTIMIZER = 8, ("q_proj", "v_proj"), "adamw:5e-3"
SWEEP = tuple(round(0.1 * i, 1) for i in range(1, 41))
SHARE, AIM = 0.9, "at least 0.9"
# Test rows that judge the advice, as many as a probe takes.
JUDGED = 32


class Case(NamedTuple):
    """An adapter with the examples that choose, that judge, and that neither has seen."""

    model: nn.Module
    vector: TaskVector
    batches: Mapping[str, Batch]

    @property
    def rows(self) -> int:
        """Examples of the sweep."""
        return len(self.batches["held out"]["labels"])


def case(model: str | Path, file: Path, steps: int, rows: int) -> Case:
    """Train an adapter on a file."""
    loaded = load(model)
    read = text_tasks(file, loaded.tokenizer, max_length=loaded.longest(PROBE.max_length))
    task = next(iter(read.values()))
    tuned = attach_lora(loaded.model, rank=RANK, targets=TARGETS)
    training = Training(OPTIMIZER, batch_size=8, steps=steps)
    path = train_and_record(tuned, task, training, space=ParamSpace.select(tuned))
    path.space.write(tuned, path.theta(steps))
    return Case(load(model).model, from_adapter(tuned), batches(task, rows))


def batches(task: TextTask, rows: int) -> dict[str, Batch]:
    """Select rows, test rows that judge, and test rows that no choice has seen."""
    test = task.examples["test"]
    parts = {"select": task.examples["select"][:JUDGED], "test": test[:JUDGED]}
    parts["held out"] = test[JUDGED : JUDGED + rows]
    return {name: task.collate(part) for name, part in parts.items()}


def coefficient(one: Case) -> tuple[Advice, LossCurve, dict[float, float]]:
    """The advice, the held-out losses, and what every coefficient of the sweep takes off them."""
    with moving(one.model, {"v": one.vector.read}, space=one.vector.space(one.model)) as mover:
        losses = DisplacedLosses(mover, one.batches)
        select, test, held_out = (losses.curve(name, "v") for name in one.batches)
        advice = best_coefficient(select, test, scales=PROBE.scales)
        chosen = [] if advice.scale is None else [advice.scale]
        gains = {c: held_out.mean(0.0) - held_out.mean(c) for c in (*SWEEP, *chosen)}
    return advice, held_out, gains


def ranks(one: Case) -> tuple[RankAdvice, dict[str, tuple[int, float]]]:
    """The advice, and for every choice of ranks their sum and the gain on held-out rows."""
    parts = factored_parts(one.vector)
    with cut_losses(one.model, parts, one.batches["select"]) as losses:
        advice = choose_ranks(losses, share=SHARE)
    if not advice.weights:
        return advice, {}
    by_norm = {weight.name: weight.by_norm for weight in advice.weights}
    choices = {"advised": advice.ranks, "by norm": by_norm} | {
        f"{rank} each": dict.fromkeys(parts, rank) for rank in range(1, RANK + 1)
    }
    with cut_losses(one.model, parts, one.batches["held out"]) as losses:
        gains = {
            name: (sum(chosen.values()), _mean(losses, {}) - _mean(losses, chosen))
            for name, chosen in choices.items()
        }
    return advice, gains


def _mean(losses: CutLosses, chosen: Mapping[str, int]) -> float:
    return float(losses.at(chosen).sum() / losses.counts.sum())


def coefficient_row(name: str, one: Case) -> Row:
    """How much of the best gain the advised coefficient reaches."""
    advice, held_out, gains = coefficient(one)
    best = max(SWEEP, key=lambda scale: gains[scale])
    if advice.scale is None:
        raise RuntimeError(f"no advice: {advice.why}")
    return {
        "name": f"gain at the advised coefficient against the best of a sweep, {name}",
        "ratio": gains[advice.scale] / gains[best],
        "aim": AIM,
        "detail": f"advised {advice.scale:g} x, best of {len(SWEEP)} at {best:g} x; loss "
        f"{held_out.mean(0.0):.3g} without, {held_out.mean(advice.scale):.3g} and "
        f"{held_out.mean(best):.3g} there; at 1 x {gains[1.0] / gains[best]:.3g} of the gain; "
        f"{one.rows} held-out rows",
    }


def rank_row(name: str, one: Case) -> Row:
    """How much of the best gain the advised ranks hold."""
    advice, gains = ranks(one)
    most = max(gain for _, gain in gains.values())
    total, gain = gains["advised"]
    by_norm, norm_gain = gains["by norm"]
    whole = sum(advice.whole.values())
    equal = next(
        (n, g) for rank in itertools.count(1) for n, g in [gains[f"{rank} each"]]
        if g >= SHARE * most
    )  # fmt: skip
    return {
        "name": f"gain with the advised ranks against the best of a sweep, {name}",
        "ratio": gain / most,
        "aim": AIM,
        "detail": f"{total} of {whole} ranks; equal ranks need {equal[0]}; the {by_norm} by norm "
        f"hold {norm_gain / most:.3g}; {one.rows} held-out rows",
    }


def no_advice(name: str, one: Case) -> Iterator[Row]:
    """A negated adapter: no coefficient helps, and none is advised."""
    negated = one._replace(vector=-one.vector)
    advice, _, gains = coefficient(negated)
    chosen, _ = ranks(negated)
    said = "none is advised" if advice.scale is None else f"{advice.scale:g} x is advised"
    said += ", and no ranks" if not chosen.weights else ", and ranks are"
    yield {
        "name": f"coefficients of a sweep that help, where the adapter is negated, {name}",
        "ratio": float(sum(gain > 0 for gain in gains.values())),
        "aim": "at most 0",
        "detail": f"of {len(SWEEP)}; {said}",
    }


def run(
    model: str | Path = STORIES, data: Path = DATA, *, rows: int = 96, most: int = 4
) -> Iterator[Row]:
    """All adapters on one model."""
    for i, (name, steps) in enumerate(itertools.islice(ADAPTERS.items(), most)):

        def measured(name: str = name, steps: int = steps, first: bool = i == 0) -> Iterator[Row]:
            one = case(model, data / f"{name}.jsonl", steps, rows)
            yield coefficient_row(name, one)
            yield rank_row(name, one)
            if first:
                yield from no_advice(name, one)

        for row in attempted(f"advice, {name}", measured):
            yield {"model": model_name(model), **row}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=STORIES)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the files of tasks")
    parser.add_argument("--rows", type=int, default=96, help="held-out rows of the sweep")
    options = parser.parse_args()
    show(run(options.model, options.data, rows=options.rows))
