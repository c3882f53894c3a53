"""Two updates in both orders, against closed forms and the Lie bracket."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from frenet._errors import UsageError
from frenet.geometry.alignment import cosine
from frenet.geometry.linalg import norm
from frenet.measure.damage import Mixture
from frenet.measure.lie_bracket import lie_bracket
from frenet.measure.trajectory import Training
from frenet.measure.update_order import carried_state, gradient_step, order_difference
from frenet.measure.update_order_in_weights import OrderInWeights
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticTask
from measure.conftest import build, task_for
from measure.test_lie_bracket import closed_form, fixed, two_quadratics
from network.adapted import adapted, dense_changes, factors


@pytest.mark.parametrize("eta", [1e-3, 0.1, 0.7])
def test_of_quadratics_the_difference_is_eta_squared_times_the_bracket_for_any_step(eta):
    """There is no remainder: the Hessians are the same everywhere."""
    model, first, second, space = two_quadratics()
    exact = eta**2 * closed_form(model, first, second)
    found = order_difference(
        model, fixed(first), fixed(second), gradient_step(eta), space=space, float64=True
    )
    assert norm(found.vector - exact) < 1e-12 * max(1.0, norm(exact) / eta)
    x = model().detach()
    both = first.gradient(x) + second.gradient(x)
    assert norm(found.step + eta * both) < 1e-12
    assert found.relative == pytest.approx(float(exact.norm() / (eta * both).norm()), rel=1e-9)
    assert found.frozen_relative < 1e-12
    bracket = lie_bracket(model, fixed(first), fixed(second), space=space, float64=True)
    agreed = found.against(bracket, eta)
    assert agreed.ratio == pytest.approx(1.0, abs=1e-5)
    assert agreed.cosine == pytest.approx(1.0, abs=1e-9)
    assert agreed.rounding < 1e-6


def test_commuting_tasks_end_at_one_point():
    model, first, second, space = two_quadratics(commuting=True)
    found = order_difference(
        model, fixed(first), fixed(second), gradient_step(0.05), space=space, float64=True
    )
    assert found.relative < 1e-12


def test_of_a_network_the_remainder_is_of_second_order(learned):
    """c = eta kappa + O(eta^2): a slope of 1 in log-log, and one of 2 for what is left."""
    space = ParamSpace.select(learned)
    pair = fixed(SyntheticTask("copy")), fixed(SyntheticTask("reverse"))
    bracket = lie_bracket(learned, *pair, space=space, float64=True)
    etas = bracket.onset * np.array([1e-5, 2e-5, 4e-5, 8e-5])
    lengths, left, cosines = [], [], []
    for eta in etas.tolist():
        found = order_difference(learned, *pair, gradient_step(eta), space=space, float64=True)
        walked = norm(found.step)
        lengths.append(found.relative)
        left.append(norm(found.vector - eta**2 * bracket.vector.double()) / walked)
        cosines.append(found.against(bracket, eta).cosine)
    assert np.polyfit(np.log(etas), np.log(lengths), 1)[0] == pytest.approx(1.0, abs=0.02)
    assert np.polyfit(np.log(etas), np.log(left), 1)[0] == pytest.approx(2.0, abs=0.1)
    assert lengths[0] == pytest.approx(bracket.predicted(etas[0]), rel=0.01)
    assert cosines[0] > 0.9999
    assert cosines == sorted(cosines, reverse=True)


def test_swapped_tasks_give_the_negative_difference(learned):
    space = ParamSpace.select(learned)
    pair = fixed(SyntheticTask("copy")), fixed(SyntheticTask("reverse"))
    training = Training("adam:1e-3")
    one = order_difference(learned, *pair, training, space=space)
    other = order_difference(learned, *pair[::-1], training, space=space)
    assert torch.equal(one.vector, -other.vector)
    assert torch.allclose(one.end + one.vector, other.end, rtol=0, atol=1e-15)


def test_float32_weights_are_as_good_while_the_step_is_above_rounding(learned):
    space = ParamSpace.select(learned)
    pair = fixed(SyntheticTask("copy")), fixed(SyntheticTask("reverse"))
    bracket = lie_bracket(learned, *pair, space=space)
    eta = bracket.onset / 1000
    assert bracket.least_step < eta
    single, double = (
        order_difference(learned, *pair, gradient_step(eta), space=space, float64=wide)
        for wide in (False, True)
    )
    assert 0 < bracket.order_rounding < 0.1 * double.relative
    assert abs(single.relative - double.relative) < bracket.order_rounding
    with pytest.raises(UsageError, match=r"step size .* is too small for the order of copy and"):
        single.against(bracket, 0.9 * bracket.least_step)


def test_clipped_steps_are_those_of_the_clipped_gradients():
    """Two quadratics whose gradients are clipped at both points: unit vectors times the clip."""
    model, first, second, space = two_quadratics()
    eta, clip = 0.05, 0.3
    x = model().detach().double()

    def clipped(task, point):
        g = task.gradient(point)
        return g * min(1.0, clip / float(g.norm()))

    def end(one, other):
        moved = x - eta * clipped(one, x)
        return moved - eta * clipped(other, moved)

    exact = end(first, second) - end(second, first)
    training = Training(f"sgd:{eta}", clip=clip)
    found = order_difference(
        model, fixed(first), fixed(second), training, space=space, float64=True
    )
    assert norm(found.vector - exact) < 1e-12
    assert found.frozen_relative < 1e-12


def adam_by_hand(x, tasks, eta, state=None, betas=(0.9, 0.999)):
    """Two steps of Adam, by its formula; ``state``: moments and count before."""
    m, v, t = state or (torch.zeros_like(x), torch.zeros_like(x), 0)
    for task in tasks:
        g, t = task.gradient(x), t + 1
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g.square()
        away = (v / (1 - betas[1] ** t)).sqrt() + 1e-8
        x = x - eta * (m / (1 - betas[0] ** t)) / away
    return x


def test_adam_with_fresh_state_is_its_formula():
    model, first, second, space = two_quadratics()
    x, eta = model().detach().double(), 0.01
    exact = adam_by_hand(x, (first, second), eta) - adam_by_hand(x, (second, first), eta)
    found = order_difference(
        model, fixed(first), fixed(second), Training(f"adam:{eta}", clip=None), space=space,
        float64=True,
    )  # fmt: skip
    assert norm(found.vector - exact) < 1e-9
    assert found.relative > 0.01


def test_adam_with_carried_state_is_its_formula_and_remembers_the_first_step():
    """After n equal gradients g the moments are (1 - beta^n) g and (1 - beta^n) g^2."""
    model, first, second, space = two_quadratics()
    x, eta, n = model().detach().double(), 1e-6, 20
    training = Training(f"adam:{eta}", batch_size=1, steps=n, clip=None)
    state = carried_state(model.double(), first, training, space=space)
    g = first.gradient(x)
    seen = (1 - 0.9**n) * g, (1 - 0.999**n) * g.square(), n
    exact = adam_by_hand(x, (first, second), eta, seen) - adam_by_hand(
        x, (second, first), eta, seen
    )
    found = order_difference(
        model, fixed(first), fixed(second), training, space=space, carried=state
    )
    assert norm(found.vector - exact) < 1e-6 * norm(exact)
    # At so small a step all of the difference is the optimiser's memory: it does not shrink.
    assert found.frozen_relative == pytest.approx(found.relative, rel=1e-3)
    smaller = order_difference(
        model, fixed(first), fixed(second), replace(training, optimizer="adam:1e-7"), space=space,
        carried=state,
    )  # fmt: skip
    assert smaller.relative == pytest.approx(found.relative, rel=1e-3)


def test_the_carried_state_is_not_changed_and_the_weights_are_as_before():
    model, task = build("synthetic"), task_for("synthetic")
    space, other = ParamSpace.select(model), SyntheticTask("copy")
    before = [p.clone() for p in model.parameters()]
    training = Training("adamw:1e-3", batch_size=8, steps=3)
    state = carried_state(model, Mixture((task, other)), training, space=space)
    kept = {key: value.clone() for key, value in state[0].items()}
    assert int(kept["step"]) == 3
    twice = [
        order_difference(model, fixed(task), fixed(other), training, space=space, carried=state)
        for _ in range(2)
    ]
    assert torch.equal(twice[0].vector, twice[1].vector)
    assert all(torch.equal(state[0][key], value) for key, value in kept.items())
    order_difference(model, fixed(task), fixed(other), training, space=space, float64=True)
    assert all(map(torch.equal, model.parameters(), before))


def test_in_the_weights_of_lora_it_is_the_dense_difference():
    model = adapted("gpt2", trained=True)
    space, task = factors(model), task_for("gpt2")
    pair = [fixed(replace(task, name=str(i)), seed=i, size=2) for i in range(2)]
    bracket = lie_bracket(model, *pair, space=space, float64=True)
    inside, start = OrderInWeights.of(model, bracket, space=space), space.read(model)
    rows = torch.stack([bracket.vector, bracket.gradients[0] + bracket.gradients[1]])
    dense = dense_changes(model, space, start, rows, "first order")
    kappa = float(dense[0].norm() / dense[1].norm())
    assert inside.kappa == pytest.approx(kappa, rel=1e-6)
    assert inside.onset == pytest.approx(0.1 / kappa, rel=1e-6)
    eta = bracket.onset / 100
    found = order_difference(model, *pair, gradient_step(eta), space=space, float64=True)
    relative, along = inside.relative(found), inside.cosine(found, bracket.vector)
    ends = torch.stack([found.end + found.vector, found.end])
    changes = dense_changes(model, space, start, ends, "exact")
    exact = float((changes[0] - changes[1]).norm() / (eta * dense[1]).norm())
    assert relative == pytest.approx(exact, rel=1e-3)
    assert relative == pytest.approx(eta * kappa, rel=0.05)
    image = dense[0] / dense[0].norm()
    apart = changes[0] - changes[1]
    assert along == pytest.approx(float(apart @ image / apart.norm()), abs=1e-6)
    assert along > 0.99
    assert inside.kappa_of(2 * bracket.vector) == pytest.approx(2 * kappa, rel=1e-6)


def test_bad_steps_are_refused():
    model, first, second, space = two_quadratics()
    pair = fixed(first), fixed(second)
    with pytest.raises(UsageError, match=r"steps of sgd:0\.0 on quadratic and other are zero"):
        order_difference(model, *pair, gradient_step(0.0), space=space)
    with pytest.raises(FloatingPointError, match="in two steps of sgd"):
        order_difference(model, *pair, gradient_step(1e200), space=space, float64=True)


def test_it_describes_itself():
    model, first, second, space = two_quadratics()
    found = order_difference(model, fixed(first), fixed(second), gradient_step(0.1), space=space)
    assert f"{found.relative:.3g}" in repr(found)
    assert math.isfinite(next(iter(found._entries()))[1])
    assert cosine(found.vector, closed_form(model, first, second)) == pytest.approx(1.0, abs=1e-6)
