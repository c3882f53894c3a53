"""Gram matrices of LoRA's changes of the weights, against the dense matrices."""

import pytest
import torch

from frenet.geometry.rng import generator
from frenet.network.adapters import attach_lora
from frenet.network.checkpoints.low_rank_changes import LowRankChanges
from frenet.network.space import ParamSpace
from network.adapted import CASES, adapted, dense_changes, factors, first_order, gauged
from network.models import tiny_gpt2, tiny_llama


def several(space, n, *, size=0.2, seed=5):
    return size * torch.randn(n, space.dim, generator=generator(seed, "steps"))


@pytest.mark.parametrize("kind", ["first order", "exact", "path"])
@pytest.mark.parametrize("case", CASES)
def test_inner_products_are_those_of_the_dense_changes(case, kind):
    model = adapted(case, trained=True)
    space = factors(model)
    start = space.read(model)
    steps, others = several(space, 5), several(space, 3, seed=6)
    found = LowRankChanges.of(model, space, steps, start=start, kind=kind)
    moved = LowRankChanges.of(model, space, others, start=start, kind="exact")
    wanted = dense_changes(model, space, start, steps, kind)
    wholes = dense_changes(model, space, start, others, "exact")
    assert (len(found), found.dim) == wanted.shape
    torch.testing.assert_close(found.gram(), wanted @ wanted.T, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.gram(moved), wanted @ wholes.T, rtol=1e-9, atol=1e-9)


def test_the_updates_of_a_path_add_up_to_the_whole_change():
    model = adapted("gpt2", trained=False)
    space = factors(model)
    start, steps = space.read(model), several(space, 7)
    path = LowRankChanges.of(model, space, steps, start=start, kind="path")
    whole = LowRankChanges.of(model, space, steps.double().sum(0)[None], start=start, kind="exact")
    size = whole.gram()[0, 0]
    assert float(path.gram().sum()) == pytest.approx(float(size), rel=1e-12)
    assert float(path.gram(whole).sum()) == pytest.approx(float(size), rel=1e-12)


def test_every_step_may_have_a_start_of_its_own():
    model = adapted("llama", trained=True)
    space = factors(model)
    steps, starts = several(space, 3), several(space, 3, seed=8)
    together = LowRankChanges.of(model, space, steps, start=starts, kind="exact")
    alone = [
        LowRankChanges.of(model, space, steps[[i]], start=starts[i], kind="exact") for i in range(3)
    ]
    wanted = torch.cat([torch.cat([a.gram(b) for b in alone], dim=1) for a in alone])
    torch.testing.assert_close(together.gram(), wanted)


def test_a_small_step_is_not_the_rounding_of_two_large_products():
    """Of float32 products, the difference of two loses all digits at this size."""
    model = adapted("llama", trained=True)
    space = factors(model)
    start, step = space.read(model), several(space, 1, size=1e-8)
    found = LowRankChanges.of(model, space, step, start=start, kind="exact").gram()
    wanted = first_order(model, space, start.double(), step[0].double()).square().sum()
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("kind", ["first order", "exact", "path"])
def test_inner_products_in_the_weights_do_not_depend_on_the_gauge_of_the_factors(kind):
    """Those of the factors do."""
    model = adapted("gpt2", trained=True)
    space = factors(model)
    start, steps = space.read(model).double(), several(space, 4).double()
    found = LowRankChanges.of(model, space, steps, start=start, kind=kind).gram()
    moved, at = gauged(model, space, steps), gauged(model, space, start)
    again = LowRankChanges.of(model, space, moved, start=at, kind=kind).gram()
    torch.testing.assert_close(again, found, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(moved @ moved.T, steps @ steps.T, rtol=0.1)


def test_a_factor_outside_the_space_stands_still():
    """With A fixed, the change of the weights is linear in the step."""
    model = attach_lora(tiny_llama(), rank=2, seed=1)
    space = ParamSpace.select(model, "lora_B")
    start, steps = space.read(model), several(space, 4)
    exact, first = (
        LowRankChanges.of(model, space, steps, start=start, kind=kind).gram()
        for kind in ("exact", "first order")
    )
    torch.testing.assert_close(exact, first)
    wanted = dense_changes(model, space, start, steps, "exact")
    torch.testing.assert_close(exact, wanted @ wanted.T)


def test_parameters_that_are_no_factors_are_refused():
    model = attach_lora(tiny_gpt2(), rank=2)
    space = ParamSpace.select(model, lambda name, _: "lora_" in name or "ln_f" in name)
    step = several(space, 1)
    with pytest.raises(ValueError, match=r"ln_f.* is no factor"):
        LowRankChanges.of(model, space, step, start=step[0], kind="exact")
