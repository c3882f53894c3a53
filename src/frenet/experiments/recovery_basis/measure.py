"""Rows of `recovery_basis`: from a damaged network to what every basis holds of its recovery."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frenet.experiments.experiment import Row
from frenet.experiments.setup.damage import DamageConfig
from frenet.experiments.setup.networks import NetworkConfig
from frenet.experiments.setup.recovery import LONGEST_PREFIX

if TYPE_CHECKING:
    from torch import Tensor

    from frenet.experiments.setup.networks import Network
    from frenet.geometry.basis import Basis
    from frenet.measure.recovery import Recovery
    from frenet.measure.trajectory import Training
    from frenet.network.tasks import Evaluation, Task

    Bases = dict[str, Basis]


@dataclass(frozen=True)
class Config(DamageConfig, NetworkConfig):
    """Damage a task, recover it twice, and see what each basis holds of the displacement."""

    protocols: tuple[str, ...] = (
        "wrong-answers",
        "relative-noise",
        "absolute-noise",
        "forgetting",
        "ascent",
        "zeroed-head",
        "zeroed-mlp",
    )
    """Ways to damage the task."""
    optimizers: tuple[str, ...] = ("adam:3e-5", "adam:3e-4", "adam:1e-3", "sgd:0.01")
    """Optimisers of the recovery of all weights, with their rates."""
    lora_optimizers: tuple[str, ...] = ("adam:3e-4", "adam:1e-3", "adam:3e-3")
    """Optimisers of the recovery by LoRA, with their rates."""
    steps: int = 400
    """Most steps of a recovery; one that needs more is reported as not recovered."""
    batch_size: int = 64
    """Examples in a minibatch, of recovery and of the sampled gradients."""
    every: int = 1
    """Steps between looks at the loss during recovery."""
    ks: tuple[int, ...] = (1, 2, 5, 10, 20)
    """Basis dimensions."""
    n: int = 64
    """Gradients that a gradient basis is made of."""
    second_order: tuple[str, ...] = ("Krylov", "Hessian")
    """Bases that need Hessian products: the Krylov space of the gradient, top eigenvectors."""
    vector_steps: int = 30
    """Steps that each other task is trained for its task vector."""
    optimised: tuple[str, ...] = ("prefix", "gradients at damage", "random")
    """Bases inside which the network is also trained."""
    function_k: int = 10
    """Basis dimension at which loss and accuracy are measured, and networks trained inside."""
    probe_size: int = 128
    """Examples on which loss and accuracy are measured."""


@dataclass(frozen=True)
class Case:
    """One damaged task: what its rows share."""

    network: "Network"
    task: "Task"
    config: Config
    keys: Row
    loss_0: float
    loss_d: float
    threshold: float

    def training(self, steps: int, *, seed: int) -> "Training":
        """The recovery's optimiser and batch size."""
        from frenet.measure.trajectory import Training

        return Training(str(self.keys["optimizer"]), self.config.batch_size, steps, seed=seed)

    def regained(self, loss: float) -> float:
        """Share of the lost loss that is back."""
        from frenet.measure.recovery import regained

        return regained(loss, self.loss_0, self.loss_d, self.network.chance)


def damaged_rows(case: Case, bases: "Bases", line: "Tensor") -> Iterator[Row]:
    """Everything from the damaged point: two recoveries and what the bases hold of each."""
    from frenet.geometry.basis import span_basis
    from frenet.measure.bases import Sampling, bases_at_damage

    config, network, seed = case.config, case.network, int(str(case.keys["seed"]))
    bases = bases | bases_at_damage(
        network.model,
        case.task,
        sampling=Sampling(max(config.ks), config.n, config.batch_size, seed),
        space=network.space,
        second_order=config.second_order,
    )
    if line.any():
        bases["damage direction"] = span_basis(
            line[None], space=network.space, origin="damage direction"
        )
    runs = [_recover(case, seed=1000 * (replicate + 1) + seed) for replicate in (0, 1)]
    for replicate, own in enumerate(runs):
        yield from _recovery_rows(case, own, runs[1 - replicate], replicate)
    if any(found.stop is None for found in runs):
        return
    for replicate, own in enumerate(runs):
        yield from _capture_rows(case, own, runs[1 - replicate], bases, replicate)


def _recover(case: Case, *, seed: int) -> "Recovery":
    from frenet.measure.recovery import recover

    space, model = case.network.space, case.network.model
    with space.restored(model):
        return recover(
            model,
            case.task,
            case.training(case.config.steps, seed=seed),
            space=space,
            threshold=case.threshold,
            probe_size=case.config.probe_size,
            every=case.config.every,
        )


def _recovery_rows(case: Case, own: "Recovery", other: "Recovery", replicate: int) -> Iterator[Row]:
    """How one recovery went, and its loss against the step."""
    from frenet.geometry.alignment import cosine
    from frenet.geometry.linalg import norm, norms

    mine, its = own.trajectory.displacement(), other.trajectory.displacement()
    status = "not recovered" if own.stop is None else "shallow" if own.stop <= 2 else "recovered"
    yield {
        "table": "recovery",
        **case.keys,
        "replicate": replicate,
        "status": status,
        "stop": own.stop,
        "longest": case.config.steps,
        "loss_end": own.losses[-1][1],
        "threshold": own.threshold,
        "displacement": norm(mine),
        "path_length": float(norms(own.trajectory.steps).sum()),
        "replicate_cosine": cosine(mine, its),
        "cosine_chance": case.network.space.dim**-0.5,
    }
    # The same steps in every run, so that runs can be averaged; denser where the loss falls most.
    grid = {case.config.every * round(1.25**i) for i in range(40)} | {0, own.losses[-1][0]}
    for step, loss in (pair for pair in own.losses if pair[0] in grid):
        yield {
            "table": "curve",
            **case.keys,
            "replicate": replicate,
            "step": step,
            "loss": loss,
            "threshold": own.threshold,
        }


def _capture_rows(
    case: Case, own: "Recovery", other: "Recovery", bases: "Bases", replicate: int
) -> Iterator[Row]:
    """What every basis holds of one recovery's displacement, and what that is worth."""
    from frenet.geometry.basis import svd_basis
    from frenet.measure.recovery import prefix_capture

    assert own.stop is not None
    config, largest = case.config, max(case.config.ks)
    path, twin = own.trajectory, other.trajectory
    displacement = path.displacement()
    bases = bases | {
        "prefix": path.prefix(min(largest, len(path))),
        "prefix of replicate": twin.prefix(min(largest, len(twin))),
        "PCA of replicate": svd_basis(twin.steps, min(largest, len(twin)), unit_rows=False),
    }
    full = _function(case, displacement)
    for name, basis in bases.items():
        for k in (k for k in config.ks if k <= basis.k):
            ceiling = bases["PCA of replicate"]
            row: Row = {
                "table": "capture",
                **case.keys,
                "replicate": replicate,
                "basis": name,
                "k": k,
                "stop": own.stop,
                "k_over_stop": k / own.stop,
                "chance": k / case.network.space.dim,
            }
            if k <= LONGEST_PREFIX * own.stop:
                if name == "prefix":
                    row |= prefix_capture(path, k)
                else:
                    row["captured"] = float(basis.truncate(k).captured_fraction(displacement))
                row["ceiling"] = float(
                    ceiling.truncate(min(k, ceiling.k)).captured_fraction(displacement)
                )
                if k == min(config.function_k, basis.k):
                    # Dependent steps count as steps, though they add no direction.
                    part = path.prefix(k) if name == "prefix" else basis.truncate(k)
                    optimise = replicate == 0 and name in config.optimised
                    row |= _worth(case, part, own, full=full, optimise=optimise)
            yield row


def _function(case: Case, delta: "Tensor") -> "Evaluation":
    """Held-out loss and accuracy at the damaged point plus ``delta``."""
    from frenet.measure.recovery import evaluate_at

    batch = next(case.task.batches("test", case.config.probe_size, 0))
    network = case.network
    return evaluate_at(network.model, batch, space=network.space, delta=delta)


def _worth(
    case: Case, basis: "Basis", own: "Recovery", *, full: "Evaluation", optimise: bool
) -> Row:
    """What a basis is worth in function: the displacement projected on it, and training in it."""
    from frenet.methods.subspace import train_in_basis

    network = case.network
    projected = _function(case, basis.project(own.trajectory.displacement()))
    row: Row = {
        "regained": case.regained(projected.loss),
        "regained_full": case.regained(full.loss),
        "accuracy": projected.token_accuracy,
        "accuracy_full": full.token_accuracy,
    }
    if optimise:
        assert own.stop is not None
        training = case.training(own.stop, seed=int(str(case.keys["seed"])))
        with network.space.restored(network.model):
            delta = train_in_basis(
                network.model, case.task, basis, space=network.space, training=training
            )
        row["optimised"] = case.regained(_function(case, delta).loss)
    return row
