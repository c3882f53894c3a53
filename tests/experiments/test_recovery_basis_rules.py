"""The rules of C2 and C4, on rows made for them: every word, premises, the rate that counts."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from experiments.parts import parts
from frenet.experiments import EXPERIMENTS
from frenet.experiments.experiment import MADE, MODEL, SYNTHETIC, Finding, kind_of
from frenet.experiments.recovery_basis.figures import bases_chart, held, prefix_chart
from frenet.experiments.recovery_basis.findings import (
    STEPS,
    at_chosen_rate,
    fixed_plane,
    prefix_as_paper,
    prefix_span,
)

Rows = list[dict[str, Any]]
RATE = "adam:1e-3"


def captures(basis: str, values: Sequence[float], **changes: object) -> Rows:
    """Captures of one basis in LoRA's factors at k = 10, one for each seed."""
    base = {"table": "capture", "basis": basis, "k": 10, "space": "lora", "optimizer": RATE}
    context = {"walk_share": 0.3, "k_over_stop": 0.2, "protocol": "noise", "task": "a"}
    where = {"coordinates": "factors", "replicate": 0}
    return [
        base | context | where | {"seed": s, "captured": v, "lift": v / 0.3} | changes
        for s, v in enumerate(values)
    ]


def recoveries(
    statuses: Sequence[str] = ("recovered", "recovered"),
    seeds: Sequence[int] = (0, 1, 2),
    **changes: object,
) -> Rows:
    """Rows of recoveries that go with captures(), one replicate for each status."""
    base = {"table": "recovery", "space": "lora", "optimizer": RATE, "protocol": "noise"}
    return [
        base
        | {"seed": s, "task": "a", "status": status, "replicate": r, "longest": 500}
        | {"stop": 40 if status == "recovered" else None}
        | changes
        for s in seeds
        for r, status in enumerate(statuses)
    ]


def run_of(
    static: Sequence[float], prefix: Sequence[float], where: str = "factors", **changes: object
) -> Rows:
    """One static basis and the prefix, of recoveries of 40 steps."""
    changes = {"coordinates": where, **changes}
    return (
        captures("other tasks", static, **changes)
        + captures("prefix", prefix, **changes)
        + recoveries(**{k: v for k, v in changes.items() if k in ("space", "optimizer")})
    )


def plane(rows: Rows) -> Finding:
    """C2 apart from its case in the weights."""
    return fixed_plane(rows)[0]


def span(rows: Rows) -> Finding:
    return prefix_span(rows)[0]


def paper(rows: Rows) -> Finding:
    return prefix_as_paper(rows)[0]


PREFIX = [0.60, 0.61, 0.62]
SMALL = [0.10, 0.11, 0.12]


@pytest.mark.parametrize(
    ("static", "prefix", "verdict"),
    [
        (SMALL, PREFIX, "supported"),
        ([0.30, 0.31, 0.32], PREFIX, "contradicted"),  # a static basis holds much
        (SMALL, [0.05, 0.06, 0.07], "contradicted"),  # and more than the prefix
        ([0.10, 0.20, 0.30], PREFIX, "undecided"),
        (SMALL, [0.0, 0.1, 0.3], "undecided"),
        (SMALL[:1], PREFIX[:1], "undecided"),
    ],
)
def test_c2(static: list[float], prefix: list[float], verdict: str) -> None:
    finding = plane(run_of(static, prefix))
    assert finding.verdict == verdict
    assert (finding.decision.needs is not None) == (verdict == "undecided")


def test_c2_compares_prefix_and_static_basis_within_each_seed() -> None:
    """Seeds differ by far more than the two bases of one seed."""
    level = [0.0, 0.1, 0.2]
    finding = plane(run_of(level, [x + 0.02 + 0.001 * i for i, x in enumerate(level)]))
    assert "the prefix at k = 10 in the lora space is above" not in finding.why
    assert finding.verdict == "undecided"  # the static basis is not clearly below 0.25
    low = [0.0, 0.05, 0.1]
    assert plane(run_of(low, [x + 0.02 + 0.001 * i for i, x in enumerate(low)])).verdict == (
        "supported"
    )


def test_c2_takes_the_best_static_basis_and_no_basis_from_the_damaged_point() -> None:
    rows = run_of([0.01] * 3, PREFIX) + captures("damage direction", SMALL, k=1)
    rows += captures("gradients at damage", [0.9, 0.9, 0.9])
    finding = plane(rows)
    assert (finding.verdict, finding.estimate.value) == ("supported", pytest.approx(0.11))
    assert "damage direction" in finding.quantity


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ([], "supported"),
        (recoveries(seeds=[1], stop=20), "supported"),  # two others of the seed are long enough
        (recoveries(seeds=[3], stop=28), "not testable"),
        (recoveries(("recovered", "not recovered"), seeds=[3]), "not testable"),
        (recoveries(("recovered",) * 2, seeds=[3], stop=29), "supported"),
        (recoveries(("not damaged",), seeds=[3]), "not testable"),
    ],
)
def test_c2_asks_for_two_recoveries_of_29_steps_in_every_seed(changes: Rows, verdict: str) -> None:
    finding = plane(run_of(SMALL, PREFIX) + changes)
    assert finding.verdict == verdict
    if verdict == "not testable":
        assert "29 steps" in finding.why


@pytest.mark.parametrize(("walk", "verdict"), [(0.79, "supported"), (0.81, "not testable")])
def test_c2_and_c4_ask_for_a_prefix_that_a_random_walk_would_not_hold(walk, verdict) -> None:
    rows = run_of(SMALL, [0.90, 0.91, 0.92], walk_share=walk)
    assert plane(rows).verdict == span(rows).verdict == verdict


def test_without_recoveries_long_enough_c2_and_c4_cannot_be_tested() -> None:
    """Captures at a smaller k do not stand in for those at 10."""
    rows = captures("prefix", PREFIX, k=5) + captures("other tasks", SMALL, k=5)
    rows += recoveries(stop=20)
    for finding in (plane(rows), span(rows), paper(rows)):
        assert (finding.verdict, finding.estimate) == ("not testable", None)
    for finding in (plane([]), span([]), paper([])):
        assert (finding.verdict, finding.estimate) == ("not testable", None)


def test_c2_compares_bases_on_the_same_recoveries() -> None:
    """One that is over too soon for k = 10 has the damage direction, and no prefix to compare."""
    rows = run_of([0.01] * 3, PREFIX) + captures("gradients at start", [0.2, 0.21, 0.22])
    rows += captures("damage direction", [0.1, 0.1, 0.1], k=1)
    short = captures("damage direction", [0.9, 0.9, 0.9], k=1, optimizer="sgd:1")
    short += captures("prefix", PREFIX, k=5, optimizer="sgd:1")
    finding = plane(rows + short)
    assert "gradients at start" in finding.quantity
    assert finding.estimate == plane(rows).estimate
    (apart,) = parts(finding, "Captured at k")
    assert apart["optimizer"] == RATE


@pytest.mark.parametrize(
    ("static", "verdict"), [(0.1, "supported"), (0.25, "undecided"), (0.5, "contradicted")]
)
def test_c2_is_decided_by_the_worst_space(static: float, verdict: str) -> None:
    """And shows the space with the higher capture; a mean over both would hide it."""
    lora = run_of([0.01, 0.02, 0.03], PREFIX)
    values = [static - 0.01, static, static + 0.01]
    finding = plane(lora + run_of(values, PREFIX, "weights", space="full"))
    assert finding.verdict == verdict
    assert finding.estimate.value == pytest.approx(static)
    assert finding.quantity.endswith("full space")
    spaces = parts(finding, "The best static basis of each space")
    assert [(row["space"], str(row["verdict"]).split()[0]) for row in spaces] == [
        ("full", verdict), ("lora", "supported")
    ]  # fmt: skip
    # Of both: standard error 0.01 / sqrt(3), t(2) = 4.302653; shown within [0, 1].
    half = 4.302652729911275 * 0.01 / 3**0.5
    raw = [finding.estimate.raw, finding.reference_estimate.raw]
    for ends, middle in zip(raw, (static, 0.61), strict=True):
        assert ends == pytest.approx((middle - half, middle + half))
    assert parts(plane(lora), "The best static basis") == []


def test_a_space_without_recoveries_makes_c2_not_testable() -> None:
    rows = run_of([0.01] * 3, PREFIX)
    assert plane(rows).verdict == "supported"
    lost = recoveries(["not recovered"], space="other")
    finding = plane([*rows, *lost])
    assert (finding.verdict, "in the other space" in finding.why) == ("not testable", True)


def test_old_rows_are_decided_by_the_columns_that_they_have() -> None:
    """Without coordinates they are of the factors, and nothing is said of the weights."""
    rows = run_of(SMALL, PREFIX)
    old = [{k: v for k, v in row.items() if k != "coordinates"} for row in rows]
    for decide in (fixed_plane, prefix_span, prefix_as_paper):
        (finding,) = decide(old)
        assert (finding.verdict, finding.estimate) == (decide(rows)[0].verdict, decide(rows)[0][3])
    bare = [{k: v for k, v in row.items() if k != "walk_share"} for row in old]
    for finding in (plane(bare), span(bare)):
        assert finding.verdict == "not testable"
        assert "was not measured" in finding.why


HIGH, PAPER = [0.90, 0.91, 0.92], [0.765, 0.77, 0.775]


@pytest.mark.parametrize(
    ("values", "walk", "first", "second"),
    [
        (HIGH, 0.3, "supported", "contradicted"),
        (PAPER, 0.3, "supported", "supported"),
        ([0.40, 0.41, 0.42], 0.3, "contradicted", "contradicted"),
        ([0.55, 0.56, 0.57], 0.7, "contradicted", "contradicted"),  # less than a random walk
        ([0.30, 0.50, 0.80], 0.3, "undecided", "undecided"),
        ([0.60, 0.64, 0.68], 0.3, "supported", "undecided"),
        (PAPER[:1], 0.3, "undecided", "undecided"),
    ],
)
def test_c4(values: list[float], walk: float, first: str, second: str) -> None:
    """C4a asks for most of a recovery and more than chance, C4b for as much as in the paper."""
    rows = captures("prefix", values, walk_share=walk) + recoveries(seeds=range(len(values)))
    assert (span(rows).verdict, paper(rows).verdict) == (first, second)


def test_c4b_says_on_which_side_of_the_paper_it_is() -> None:
    for values, side in ((HIGH, "above"), ([0.6, 0.61, 0.62], "below")):
        assert side in paper(captures("prefix", values) + recoveries()).reference


def test_c4_is_about_lora() -> None:
    rows = captures("prefix", HIGH, space="full") + recoveries(space="full")
    assert (span(rows).verdict, span(rows).estimate) == ("not testable", None)


def rates(**stops: int | None) -> Rows:
    """Recoveries and captures at several rates, which the capture tells apart."""
    rows: Rows = []
    for rate, stop in stops.items():
        name = {"slow": "adamw:2.5e-4", "usual": "adamw:5e-4", "fast": "adamw:1e-3"}.get(rate, rate)
        status = "not recovered" if stop is None else "recovered"
        rows += recoveries([status] * 2, optimizer=name, stop=stop)
        level = {"slow": 0.9, "usual": 0.8, "fast": 0.7}.get(rate, 0.6)
        rows += captures("prefix", [level, level, level + 0.01], optimizer=name)
    return rows


@pytest.mark.parametrize(
    ("stops", "chosen"),
    [
        ({"slow": 60, "usual": 40, "fast": 29}, "adamw:1e-3"),
        ({"slow": 60, "usual": 40, "fast": 28}, "adamw:5e-4"),
        ({"fast": 28, "usual": 28, "slow": 60}, "adamw:2.5e-4"),
        ({"slow": 61, "usual": 61, "fast": None}, None),
        ({"usual": 20, "sgd:1": 40}, None),
    ],
)
def test_c4_takes_the_largest_rate_with_recoveries_of_29_to_60_steps(stops, chosen) -> None:
    rows = rates(**stops)
    assert {row["optimizer"] for row in at_chosen_rate(rows)} == ({chosen} if chosen else set())
    for finding in (span(rows), paper(rows)):
        assert (finding.estimate is None) == (chosen is None)
        assert (chosen or "updates, in the factors") in finding.quantity
    missing = [note for note in span(rows).notes if "No rate" in note]
    assert len(missing) == (chosen is None)
    for note in missing:
        assert all(row["optimizer"] in note for row in rows if "adam" in row["optimizer"])
    # All rates are shown.
    shown = {row["optimizer"] for row in parts(span(rows), "Share that the first k steps")}
    assert shown == {row["optimizer"] for row in rows}


def test_one_seed_of_short_recoveries_is_enough_for_a_smaller_rate() -> None:
    """With the median alone, the larger rate would count, and its claim could not be tested."""
    rows = rates(usual=50, fast=31)
    short = [
        r
        for r in rows
        if (r["seed"], r.get("optimizer"), r["table"]) == (2, "adamw:1e-3", "recovery")
    ]
    for row in short:
        row["stop"] = 28
    assert {row["optimizer"] for row in at_chosen_rate(rows)} == {"adamw:5e-4"}


def test_the_rate_does_not_depend_on_captures() -> None:
    rows = rates(slow=60, usual=40, fast=20)
    chosen = {row["optimizer"] for row in at_chosen_rate(rows)}
    for row in rows:
        if "captured" in row:
            row["captured"] = 0.5
    assert {row["optimizer"] for row in at_chosen_rate(rows)} == chosen


def test_a_recovery_that_did_not_arrive_counts_as_the_longest_of_its_rate() -> None:
    """Two of five arrive after 40 steps: the median is not 40."""
    rows = rates(usual=40) + recoveries(["not recovered"], optimizer="adamw:5e-4", protocol="b")
    assert at_chosen_rate(rows)
    rows += recoveries(["not recovered"] * 2, optimizer="adamw:5e-4", protocol="c")
    assert at_chosen_rate(rows) == []


@pytest.mark.parametrize("network", [SYNTHETIC, "frenet:gpt2", "some/model"])
def test_the_rates_of_the_presets_do_not_step_over_that_range(network: str) -> None:
    """Steps go as one over the rate, so neighbours are no farther apart than its ends."""
    settings = EXPERIMENTS["recovery-basis"].settings("cpu", kind_of(network))
    found = sorted(float(name.partition(":")[2]) for name in settings.lora_optimizers)
    assert len(found) >= 3
    assert all(b / a <= STEPS[1] / STEPS[0] for a, b in itertools.pairwise(found))
    assert {kind_of(n) for n in (SYNTHETIC, "frenet:gpt2", "some/model")} == {
        SYNTHETIC,
        MODEL,
        MADE,
    }


def in_both(factors: list[float], weights: list[float]) -> Rows:
    static = captures("other tasks", SMALL, coordinates="weights")
    return [
        *run_of(SMALL, factors),
        *static,
        *captures("prefix", weights, coordinates="weights", walk_share=0.4),
    ]


def test_lora_is_judged_in_the_weights_as_a_case_of_its_own() -> None:
    rows = in_both([0.80, 0.81, 0.82], [0.60, 0.61, 0.62])
    for decide, verdicts in (
        (fixed_plane, ("supported", "supported")),
        (prefix_span, ("supported", "supported")),
        (prefix_as_paper, ("supported", "contradicted")),
    ):
        found = decide(rows)
        assert [finding.case for finding in found] == ["", "in the weights"]
        assert tuple(finding.verdict for finding in found) == verdicts
        assert "in the weights" in found[1].why
    factors, weights = prefix_span(rows)
    assert factors.estimate.value == pytest.approx(0.81)
    assert weights.estimate.value == pytest.approx(0.61)
    assert weights.reference_estimate.value == pytest.approx(0.4)
    assert ("in the factors" in factors.quantity, "in the weights" in weights.quantity) == (
        True, True
    )  # fmt: skip
    # A static basis in the weights decides there alone.
    rows += captures("gradients at start", [0.5, 0.51, 0.52], coordinates="weights")
    assert [finding.verdict for finding in fixed_plane(rows)] == ["supported", "contradicted"]


def test_the_difference_between_factors_and_weights_is_paired_by_seed() -> None:
    """0.2, 0.2, 0.23: mean 0.21, standard error 0.01, t(2) = 4.302653."""
    rows = in_both([0.7, 0.8, 0.9], [0.5, 0.6, 0.67])
    for found, bases in ((fixed_plane(rows), 2), (prefix_span(rows), 1)):
        table = parts(found[0], "LoRA: captured in the factors and in the weights")
        assert len(table) == bases
        (row,) = [row for row in table if row["basis"] == "prefix"]
        assert (row["in the factors"], row["in the weights"]) == pytest.approx((0.8, 0.59))
        assert (row["difference"], row["seeds"]) == (pytest.approx(0.21), 3)
        half = 4.302652729911275 * 0.01
        assert (row["low"], row["high"]) == pytest.approx((0.21 - half, 0.21 + half))
        assert parts(found[1], "LoRA: captured in") == []


def test_breakdowns_and_charts_keep_the_weights_apart() -> None:
    rows = in_both([0.80, 0.81, 0.82], [0.60, 0.61, 0.62])
    for index, value in ((0, 0.81), (1, 0.61)):
        (row,) = parts(prefix_span(rows)[index], "Share that the first k steps")
        assert row["captured"] == pytest.approx(value)
        share = [r for r in parts(fixed_plane(rows)[index], "Share of") if r["basis"] == "prefix"]
        assert [r["captured"] for r in share] == [pytest.approx(value)]
    only = [row for row in rows if row["table"] == "capture"]
    for chart in (bases_chart, prefix_chart):
        text = str(chart(only).to_dict())  # type: ignore[attr-defined]
        assert "LoRA, in the weights" in text


def test_c2_counts_recoveries_and_says_why_others_do_not_count() -> None:
    rows = run_of(SMALL, PREFIX)
    rows += [row | {"replicate": 1} for row in rows if row["table"] == "capture"]
    assert parts(plane(rows), "Which recoveries count") == []
    rows += recoveries(optimizer="sgd:1", stop=28)
    rows += recoveries(["not damaged"], protocol="zeroed-head")
    rows += recoveries(["shallow", "not recovered"], protocol="ascent")
    table = parts(plane(rows), "Which recoveries count")
    counts = [row["recoveries"] for row in table]
    assert (counts, {row["of"] for row in table}) == ([6, 6, 3, 3, 3], {21})
    named = [str(row["outcome"]) for row in table]
    assert "29 steps that k = 10" in named[1]
    assert named[2:] == ["not damaged by zeroed-head", "shallow", "not recovered"]


def test_c4_says_how_many_recoveries_did_not_arrive() -> None:
    rows = captures("prefix", HIGH) + recoveries()
    assert span(rows).notes == ()
    rows += recoveries(["not recovered"], optimizer="adam:9")
    (caution,) = span(rows).notes
    assert all(words in caution for words in ("3 of 9", "500 steps", "--steps"))


def test_c2_and_c4_say_what_each_damage_and_optimiser_gave() -> None:
    rows = captures("prefix", [0.8] * 3) + captures("prefix", [0.4] * 3, protocol="labels")
    rows += captures("prefix", [0.6] * 3, optimizer="sgd:1")
    conditions = [("lora", "noise", RATE), ("lora", "labels", RATE), ("lora", "noise", "sgd:1")]
    for finding, title, name in (
        (plane(rows), "Captured at k", "prefix"),
        (span(rows), "Share that", "captured"),
    ):
        table = parts(finding, title)
        assert [r["recoveries"] for r in table] == [3, 3, 3]
        assert [(r["space"], r["protocol"], r["optimizer"]) for r in table] == conditions
        assert [r[name] for r in table] == pytest.approx([0.8, 0.4, 0.6])


def test_c4_lists_each_condition_at_its_largest_k_up_to_10() -> None:
    """A condition of larger k alone has no number."""
    rows = [
        row
        for k, values in ((5, [0.5] * 3), (10, [0.75] * 3), (16, [0.9] * 3))
        for row in captures("prefix", values, k=k, rest=0.25)
    ]
    rows += captures("prefix", [0.9] * 3, k=16, optimizer="sgd:2")
    first, second = parts(span(rows), "Share that the first k steps")
    assert (first["k"], first["captured"], first["recoveries"]) == (10, 0.75, 3)
    assert (first["random walk"], first["captured of the rest"]) == (pytest.approx(0.3), 0.25)
    assert (second["k"], second["captured"]) == (0, None)


def test_c2_lists_capture_and_function_of_every_basis_and_names_where_they_disagree_most() -> None:
    rows = captures("prefix", PREFIX, regained=0.62, regained_full=0.9, chance=0.01)
    assert plane(rows).notes == ()
    rows += captures("gradients at start", [0.3, 0.3, 0.3], regained=0.5)
    rows += captures("damage direction", [0.01, 0.01, 0.01], k=1, regained=0.9)
    finding = plane(rows)
    caution = finding.notes[-1]
    assert all(words in caution for words in ("damage direction", "lora", "0.010", "0.90"))
    table = parts(finding, "Share of a displacement")
    assert [(row["basis"], row["k"], row["recoveries"]) for row in table] == [
        ("prefix", 10, 3), ("gradients at start", 10, 3), ("damage direction", 1, 3)
    ]  # fmt: skip
    assert [row["captured"] for row in table] == pytest.approx([0.61, 0.3, 0.01])
    assert [row["loss regained"] for row in table] == pytest.approx([0.62, 0.5, 0.9])
    whole = table[0]["regained by the whole displacement"]
    assert (whole, table[0]["chance"]) == pytest.approx((0.9, 0.01))


@pytest.mark.parametrize(
    ("captured", "regained", "said"),
    [(0.61, 0.70, False), (0.61, 0.72, True), (0.0, 0.1, True)],
)
def test_capture_and_function_disagree_from_a_difference_of_0_1(captured, regained, said) -> None:
    rows = captures("prefix", [captured] * 3, regained=regained)
    assert any("is not function" in note for note in plane(rows).notes) is said


def test_c2_warns_where_a_static_basis_is_not_small() -> None:
    """The largest of each damage and optimiser counts; 0.25 itself is not small."""
    rows = captures("prefix", PREFIX) + captures("task vectors", [0.1, 0.1, 0.1])
    rows += captures("prefix", PREFIX, optimizer="sgd:1")
    assert plane(rows).notes == ()
    levels = (("a", 0.25, 0.125), ("b", 0.24, 0.0), ("c", 0.0, 0.5))
    rows += [
        row
        for optimizer, other, vectors in levels
        for basis, value in (("other tasks", other), ("task vectors", vectors), ("prefix", 0.75))
        for row in captures(basis, [value] * 2, optimizer=optimizer)
    ]
    finding = plane(rows)
    (caution,) = finding.notes
    assert all(words in caution for words in ("2 of 4", "0.25", "0.50"))
    table = {row["optimizer"]: row for row in parts(finding, "Captured at k")}
    for optimizer, other, vectors in levels:
        assert table[optimizer]["other tasks"] == pytest.approx(other)
        assert table[optimizer]["task vectors"] == pytest.approx(vectors)


def test_a_run_that_has_ended_stays_at_its_last_loss() -> None:
    group = {"optimizer": RATE, "protocol": "ascent", "space": "full", "replicate": 0}
    short = {**group, "seed": 0, "task": "sort"}
    long = {**group, "seed": 1, "task": "sort"}
    rows = [{**short, "step": 0, "loss": 3.0}, {**short, "step": 2, "loss": 1.0}]
    rows += [{**long, "step": s, "loss": 4.0 - s} for s in (0, 1, 4)]
    found = {(row["seed"], row["step"]): row["loss"] for row in held(rows)}
    assert [found[0, s] for s in (0, 1, 2, 4)] == [3.0, 2.0, 1.0, 1.0]
    assert [found[1, s] for s in (0, 1, 2, 4)] == [4.0, 3.0, 2.0, 0.0]
