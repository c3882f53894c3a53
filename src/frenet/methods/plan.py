"""Predicts what a random search gains, before it runs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from torch import nn

from frenet._errors import UsageError
from frenet._notebook import Shown, grid
from frenet.methods.candidates import Kind, Where
from frenet.methods.local_model import Effort, LocalModel, survey
from frenet.methods.selection import Selection
from frenet.network.tasks import Task

# The advised sigma is one of these shares of the largest.
STEPS = np.linspace(0.05, 1.0, 39)
# The worth of a search is that of so many candidates.
BLOCK = 100
# Numbers of candidates among which the worthwhile one is looked for, and then beside it.
COUNTS, FINER = 17, 33


class Setting(NamedTuple):
    """One setting of a search with the gains predicted for it, in nats per token."""

    sigma: float
    candidates: int
    selected: float
    held_out: float


class Worth(NamedTuple):
    """Whether a search is worth its time, and after how many candidates it no longer is.

    Attributes:
        asked: W, the gain in nats per token for which 100 candidates are worth their time.
        candidates: N with the largest held-out gain minus W N / 100; 0 if no N has more than W N /
            100. The next 100 candidates are expected to gain less than W, if N is below the budget.
        held_out: expected gain of the N on held-out data, in nats per token; 0 for N = 0.
        low: the same, if the curvature is two standard errors larger.
        high: the same, if it is two standard errors smaller.
        single: expected gain of one random candidate; mostly a loss.
        further: expected gain of 100 more, at the same sigma.
    """

    asked: float
    candidates: int
    held_out: float
    low: float
    high: float
    single: float
    further: float


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """Settings with their predicted gains.

    Attributes:
        survey: the local model behind the predictions.
        table: settings over N and sigma, up to the advised sigma.
        best: the setting within the budget with the largest gain on held-out data, or, with a
            worth, the largest gain net of it; None if no setting gains.
        sigma_star: the best sigma for the whole budget on the selection data; None if
            ``LocalModel.best`` is.
        linear_up_to: sigma up to which curvature is a small part of the change.
        advice: the setting to use, or why there is none.
        worth: how many candidates are worth their time; None if it was not asked for.
    """

    survey: LocalModel
    table: tuple[Setting, ...]
    best: Setting | None
    sigma_star: float | None
    linear_up_to: float
    advice: str
    worth: Worth | None = None

    def _summary(self) -> str:
        return self.advice

    def _repr_html_(self) -> str:
        settings = {*self.table, *([self.best] if self.best else [])}
        sigmas = sorted({setting.sigma for setting in settings})
        counts = sorted({setting.candidates for setting in settings})
        names = {sigma: f"{sigma:.3g}" for sigma in sigmas}
        return grid(
            f"{self.advice} Expected gain on held-out data in nats per token; without a search: 0.",
            "sigma, candidates",
            [names[sigma] for sigma in sigmas],
            [str(count) for count in counts],
            {(names[s.sigma], str(s.candidates)): s.held_out for s in settings},
            (names[self.best.sigma], str(self.best.candidates)) if self.best else None,
        )


def plan_search(
    model: nn.Module,
    task: Task,
    where: Where,
    *,
    budget: int = 512,
    worth: float | None = None,
    selection: Selection | None = None,
    kind: Kind = "normal",
    effort: Effort | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Survey the loss around the weights, and plan a search that ``random_search`` takes as it is.

    It takes the time of about ``budget`` candidates, or of 46 if there are fewer.

    Args:
        model: the network; left unchanged.
        task: has train, select and test examples.
        where: the parameters that move, or a basis.
        budget: most candidates, each one forward pass over the selection batch; at least 1.
        worth: as in ``plan``.
        selection: score and examples; None: the loss of up to 64 examples, reported on up to 256.
            Its seed is also that of the survey and of the noise.
        kind: of the noise.
        effort: of the survey; None: at most about that of the search.
        say: takes lines of progress.

    Raises:
        ValueError: a budget below one candidate, a worth that is not above 0, a task with too few
            examples, or a model whose gradient is not the derivative of its loss.
    """
    _require(budget, worth)
    chosen = selection or Selection().within(task)
    measured = survey(
        model, task, where, selection=chosen, seed=chosen.seed, kind=kind,
        effort=effort or Effort.within(budget), say=say,
    )  # fmt: skip
    return plan(measured, budget=budget, worth=worth)


def plan(
    local_model: LocalModel,
    *,
    budget: int,
    worth: float | None = None,
    counts: tuple[int, ...] = (4, 16, 64, 256),
) -> Plan:
    """Predicted gains over sigma and N, and the setting to use.

    Args:
        local_model: from ``survey``.
        budget: most candidates, each one forward pass over the selection batch; at least 1.
        worth: W, the held-out gain in nats per token for which 100 candidates are worth their time,
            above 0. The plan then advises the N with the largest gain minus W N / 100.
        counts: numbers of candidates for the table; those above the budget are left out.

    Raises:
        ValueError: a budget below one candidate, or a worth that is not above 0.
    """
    _require(budget, worth)
    star = local_model.best(budget)
    sigma = _sigma(local_model, _largest(local_model, budget), budget)
    sigmas = [sigma / 2.0**power for power in (3, 2, 1, 0)]
    table = tuple(
        _setting(local_model, sigma, n)
        for n in sorted({*(c for c in counts if c <= budget), budget})
        for sigma in sigmas
    )
    advised = _setting(local_model, sigma, budget)
    chosen = advised if budget > 1 and advised.held_out > 0 else None
    made = Plan(
        local_model, table, chosen, star.sigma if star else None, local_model.local.linear_range(),
        _advice(local_model, chosen),
    )  # fmt: skip
    return made if worth is None else _worthwhile(made, worth, budget)


def _require(budget: int, worth: float | None) -> None:
    if budget < 1:
        raise UsageError(f"budget={budget} is below one candidate; pass at least 1")
    require_worth(worth)


def require_worth(worth: float | None) -> None:
    """Raise ValueError if it is not a finite number above 0."""
    if worth is not None and not 0 < worth < math.inf:
        raise UsageError(
            f"worth={worth}; pass a finite number above 0: the gain in nats per token for which "
            f"{BLOCK} candidates are worth their time"
        )


def _largest(local_model: LocalModel, budget: int) -> float:
    """The largest sigma for a budget, and for fewer candidates, whose best sigma is smaller."""
    star = local_model.best(budget)
    if star:
        return max(star.sigma, local_model.best_sigma_held_out(budget))
    # Beyond it gains depend on curvature, which the quadratic model does not describe well enough.
    return local_model.trusted(budget)


def _sigma(local_model: LocalModel, most: float, n: int) -> float:
    """The sigma up to ``most`` with the largest held-out gain of n candidates."""
    return float(max(most * STEPS, key=lambda sigma: _held_out(local_model, float(sigma), n)))


def _held_out(local_model: LocalModel, sigma: float, n: int) -> float:
    return min(local_model.held_out_gain(sigma, n), local_model.loss)


def _setting(local_model: LocalModel, sigma: float, n: int) -> Setting:
    selected = min(local_model.local.gain(sigma, n), local_model.loss)
    return Setting(sigma, n, selected, _held_out(local_model, sigma, n))


def _worthwhile(made: Plan, asked: float, budget: int) -> Plan:
    """The plan of the number of candidates that is worth its time."""
    local_model = made.survey
    if made.best is None:
        return replace(made, advice=f"not worth it: {made.advice}", worth=_nothing(asked))
    most = _largest(local_model, budget)
    tried = _counts(2, budget, COUNTS)
    settings = [_setting(local_model, _sigma(local_model, most, n), n) for n in tried]
    best = max(settings, key=lambda setting: _net(setting, asked))
    if _net(best, asked) <= 0:
        rate = max(settings, key=lambda s: s.held_out / s.candidates)
        return replace(made, best=None, worth=_nothing(asked), advice=_unworthy(rate, asked))
    at = tried.index(best.candidates)
    beside = _counts(tried[max(at - 1, 0)], tried[min(at + 1, len(tried) - 1)], FINER)
    closer = [_setting(local_model, best.sigma, n) for n in beside]
    best = max([best, *closer], key=lambda setting: _net(setting, asked))
    found = _worth(local_model, best, asked)
    limited = best.candidates == budget and found.further >= asked
    advice = f"{_worthy(found, best, limited=limited)}.{_edge(local_model, best, budget)}"
    return replace(made, best=best, worth=found, advice=advice)


def _counts(first: int, last: int, number: int) -> list[int]:
    """About so many integers from first to last, in about equal ratios."""
    return sorted({*np.geomspace(first, last, number).round().astype(int).tolist()})


def _net(setting: Setting, asked: float) -> float:
    """The gain on held-out data minus the price of the candidates."""
    return setting.held_out - asked * setting.candidates / BLOCK


def _worth(local_model: LocalModel, best: Setting, asked: float) -> Worth:
    sigma, n = best.sigma, best.candidates
    error = 2 * local_model.trace_error
    low, high = (_held_out(_bent(local_model, by), sigma, n) for by in (error, -error))
    further = _held_out(local_model, sigma, n + BLOCK) - best.held_out
    single = _held_out(local_model, sigma, 1)
    return Worth(asked, n, best.held_out, low, high, single, further)


def _bent(local_model: LocalModel, by: float) -> LocalModel:
    """The same with another trace of the Hessian on other data, which a winner pays for."""
    other = local_model.elsewhere or local_model.local
    return replace(local_model, elsewhere=replace(other, trace=other.trace + by))


def _nothing(asked: float) -> Worth:
    return Worth(asked, 0, 0.0, 0.0, 0.0, 0.0, 0.0)


def _worthy(found: Worth, best: Setting, *, limited: bool) -> str:
    gains = (
        f"at sigma {best.sigma:.3g} they should gain {found.held_out:.3g} [{found.low:.3g}, "
        f"{found.high:.3g}] nats per token on held-out data (a single one: {found.single:.2g})"
    )
    more = f"{BLOCK} more should gain {found.further:.2g}"
    if limited:
        whole = f"worth it for all {found.candidates} candidates of the budget"
        return f"{whole}: {gains}; {more}, so a larger budget may pay"
    return (
        f"worth it up to {found.candidates} candidates: {gains}; {more}, below the "
        f"{found.asked:.3g} asked for"
    )


def _unworthy(best: Setting, asked: float) -> str:
    rate = best.held_out * BLOCK / best.candidates
    return (
        f"not worth it: at best {best.candidates} candidates at sigma {best.sigma:.3g} should gain "
        f"{best.held_out:.2g} nats per token on held-out data, which is {rate:.2g} for every "
        f"{BLOCK}, below the {asked:.3g} asked for"
    )


def _advice(local_model: LocalModel, chosen: Setting | None) -> str:
    if local_model.local.gradient == 0:
        return (
            "no gain is expected: the gradient on the selection batch is zero in all "
            f"{local_model.local.dim:,} coordinates; search in others, for an untrained LoRA in "
            "its B factors"
        )
    if local_model.loss == 0:
        return "no gain is expected: the loss on the selection batch is already zero"
    if chosen is None:
        return (
            f"no gain is expected on held-out data: {local_model.transfer:.2f} of the gain on the "
            "selection batch carries over; use a larger selection batch, or another method"
        )
    return (
        f"sigma {chosen.sigma:.3g} with {chosen.candidates} candidates should gain "
        f"{chosen.held_out:.3g} nats per token on held-out data ({chosen.selected:.3g} on the "
        f"selection batch).{_edge(local_model, chosen, chosen.candidates)}"
    )


def _edge(local_model: LocalModel, chosen: Setting, budget: int) -> str:
    """A sentence if sigma is not an optimum, but the largest that can be trusted."""
    if local_model.best(budget) or chosen.sigma < (1 - 1e-6) * local_model.trusted(budget):
        return ""
    why = (
        "at a larger one that was tried the loss no longer follows its slope"
        if math.isfinite(local_model.followed)
        else "the trace of the Hessian is not clearly positive, or too small for an optimum where "
        "the quadratic model holds"
    )
    return f" This sigma is the largest that the plan trusts, not an optimum: {why}."
