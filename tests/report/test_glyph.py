"""The picture of a claim's number: one scale where that is possible, and what supports."""

import re

import pytest

from frenet.experiments.experiment import Across, Claim, Decision, Finding
from frenet.experiments.figures.wording import two
from frenet.report.claims import in_words
from frenet.report.glyph import glyph
from frenet.report.numbers import percent
from frenet.statistics.intervals import Estimate


def drawn(value: Estimate | None, reference: float | None, across: Across | None) -> str:
    claim = Claim("C1", "it holds", "yes", "a rule", lambda rows: (), "figure", across)
    compared = None if reference is None else Estimate(reference)
    finding = Finding("C1", Decision("supported", "why"), "it", value, "chance", compared)
    return str(glyph(claim, finding))


def ends(picture: str) -> list[str]:
    return re.findall("<text[^>]*>([^<]*)<", picture)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Estimate(0.5, 0.4, 0.6), ["0", "1"]),
        (Estimate(1.02, 0.99, 1.04), ["0", "1"]),
        (Estimate(-0.2, -0.3, 0.1), ["-1", "1"]),
        (Estimate(1.2, 0.8, 1.9), ["0", "2"]),
        (Estimate(7.0, 5.0, 12.0), ["0", "20"]),
    ],
)
def test_a_number_is_on_the_first_usual_scale_that_holds_it(
    value: Estimate, shown: list[str]
) -> None:
    assert ends(drawn(value, None, Across("it"))) == shown


def test_the_region_that_supports_is_shaded() -> None:
    below = drawn(Estimate(0.1), None, Across("it", supports=(-float("inf"), 0.25)))
    # 3% of margin on both sides of the scale from 0 to 1.
    assert re.search('x="3.0%" y="1" width="23.5%"', below)
    above = drawn(Estimate(0.6), 0.5, Across("it", reference="chance", supports=(0.5, 2.0)))
    assert re.search('x="50.0%" y="1" width="47.0%"', above)
    assert 'class="compared"' in above
    assert 'class="supports"' not in drawn(Estimate(0.6), 0.5, Across("it", reference="chance"))
    other_scale = drawn(Estimate(0.6), 0.5, Across("it", supports=(0.2, 0.3)))
    assert 'class="compared"' not in other_scale


def test_nothing_is_drawn_of_nothing() -> None:
    assert drawn(None, 0.5, None) == ""


def said(finding: Finding) -> str:
    says = ("it holds {value}", "shuffled {shuffled}", "chance {reference}")
    return in_words(Claim("C1", "", "", "", lambda rows: (), "", says=says), finding)


def test_a_claim_is_said_with_the_numbers_that_are_known() -> None:
    decision = Decision("supported", "why")
    found = Finding("C1", decision, "it", Estimate(0.567), "r", Estimate(0.0004))
    assert said(found) == "It holds 0.57; chance 0.0004."
    assert said(found._replace(also={"shuffled": Estimate(0.85)})) == (
        "It holds 0.57; shuffled 0.85; chance 0.0004."
    )
    missing = Decision("not testable", "p was not measured, so it is not known", alone="supported")
    assert said(found._replace(decision=missing)).endswith(" (criteria alone: supported).")
    none = found._replace(estimate=None, decision=Decision("undecided", "no row; and more"))
    assert said(none) == "Not measured: no row."


def test_numbers_have_about_two_digits() -> None:
    assert [two(v) for v in (0.0, -0.675, 0.999, 1.5, 12345.0)] == [
        "0", "-0.68", "1.0", "1.5", "12,345",
    ]  # fmt: skip
    assert [percent(v) for v in (0.000512, 0.0129, 0.995, 1.568)] == [
        "0.05%",
        "1.3%",
        "100%",
        "160%",
    ]
