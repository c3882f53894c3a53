"""Rows of `subspace_training`: from a damaged network to the gain of training in every basis."""

import math
from collections.abc import Iterator

from frenet.experiments.experiment import Cell, Row
from frenet.experiments.setup.case import Case, damaged_case
from frenet.experiments.setup.damage import NotDamagedError
from frenet.experiments.setup.describe import describe
from frenet.experiments.setup.networks import build
from frenet.experiments.setup.recovery import LONGEST_PREFIX
from frenet.experiments.subspace_training import Config, cells
from frenet.experiments.subspace_training.arms import (
    Arm,
    Trained,
    arms,
    everything,
    gradient_bases,
    run_seed,
    swept,
)
from frenet.experiments.subspace_training.findings import CHANCE, UNSWEPT
from frenet.measure.recovery import Recovery


def damaged_rows(case: Case) -> Iterator[Row]:
    """Everything from the damaged point: the run, then all coordinates and every basis."""
    run = case.recover(seed=run_seed(case), most=case.config.steps)
    yield _run_row(case, run)
    if run.stop is None:
        return
    arm = everything(case)
    whole = swept(case, arm, run.stop)
    best, unswept = _best(case, arm, whole), next(t for t in whole if t.rate == 1.0)
    ceiling: Row = {"regained_all": case.regained(best.loss), "accuracy_all": best.accuracy}
    context = {**ceiling, "chance": None, "regained_steps": _alone(case, run, run.stop)}
    yield from _rows(case, arm, best, run.stop, context)
    yield from _rows(case, arm._replace(name=UNSWEPT), unswept, run.stop, context)
    yield from _rate_rows(case, arm, whole, unswept)
    gradients = gradient_bases(case)
    for k in (k for k in case.config.ks if k <= LONGEST_PREFIX * run.stop):
        sweeps = [(arm, swept(case, arm, run.stop)) for arm in arms(case, run, gradients, k)]
        chosen = {arm.name: _best(case, arm, trained) for arm, trained in sweeps}
        for arm, trained in sweeps:
            own, random = chosen[arm.name], chosen.get(CHANCE[arm.name])
            context = {
                **ceiling,
                "chance": None if random is None else case.regained(random.loss),
                "regained_steps": _alone(case, run, own.full_steps),
            }
            yield from _rows(case, arm, own, run.stop, context)
            yield from _rate_rows(case, arm, trained, unswept)


def _run_row(case: Case, run: Recovery) -> Row:
    most = math.inf if run.stop is None else LONGEST_PREFIX * run.stop
    return {
        "table": "run",
        **dict(case.cell.keys),
        "status": "not recovered" if run.stop is None else "recovered",
        **case.losses,
        "loss_end": run.losses[-1][1],
        "threshold": case.threshold,
        "stop": run.stop,
        "longest": case.config.steps,
        "left_out": ", ".join(str(k) for k in case.config.ks if k > most),
    }


def _best(case: Case, arm: Arm, trained: list[Trained]) -> Trained:
    """The one with the lowest training loss."""
    best = min(trained, key=lambda t: (t.train_loss, t.rate))
    if math.isinf(best.train_loss):
        raise FloatingPointError(
            f"training {case.task.name} in the basis {arm.name!r} diverged at all "
            f"{len(trained)} rates from {case.cell['optimizer']} down; pass a smaller rate"
        )
    return best


def _alone(case: Case, run: Recovery, steps: int) -> float:
    """What the first steps of the run regain."""
    return case.regained(case.evaluate_at(run.trajectory.displacement(0, steps)).loss)


def _rows(case: Case, arm: Arm, trained: Trained, steps: int, context: Row) -> Iterator[Row]:
    """The result of one arm at its best rate, and its loss against the step."""
    keys: Row = {**dict(case.cell.keys), "basis": arm.name, "k": arm.k}
    looks = {look.step: look for look in trained.looks}
    yield {
        "table": "trained",
        **keys,
        "steps": steps,
        "full_steps": trained.full_steps,
        "spent": arm.spent,
        "moved": looks[steps].moved,
        "rate": trained.rate,
        "loss": trained.loss,
        "loss_d": case.loss_d,
        "regained": case.regained(trained.loss),
        "accuracy": trained.accuracy,
        "stop": next((s for s, look in looks.items() if look.loss <= case.threshold), None),
        **context,
    }
    for i in range(case.config.looks + 1):
        look = looks[round(steps * i / case.config.looks)]
        yield {
            "table": "curve",
            **keys,
            "share": i / case.config.looks,
            **look._asdict(),
            "threshold": case.threshold,
        }


def _rate_rows(case: Case, arm: Arm, trained: list[Trained], unswept: Trained) -> Iterator[Row]:
    """The rates tried, and the training loss that chooses among them."""
    best = _best(case, arm, trained)
    for i, one in enumerate(trained):
        yield {
            "table": "rate",
            **dict(case.cell.keys),
            "basis": arm.name,
            "k": arm.k,
            "rate": one.rate,
            "chosen": one is best,
            "at_end": one is best and i in (0, len(trained) - 1),
            "train_loss": one.train_loss if math.isfinite(one.train_loss) else None,
            "train_loss_all": unswept.train_loss if math.isfinite(unswept.train_loss) else None,
        }


def run(config: Config, cell: Cell) -> Iterator[Row]:
    """Rows of the tables run, trained, curve and rate."""
    network = build(config, space=cell["space"], seed=cell.seed)
    yield from describe(
        network, cell, cells(config), config, select=config.probe_size, test=config.probe_size
    )
    try:
        with damaged_case(network, config, cell) as case:
            yield from damaged_rows(case)
    except NotDamagedError as error:
        keys = dict(cell.keys)
        yield {"table": "run", **keys, "status": "not damaged", "why": str(error)}
