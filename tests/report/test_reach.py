"""How far and for how long: the first figure of a page, its sentence, and the map."""

import re

import pytest

from frenet.experiments.direction_scale.reach import reach
from frenet.experiments.experiment import Reach, Row
from frenet.experiments.figures.landscape import landscape, panel
from frenet.report.reach import (
    advice,
    far_words,
    figure,
    followed,
    long_words,
    on_common_axes,
    sentence,
    together,
)


def one(direction: str = "gradient", **changes: object) -> Reach:
    about: dict[str, object] = {
        "direction": direction, "space": "full", "share_of": "weights", "seed": 0, "far": 0.002,
        "life": (10.0, 30.0), "longest": 100.0, "leads": direction != "prefix",
    }  # fmt: skip
    return Reach(**{**about, **changes})  # type: ignore[arg-type]


def stream(**changes: object) -> Reach:
    about = {"share_of": "stream", "far": 1.3, "life": (100.0, None), "times": 2.0}
    return one("steering", **{**about, **changes})


def text(reaches: list[Reach]) -> str:
    """The visible words of the figure."""
    return " ".join(re.sub("<[^>]*>", " ", str(figure(reaches, "a"))).split())


def radius_row(seed: int, task: str, relative: float, **changes: object) -> Row:
    row: Row = {
        "table": "radius", "direction": "gradient", "space": "full", "seed": seed, "task": task,
        "sign": 1, "share_of": "weights", "relative": relative, "relative_low": relative / 2,
        "relative_high": None, "unbounded": False, "times": None,
    }  # fmt: skip
    return {**row, **changes}  # type: ignore[dict-item]


def life_row(seed: int, task: str, low: float, high: float | None) -> Row:
    return {
        "table": "lifetime", "direction": "gradient", "space": "full", "seed": seed, "task": task,
        "share_of": "weights", "relative": 0.5, "steps": None, "steps_low": low,
        "steps_high": high, "longest": 100, "has_share": True,
    }  # fmt: skip


def test_tasks_are_averaged_and_an_end_that_is_not_known_stays_so() -> None:
    rows = [radius_row(0, "a", 0.01), radius_row(0, "b", 0.04), radius_row(1, "a", 0.1)]
    rows += [radius_row(0, "a", 9.0, sign=-1)]
    rows += [life_row(0, "a", 3, 10), life_row(0, "b", 10, 30), life_row(1, "a", 10, None)]
    first, second = reach(rows)
    assert first.far == pytest.approx(0.02)
    assert first.ends == (pytest.approx(0.01), None)
    assert (first.life, second.life) == ((3.0, 30.0), (10.0, None))
    # Lifetimes alone, as a map has them, know the distance, too.
    assert reach(rows[-1:])[0].far == 0.5


def test_the_sentence_says_how_far_and_how_long() -> None:
    found = [one(), one("prefix"), one("task vector", far=0.007, life=(30.0, 100.0)), stream()]
    assert sentence(found) == (
        "A gradient is good up to 0.2% of the weights’ norm and for 10 to 30 training steps; a "
        "task vector up to 0.7% and for 30 to 100 steps; a steering vector up to 130% of the "
        "activations’ norm and beyond the run of 100 steps."
    )


def test_a_vector_from_disk_is_measured_by_its_own_length() -> None:
    mine = one("my-adapter", times=0.35, life=None, longest=0.0)
    assert sentence([mine]) == "My-adapter is good up to 0.35 times its length."
    assert "For how long was not measured; frenet probe does so with --lags" in text([mine])


@pytest.mark.parametrize(
    ("lives", "words"),
    [
        ([(10.0, 30.0), (3.0, 10.0)], "3 to 30 steps"),
        ([(0.0, 1.0)], "≤ 1 step"),
        ([(100.0, None), (100.0, None)], "> 100 steps"),
        ([(100.0, None), (30.0, 100.0)], "30 to > 100 steps"),
        ([(30.0, None), (100.0, 300.0)], "> 30 steps"),
        ([(0.0, 1.0), (100.0, None)], "0 to > 100 steps"),
    ],
)
def test_lifetimes_are_the_ends_that_hold_for_all_seeds(
    lives: list[tuple[float, float | None]], words: str
) -> None:
    seeds = [one(seed=seed, life=life) for seed, life in enumerate(lives)]
    (found,) = followed(seeds, "full")
    assert long_words(found) == words


def test_seeds_without_a_lifetime_are_counted() -> None:
    seeds = [one(seed=0, life=(100.0, None)), one(seed=1, life=None, has_share=False)]
    assert long_words(followed(seeds, "full")[0]) == "> 100 steps on 1 of 2 seeds"
    lasting = [*seeds, one("task vector")]
    assert "and beyond the run of 100 steps on 1 of 2 seeds." in sentence(lasting)


def test_what_holds_no_more_than_chance_has_no_lifetime() -> None:
    (found,) = followed([one("random", life=None, has_share=False, unbounded=True)], "full")
    assert long_words(found) == "holds no more of the gradient than chance"
    assert far_words(found) == "≥ 0.2%"
    assert "holds no more of the gradient than chance" in text([*found.seeds])


def test_nothing_measured_and_everything_censored_are_said() -> None:
    assert sentence([]) == ""
    assert str(figure([], "a")) == ""
    unknown = one(far=None, life=None, longest=0.0)
    assert sentence([unknown]).startswith("No direction has a measured radius: its slope")
    assert "its slope cannot be told from rounding" in text([unknown])
    stale = [one(life=(100.0, None)), stream()]
    assert sentence(stale) == (
        "A gradient is good up to 0.2% of the weights’ norm; a steering vector up to 130% of the "
        "activations’ norm; no direction went stale within the 100 steps of the run."
    )
    spec = landscape([(panel(each), each) for each in stale]).to_dict()
    assert spec["usermeta"]["instead"].startswith("No direction went stale within the 100 steps")


def test_one_seed_has_no_small_marks_and_three_have() -> None:
    single, several = ([one(seed=seed) for seed in range(count)] for count in (1, 3))
    assert "One seed; the line is the 95% interval over examples." in text(single)
    assert "Large mark: geometric mean of 3 seeds; small marks: seeds." in text(several)
    marks = [str(figure(each, "a")).count("<circle") for each in (single, several)]
    # The sign of the row, and a large mark in both columns; then a small one for every seed.
    assert marks == [3, 3 + 2 * 3]


def test_names_are_text_and_renamed_only_if_they_are_ours() -> None:
    hostile = "<img src=x onerror=alert(1)>" + "a" * 200
    drawn = str(figure([one(hostile), one("damage line")], "a"))
    assert "<img" not in drawn
    assert "&lt;img src=x" in drawn
    assert "back to before the damage" in drawn


def test_other_spaces_are_folded() -> None:
    drawn = str(figure([one(), one(space="lora", share_of="factors")], "a"))
    assert "<details><summary>The same for LoRA</summary>" in drawn
    assert "LoRA, in its factors (earlier build)" in drawn


def test_the_map_has_a_panel_for_weights_and_one_for_activations() -> None:
    steering = [stream(seed=seed, life=(30.0, 100.0)) for seed in (0, 1)]
    found = [*(one(seed=seed) for seed in (0, 1)), *steering, one("random", has_share=False)]
    spec = landscape([(panel(each), each) for each in found]).to_dict()
    rows = next(iter(spec["datasets"].values()))
    means = {row["name"]: row for row in rows if row["kind"] == "mean"}
    assert {row["panel"] for row in rows} == {"all weights", "all weights: activations"}
    assert means["gradient"]["life"] == pytest.approx((10 * 30) ** 0.5)
    assert means["steering vector"]["far"] == pytest.approx(1.3)
    assert {row["side"] for row in means.values()} <= {"right", "left", "above", "below"}


def test_networks_share_axes_and_those_without_an_end_are_named() -> None:
    networks = {"a": [one(), stream()], "b": [one(life=(100.0, None)), stream()], "c": []}
    assert (
        together(networks) == "A gradient is good for 10 to 30 steps on a and beyond the run on b."
    )
    (kind, caption, chart), (other, told, empty) = on_common_axes(networks)
    assert (kind, other) == ("weights", "activations")
    assert caption == "Common axes for all networks. No direction went stale on b."
    assert told == "Common axes for all networks. No direction went stale on a and b."
    assert "resolve" not in chart.to_dict() or "x" not in chart.to_dict()["resolve"].get(
        "scale", {}
    )
    assert "instead" in empty.to_dict()["usermeta"]


def test_the_advice_names_what_lasts_longest_and_what_to_do() -> None:
    found = [
        one(life=(10.0, 30.0)),
        one(seed=1, life=(3.0, 10.0)),
        *(one("task vector", seed=seed, times=0.5, life=(30.0, 100.0)) for seed in (0, 1)),
    ]
    assert advice(found) == (
        "Lasts longest: task vector (30 to 100 steps). Make a gradient or its basis anew every 3 "
        "steps. Beyond 0.50 × its length, measure a task vector with frenet probe --vectors "
        "instead of trusting its slope."
    )


def test_a_direction_without_a_lifetime_on_some_seed_does_not_last_longest() -> None:
    found = [one(life=(1.0, 3.0)), one("prefix", seed=0, life=(30.0, 100.0))]
    found.append(one("prefix", seed=1, life=None))
    assert advice(found).startswith("Lasts longest: gradient (1 to 3 steps). ")
    assert "anew every step." in advice(found)
    assert advice([]) == ""


def test_marks_say_of_which_seed_they_are() -> None:
    found = [one(seed=3, far=0.01), one(seed=4, far=0.04, life=(30.0, None))]
    said = re.findall("<title>(.*?)</title>", str(figure(found, "a")))
    norm = "as a share of the weights’ norm"
    assert said == [
        f"gradient, seed 3, {norm}: 1%",
        f"gradient, seed 4, {norm}: 4%",
        f"gradient, 2 seeds, {norm}: 2%",
        "gradient, seed 3: 10 to 30 steps",
        "gradient, seed 4: &gt; 30 steps",
        "gradient, 2 seeds: 10 to &gt; 30 steps",
    ]
