"""Claims over several networks: pooled lines against their formulas, figures of the networks."""

import json
import math
import statistics

import hostile
import made_up
import pytest
from made_up import SHARE, networks, planted

from frenet.experiments import EXPERIMENTS
from frenet.experiments.experiment import Across
from frenet.experiments.intervals import mean_of, select
from frenet.report import across, figures, pooled_lines, write_report, write_results
from frenet.report.claims import Entry
from frenet.runs import Run
from frenet.statistics.intervals import Estimate
from frenet.statistics.pooled import pool

VALUES = {"one": (0.5, 0.6, 0.7), "two": (0.3, 0.2, 0.25, 0.2), "three": (0.9, 0.97, 0.95)}


def entries(found, how=SHARE, **models):
    """Findings of networks, as a report has them."""
    (claim,) = made_up.experiments()["gradient-rank"].claims
    claim = claim._replace(across=how)
    return [
        Entry(claim, finding, name, None, model=models.get(name, name))
        for name, finding in found.items()
    ]


def pooled(values, how=SHARE, **models):
    found = {name: planted(numbers) for name, numbers in values.items()}
    (one,) = across.pools(entries(found, how, **models))
    return one


def errors(values):
    """Standard errors by their definition."""
    return [statistics.stdev(x) / math.sqrt(len(x)) for x in values]


def test_a_line_pools_means_and_standard_errors_of_the_raw_scale():
    """The interval that is shown stays in [0, 1] and has another width."""
    found = pooled(VALUES)
    wanted = pool(map(statistics.fmean, VALUES.values()), errors(VALUES.values()))
    assert found.counted == ("one", "two", "three")
    assert found.left_out == {}
    assert found.mean.value == pytest.approx(wanted.estimate.value)
    assert found.between == pytest.approx(wanted.spread)
    # Both intervals leave the range of shares, and are cut there.
    assert wanted.estimate.high > 1
    assert (found.mean.low, found.mean.high) == (pytest.approx(max(wanted.estimate.low, 0)), 1)
    assert wanted.low < 0 < 1 < wanted.high
    assert found.next == (0, 1)
    uncut = pooled(VALUES, SHARE._replace(limits=(-math.inf, math.inf)))
    assert uncut.mean.high == pytest.approx(wanted.estimate.high)
    assert uncut.next == pytest.approx((wanted.low, wanted.high))


def test_a_geometric_mean_is_pooled_in_logarithms():
    logs = {name: [math.log(x) for x in values] for name, values in VALUES.items()}
    found = {}
    for name, values in logs.items():
        shown = Estimate(*map(math.exp, mean_of(values)[:3]), len(values))
        found[name] = planted(())._replace(estimate=shown)
    (one,) = across.pools(entries(found, Across("ratio", log=True)))
    wanted = pool(map(statistics.fmean, logs.values()), errors(logs.values()))
    assert one.mean.value == pytest.approx(math.exp(wanted.estimate.value))
    assert one.mean.high == pytest.approx(math.exp(wanted.estimate.high))
    assert one.between == pytest.approx(wanted.spread)
    assert one.next == pytest.approx((math.exp(wanted.low), math.exp(wanted.high)))
    assert across.cells(one)[2] == f"a factor of {math.exp(wanted.spread):.3g}"


def test_the_error_of_an_interval_that_is_not_students_is_its_own():
    found = {
        name: planted(())._replace(estimate=Estimate(value, 0, 1, 5, error=error))
        for name, value, error in (("one", 0.4, 0.02), ("two", 0.5, 0.1))
    }
    (one,) = across.pools(entries(found))
    assert one.mean.value == pytest.approx(pool([0.4, 0.5], [0.02, 0.1]).estimate.value)


def test_networks_that_cannot_count_are_named_with_the_reason():
    found = {
        "one": planted(VALUES["one"]),
        "two": planted(VALUES["two"], "undecided"),
        "no premise": planted(VALUES["three"], "not testable"),
        "single": planted((0.5,)),
        "equal": planted((0.5, 0.5, 0.5)),
        "nothing": planted(()),
    }
    (one,) = across.pools(entries(found))
    assert one.counted == ("one", "two")
    reasons = {
        "no premise": "not testable", "single": "only one seed", "nothing": "nothing was measured",
        "equal": "its interval has no finite width above 0",
    }  # fmt: skip
    assert one.left_out == reasons
    # Two networks have a mean and no prediction interval.
    both = [VALUES["one"], VALUES["two"]]
    wanted = pool(map(statistics.fmean, both), errors(both))
    assert one.mean.value == pytest.approx(wanted.estimate.value)
    assert one.next is None
    shown, rows = across.forest(one)
    assert all(f"{name} ({why})" in shown.caption for name, why in reasons.items())
    assert "equal (its interval" in across.cells(one)[-1]
    # They are in the figure, also without a number.
    names = [row["network"].partition("\n")[0] for row in select(rows, series="estimate")]
    assert names == [*found, "mean of 2 networks"]


@pytest.mark.parametrize(("count", "why"), [(0, "no network counts"), (1, "one network counts")])
def test_one_network_has_no_mean(count, why):
    verdicts = ["supported"] * count + ["not testable"] * (3 - count)
    found = {
        name: planted(values, verdict)
        for (name, values), verdict in zip(VALUES.items(), verdicts, strict=True)
    }
    (one,) = across.pools(entries(found))
    assert (one.mean, one.between, one.next) == (None, None, None)
    assert across.cells(one)[:2] == (f"{count} of 3", f"– ({why})")
    shown, rows = across.forest(one)
    assert why in shown.caption
    assert len(select(rows, series="estimate")) == 3
    assert across.as_dict(one)["mean"] is None


def test_an_estimate_on_another_scale_on_each_network_has_a_figure_and_no_mean():
    one = pooled(VALUES, SHARE._replace(apart="slopes are not alike"))
    assert one.mean is None
    assert across.cells(one)[1] == "– (slopes are not alike)"
    assert len(select(across.forest(one)[1], series="estimate")) == 3


def test_a_second_run_on_a_network_does_not_count_as_a_second_network():
    one = pooled(VALUES, two="one")
    assert one.counted == ("one", "three")
    assert one.left_out == {"two": "another run on this network is counted"}
    assert (
        across.pools(entries({name: planted(VALUES[name]) for name in ("one", "two")}, two="one"))
        == []
    )


def test_cases_of_a_claim_have_lines_of_their_own():
    found = [
        entry
        for case in ("", "at depth 1/3", "in the weights")
        for entry in entries({n: planted(v, case=case) for n, v in VALUES.items()})
    ]
    assert [(one.name, one.id) for one in across.pools(found)] == [
        ("C1", "networks-C1"),
        ("C1 at depth 1/3", "networks-C1-at-depth-1-3"),
        ("C1 in the weights", "networks-C1-in-the-weights"),
    ]
    assert [one["case"] for one in map(across.as_dict, across.pools(found))] == [
        "",
        "at depth 1/3",
        "in the weights",
    ]


def layers(chart):
    """Marks of a figure with their encodings."""
    return [(layer["mark"], layer["encoding"], layer) for layer in chart["layer"]]


def test_the_figure_has_networks_with_verdicts_the_mean_as_a_diamond_and_the_rule():
    one = pooled(VALUES)
    shown, rows = across.forest(one)
    chart = figures.draw(shown, rows)
    names = ["one\n✓ supported", "two\n✓ supported", "three\n✓ supported"]
    names += ["mean of 3 networks\ndecides nothing", "next network\nprediction"]
    (diamond,) = (layer for mark, _, layer in layers(chart) if mark.get("shape") == "diamond")
    assert diamond["encoding"]["y"]["sort"] == names
    bold = {"filter": {"field": "network", "oneOf": names[3:]}}
    assert bold in diamond["transform"]
    (level,) = (layer for _, where, layer in layers(chart) if where["x"].get("field") == "at")
    (drawn,) = chart["datasets"][level["data"]["name"]]
    assert drawn == {"series": "the rule: above 0.4", "at": 0.4}
    # The mean's interval, cut at 1, is wider than the frame around the networks.
    domain = diamond["encoding"]["x"]["scale"]["domain"]
    shares = [mean_of(x, least=0.0) for x in VALUES.values()]
    assert domain[0] < min(share.low for share in shares)
    assert max(share.high for share in shares) < domain[1]
    assert select(rows, series="null")[0]["value"] == 0.1
    words = chart["description"]
    assert "two: 0.237 [" in words
    assert "mean: " in words
    assert figures.svg(figures.for_file(chart, shown)).count("mean of 3 networks") >= 1


def test_text_says_that_an_interval_is_cut_only_if_it_is():
    narrow = {name: (0.5, 0.6 + i / 50, 0.4) for i, name in enumerate("abcdefgh")}
    cut = "wider than the frame"
    assert cut not in across.forest(pooled(narrow))[0].caption
    assert cut in across.forest(pooled({n: VALUES[n] for n in ("one", "two")}))[0].caption


def test_report_and_results_have_the_lines_and_a_figure_for_each_case(tmp_path):
    runs, known = networks(["a/one", "a/two", "a/three"])
    lines = pooled_lines(runs, experiments=known)
    assert json.loads(json.dumps(lines)) == lines
    assert [line["networks"] for line in lines] == [["a/one", "a/two", "a/three"]] * 2
    page = write_report(runs, tmp_path / "r.html", experiments=known, static=False)
    text = page.read_text("utf-8")
    for anchor in ("networks", "networks-C1", "networks-C1-in-the-weights"):
        assert text.count(f' id="{anchor}"') == 1
        assert f'href="#{anchor}"' in text
    results = write_results(runs, tmp_path / "results", experiments=known).read_text("utf-8")
    assert f"<summary>{across.TITLE}: " in results
    for name in ("networks-C1.svg", "networks-C1-in-the-weights.svg"):
        assert f"]({name})" in results
        assert (tmp_path / "results" / name).read_text("utf-8").startswith("<svg")
    value = lines[1]["mean"]["value"]
    assert "| **C1 in the weights** Task gradients" in results
    assert f"| 3 of 3 | {value:.3f} [" in results
    assert "These lines decide nothing" in results
    assert "These lines decide nothing" in text


def test_a_single_network_has_neither(tmp_path):
    runs, known = networks(["a/one"])
    assert pooled_lines(runs, experiments=known) == []
    page = write_report(runs, tmp_path / "r.html", experiments=known, static=False)
    assert across.TITLE not in page.read_text("utf-8")
    results = write_results(runs, tmp_path / "results", experiments=known)
    assert across.TITLE not in results.read_text("utf-8")
    assert not list((tmp_path / "results").glob("networks-*"))


def test_a_claim_without_a_common_estimate_has_no_line():
    runs = [
        Run(**{**run.__dict__, "config": run.config | {"model": name}})
        for run in made_up.runs()[:1]
        for name in ("a", "b")
    ]
    assert pooled_lines(runs, experiments=made_up.experiments()) == []


def test_hostile_names_of_networks_are_text(tmp_path):
    names = [*hostile.NAMES, "two\nlines\n✓ supported"]
    runs, known = networks(names)
    text = write_report(runs, tmp_path / "r.html", experiments=known).read_text("utf-8")
    section = text.partition('<section id="networks"')[2].partition('<section id="network-1"')[0]
    shown = section.partition("</table>")[0]
    assert "<script>alert" not in section
    assert "<img src=x" not in section
    assert "alert(1)" in text
    assert f"{len(names)} of {len(names)}" in shown
    rows = across.forest(
        across.pools(entries({names[-1]: planted(VALUES["one"]), "b": planted(VALUES["two"])}))[0]
    )[1]
    assert rows[0]["network"] == "two\\nlines\\n✓ supported\n✓ supported"
    page = write_results(runs, tmp_path / "results", experiments=known).read_text("utf-8")
    assert not set("\x00\x1b\u202e\r") & set(page)
    assert "<script>" not in page


def test_every_claim_says_how_networks_are_shown_together_with_the_levels_of_its_rule():
    """C5b's rule is in logarithms, and C7's on two slopes."""
    claims = [claim for one in EXPERIMENTS.values() for claim in one.claims]
    assert claims
    for claim in claims:
        assert claim.across is not None, claim.id
        if not claim.across.log and not claim.across.apart:
            assert all(label in claim.rule for label in claim.across.levels), claim.id
    assert [claim.id for claim in claims if claim.across.apart] == ["C7"]
    assert [claim.id for claim in claims if claim.across.log] == ["C5b"]
