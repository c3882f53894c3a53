"""Recovery: when it stops, and the references for the capture of its prefix."""

import copy

import pytest
import torch

from frenet.geometry.rng import generator
from frenet.measure.damage import fixed_loss
from frenet.measure.recovery import evaluate_at, prefix_capture, recover, recovered_loss, regained
from frenet.measure.trajectory import Training, Trajectory
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticTask
from frenet.network.tasks import evaluate
from measure.quadratic import quadratic


@pytest.mark.parametrize(
    ("loss_0", "loss_d", "chance", "expected"),
    [(0.0, 2.0, 3.0, 0.1), (0.0, 9.0, 3.0, 0.15), (0.5, 1.0, 3.0, 0.55), (0.2, 0.2, 3.0, 0.21)],
)
def test_recovered_is_five_percent_of_the_lesser_loss(loss_0, loss_d, chance, expected):
    assert recovered_loss(loss_0, loss_d, chance) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("loss", "loss_d", "expected"),
    [
        (0.0, 2.0, 1.0),
        (2.0, 2.0, 0.0),
        (0.5, 2.0, 0.75),
        (3.0, 9.0, 0.0),  # at chance nothing is recovered, for any damage
        (9.0, 9.0, -2.0),
        (-0.3, 9.0, 1.1),  # better than before
    ],
)
def test_regained_counts_from_the_lesser_of_damage_and_chance(loss, loss_d, expected):
    assert regained(loss, 0.0, loss_d, 3.0) == pytest.approx(expected)


def test_recovered_and_regained_agree():
    """At the threshold 95% is recovered, if the damaged loss is at most chance and loss_0 is 0."""
    assert regained(recovered_loss(0.0, 5.0, 3.0), 0.0, 5.0, 3.0) == pytest.approx(0.95)


@pytest.mark.parametrize("every", [1, 3])
def test_recovery_stops_at_the_first_look_under_the_threshold(every):
    """On a quadratic the loss of every step is known in closed form."""
    model, task, space = quadratic(torch.linspace(0.5, 2, 8))
    away = space.read(model).double() - task.minimum.double()
    decay = torch.eye(8).double() - 0.1 * task.H
    losses = []
    for t in range(61):
        moved = torch.linalg.matrix_power(decay, t) @ away
        losses.append(float(moved @ task.H @ moved / 2))
    threshold = recovered_loss(0.0, losses[0], 1e9)
    looks = [t for t in range(1, 61) if t % every == 0]
    expected = next(t for t in looks if losses[t] <= threshold)
    training = Training("sgd:0.1", batch_size=1, steps=60, clip=None)
    found = recover(model, task, training, space=space, threshold=threshold, every=every)
    assert found.stop == len(found.trajectory) == expected
    assert [step for step, _ in found.losses] == [0, *(t for t in looks if t <= expected)]
    for step, loss in found.losses:
        assert loss == pytest.approx(losses[step], rel=1e-4)
    assert found.threshold == threshold
    torch.testing.assert_close(space.read(model), found.trajectory.theta(expected))


def test_a_recovery_that_does_not_get_there_says_so():
    model, task, space = quadratic(torch.ones(8))
    training = Training("sgd:1e-4", batch_size=1, steps=5)
    found = recover(model, task, training, space=space, threshold=1e-9)
    assert found.stop is None
    assert len(found.trajectory) == 5
    assert found.losses[-1][0] == 5


def test_a_loss_at_the_threshold_is_recovered():
    model, task, space = quadratic(torch.linspace(0.5, 2, 8))
    training = Training("sgd:0.1", batch_size=1, steps=9, clip=None)
    with space.restored(model):
        losses = recover(model, task, training, space=space, threshold=0.0).losses
    found = recover(model, task, training, space=space, threshold=losses[4][1])
    assert found.stop == 4


def test_the_loss_is_looked_at_on_128_examples_after_every_step(learned):
    task, space = SyntheticTask("reverse"), ParamSpace.select(learned)
    training = Training("sgd:1e-3", batch_size=4, steps=2)
    start = fixed_loss(learned, task, size=128)
    losses = recover(learned, task, training, space=space, threshold=0.0).losses
    assert [step for step, _ in losses] == [0, 1, 2]
    assert losses[0][1] == start
    assert losses[2][1] == fixed_loss(learned, task, size=128)


def test_a_damaged_network_recovers_and_its_replicate_takes_other_batches(learned):
    task, space = SyntheticTask("copy"), ParamSpace.select(learned)
    noise = torch.randn(space.dim, generator=generator(0, "noise"))
    space.write(learned, space.read(learned) + 0.3 * noise)
    paths = []
    for seed in (0, 1):
        with space.restored(learned):
            training = Training("adam:3e-3", batch_size=32, steps=100, seed=seed)
            found = recover(learned, task, training, space=space, threshold=0.1)
        assert found.stop is not None
        assert found.stop == len(found.trajectory) > 2
        assert found.losses[0][1] > 0.5 > 0.1 >= found.losses[-1][1]
        assert all(loss > 0.1 for _, loss in found.losses[:-1])
        paths.append(found.trajectory)
    assert torch.equal(paths[0].start, paths[1].start)
    assert not torch.allclose(paths[0].steps[0], paths[1].steps[0])


def test_evaluating_at_a_displacement_is_evaluating_the_displaced_network(learned):
    task, space = SyntheticTask("copy"), ParamSpace.select(learned)
    batch = next(task.batches("test", 32, 0))
    delta = 0.1 * torch.randn(space.dim, generator=generator(0, "delta"))
    moved = copy.deepcopy(learned)
    space.write(moved, space.read(moved) + delta)
    before = space.read(learned)
    found = evaluate_at(learned, batch, space=space, delta=delta)
    assert found == evaluate(moved, batch)
    assert found != evaluate(learned, batch)
    assert torch.equal(space.read(learned), before)


def path_of(steps):
    space = ParamSpace(("w",), ((steps.shape[1],),))
    return Trajectory(torch.zeros(steps.shape[1]), steps, torch.zeros(len(steps)), None, space)


def test_the_context_of_a_prefix_by_hand():
    """Steps (3, 0, 0), (0, 4, 0), (1, 0, 2): the displacement is (4, 4, 2)."""
    path = path_of(torch.tensor([[3.0, 0, 0], [0, 4, 0], [1, 0, 2]]))
    one = prefix_capture(path, 1)
    assert one["walk_share"] == pytest.approx(9 / 30)
    assert one["lift"] == pytest.approx((16 / 36) / (9 / 30))
    assert one["rest"] == pytest.approx(1 / 21)  # of (1, 4, 2) in the first axis
    two = prefix_capture(path, 2)
    assert two["walk_share"] == pytest.approx(25 / 30)
    assert two["lift"] == pytest.approx((32 / 36) / (25 / 30))
    assert two["rest"] == pytest.approx(1 / 5)
    three = prefix_capture(path, 3)
    assert three == {
        "captured": pytest.approx(1.0),
        "walk_share": 1.0,
        "lift": pytest.approx(1.0),
        "rest": None,
    }


def test_a_first_step_of_zero_has_no_lift():
    """As the first step of a warm-up from rate 0."""
    path = path_of(torch.tensor([[0.0, 0, 0], [0, 4, 0]]))
    none = {"captured": 0.0, "walk_share": 0.0, "lift": None, "rest": 0.0}
    assert prefix_capture(path, 1) == none
    assert prefix_capture(path, 2)["lift"] == pytest.approx(1.0)


def test_a_repeated_step_counts_as_a_step_of_the_prefix():
    """Steps (1, 0), (1, 0), (0, 2): two steps span one direction and hold half of the norm."""
    found = prefix_capture(path_of(torch.tensor([[1.0, 0], [1, 0], [0, 2]])), 2)
    assert found["captured"] == pytest.approx(4 / 8)
    assert found["walk_share"] == pytest.approx(2 / 6)


def test_the_context_of_a_prefix_against_explicit_projections():
    draw = generator(0, "path")
    path = path_of(torch.randn(12, 30, generator=draw))
    Q = torch.linalg.qr(path.steps[:4].double().T).Q
    P = Q @ Q.T
    total, rest = path.steps.double().sum(0), path.steps[4:].double().sum(0)
    found = prefix_capture(path, 4)
    share = float(path.steps[:4].square().sum() / path.steps.square().sum())
    assert found["walk_share"] == pytest.approx(share)
    captured = float((P @ total).norm() ** 2 / total.norm() ** 2)
    assert found["captured"] == pytest.approx(captured)
    assert found["lift"] == pytest.approx(captured / share)
    assert found["rest"] == pytest.approx(float((P @ rest).norm() ** 2 / rest.norm() ** 2))


def test_a_random_walk_has_lift_one_and_its_rest_is_at_chance():
    """60 walks of 30 steps of unlike length in 2,000 dimensions, prefixes of 6."""
    draw, d, k = generator(0, "walks"), 2000, 6
    norms = torch.linspace(2, 1, 30)
    captured, rests, shares = [], [], []
    for _ in range(60):
        steps = norms[:, None] * torch.randn(30, d, generator=draw) / d**0.5
        path = path_of(steps)
        found = prefix_capture(path, k)
        captured.append(found["captured"])
        shares.append(found["walk_share"])
        rests.append(found["rest"])
    captured, rests, shares = map(torch.tensor, (captured, rests, shares))
    # Of the later steps, too, a share of k / d falls into the prefix.
    excess = captured - (shares + (1 - shares) * k / d)
    assert abs(excess.mean()) < 4 * excess.std() / 60**0.5
    assert excess.std() / 60**0.5 < 0.005
    assert abs(rests.mean() - k / d) < 4 * rests.std() / 60**0.5


def test_a_straight_path_is_held_by_its_first_step():
    path = path_of(torch.ones(10, 4))
    found = prefix_capture(path, 1)
    assert found == {
        "captured": pytest.approx(1.0),
        "walk_share": pytest.approx(0.1),
        "lift": pytest.approx(10.0),
        "rest": pytest.approx(1.0),
    }


def test_shares_and_lift_of_long_steps_lose_no_digits():
    """A flat step and one along an axis, both of norm 1; float32 norms make the share 0.498."""
    d = 5_000_000
    steps = torch.zeros(2, d)
    steps[0] = d**-0.5
    steps[1, 0] = 1.0
    space = ParamSpace(("w",), ((d,),))
    found = prefix_capture(Trajectory(torch.zeros(d), steps, torch.zeros(2), None, space), 1)
    inner = 1 + d**-0.5
    assert found["walk_share"] == pytest.approx(0.5, rel=1e-6)
    assert found["captured"] == pytest.approx(inner / 2, rel=1e-6)
    assert found["lift"] == pytest.approx(inner, rel=1e-6)


@pytest.mark.parametrize(("loss_d", "chance"), [(1.0, 2.0), (0.5, 2.0), (3.0, 1.0)])
def test_a_damage_that_lost_nothing_is_refused(loss_d, chance):
    with pytest.raises(ValueError, match="there is nothing to recover"):
        regained(0.9, 1.0, loss_d, chance)
