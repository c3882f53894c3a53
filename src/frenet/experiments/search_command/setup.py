"""`frenet search`: from settings to model and task, and from numbers to rows."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from frenet._errors import UsageError
from frenet._notebook import listed
from frenet.experiments.experiment import Row
from frenet.experiments.search_command import SearchConfig
from frenet.experiments.setup.reading import tasks_of

if TYPE_CHECKING:
    from torch import nn

    from frenet.methods.plan import Plan
    from frenet.methods.search import Gain, SearchResult
    from frenet.methods.selection import Selection
    from frenet.network.checkpoints.load import Loaded
    from frenet.network.space import ParamSpace


# A result beside which the winner stands.
STEP = "gradient step as long as the winner, on the same selection batch"


@dataclass(frozen=True)
class Subject:
    """The subject of a search: a model at its weights, the parameters that move, and a task."""

    model: "nn.Module"
    space: "ParamSpace"
    task: Any
    selection: "Selection"
    fingerprint: str
    notes: tuple[str, ...]


def load_subject(config: SearchConfig) -> Subject:
    """Load model and task.

    Raises:
        ValueError: no task of that name, several tasks and no name, or no parameter of that name.
    """
    from frenet.methods.selection import Selection
    from frenet.network.adapters import attach_lora
    from frenet.network.data.text import reading_notes
    from frenet.network.space import ParamSpace

    loaded = config.load(config.model, adapter=config.adapter)
    task = _task(config, loaded)
    model = loaded.model
    if config.space == "lora" and not hasattr(model, "peft_config"):
        model = attach_lora(
            model, rank=config.rank, targets=config.targets or None, seed=config.seed
        )
    if config.space == "full":
        for parameter in model.parameters():
            parameter.requires_grad_(True)
    space = _named(ParamSpace.select(model), config.where)
    selection = Selection(
        config.score,
        select_size=config.select_size,
        test_size=config.test_size,
        top=min(config.top, config.budget),
        seed=config.seed,
    ).within(task)
    notes = (
        *loaded.notes,
        *reading_notes([task]),
        f"{task.name}: selected on {selection.select_size} examples, reported on "
        f"{selection.test_size} others",
        f"{space.dim:,} parameters move",
    )
    return Subject(model.eval(), space, task, selection, loaded.fingerprint, notes)


def _named(whole: "ParamSpace", pattern: str) -> "ParamSpace":
    """The parameters of a space with names that match."""
    from frenet.network.space import ParamSpace

    try:
        matching = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"where={pattern!r} is no regular expression: {error}") from None
    pairs = zip(whole.names, whole.shapes, strict=True)
    chosen = [pair for pair in pairs if matching.search(pair[0])]
    if not chosen:
        raise UsageError(
            f"where={pattern!r} names none of the {len(whole.names)} parameters that are searched, "
            f"such as {whole.names[0]}"
        )
    names, shapes = zip(*chosen, strict=True)
    return ParamSpace(names, shapes)


def _task(config: SearchConfig, loaded: "Loaded") -> Any:
    """The one task that is searched on."""
    tasks = tasks_of(config, loaded, seed=config.seed)
    if config.only and config.only not in tasks:
        raise UsageError(f"no task {config.only!r}; there are {listed(tasks)}")
    if not config.only and len(tasks) > 1:
        raise UsageError(f"a search is on one task; pass --only with one of {listed(tasks)}")
    return tasks[config.only or next(iter(tasks))]


def make_plan(
    config: SearchConfig,
    subject: Subject,
    say: Callable[[str], None] = lambda _: None,
    *,
    worth: float | None = None,
) -> "Plan":
    """The expected gain of the search, by sigma; ``say`` takes its cost and its progress."""
    from frenet.methods.local_model import Effort
    from frenet.methods.plan import plan_search

    effort = Effort(config.probes) if config.probes else Effort.within(config.budget)
    way = "Hessian products" if effort.products else "losses"
    say(
        f"planning {config.budget} candidates, at about the cost of {effort.cost():.0f}: "
        f"gradients of {effort.batches} batches of {subject.selection.select_size} examples, and "
        f"curvature along {effort.probes} random vectors from {way}"
    )
    return plan_search(
        subject.model, subject.task, subject.space, budget=config.budget, worth=worth,
        selection=subject.selection, effort=effort, kind=config.noise, say=say,
    )  # fmt: skip


def plan_notes(subject: Subject) -> list[str]:
    """Notes on model and data, and on the derivatives that a plan depends on."""
    from frenet.measure.checked import check_slope

    batch = next(subject.task.batches("select", subject.selection.select_size, 0))
    note = check_slope(subject.model, subject.task, batch, space=subject.space).note
    return [*subject.notes, *([note] if note else [])]


def fixed_sigma(config: SearchConfig) -> float | None:
    """The sigma that was given; None for 'auto'.

    Raises:
        ValueError: it is neither 'auto' nor a finite number above 0.
    """
    if config.sigma == "auto":
        if config.relative or config.tied_noise:
            raise UsageError("sigma is planned for independent absolute noise; pass --sigma")
        return None
    try:
        value = float(config.sigma)
    except ValueError:
        raise UsageError(f"sigma={config.sigma!r}; pass a number above 0, or auto") from None
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"sigma={config.sigma}; pass a finite number above 0, or auto")
    return value


def expected(config: SearchConfig, made: "Plan", sigma: float) -> dict[str, Any]:
    """Mean and band of the best so far, and the held-out gain; empty if the score is no loss."""
    if config.score != "loss" or config.relative or config.tied_noise:
        return {"best": {}, "held_out": None}
    local_model = made.survey
    change = local_model.local.change(sigma)
    best = {}
    for n in powers(config.budget):
        low, high = (-end for end in reversed(change.best_band(n)))
        best[str(n)] = [-change.best_of(n), low, high]
    return {
        "best": best,
        "held_out": local_model.held_out_gain(sigma, config.budget),
        "change": [change.mean, change.std, change.skew],
        "carried": local_model.carried(sigma),
    }


def further_gain(planned: Mapping[str, Any], best: float) -> float | None:
    """Held-out gain expected of 100 more candidates; None if there is no plan of it.

    Args:
        planned: the expectations of the plan.
        best: gain of the best candidate so far, on the selection batch.
    """
    from frenet.geometry.loss_change import LossChange
    from frenet.methods.plan import BLOCK

    if "change" not in planned:
        return None
    improvement = LossChange(*planned["change"]).improvement(-best, BLOCK)
    return float(planned["carried"] * improvement)


def further_advice(gain: float | None, worth: float | None) -> str:
    """Whether 100 more candidates are worth their time, in words; empty if that is not planned."""
    from frenet.methods.plan import BLOCK

    if gain is None:
        return ""
    text = f"{BLOCK} more candidates should gain {gain:.2g} nats per token on held-out data"
    if worth is None:
        return text
    word = "stop: less than" if gain < worth else "go on: at least"
    return f"{text} ({word} the {worth:.3g} asked for)"


def require_worth(config: SearchConfig, worth: float | None) -> None:
    """Raise ValueError if no plan can say what further candidates are expected to gain."""
    from frenet.methods.plan import require_worth as require_number

    require_number(worth)
    if worth is None:
        return
    if config.sigma != "auto":
        raise UsageError(
            "--worth needs what a plan expects, and with --sigma none is made; leave one of them "
            "out"
        )
    if config.score != "loss":
        raise UsageError(f"--worth is a loss in nats per token; leave out --score {config.score}")


def powers(budget: int) -> list[int]:
    """1, 2, 4, ... and the budget."""
    return sorted({*(2**i for i in range(budget.bit_length()) if 2**i <= budget), budget})


def plan_rows(made: "Plan") -> list[Row]:
    """The table of a plan, with the chosen setting among it."""
    settings = [*made.table]
    if made.best is not None and made.best not in settings:
        settings.append(made.best)
    return [
        {"table": "plan", **setting._asdict(), "chosen": setting == made.best}
        for setting in sorted(settings, key=lambda s: (s.candidates, s.sigma))
    ]


def best_rows(result: "SearchResult", planned: dict[str, Any]) -> list[Row]:
    """The best so far on the selection batch, and the expected one."""
    rows: list[Row] = []
    for n in powers(len(result.scores)):
        mean, low, high = planned["best"].get(str(n), (None, None, None))
        gain = float(result.scores[:n].max()) - result.before
        rows.append(
            {
                "table": "best",
                "n": n,
                "gain": gain,
                "predicted": mean,
                "low": low,
                "high": high,
            }
        )
    return rows


def result_rows(
    result: "SearchResult", planned: dict[str, Any], *, top: int, step: "Gain | None"
) -> list[Row]:
    """Winner, average and vote on held-out data."""
    rows = []
    top = min(len(result.order), top)
    named: list[tuple[str, Gain | None]] = [
        ("winner", result.held_out),
        (f"average of the best {top}", result.average),
        (f"vote of the best {top}, against one vote", result.vote),
        (STEP, step),
    ]
    for what, outcome in named:
        if outcome is None or (top == 1 and what not in ("winner", STEP)):
            continue
        row: Row = {
            "table": "result",
            "what": what,
            "before": outcome.before,
            "after": outcome.after,
            "gain": outcome.gain.value,
            "low": outcome.gain.low,
            "high": outcome.gain.high,
            "sigma": result.noise.sigma,
        }
        if what == "winner":
            row |= {
                "selected": result.selected_gain,
                "expected": planned["held_out"],
                "further": further_gain(planned, result.selected_gain),
                "index": result.winner,
                "unmoved": result.unmoved,
                "nothing": 0.0,
            }
        rows.append(row)
    return rows
