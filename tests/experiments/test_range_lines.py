"""Along which line task vectors of LoRA go: losses with a closed form, and stored rows."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from frenet.experiments import EXPERIMENTS
from frenet.experiments.direction_scale import figures as scale_findings
from frenet.experiments.experiment import Cell
from frenet.experiments.setup.lines import weight_share
from frenet.experiments.setup.networks import Network
from frenet.experiments.task_vector_range import Config
from frenet.experiments.task_vector_range import figures as range_findings
from frenet.experiments.task_vector_range.measure import Range, along_rows, pair_rows
from frenet.geometry.rng import generator
from frenet.measure.trajectory import Trajectory
from frenet.methods.task_vectors import from_step, from_training
from frenet.network.adapters import attach_lora
from frenet.network.space import ParamSpace

SCALES = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)


class Linear(nn.Module):
    """One linear layer from 4 to 3, its weight drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(3, 4, generator=generator(0, "W")))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@dataclass(frozen=True)
class Distance:
    """L = ||W - W*||^2 of the whole weight of the layer, by all its columns."""

    wanted: torch.Tensor
    name: str = "distance"

    def loss(self, model, batch):
        return (model(batch["x"]) - batch["x"] @ self.wanted.T).square().sum()

    def batches(self, split, batch_size, seed):
        while True:
            yield {"x": torch.eye(4), "labels": torch.zeros(4, 1, dtype=torch.int64)}

    def score(self, model, split):
        return {}

    def shuffled(self, seed):
        return self


def trained(model, space, *, a_step, b_step):
    """A training of one step."""
    step = torch.zeros(space.dim)
    parts = space.unflatten(step)
    for name, part in parts.items():
        part.copy_(a_step if "lora_A" in name else b_step)
    start = space.read(model)
    return Trajectory(start, step[None], torch.zeros(1), None, space)


def made(*, start, tasks=1):
    """A layer with LoRA of rank 2 at given factors, and trainings that reach their tasks."""
    model = attach_lora(Linear(), rank=2, alpha=3, targets=["layer"])
    space = ParamSpace.select(model)
    A0, B0 = start
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_A" in name:
                p.copy_(A0)
            if "lora_B" in name:
                p.copy_(B0)
    W0 = model.get_parameter("base_model.model.layer.base_layer.weight").detach()
    found, paths, vectors = {}, {}, {}
    for i in range(tasks):
        draw = generator(i, "steps")
        a_step, b_step = (torch.randn(s, generator=draw) for s in ((2, 4), (3, 2)))
        path = trained(model, space, a_step=a_step, b_step=b_step)
        wanted = W0 + 1.5 * (B0 + b_step) @ (A0 + a_step)
        name = f"task {i}"
        found[name], paths[name] = Distance(wanted, name), (path, path)
        vector = from_training(model, path)
        weights = vector.space(model)
        vectors[name] = (vector.flat(weights), vector.flat(weights))
    network = Network(model, space, space, found, tuple(found), {}, None, 0.0)
    cell = Cell.of(seed=0, space="lora")
    config = Config(model="by hand", tasks=("by hand",), scales=SCALES)
    return Range(config, cell, network, paths, weights, vectors)


FRESH = torch.full((2, 4), 0.01), torch.zeros(3, 2)
TRAINED = tuple(torch.randn(s, generator=generator(9, "at")) for s in ((2, 4), (3, 2)))


def losses(spot, coordinates):
    rows = [row for row in along_rows(spot) if row["coordinates"] == coordinates]
    return {row["a"]: row for row in rows if row["task"] == "task 0"}


def differences(values, order):
    return torch.diff(torch.tensor(list(values), dtype=torch.float64), n=order)


@pytest.mark.parametrize("start", [FRESH, TRAINED], ids=["fresh", "trained"])
def test_the_loss_is_quadratic_along_the_weights_and_quartic_along_the_factors(start):
    """Exactly (1 - a)^2 L(0) along the weights: the line ends at the task's optimum."""
    spot = made(start=start)
    weights, factors = losses(spot, "weights"), losses(spot, "factors")
    L0 = weights[0.0]["loss"]
    scale = max(row["loss"] for row in factors.values())
    for a in SCALES:
        assert weights[a]["loss"] == pytest.approx((1 - a) ** 2 * L0, rel=1e-5, abs=1e-5 * L0)
    # The two start and end in one network.
    for a in (0.0, 1.0):
        assert factors[a]["loss"] == pytest.approx(weights[a]["loss"], abs=1e-5 * L0)
    quartic = [factors[a]["loss"] for a in SCALES]
    assert differences(quartic, 5).abs().max() < 1e-4 * scale
    assert differences(quartic, 4).abs().min() > 0.1 * L0
    wanted = {row["a"]: row["loss"] for row in by_hand(start)}
    assert quartic == pytest.approx([wanted[a] for a in SCALES], rel=1e-4, abs=1e-4 * L0)


def by_hand(start):
    """The loss along the factors, in float64."""
    A0, B0 = (half.double() for half in start)
    draw = generator(0, "steps")
    dA, dB = (torch.randn(s, generator=draw).double() for s in ((2, 4), (3, 2)))
    end = 1.5 * (B0 + dB) @ (A0 + dA)
    for a in SCALES:
        there = 1.5 * (B0 + a * dB) @ (A0 + a * dA)
        yield {"a": a, "loss": float((there - end).square().sum())}


def test_the_negated_vector_learns_along_the_factors_only():
    """With A0 near zero the product at -1 is nearly that at 1: an artefact of the line."""
    spot = made(start=FRESH)
    weights, factors = losses(spot, "weights"), losses(spot, "factors")
    L0 = weights[0.0]["loss"]
    assert weights[-1.0]["loss"] == pytest.approx(4 * L0, rel=1e-5)
    assert factors[-1.0]["loss"] < 0.01 * L0


@pytest.mark.parametrize("start", [FRESH, TRAINED], ids=["fresh", "trained"])
def test_what_moves_is_a_share_of_the_norm_of_the_weights(start):
    """||dW|| / ||W|| by dense matrices, W with its adapter, along either line."""
    spot = made(start=start)
    A0, B0 = (half.double() for half in start)
    base = Linear().layer.weight.detach().double()
    W = base + 1.5 * B0 @ A0
    draw = generator(0, "steps")
    dA, dB = (torch.randn(s, generator=draw).double() for s in ((2, 4), (3, 2)))
    whole = 1.5 * ((B0 + dB) @ (A0 + dA) - B0 @ A0)
    for a in SCALES:
        dense = 1.5 * ((B0 + a * dB) @ (A0 + a * dA) - B0 @ A0)
        for way, change in (("weights", a * whole), ("factors", dense)):
            found = losses(spot, way)[a]["relative"]
            assert found == pytest.approx(float(change.norm() / W.norm()), rel=1e-5, abs=1e-9)
    way = list(spot.ways("task 0"))[1]
    share = weight_share(spot.network.model, way.tau, space=way.space)
    length = float(way.tau.norm())
    assert share(-0.3 * length) == pytest.approx(
        float((1.5 * ((B0 - 0.3 * dB) @ (A0 - 0.3 * dA) - B0 @ A0)).norm() / W.norm()), rel=1e-5
    )


def test_a_sum_of_two_trainings_is_both_merged():
    """W0 + dW1 + dW2, not the product of the sums of the factors."""
    spot = made(start=FRESH, tasks=2)
    base = Linear().layer.weight.detach().double()
    wanted = {name: spot.network.tasks[name].wanted.double() for name in spot.paths}
    A0, B0 = (half.double() for half in FRESH)
    here = base + 1.5 * B0 @ A0
    merged = here + sum(W - here for W in wanted.values())
    rows = {(row["task"], row["other"]): row for row in pair_rows(spot)}
    for (name, other), row in rows.items():
        own, off = (here - wanted[name]).square().sum(), (merged - wanted[name]).square().sum()
        assert row["gain"] == pytest.approx(float(own), rel=1e-5)
        assert row["kept"] == pytest.approx(float((own - off) / own), rel=1e-5, abs=1e-6)
        taus = [(wanted[n] - here).flatten() for n in (name, other)]
        cosine = torch.dot(*taus) / (taus[0].norm() * taus[1].norm())
        assert row["cosine"] == pytest.approx(float(cosine), rel=1e-5)
        assert row["cosine_random"] == pytest.approx(12**-0.5)


def test_the_parts_of_a_training_add_up_to_the_whole():
    """In the weights, from B that is not zero: the prefix and the rest."""
    model = attach_lora(Linear(), rank=2, targets=["layer"])
    space = ParamSpace.select(model)
    start, *steps = torch.randn(5, space.dim, generator=generator(3, "path"))
    path = Trajectory(start, torch.stack(steps), torch.zeros(4), None, space)
    whole, first, rest = (
        from_training(model, path, start=i, stop=j) for i, j in ((0, None), (0, 1), (1, 4))
    )
    (name,) = whole.shapes
    torch.testing.assert_close((first + rest).read(name), whole.read(name), atol=1e-5, rtol=1e-5)
    prefix = from_step(model, steps[0], space=space, start=start)
    torch.testing.assert_close(first.read(name), prefix.read(name))


# Runs of builds that went along the factors without saying so


def old(**columns):
    return {"seed": 1, "space": "lora", "task": "t", **columns}


def drawn(chart):
    """The rows of the data set that most layers share."""
    return max(chart.to_dict()["datasets"].values(), key=len)


def test_the_line_in_the_weights_is_drawn_if_there_is_one():
    rows = [
        {"task": "t", "space": "lora", "coordinates": kind, "a": 1.0, "seed": 0, "loss": loss,
         "random": 1.0, "others": None}
        for kind, loss in (("weights", 0.5), ("factors", 2.0))
    ]  # fmt: skip
    for part, shown in ((rows, 0.5), (rows[1:], 2.0)):  # the factors, if there is nothing else
        points = drawn(range_findings.along_chart(part))
        assert {row["panel"] for row in points} == {"t"}
        assert {row["value"] for row in points if row["series"] == range_findings.OWN} == {shown}


def along(**changes):
    base = {"task": "t", "space": "lora", "coordinates": "weights", "seed": 0, "a": 1.0}
    return base | {"loss": 0.5, "random": 0.25, "others": None} | changes


def test_losses_below_1_stand_on_an_axis_from_0_to_1_of_the_first_seed():
    rows = [along(seed=s, loss=0.25 * s) for s in (1, 2, 3)]
    spec = range_findings.ways_chart(rows).to_dict()
    scales = [layer["encoding"]["y"]["scale"] for layer in spec["spec"]["layer"]]
    assert [scale["domain"] for scale in scales] == [[0, 1]] * len(scales)
    (points,) = spec["datasets"].values()
    assert [(row["loss"], row["panel"]) for row in points] == [(0.25, "t")]
    both = range_findings.ways_chart([along(), along(space="full")]).to_dict()["datasets"]
    assert {row["panel"] for row in next(iter(both.values()))} == {"t, LoRA", "t, all weights"}


@pytest.mark.parametrize(("others", "shown"), [((None, 0.75), True), ((None, None), False)])
def test_other_tasks_are_shown_where_any_row_has_their_loss(others, shown):
    rows = [along(a=float(i), others=other) for i, other in enumerate(others)]
    points = drawn(range_findings.along_chart(rows))
    series = {row["series"]: row["value"] for row in points}
    assert series.pop(range_findings.OTHERS, None) == (0.75 if shown else None)
    assert series == {range_findings.OWN: 0.5, range_findings.RANDOM: 0.25}


def test_shares_stand_on_an_axis_from_0_to_1():
    rows = [{"seed": 0, "basis": "b", "captured": 0.5, "walk": 0.25, "random": 0.125}]
    layers = range_findings.inside_chart(rows).to_dict()["layer"]
    domains = [layer["encoding"]["x"]["scale"]["domain"] for layer in layers]
    assert domains == [[0, 1]] * len(layers)


def test_rows_of_task_vectors_of_an_earlier_build_say_that_they_are_of_the_factors():
    rows = [
        old(table="along", a=1.0, loss=0.5, start=3.0, random=3.1, others=None, others_start=None),
        old(table="pair", other="u", kept=0.18, kept_random=0.9),
        {**old(table="along", a=1.0, loss=0.5), "space": "full"},
        {"table": "notes", "seed": 1, "space": "lora", "note": "as it was"},
    ]  # fmt: skip
    found = range_findings.labelled(rows)
    assert [row.get("coordinates") for row in found[:3]] == ["factors", "factors", "weights"]
    said = str(EXPERIMENTS["task-vector-range"].answers(found[:2])[0])
    assert "in the factors 0.5 at 1" in said
    assert "adding the vector of u in the factors (0.9" in said
    assert found[3] == rows[3]
    assert [row["note"] for row in found[4:]] == [range_findings.EARLIER]
    assert "coordinates" not in rows[0]  # the stored rows stay as they are
    assert range_findings.labelled(found) is found


def test_rows_of_directions_of_an_earlier_build_say_so_direction_by_direction():
    def radius(direction, **more):
        return old(table="radius", direction=direction, sign=1, radius=2.0, low=1.0, high=None,
                   predicted=3.0, relative=0.1, length=4.0, **more)  # fmt: skip

    rows = [
        radius("task vector"),
        radius("my-adapter"),
        radius("steering"),
        radius("task vector") | {"space": "full"},
    ]
    found = scale_findings.labelled(rows)
    labels = [(row["coordinates"], row["share_of"]) for row in found[:4]]
    assert labels == [("factors", "factors"), ("weights", "weights"), ("stream", "stream"),
                      ("weights", "weights")]  # fmt: skip
    assert found[0]["relative_low"] == pytest.approx(0.05)
    assert found[0]["relative_predicted"] == pytest.approx(0.15)
    assert found[0]["relative_high"] is None
    assert scale_findings.labelled(found) is found


@pytest.mark.parametrize("name", ["task-vector-range", "direction-scale"])
def test_runs_of_an_earlier_build_are_read_with_the_labels(name):
    row = old(table="along", a=1.0, loss=1.0, direction="prefix")
    assert EXPERIMENTS[name].reread([row])[0]["coordinates"] == "factors"
