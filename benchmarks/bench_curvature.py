"""Hessian products, trace and leading eigenpairs, compared with curvlinops and double backward.

    python benchmarks/bench_curvature.py [--model FOLDER] [--repeats 7]

All work on the same batch of the same network in float32, with the attention kernel that has
second derivatives, and take turns in one run. Double backward needs no library: the graph of the
gradient is built for every product, or once for all. Ours is kept between products at one point;
the first of them, and traces and eigenpairs, include its making. Before the timing, all must give
the same numbers.

curvlinops differentiates ``torch.func.jacrev`` in forward mode; with torch 2.13 that gives wrong
numbers for the weights of ``nn.LayerNorm``; ``torch.func.grad``, which we use, does not. So the
timing leaves out the weights of layer norms, and separate rows have the errors in all weights.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from frenet.geometry import rng
from frenet.measure.curvature import Trace, hessian_product, hutchinson, top_eigenpairs
from frenet.network.checkpoints.load import load
from frenet.network.measuring import transformable
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticTask, SyntheticTransformer
from frenet.network.tasks import Batch, Task, target_logits
from timing import (
    STORIES,
    RandomTokens,
    Row,
    attempted,
    model_name,
    ratios,
    run_of,
    show,
    times,
    turns,
)

ROWS, PROBES, PAIRS = 16, 16, 4
CURVLINOPS, KEPT = "curvlinops", "double backward, its graph kept"
# Largest relative errors of a float32 product, a trace with the same probes, and an eigenvalue.
SAME_PRODUCT, SAME_TRACE, SAME_VALUE = 1e-4, 1e-3, 1e-3
Matvec = Callable[[Tensor], Tensor]


class Setup(NamedTuple):
    """The loss to differentiate; ``space`` has no weights of layer norms."""

    name: str
    model: nn.Module
    task: Task
    space: ParamSpace
    batch: Batch


class Predictions(nn.Module):
    """A language model for curvlinops: from a batch to one row of logits per target."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, batch: Batch) -> Tensor:
        return target_logits(self.inner, batch)[0].flatten(0, 1)


def synthetic() -> Setup:
    """The synthetic transformer before training, which does not change the cost."""
    task = SyntheticTask("reverse")
    model = SyntheticTransformer().eval()
    batch = next(task.batches("train", ROWS, 0))
    space = ParamSpace.select(model, lambda name, _: "ln_" not in name)
    return Setup("synthetic", model, task, space, batch)


def loaded(source: str | Path, rows: int) -> Setup:
    """A language model and rows of random tokens."""
    model = load(source).model
    task = RandomTokens(model.config.vocab_size)
    batch = next(task.batches("train", rows, 0))
    return Setup(model_name(source), model, task, ParamSpace.select(model), batch)


def double_backward(setup: Setup, *, kept: bool) -> Matvec:
    """v -> H v as the gradient of <gradient, v>, by autograd."""
    parameters, batch = setup.space.parameters(setup.model), setup.batch

    def slope() -> Tensor:
        loss = setup.task.loss(setup.model, batch)
        parts = torch.autograd.grad(loss, parameters, create_graph=True)
        return torch.cat([part.reshape(-1) for part in parts])

    held = slope() if kept else None

    def product(vector: Tensor) -> Tensor:
        inner = (slope() if held is None else held) @ vector
        parts = torch.autograd.grad(inner, parameters, retain_graph=kept)
        return torch.cat([part.reshape(-1) for part in parts])

    return product


def by_us(setup: Setup) -> Matvec:
    """v -> H v of this library."""
    return hessian_product(setup.model, setup.task, setup.batch, space=setup.space)


def by_curvlinops(setup: Setup) -> Matvec:
    """v -> H v of curvlinops."""
    operator = curvlinops_operator(setup)
    return lambda vector: operator @ vector


def curvlinops_operator(setup: Setup) -> Any:
    """The same Hessian as an operator of curvlinops."""
    from curvlinops import HessianLinearOperator

    batch = setup.batch
    targets = target_logits(setup.model, batch)[1].flatten()
    return HessianLinearOperator(
        Predictions(setup.model),
        nn.CrossEntropyLoss(),
        setup.space.parameters(setup.model),
        [(batch, targets)],
        batch_size_fn=lambda batch: len(batch["labels"]),
        check_deterministic=False,
    )


def require_same(what: str, name: str, theirs: Tensor, ours: Tensor, limit: float) -> None:
    """Raise ArithmeticError if a peer gives other numbers: its time would be meaningless."""
    off = float((theirs.double() - ours.double()).norm() / ours.double().norm())
    if not off <= limit:
        raise ArithmeticError(f"{what} of {name} differs by {off:.1e} from ours, limit {limit:.0e}")


def errors(setup: Setup) -> Iterator[Row]:
    """Relative errors of a product in all weights, compared with double backward in float64."""
    setup = setup._replace(space=ParamSpace.select(setup.model))
    exact = setup._replace(model=copy.deepcopy(setup.model).double())
    vector = _vector(setup)
    reference = double_backward(exact, kept=False)(vector.double())

    def error(name: str, make: Callable[[Setup], Matvec]) -> Iterator[Row]:
        product = make(setup)(vector)
        yield {
            "name": f"relative error of a Hessian product in all weights, {name}",
            "model": setup.name,
            "ratio": float((product - reference).norm() / reference.norm()),
            "aim": f"at most {SAME_PRODUCT:.0e}",
            "detail": f"to double backward in float64; d = {setup.space.dim:,}",
        }

    for name, make in {"ours": by_us, CURVLINOPS: by_curvlinops}.items():
        what = f"error of a Hessian product, {name}"
        yield from attempted(what, partial(error, name, make), model=setup.name)


def products(setup: Setup, repeats: int) -> Iterator[Row]:
    """One product, by us and by the others."""
    others: dict[str, Callable[[Setup], Matvec]] = {
        CURVLINOPS: by_curvlinops,
        "double backward": partial(double_backward, kept=False),
        KEPT: partial(double_backward, kept=True),
    }
    ours, vector = by_us(setup), _vector(setup)

    def against(what: str, name: str, mine: Matvec) -> Iterator[Row]:
        other = others[name](setup)
        require_same("the product", name, other(vector), mine(vector), SAME_PRODUCT)
        seconds = turns({"ours": lambda: mine(vector), "other": lambda: other(vector)}, repeats)
        aim = "at most 1.2" if name == KEPT else ""
        yield _row(what, setup, *seconds.values(), aim=aim)

    # A new map has no graph yet.
    first = "first Hessian product at a point against double backward"
    compared = [(f"Hessian product against {name}", name, ours) for name in others]
    compared.append((first, "double backward", lambda vector: by_us(setup)(vector)))
    for what, name, mine in compared:
        yield from attempted(what, partial(against, what, name, mine), model=setup.name)


def traces(setup: Setup, repeats: int, probes: int) -> Iterator[Row]:
    """Hutchinson's trace from the same number of probes, each package with its own draws."""
    from curvlinops import hutchinson_trace

    operator, draw = curvlinops_operator(setup), _probes()
    z = torch.stack([_signs(setup.space.dim, draw) for _ in range(2)], dim=1)
    theirs = (z * (operator @ z)).sum(0).mean()

    def ours(probes: int) -> Trace:
        return hutchinson(by_us(setup), setup.space.dim, probes=probes, generator=_probes())

    require_same("the trace", CURVLINOPS, theirs[None], torch.tensor([ours(2).trace]), SAME_TRACE)
    seconds = turns(
        {"ours": lambda: ours(probes), "theirs": lambda: hutchinson_trace(operator, probes)},
        repeats,
    )
    what = f"trace from {probes} probes against {CURVLINOPS}"
    yield _row(what, setup, seconds["ours"], seconds["theirs"])


def eigenpairs(setup: Setup, repeats: int, pairs: int) -> Iterator[Row]:
    """Leading eigenvalues, compared with scipy's Lanczos on the operator of curvlinops."""
    dim = setup.space.dim
    operator = curvlinops_operator(setup).to_scipy()
    start = torch.randn(dim, generator=_probes(), dtype=torch.float64).numpy()

    def theirs() -> Any:
        return eigsh(operator, k=pairs, which="LM", v0=start, tol=1e-5)[0]

    def mine() -> Tensor:
        return top_eigenpairs(by_us(setup), dim, pairs, generator=_probes()).values

    name = f"{CURVLINOPS} under scipy's Lanczos"
    values = torch.tensor(sorted(theirs(), key=lambda value: -abs(value)))
    require_same("the eigenvalues", name, values, mine(), SAME_VALUE)
    seconds = turns({"ours": mine, "theirs": theirs}, repeats)
    what = f"{pairs} leading eigenpairs against {name}"
    yield _row(what, setup, seconds["ours"], seconds["theirs"])


def _vector(setup: Setup) -> Tensor:
    return torch.randn(setup.space.dim, generator=rng.generator(0, "bench", "hessian"))


def _probes() -> torch.Generator:
    return rng.generator(0, "bench", "probes")


def _signs(dim: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (dim,), generator=generator).float() * 2 - 1


def _row(name: str, setup: Setup, ours: list[float], other: list[float], *, aim: str = "") -> Row:
    return {
        "name": name,
        "model": setup.name,
        **ratios(ours, other),
        "aim": aim,
        "detail": f"{times(ours, other)}; d = {setup.space.dim:,}, {len(setup.batch['labels'])} "
        f"rows of {setup.batch['labels'].shape[1]} tokens, {run_of(len(ours))}",
    }


def run(
    source: str | Path = STORIES,
    repeats: int = 7,
    *,
    rows: int = ROWS,
    probes: int = PROBES,
    pairs: int = PAIRS,
) -> Iterator[Row]:
    """On the synthetic transformer, and on a language model; no ``pairs``: no eigenpairs."""
    makers: list[Callable[[], Setup]] = [lambda: loaded(source, rows)]
    if source == STORIES:
        makers.insert(0, synthetic)
    for maker in makers:
        setup = maker()
        parts: dict[str, Callable[[Setup], Iterator[Row]]] = {
            "errors of Hessian products": errors,
            "Hessian products": partial(products, repeats=repeats),
            f"trace against {CURVLINOPS}": partial(
                traces, repeats=max(1, repeats // 2), probes=probes
            ),
        }
        if pairs:
            what = f"leading eigenpairs against {CURVLINOPS}"
            parts[what] = partial(eigenpairs, repeats=max(1, repeats // 3), pairs=pairs)
        # Fused attention has no second derivatives; ours switches it off by itself.
        with transformable(setup.model):
            setup.model.requires_grad_(True)
            for name, part in parts.items():
                yield from attempted(name, partial(part, setup), model=setup.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=STORIES, help="model folder, or GGUF file")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    show(run(options.model, options.repeats))
