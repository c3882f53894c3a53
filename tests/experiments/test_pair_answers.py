"""What `frenet pair` concludes from rows that are written by hand."""

import pytest

from frenet.experiments.pair_command.answers import LOSS, SHARE, advised, sentences
from frenet.experiments.pair_command.figures import FIGURES, map_chart
from frenet.experiments.pair_command.subject import own_tasks


def merge(name, score, over, *, average=(0.1, 0.0, 0.2), chosen=False, **more):
    row = {
        "table": "merge", "merge": name, "kind": name, "a": 1.0, "b": 1.0, "score": score,
        "low": score - 0.1, "high": score + 0.1, "at_whole": 0.5, "at_average": 0.55,
        "unit": SHARE, "chosen": chosen,
    }  # fmt: skip
    row |= dict(zip(("over_whole", "over_whole_low", "over_whole_high"), over, strict=True))
    row |= dict(
        zip(("over_average", "over_average_low", "over_average_high"), average, strict=True)
    )
    return row | more


WHOLE = merge("1.0 and 1.0", 0.5, (0.0, 0.0, 0.0))


def said(rows, subject):
    (found,) = [answer.sentence for answer in sentences(rows) if answer.subject == subject]
    return found


@pytest.mark.parametrize(
    ("over", "beats"),
    [((0.2, 0.01, 0.3), True), ((0.2, 0.0, 0.3), False), ((0.2, -0.1, 0.5), False)],
)
def test_a_merge_is_advised_only_if_it_is_shown_to_beat_the_plain_sum(over, beats):
    rows = [WHOLE, merge("one each", 0.7, over, a=0.75, b=0.25, chosen=True)]
    assert advised(rows)["merge"] == ("one each" if beats else "1.0 and 1.0")
    sentence = said(rows, "merge")
    assert ("it beats 1.0 and 1.0" in sentence) is beats
    assert ("none is shown to beat 1.0 and 1.0" in sentence) is not beats
    assert "one each (0.75 and 0.25), 70% of the gains [60%, 80%]" in sentence


def test_a_mean_loss_is_inside_its_interval():
    loss = {"unit": LOSS, "at_whole": -5.6, "at_average": -5.5, "chosen": True}
    rows = [WHOLE, merge("one each", -5.0, (0.2, 0.1, 0.3), **loss)]
    assert "one each (1 and 1), a mean loss of 5 [4.9, 5.1] on held-out" in said(rows, "merge")


@pytest.mark.parametrize(("average", "beats"), [((0.1, 0.01, 0.2), True), ((0.1, 0.0, 0.2), False)])
def test_the_average_is_beaten_or_not(average, beats):
    rows = [WHOLE, merge("one each", 0.7, (0.2, 0.1, 0.3), average=average, chosen=True)]
    assert ("is not shown to beat the average" in said(rows, "merge")) is not beats


def test_the_plain_sum_may_be_the_best():
    rows = [WHOLE | {"chosen": True}]
    assert advised(rows)["merge"] == "1.0 and 1.0"
    assert "none is shown to beat 1.0 and 1.0" in said(rows, "merge")


def losses(low):
    return {
        "table": "losses", "task": "t", "own": "x", "other": "y", "without": 8.0, "with_own": 3.0,
        "with_other": 9.0, "with_both": 5.0, "with_random": 3.1, "harm": 1.0, "harm_low": low,
        "harm_high": 2.0,
    }  # fmt: skip


def test_harm_is_said_if_it_is_above_nothing():
    assert "y harms this task (+1 [0.5, 2])" in said([losses(0.5)], "t")
    assert "harms" not in said([losses(-0.1)], "t")


def radius(kind, **cells):
    row = {
        "table": "scale", "task": "t", "kind": kind, "directions": kind, "times": None, "low": 0.2,
        "high": 1.0, "unbounded": False, "eps": 0.2,
    }  # fmt: skip
    return row | cells


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"times": 0.5, "times_low": 0.4, "times_high": 0.6}, "up to 0.5 [0.2, 1]"),
        ({"times_low": 0.25, "times_high": 0.5}, "up to between 0.25 and 0.5 [0.2, 1]"),
        ({"times_low": 0.0, "times_high": 0.03}, "up to less than 0.03 [0.2, 1]"),
        (
            {"times_low": 2.0, "times_high": None, "unbounded": True, "high": None},
            "up to at least 2 [0.2, more]",
        ),
    ],
)
def test_a_radius_is_said_as_it_is_known(cells, words):
    assert words in said([radius("both", **cells)], "how far together, t")


def test_a_direction_without_a_gain_keeps_none():
    row = {"table": "kept", "task": "t", "own": "x", "other": "y", "gain": 0.01, "kept": None}
    assert "there is no gain to keep" in said([row], "kept, t")


def test_blocks_without_harm_are_said():
    rows = [{"table": "block", "task": "t", "block": "block 0"}]
    assert said(rows, "blocks") == "in no block does one direction harm what the other gains"


def test_orders_that_never_differ_and_those_that_are_not_known():
    row = {"table": "order", "first": "t", "second": "u"}
    assert "it does not matter" in said([row | {"onset": None}], "order of training")
    assert said([row | {"why": "no"}], "order of training") == "not known: no"


def test_no_rows_give_no_answers():
    assert sentences([]) == []
    with pytest.raises(ValueError, match="no merge was measured"):
        advised([])


@pytest.mark.parametrize(
    ("names", "labels", "only", "found"),
    [
        (["a", "b"], ["x", "y"], (), ("a", "b")),
        (["a", "b"], ["x", "y"], ("b", "a"), ("b", "a")),
        (["clinc_domain", "sentiment"], ["lora-Sentiment", "lora_clinc-domain"], (),
         ("sentiment", "clinc_domain")),
        (["one", "two", "three"], ["three-adapter", "one-adapter"], (), ("three", "one")),
        # One name is enough if there are two tasks.
        (["one", "two"], ["two-adapter", "x"], (), ("two", "one")),
    ],
)  # fmt: skip
def test_each_direction_gets_its_own_task(names, labels, only, found):
    assert own_tasks(names, labels, only)[0] == found


def test_names_that_decide_nothing_between_three_tasks_are_refused():
    with pytest.raises(ValueError, match="do not say which are theirs; pass --only"):
        own_tasks(["one", "two", "three"], ["one-adapter", "x"])


def test_the_box_of_a_radius_beyond_the_map_ends_at_its_frame():
    rows = [
        {"table": "map", "kind": "loss", "task": "t", "x": x, "y": y, "loss": 1.0 + x * y,
         "without": 1.0, "kept": None, "whole": 1.0}
        for x in (0.0, 1.0) for y in (0.0, 1.0)
    ]  # fmt: skip
    rows.append({"table": "map", "kind": "box", "task": "t", "x": 9.0, "y": None})
    spec = map_chart(rows).to_dict()
    (values,) = list(spec["datasets"].values()) if "datasets" in spec else [
        spec["data"]["values"]
    ]  # fmt: skip
    (box,) = [row for row in values if row.get("box_x") is not None]
    assert (box["box_x"], box["box_y"]) == (1.5, 1.5)
    assert max(row["change"] for row in values if row.get("change") is not None) == 1.0
    assert {figure.table for figure in FIGURES} == {"map", "interaction", "merge", "block"}
