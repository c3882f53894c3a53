"""What the rows of `step_vs_vector` say: claim C6, columns and figures."""

import math

from frenet.experiments.experiment import (
    Across,
    Breakdown,
    Claim,
    Column,
    Decision,
    Figure,
    Finding,
    Needs,
    Row,
    Rows,
    finite,
    number,
)
from frenet.experiments.figures.charts import Axis, dots, lines
from frenet.experiments.figures.wording import between
from frenet.experiments.intervals import (
    EACH,
    breakdown,
    over_seeds,
    paired,
    select,
    series_over_seeds,
    share,
)
from frenet.experiments.setup.contrast_notes import (
    PREMISES,
    PUSHED,
    Counted,
    by_prompts,
    by_space,
    cautions,
    contrasts,
    contrasts_that_count,
    known_labels,
    over_units,
    premises,
    unmeasured,
    with_blocks,
)
from frenet.experiments.setup.contrasts import CEILINGS, CELL_KEYS, PROMPTS, UNIT
from frenet.experiments.verdicts import Chance, Condition, Criterion, Rule
from frenet.statistics.intervals import Estimate

PAPER = 0.58
# One-sided, as much as the upper half of a 95% interval.
LIMIT = 0.025
# A p-value of 1 would outweigh all others in the sum of their normal quantiles.
MOST_P = 0.999
# Fewer blocks than this have a row of dots each.
FEW_BLOCKS = 6
CHANCE = "what chance gives"

COSINE = "the cosine at the chosen block"
SHUFFLED = Chance(f"{COSINE} among those of shuffled labels", LIMIT)
MATCHED = Chance(f"{COSINE} among those of random vectors with the stream's covariance", LIMIT)
OTHER = Criterion(COSINE, over="the cosine of the step towards the other answer", contradicts=False)
NEAR = Criterion(f"{COSINE} minus the mean of its null", below=0.1)
RULE = Rule((SHUFFLED, MATCHED, OTHER), premises=PREMISES, against=(NEAR,))


def decide(rows: Rows) -> tuple[Finding, ...]:
    """C6, for each space: at the chosen block the cosine exceeds its nulls.

    It is judged on the contrasts that the model knows and whose vectors are reliable, each with
    equal weight. Their p-values, and those of seeds, are combined by Stouffer's method: under the
    null they are independent, since each contrast and seed shuffles its own prompts.
    """
    at = reported(rows)
    spaces = by_space((*at, *select(rows, table="behaviour")))
    if not spaces:
        return (_finding(rows, at, "", Decision("not testable", _unmeasured(rows)), ()),)
    return tuple(
        _of_space(select(rows, space=space), select(at, space=space), case)
        for space, case in spaces
    )


def _of_space(rows: Rows, at: Rows, case: str) -> Finding:
    counted, decision = decision_of(rows, at)
    own = [row for row in at if row["behaviour"] in counted.names]
    return _finding(rows, own, case, decision, counted.left)


def decision_of(rows: Rows, at: Rows) -> tuple[Counted, Decision]:
    """The contrasts that count, and the verdict on them.

    Args:
        rows: of one space.
        at: of these, the ``reported`` ones.
    """
    names = contrasts(rows, at)
    counted = contrasts_that_count({name: premises(rows, at, name) for name in names})
    own = [row for row in at if row["behaviour"] in counted.names]
    decision = RULE.decide(
        {
            SHUFFLED: _chance(SHUFFLED, own, "p_shuffled"),
            MATCHED: _chance(MATCHED, own, "p_matched"),
            OTHER: OTHER.of(
                over_units(own, "lead_other") if by_prompts(own) else paired(own, "cosine", "other")
            ),
            NEAR: NEAR.of(over_units(own, "lead")),
            **counted.premises,
        }
    )
    return counted, decision


def _chance(chance: Chance, at: Rows, column: str) -> Condition:
    """The criterion of the p-values of all rows together."""
    units = over_units(at, "lead")
    needs = None if units is None else Needs(units.unit, units.n)
    return chance.of(combined(at, column), needs=needs)


def combined(at: Rows, column: str) -> float | None:
    """One p-value of several independent ones by Stouffer's method; None if a row has none.

    Source: Stouffer et al. (1949), The American soldier, vol. 1.
    """
    from scipy import stats

    values = [finite(row.get(column)) for row in at]
    known = [min(p, MOST_P) for p in values if p is not None]
    if not known or len(known) < len(values):
        return None
    return float(stats.combine_pvalues(known, method="stouffer").pvalue)


def _finding(rows: Rows, at: Rows, case: str, decision: Decision, left: tuple[str, ...]) -> Finding:
    reach = share(at, "reach")
    most = "" if reach is None else f", which is at most {reach.value:.2f} by both ceilings"
    names = ", ".join(dict.fromkeys(str(row["behaviour"]) for row in at))
    return Finding(
        claim="C6",
        decision=decision,
        quantity="cosine of the shift by a gradient step with the contrast vector, at the block "
        f"chosen on other prompts{most}{f' ({names})' if left else ''}",
        estimate=_cosine(at),
        reference="95% quantile of the mean of as many draws of the higher of the two nulls",
        reference_estimate=_reached(at),
        also={"p": _p(at)},
        notes=tuple(cautions(rows, "layer", left))[:2],
        breakdowns=(*_by_contrast(rows), *known_labels(rows)),
        case=case,
    )


def _reached(at: Rows) -> Estimate | None:
    """What chance reaches for the mean of all rows.

    Draws are independent, so the distances of their quantiles from 0 add up in squares, as for
    normal numbers.
    """
    known = [q for row in at if (q := finite(row.get("null"))) is not None]
    return Estimate(math.hypot(*known) / len(known), n=len(known)) if known else None


def _p(at: Rows) -> Estimate | None:
    """The higher p-value of the two nulls, of all rows together."""
    found = [combined(at, column) for column in ("p_shuffled", "p_matched")]
    known = [p for p in found if p is not None]
    return Estimate(max(known)) if len(known) == len(found) else None


def _cosine(at: Rows) -> Estimate | None:
    return over_units(at, "cosine", least=-1.0)


def _unmeasured(rows: Rows) -> str:
    return "; ".join(unmeasured(rows, "layer")) or "nothing was measured"


def reported(rows: Rows) -> Rows:
    """The chosen block of every seed and contrast, on the reported prompts."""
    return select(rows, table="layer", part="report", chosen=True, push="own")


def _by_contrast(rows: Rows) -> tuple[Breakdown, ...]:
    """The cosines at the chosen block under every contrast, space and push."""
    return breakdown(
        "Cosines at the chosen block",
        with_blocks(select(rows, table="layer", part="report", chosen=True)),
        by=(*PUSHED, "blocks"),
        values={
            "cosine": "cosine",
            "null": "higher null, 95%",
            "reach": "at most, by both ceilings",
            "ceiling": "halves of the vector",
            "ceiling_shift": "halves of the shift",
            "other": "other answer's step",
            "without_answer": "without the answers' directions",
            "whitened": "whitened",
            "whitened_null": "its null, 95%",
            "p_shuffled": "mean p, shuffled labels",
            "p_matched": "mean p, random of equal covariance",
            "p_limit": "limit of p",
        },
        least=-1.0,
    )


def layer_chart(rows: Rows) -> object:
    """Cosine against block, with what chance gives and the halves of the vector."""
    measured = {
        "cosine": "towards the answer",
        "other": "towards the other answer",
        "ceiling": "two halves of the vector",
        "ceiling_shift": "two halves of the shift",
    }
    own = select(rows, part="report", push="own")
    # Earlier versions did not measure the halves of the shift.
    measured = {name: label for name, label in measured.items() if any(name in row for row in own)}
    by = ("behaviour", "block")
    table = series_over_seeds(own, by=by, values=measured, least=-1.0) + _region(own, by)
    rules = [label for name, label in measured.items() if name.startswith("ceiling")]
    cosine = Axis("value", "cosine with the contrast vector", domain=(-1, 1))
    if len({row["block"] for row in own}) < FEW_BLOCKS:
        return dots(
            [{**row, "block": f"block {row['block']}"} for row in table],
            x=cosine,
            row="block",
            colour="series",
            facet="behaviour",
            rules=rules,
            shaded=CHANCE,
        )
    return lines(
        table,
        x=Axis("block", "block", whole=True),
        y=cosine,
        facet="behaviour",
        rules=rules,
        shaded=CHANCE,
    )


def _region(rows: Rows, by: tuple[str, ...]) -> list[Row]:
    """The range of cosines below the higher null, on both sides of 0."""
    return [
        {**row, "low": -number(row, "value"), "high": row["value"], EACH: None, "series": CHANCE}
        for row in over_seeds(rows, by=by, value="null")
    ]


def chosen_chart(rows: Rows) -> object:
    """The chosen block of every contrast, in three metrics."""
    measured = {
        "cosine": "cosine",
        "without_answer": "without the answers' directions",
        "whitened": "whitened",
        "other": "other answer's step",
    }
    tagged = reported(_tagged(rows))
    by = ("behaviour",)
    table = series_over_seeds(tagged, by=by, values=measured, least=-1.0) + _region(tagged, by)
    first = {row["behaviour"]: number(row, "value") for row in select(table, series="cosine")}
    return dots(
        sorted(table, key=lambda row: -first.get(row["behaviour"], -1.0)),
        x=Axis("value", "cosine at the chosen block", domain=(-1, 1)),
        row=Axis("behaviour", "contrast"),
        colour="series",
        shaded=CHANCE,
    )


def chosen_finding(rows: Rows) -> str:
    """The range over contrasts, and what chance reaches."""
    tagged = reported(_tagged(rows))
    means, nulls = (
        over_seeds(tagged, by=("behaviour",), value=name) for name in ("cosine", "null")
    )
    if not means or not nulls:
        return ""
    return (
        f"The cosine is {between(means, 'behaviour')}; chance reaches "
        f"{between(nulls, 'behaviour')}."
    )


def _tagged(rows: Rows) -> Rows:
    return [{**row, "table": "layer"} for row in rows]


TABLES = {
    "layer": (
        *CELL_KEYS,
        UNIT,
        PROMPTS,
        Column("part", "", "prompts: choose (the block), or report", "key"),
        Column("block", "", "0-based block", "key"),
        Column("chosen", "", "the block with the most reliable vector on choose's prompts", "key"),
        Column("cosine", "", "of shift and contrast vector", "measure", "null"),
        Column("cosine_low", "", "lower end of its 95% interval over prompts", "reference"),
        Column("cosine_high", "", "its upper end", "reference"),
        Column("shuffled", "", "95% quantile of its modulus, labels shuffled", "reference"),
        Column("matched", "", "the same, random vectors of equal covariance", "reference"),
        Column("null", "", "the higher one", "reference"),
        Column("null_mean", "", "the higher of the means of both nulls", "reference"),
        Column("lead", "", "cosine minus null_mean", "measure", "null"),
        Column("lead_low", "", "lower end of its 95% interval over prompts", "reference"),
        Column("lead_high", "", "its upper end", "reference"),
        Column("isotropic", "", "1 / sqrt(h): too low for a stream that is not isotropic", "key"),
        Column("p_shuffled", "", "one-sided, against shuffled labels", "measure", "p_limit"),
        Column("p_matched", "", "one-sided, against the random vectors", "measure", "p_limit"),
        Column("p_adjusted", "", "p_shuffled after Benjamini-Hochberg", "measure", "p_limit"),
        Column("p_limit", "", "2.5%", "reference"),
        *CEILINGS,
        Column("other", "", "step towards the other answer, report only", "measure", "null"),
        Column("lead_other", "", "cosine minus other", "measure", "null"),
        Column("lead_other_low", "", "lower end of its interval over prompts", "reference"),
        Column("lead_other_high", "", "its upper end", "reference"),
        Column("without_answer", "", "without the directions of the answers", "measure", "cosine"),
        Column("whitened", "", "in units of the stream's covariance", "measure", "whitened_null"),
        Column("whitened_null", "", "95% quantile of its modulus, labels shuffled", "reference"),
        Column("p_whitened", "", "one-sided, of the whitened cosine", "measure", "p_limit"),
    ),
}
CLAIMS = (
    Claim(
        id="C6",
        statement="One gradient step shifts activations along the labelled-contrast vector",
        short="A step moves along the vector",
        against="chance",
        paper=f"cosine {PAPER}",
        rule=str(RULE),
        decide=decide,
        figure="layers",
        across=Across(
            "cosine of gradient shift and contrast vector",
            reference="higher null, 95%",
            limits=(-1.0, 1.0),
        ),
        says=(
            "its cosine with the contrast vector is {value}",
            "chance reaches {reference}",
            "p = {p}",
        ),
    ),
)
FIGURES = (
    Figure(
        "layers",
        "Do the step and the vector agree, block by block?",
        "Cosine of the mean shift by a gradient step with the contrast vector; vector, gradient "
        "and shift use different prompts. Residual streams are anisotropic: chance is not 0 but "
        "the grey region, up to the higher one of the 95% quantiles of shuffled labels and of "
        "random vectors of equal covariance. Grey lines: two halves of the prompts.",
        "layer",
        layer_chart,
    ),
    Figure(
        "chosen",
        "What is left at the block chosen on other prompts?",
        "The cosine, also without the directions that write the two answers, and after whitening "
        "by the stream's covariance.",
        "layer",
        chosen_chart,
        finds=chosen_finding,
    ),
)
