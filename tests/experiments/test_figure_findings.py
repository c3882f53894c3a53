"""Titles of figures: their numbers are those of the rows; and what the figures draw of them."""

import re
from typing import Any

import pytest

from frenet.experiments.best_of_n import figures as best_of_n
from frenet.experiments.composition import figures as composition
from frenet.experiments.direction_scale import advised
from frenet.experiments.experiment import Row
from frenet.experiments.figures.wording import between
from frenet.experiments.gradient_rank import findings as gradient_rank
from frenet.experiments.pair_command import figures as pair_command
from frenet.experiments.recovery_basis import figures as recovery_basis
from frenet.experiments.steer_command import figures as steer_command
from frenet.experiments.steering_effect import figures as steering_effect
from frenet.experiments.subspace_training import figures as subspace_training
from frenet.experiments.task_vector_range import figures as task_vector_range
from frenet.experiments.update_order import figures as update_order
from frenet.experiments.watched_training import findings as watched_training

NUMBER = re.compile(r"\d+(?:\.\d+)?")


def numbers(text: str) -> list[float]:
    return [float(found) for found in NUMBER.findall(text)]


def points(chart: Any) -> list[dict[str, Any]]:
    """The rows of the data set that most layers share."""
    found: list[dict[str, Any]] = max(chart.to_dict()["datasets"].values(), key=len)
    return found


def test_the_least_and_the_greatest_are_named() -> None:
    rows: list[Row] = [{"basis": b, "value": v} for b, v in (("prefix", 0.7), ("x", 0.1))]
    assert between(rows, "basis") == "0.10 (x) to 0.70 (first steps)"
    assert between(rows[:1], "basis") == "0.70 (first steps)"


def energies(**changes: Any) -> Row:
    base: Row = {"space": "full", "batch_size": 64, "k": 10, "seed": 0, "point": "none"}
    return {**base, "energy": 0.5, "label_shuffled": 0.6, "ceiling": 0.9, **changes}


def test_gradients_are_titled_by_the_range_over_tasks_before_damage() -> None:
    rows = [energies(task="copy", energy=0.6), energies(task="sort", energy=0.3),
            energies(task="copy", energy=0.9, point="wrong-answers")]  # fmt: skip
    assert numbers(gradient_rank.task_finding(rows)) == [10, 0.3, 0.6]


def test_the_higher_of_both_nulls_is_drawn() -> None:
    nulls = [(0.1, 0.2), (0.4, 0.3), (0.2, 0.2)]
    rows = [
        energies(task="copy", k=k, null_gaussian=one, null_shuffle=other)
        for k, (one, other) in zip((1, 3, 10), nulls, strict=True)
    ]
    shown = [row for row in points(gradient_rank.energy_chart(rows)) if "k" in row]
    assert {row["k"]: row["value"] for row in shown if row["series"] == gradient_rank.NULL} == {
        1: 0.2, 3: 0.4, 10: 0.2
    }  # fmt: skip


def test_overlaps_of_two_tasks_and_of_two_halves_are_told_apart() -> None:
    base = {"point": "none", "batch_size": 64, "seed": 0, "space": "full"}
    pairs = {("a", "a"): 0.7, ("b", "b"): 0.5, ("a", "b"): 0.1, ("b", "a"): 0.3}
    rows: list[Row] = [base | {"task": a, "other": b, "overlap": v} for (a, b), v in pairs.items()]
    assert numbers(gradient_rank.overlap_finding(rows)) == [0.2, 0.6]
    assert gradient_rank.overlap_finding(rows[:2]) == ""


def capture(basis: str, captured: float, regained: float, **changes: Any) -> Row:
    base: Row = {"table": "capture", "seed": 0, "space": "full", "task": "a", "protocol": "p"}
    rest: Row = {"optimizer": "adam:1e-3", "replicate": 0, "k": 10, "coordinates": "weights"}
    return {**base, **rest, "basis": basis, "captured": captured, "regained": regained, **changes}


CAPTURES = [
    capture("prefix", 0.7, 0.8),
    capture("gradients at damage", 0.2, 0.5),
    capture("PCA of replicate", 0.95, 0.95),
    capture("other tasks", 0.1, 0.05),
]


def test_bases_are_grouped_by_what_they_are_known_from() -> None:
    shown = points(recovery_basis.bases_chart(CAPTURES))
    order = list(dict.fromkeys(row["basis"] for row in shown))
    assert order == ["other tasks", "gradients at damage", "first steps", "second run (ceiling)"]
    assert [row["group"] for row in shown] == list(recovery_basis.GROUPS)


def test_the_basis_whose_shares_differ_most_is_in_the_title() -> None:
    found = recovery_basis.function_finding(CAPTURES)
    assert "“gradients at damage”" in found
    assert numbers(found) == [0.2, 0.5]


def test_recoveries_are_titled_by_their_mean_lengths() -> None:
    base = {"seed": 0, "protocol": "p", "task": "a", "space": "full", "loss": 1.0}
    rows: list[Row] = [
        base | {"optimizer": name, "replicate": replicate, "step": step}
        for name, ends in (("adam:1e-3", (10, 20)), ("sgd:0.1", (4, 4)))
        for replicate, end in enumerate(ends)
        for step in (0, end)
    ]
    found = recovery_basis.curve_finding(rows)
    assert numbers(found.replace("1e-3", "").replace("rate 0.1", "")) == [4, 15]
    assert all(row["step"] > 0 for row in points(recovery_basis.curve_chart(rows)))


def best(**changes: Any) -> Row:
    base: Row = {
        "table": "best",
        "seed": 0,
        "space": "full",
        "size": 64,
        "task": "a",
        "place": "all",
    }
    at: Row = {"protocol": "p", "unit": "sigma*", "factor": 0.5, "candidates": 8, "scale": 2.0}
    gains: Row = {"gain": 1.0, "predicted": 1.0, "low": 0.5, "high": 1.5}
    return {**base, **at, **gains, **changes}


def test_gains_are_over_the_predicted_ones_on_one_scale() -> None:
    """Half of sigma* and the largest trusted sigma are both the end of the range."""
    rows = [
        best(gain=1.2), best(unit="trusted", factor=1.0, scale=2.0, gain=1.8, predicted=1.0),
        best(factor=0.25, gain=0.5), best(factor=1.0, gain=9.0), best(candidates=1, gain=7.0),
        best(place="random:10", gain=5.0),
    ]  # fmt: skip
    shown = points(best_of_n.best_chart(rows))
    found = {row["reached"]: row["value"] for row in shown if row["series"] == best_of_n.FOUND}
    assert found == {"sigma at 0.5 of the range": 0.5, "sigma at 1 of the range": 1.5}
    bands = {(row["low"], row["high"]) for row in shown if row["series"] == best_of_n.PREDICTED}
    assert bands == {(0.5, 1.5)}
    assert list(found) == sorted(found)


def test_means_of_winners_are_drawn() -> None:
    """Their rows have a column unit, which is that of sigma."""
    rows: list[Row] = [
        {"seed": s, "factor": 0.5, "unit": "sigma*", "selected": 0.4 + s, "held_out": 0.3,
         "held_out_predicted": 0.2}
        for s in (0, 1)
    ]  # fmt: skip
    shown = points(best_of_n.winner_chart(rows))
    means = {row["series"]: row["value"] for row in shown if row.get("single") is None}
    assert means["on the selection batch"] == pytest.approx(0.9)
    assert numbers(best_of_n.winner_finding(rows)) == [0.5, 0.3, 0.9]


def test_the_best_sigma_is_named_with_the_predicted_one() -> None:
    rows = [best(factor=factor, gain=gain, predicted=predicted)
            for factor, gain, predicted in ((0.5, 1.0, 2.0), (1.0, 3.0, 1.5))]  # fmt: skip
    assert numbers(best_of_n.sigma_finding(rows)) == [8, 1.0, 0.5]
    same = [row | {"predicted": row["gain"]} for row in rows]
    assert numbers(best_of_n.sigma_finding(same)) == [8, 1.0]


def doses(contrast: str, gradient: tuple[float, ...]) -> list[Row]:
    """Changes at the largest dose, for the contrast vector 1 in every seed."""
    return [
        {"push": "own", "behaviour": contrast, "seed": seed, "vector": vector, "dose": dose,
         "before": 0.5, "difference": 0.5 + dose * change}
        for seed, ours in enumerate(gradient)
        for vector, change in (("contrast", 1.0), ("gradient", ours))
        for dose in (-1.0, 0.5, 1.0)
    ]  # fmt: skip


def test_a_step_that_steers_backwards_in_every_seed_is_in_the_title() -> None:
    rows = doses("count", (-1.0, -0.5)) + doses("parity", (1.0, -1.0))
    found = steering_effect.dose_finding(rows)
    assert "“count”" in found
    assert "parity" not in found
    assert steering_effect.dose_finding(doses("parity", (1.0, 1.0))) == ""


def cost(way: str, kl: float | None, contrast: str = "count", seed: int = 0) -> Row:
    base: Row = {"push": "own", "behaviour": contrast, "seed": seed, "way": way}
    return {**base, "kl": kl, "kl_random": 1e-4}


def test_a_way_that_does_not_reach_the_effect_is_named_in_its_row() -> None:
    rows = [cost("vector", 1e-3), cost("step", None), cost("vector", 0.1, "parity"),
            cost("step", 0.01, "parity")]  # fmt: skip
    chart = steering_effect.cost_chart(rows)
    assert {row["row"] for row in points(chart)} == {
        "count\nnot reached: step", "parity\nall reach the effect"
    }  # fmt: skip
    scales = [layer["encoding"]["x"]["scale"]["type"] for layer in chart.to_dict()["layer"]]  # type: ignore[attr-defined]
    assert set(scales) == {"log"}
    assert numbers(steering_effect.cost_finding(rows)) == [0.01, 0.1]


def test_controls_have_a_row_of_their_own() -> None:
    rows: list[Row] = [
        {"push": "own", "behaviour": "count", "seed": 0, "vector": vector, "slope": slope,
         "random": 0.1, "matched": 0.2, "shuffled": 0.3, "unrelated": 0.4}
        for vector, slope in (("contrast", 1.0), ("gradient", -0.35))
    ]  # fmt: skip
    shown = points(steering_effect.slope_chart(rows))
    by_row = {name: {row["series"] for row in shown if row["row"] == name}
              for name in ("count", "count: controls")}  # fmt: skip
    assert by_row["count"] == {"contrast vector", "shift by a gradient step"}
    assert by_row["count: controls"] == set(steering_effect.CONTROLS)
    assert numbers(steering_effect.slope_finding(rows)) == [1, 1, 0]


def test_losses_along_a_vector_have_an_axis_from_0_to_just_above_the_largest_mean() -> None:
    rows: list[Row] = [
        {"task": "t", "space": "full", "coordinates": "weights", "a": a, "seed": s,
         "loss": loss + s, "random": 1.0, "others": None}
        for a, loss in ((-1.0, 3.0), (0.0, 1.0), (1.0, 0.25), (2.0, 0.5))
        for s in (0, 1)
    ]  # fmt: skip
    spec = task_vector_range.along_chart(rows).to_dict()  # type: ignore[attr-defined]
    domains = [layer["encoding"]["y"]["scale"]["domain"] for layer in spec["spec"]["layer"]
               if "scale" in layer["encoding"].get("y", {})]  # fmt: skip
    assert domains == [[0, pytest.approx(1.2 * 3.5)]] * len(domains)
    assert numbers(task_vector_range.along_finding(rows)) == [1]
    levels = [row["at"] for data in spec["datasets"].values() for row in data if "at" in row]
    assert set(levels) == {0.0, 1.0}


def test_the_line_in_the_factors_is_compared_with_that_in_the_weights() -> None:
    rows: list[Row] = [
        {"task": "t", "space": "lora", "coordinates": kind, "a": a, "seed": s, "loss": loss * a}
        for kind, loss in (("weights", 0.25), ("factors", 1.5))
        for a in (1.0, 2.0)
        for s in (0, 1)
    ]  # fmt: skip
    assert numbers(task_vector_range.ways_finding(rows)) == [2, 0.5, 3]
    assert task_vector_range.ways_finding(rows[:4]) == ""


def test_bases_to_train_in_are_titled_at_the_k_that_counts() -> None:
    base = {"table": "trained", "space": "full", "optimizer": "sgd:0.1", "seed": 0, "task": "a"}
    rows: list[Row] = [
        base | {"protocol": "p", "basis": basis, "k": k, "regained": regained}
        for basis, k, regained in (
            ("prefix", 10, 0.9), ("random", 10, 0.2), ("random", 20, 0.4), ("gradients", 2, 0.1),
        )
    ]  # fmt: skip
    assert numbers(subspace_training.dimension_finding(rows)) == [10, 0.2, 0.9]


def test_a_watched_basis_is_titled_by_the_last_step_of_every_probe() -> None:
    base: Row = {"control": 0.9, "chance": 0.05, "ratio": 1.0, "step": 0}
    rows = [base | {"probe": p} for p in ("a", "b")]
    rows += [base | {"probe": "a", "step": 20, "ratio": 0.25, "control": 0.8}]
    rows += [base | {"probe": "b", "step": 20, "ratio": 0.75}]
    found = watched_training.drift_finding(rows)
    assert numbers(found) == [20, 0.25, 0.75, 0.8, 0.9, 0.05]
    assert watched_training.drift_finding(rows[:2]) == ""


def test_watched_first_steps_are_compared_with_a_random_walk() -> None:
    base: Row = {"k": 5, "random_walk": 0.3}
    rows = [base | {"step": s, "captured": c} for s, c in ((0, None), (10, 0.9), (20, 0.6))]
    assert numbers(watched_training.prefix_finding(rows)) == [5, 0.6, 20, 0.3]
    assert watched_training.prefix_finding(rows[:1]) == ""


def test_watched_losses_are_those_that_fall_most_and_least_and_not_the_training() -> None:
    ends = {"a": (2.0, 0.5), "b": (1.0, 1.25), "c": (3.0, 2.5), watched_training.TRAINING: (9, 0)}
    rows: list[Row] = [
        {"source": source, "step": step, "loss": loss, "loss_0": first}
        for source, (first, last) in ends.items()
        for step, loss in ((0, first), (8, last))
    ]
    assert numbers(watched_training.loss_finding(rows)) == [8, 2.0, 0.5, 1.0, 1.2, 3]
    assert numbers(watched_training.loss_finding(rows[:2])) == [8, 2.0, 0.5]
    assert watched_training.loss_finding(rows[6:]) == ""


def test_watched_orders_are_titled_by_the_pair_that_matters_first() -> None:
    rows: list[Row] = [
        {"pair": pair, "step": step, "onset": onset, "null_onset": 8.0}
        for pair, step, onset in (("p", 0, 0.1), ("p", 5, 0.5), ("q", 5, 0.25), ("r", 5, None))
    ]
    found = watched_training.order_finding(rows)
    assert numbers(found) == [5, 0.25, 8]
    assert "(q)" in found


def test_watched_projections_are_compared_with_their_control() -> None:
    rows: list[Row] = [
        {"probe": "a", "rank": 4, "step": step, "ratio": ratio, "control": 0.9}
        for step, ratio in ((0, 1.0), (6, 0.5))
    ]
    assert numbers(watched_training.projection_finding(rows)) == [6, 4, 0.5, 0.9]


def test_a_map_of_coefficients_is_titled_by_the_lowest_mean_and_the_plain_sum() -> None:
    losses = {(0.0, 0.0): (2.0, 2.0), (1.0, 1.0): (1.5, 2.5), (0.5, 1.0): (1.0, 2.5)}
    rows: list[Row] = [
        {"kind": "loss", "task": task, "x": x, "y": y, "loss": loss, "without": 2.0}
        for (x, y), both in losses.items()
        for task, loss in zip("ab", both, strict=True)
    ]
    found = pair_command.map_finding([*rows, {"kind": "box", "task": "a", "x": 1.0, "y": None}])
    assert numbers(found) == [0.5, 1, 0.25, 0]
    assert pair_command.map_finding(rows[:2]) == ""


def test_an_interaction_is_titled_at_full_length_and_by_its_largest_block() -> None:
    rows: list[Row] = [
        {"task": task, "s": s, "share": share, "eps": 0.2}
        for task, s, share in (("a", 0.5, 0.1), ("a", 1.0, 0.3), ("b", 1.0, 0.5))
    ]
    assert numbers(pair_command.interaction_finding(rows)) == [0.3, 0.5, 0.2]
    assert pair_command.interaction_finding(rows[:1]) == ""
    blocks: list[Row] = [
        {"task": "a", "block": f"block {i}", "interaction": value, "even": 0.01}
        for i, value in enumerate((0.01, -0.05, 0.03))
    ]
    assert numbers(pair_command.block_finding(blocks)) == [1, 0.05, 0.01]


def test_the_block_that_steers_most_is_compared_with_no_vector() -> None:
    rows: list[Row] = [
        {"block": block, "dose": dose, "share": share, "before": 0.4}
        for block, dose, share in ((1, 0.1, 0.5), (3, 0.2, 0.8), (3, 0.4, 0.7))
    ]
    assert numbers(steer_command.block_finding(rows)) == [3, 0.2, 0.8, 0.4]


def test_memory_is_the_share_that_frozen_gradients_give() -> None:
    rows: list[Row] = [
        {"seed": seed, "optimizer": name, "state": "fresh", "difference": whole, "frozen": frozen}
        for name, whole, frozen in (("sgd:0.1", 0.2, 0.0), ("adam:0.1", 0.4, 0.3))
        for seed in (0, 1)
    ]
    found = update_order.memory_finding(rows).replace("rate 0.1", "")
    assert numbers(found) == [0, 0.75]
    assert update_order.memory_finding([rows[0] | {"difference": 0.0}]) == ""


def test_long_trainings_are_titled_by_the_best_and_the_worst_order() -> None:
    rows: list[Row] = [
        {"seed": 0, "order": order, "loss_first": a, "loss_second": b, "start_first": 4.0,
         "start_second": 2.0}
        for order, a, b in (("mixed", 0.5, 0.5), ("in turn", 0.2, 1.0), ("in turn", 0.4, 1.0))
    ]  # fmt: skip
    found = update_order.stretch_finding(rows)
    assert numbers(found) == [0.5, 0.65, 3]
    assert found.index("mixed") < found.index("in turn")


def test_composition_radii_are_geometric_means_and_may_be_bounds() -> None:
    base: Row = {"seed": 0, "kind": composition.VECTORS, "limit": 4.0}
    inside: Row = {"radius_low": 0.5, "radius_high": 0.5, "random_low": 2.0, "random_high": 2.0}
    beyond: Row = {"radius_low": 2.0, "radius_high": 2.0, "random_low": 4.0, "random_high": None}
    assert numbers(composition.radius_finding([base | inside])) == [0.5, 2]
    found = composition.radius_finding([base | inside, base | beyond])
    assert numbers(found) == [1.0, 2.8]
    assert found.count("at least") == 1


def coefficients(direction: str, losses: dict[float, tuple[float, float]]) -> list[Row]:
    base: Row = {"seed": 0, "space": "lora", "task": "t", "direction": direction}
    base |= {"change": advised.OWN, "without": 4.0}
    return [
        base | {"scale": scale, "examples": examples, "loss": loss}
        for scale, both in losses.items()
        for examples, loss in zip((advised.CHOOSE, advised.JUDGE), both, strict=True)
    ]


def test_the_coefficient_of_the_title_is_chosen_on_other_examples() -> None:
    """Its loss is that of test examples, on which another coefficient may be better."""
    rows = coefficients("a", {1.0: (2.0, 1.0), 1.5: (1.0, 2.0)})
    assert numbers(advised.coefficient_finding(rows)) == [1.5, 2, 1, 1, 4]
    rows += coefficients("b", {1.0: (0.5, 0.5), 1.5: (1.0, 2.0)})
    assert numbers(advised.coefficient_finding(rows)) == [1, 1.5, 1]
    assert numbers(advised.coefficient_finding(rows[4:])) == [1, 0.5, 4]
    assert advised.coefficient_finding(rows[:1]) == ""


def test_ranks_are_summed_over_weights() -> None:
    rows: list[Row] = [
        {"direction": "a", "by_effect": 1, "by_norm": 3, "by_norm_random": 4, "whole": 8},
        {"direction": "a", "by_effect": 2, "by_norm": 3, "by_norm_random": 5, "whole": 8},
    ]
    assert numbers(advised.rank_finding(rows)) == [3, 16, 6, 9]
    assert advised.rank_finding([rows[0] | {"by_effect": None}]) == ""
