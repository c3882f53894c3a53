"""Rows of `best_of_n`: the predicted gain of random search at a point, and the measured one."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from frenet._errors import UsageError
from frenet.experiments.best_of_n import Config, _sized, cells
from frenet.experiments.best_of_n.findings import LINEAR
from frenet.experiments.experiment import Cell, Row, number
from frenet.experiments.setup.damage import NotDamagedError, damaged
from frenet.experiments.setup.describe import describe, note
from frenet.experiments.setup.networks import Network, build
from frenet.geometry import rng
from frenet.geometry.basis import Basis, random_basis, svd_basis
from frenet.geometry.linalg import norm
from frenet.geometry.theory import expected_maximum
from frenet.measure.gradients import gradient, gradient_matrix
from frenet.measure.recovery import evaluate_at
from frenet.measure.trajectory import Training, train_and_record
from frenet.methods.candidates import Noise, Where, space_of
from frenet.methods.evaluation import Evaluator
from frenet.methods.local_model import Effort, LocalModel, survey
from frenet.methods.search import SearchResult, Selection, drop_duplicates, random_search
from frenet.network.space import ParamSpace
from frenet.network.tasks import Task, repeatable

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
# Candidates whose scores are measured a second time.
REPEATED = 8


@dataclass(frozen=True)
class Spot:
    """One place of one damaged network: what its searches share."""

    network: Network
    task: Task
    config: Config
    cell: Cell

    def seed(self, search: int, sigma: int = 0) -> int:
        """Seed of the noise of one search."""
        return 100_000 * int(self.cell.seed) + 100 * search + sigma

    @property
    def selection(self) -> Selection:
        """The examples that all searches share."""
        return Selection(
            select_size=self.config.select_size,
            test_size=self.config.test_size,
            seed=int(self.cell.seed),
        )


def place(spot: Spot, search: int) -> Where:
    """The parameters, or the basis, that one search moves in.

    Raises:
        ValueError: the configuration names no place of this kind, or no such parameter.
    """
    network, config, seed = spot.network, spot.config, spot.seed(search)
    model, space = network.model, network.space
    kind, _, value = str(spot.cell["place"]).partition(":")
    if kind == "all":
        return space
    if kind == "name":
        return ParamSpace.select(model, lambda name, _: name in space.names and value in name)
    if kind not in ("random", "gradients", "prefix") or not value.isdigit():
        raise UsageError(
            f"no place {spot.cell['place']!r}; there are all, random:K, gradients:K, prefix:K and "
            "name:PART"
        )
    k, batch = int(value), config.damage_batch
    if kind == "random":
        stream = rng.generator(seed, "best-of-n", "directions")
        return random_basis(space.dim, k, stream, space=space)
    if kind == "gradients":
        rows = gradient_matrix(model, spot.task, space=space, n=2 * k, batch_size=batch, seed=seed)
        return svd_basis(rows, k, space=space)
    training = Training(config.prefix_optimizer, batch, k, seed=seed)
    with space.restored(model):
        return train_and_record(model, spot.task, training, space=space).prefix(k)


def search_rows(spot: Spot, search: int) -> Iterator[Row]:
    """One search at every sigma: the prediction first, then the result."""
    config, where = spot.config, place(spot, search)
    model, selection = spot.network.model, spot.selection
    local_model = survey(
        model,
        spot.task,
        where,
        selection=selection,
        effort=Effort(config.probes),
        seed=spot.seed(search),
    )
    star = local_model.best(config.candidates)
    unit = star.sigma if star else local_model.trusted(config.candidates)
    keys: Row = {**dict(spot.cell.keys), "search": search, "dim": local_model.local.dim}
    yield _place_row(keys, local_model, config.candidates)
    if unit == 0:
        text = "the gradient or the loss is zero: no sigma follows, so nothing was searched"
        yield note(spot.cell, f"{spot.cell['place']}: {text}")
        return
    for i, factor in enumerate(config.factors):
        noise = Noise(factor * unit, seed=spot.seed(search, i + 1))
        at: Row = {
            **keys,
            "factor": factor,
            "unit": "sigma*" if star else "trusted",
            "sigma": noise.sigma,
        }
        result = random_search(
            model, spot.task, where,
            noise=noise, num_candidates=config.candidates, selection=selection,
        )  # fmt: skip
        changes = -(result.scores.double().numpy() - result.before)
        yield _spread_row(at, local_model, changes, score_error(spot, where, result))
        yield from _quantile_rows(at, local_model, changes)
        yield from _best_rows(at, local_model, changes)
        yield _winner_row(at, local_model, result, where, spot)


def _place_row(keys: Row, local_model: LocalModel, candidates: int) -> Row:
    """The numbers from which the predictions for a place follow."""
    local, star = local_model.local, local_model.best(candidates)
    return {
        "table": "place",
        **keys,
        "gradient": local.gradient,
        "trace": local.trace,
        "trace_error": local_model.trace_error,
        "trace_square": local.trace_square,
        "sigma_star": star.sigma if star else None,
        "linear_sigma": local.linear_range(),
        "best_gain": local.gain(star.sigma, candidates) if star else None,
        "density": local.signal_density(),
        "density_over_curvature": local.density_over_curvature(),
        "transfer": local_model.transfer,
        "bend": local_model.bend,
        "loss": local_model.loss,
    }


def score_error(spot: Spot, where: Where, result: SearchResult) -> float:
    """Standard deviation of the part of a score that is not due to its candidate's weights.

    The first candidates are scored again, one by one and with the rows in reverse order. Two scores
    of the same weights differ by two errors, hence the factor 1 / sqrt(2).
    """
    chosen = spot.selection
    rows = drop_duplicates(next(repeatable(spot.task, "select", chosen.select_size, chosen.seed)))
    backwards = {name: values.flip(0) for name, values in rows.items()}
    alone = Evaluator(where, result.noise, chosen.score, backwards, decided=True)
    first = result.scores[:REPEATED].double().numpy()
    again = np.array(alone(spot.network.model, range(len(first))))
    return float(np.sqrt(np.mean((first - again) ** 2) / 2))


def _spread_row(at: Row, local_model: LocalModel, changes: np.ndarray, error: float) -> Row:
    """Mean, spread and shape of the changes against their predictions."""
    sigma = number(at, "sigma")
    local, change = local_model.local, local_model.local.change(sigma)
    distance = stats.ks_1samp(changes, change.cdf)
    return {
        "table": "spread",
        **at,
        "mean": float(changes.mean()),
        "mean_predicted": change.mean,
        "std": float(changes.std(ddof=1)),
        "std_predicted": change.std,
        "noise": error / change.std if change.std > 0 else None,
        "ks": float(distance.statistic),
        "ks_limit": float(stats.kstwo.ppf(0.95, len(changes))),
        "second_order": local.curved(sigma),
        "second_order_limit": LINEAR,
    }


def _quantile_rows(at: Row, local_model: LocalModel, changes: np.ndarray) -> Iterator[Row]:
    """Quantiles of the changes in units of their predicted spread."""
    change = local_model.local.change(number(at, "sigma"))
    if change.std == 0:
        return
    predicted = change.quantile(np.array(QUANTILES))
    pairs = zip(QUANTILES, np.quantile(changes, QUANTILES), predicted, strict=True)
    for p, observed, expected in pairs:
        yield {
            "table": "quantile",
            **at,
            "p": p,
            "observed": float(observed / change.std),
            "predicted": float(expected / change.std),
        }


def _best_rows(at: Row, local_model: LocalModel, changes: np.ndarray) -> Iterator[Row]:
    """The best of N in each of the N_max / N disjoint blocks of candidates."""
    sigma, n = number(at, "sigma"), 1
    change, star = local_model.local.change(sigma), local_model.best(len(changes))
    scale = star.gain if star else local_model.loss
    while n <= len(changes):
        gains = -changes[: len(changes) // n * n].reshape(-1, n).min(1)
        low, high = (-end for end in reversed(change.best_band(n)))
        yield {
            "table": "best",
            **at,
            "candidates": n,
            "blocks": len(gains),
            "gain": float(gains.mean()),
            "predicted": -change.best_of(n),
            "scale": scale,
            "second_order": local_model.local.curved(sigma),
            "linear": sigma * local_model.local.gradient * expected_maximum(n),
            "low": low,
            "high": high,
            "inside": float(((gains >= low) & (gains <= high)).mean()),
            "nominal": 0.95,
            "density": local_model.local.signal_density(),
            "density_over_curvature": local_model.local.density_over_curvature(),
        }
        n *= 2


def _winner_row(
    at: Row, local_model: LocalModel, result: SearchResult, where: Where, spot: Spot
) -> Row:
    """The winner's gain on the selection batch and on held-out data."""
    sigma, local, n = result.noise.sigma, local_model.local, len(result.scores)
    held_out = result.held_out.gain
    return {
        "table": "winner",
        **at,
        "candidates": n,
        "selected": result.selected_gain,
        "selected_predicted": local.gain(sigma, n),
        "held_out": held_out.value,
        "held_out_low": held_out.low,
        "held_out_high": held_out.high,
        "held_out_predicted": local_model.held_out_gain(sigma, n),
        "step": _step_gain(spot, where, sigma * local.dim**0.5),
        "loss": local_model.loss,
    }


def _step_gain(spot: Spot, where: Where, radius: float) -> float:
    """Held-out gain of one gradient step of this length, the yardstick of a search."""
    model, task, chosen, space = spot.network.model, spot.task, spot.selection, space_of(where)
    select = next(repeatable(task, "select", chosen.select_size, chosen.seed))
    test = next(repeatable(task, "test", chosen.test_size, chosen.seed))
    slope = gradient(model, task, select, space=space)
    if isinstance(where, Basis):
        slope = where.project(slope)
    if not slope.any():
        return 0.0
    step = slope * (-radius / norm(slope))
    before = evaluate_at(model, test, space=space, delta=0 * step).loss
    return before - evaluate_at(model, test, space=space, delta=step).loss


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables place, spread, quantile, best and winner."""
    network = build(_sized(config, cell), space=cell["space"], seed=cell.seed)
    yield from describe(
        network, cell, cells(config), config, select=config.select_size, test=config.test_size
    )
    task = network.tasks[cell["task"]]
    try:
        with damaged(network, task, config, protocol=cell["protocol"], seed=cell.seed):
            for search in range(config.searches):
                yield from search_rows(Spot(network, task, config, cell), search)
    except NotDamagedError as error:
        yield note(cell, f"{cell['protocol']} left out: {error}")
