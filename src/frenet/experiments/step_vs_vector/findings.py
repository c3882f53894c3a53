"""What the rows of `step_vs_vector` say: claim C6, columns and figures."""

from frenet.experiments.experiment import (
    Across,
    Breakdown,
    Claim,
    Column,
    Decision,
    Figure,
    Finding,
    Rows,
    number,
)
from frenet.experiments.figures.charts import Axis, dots, lines
from frenet.experiments.intervals import (
    breakdown,
    paired,
    select,
    series_over_seeds,
    share,
)
from frenet.experiments.setup.contrast_notes import (
    PUSHED,
    cautions,
    known_labels,
    unmeasured,
    with_blocks,
)
from frenet.experiments.setup.contrasts import CELL_KEYS
from frenet.experiments.verdicts import Criterion, Rule

PAPER = 0.58


MARGIN = Criterion("the cosine at the chosen block", over="the higher of the nulls' 95% quantiles")
RULE = Rule((MARGIN,))


def decide(rows: Rows) -> Finding:
    """C6: the cosine at the chosen block is above both nulls."""
    at = reported(rows)
    decision = RULE.decide({MARGIN: MARGIN.of(paired(at, "cosine", "null"))})
    if not at:
        why = "; ".join(unmeasured(rows, "layer")) or decision.why
        decision = Decision("not testable", why)
    return Finding(
        claim="C6",
        decision=decision,
        quantity="cosine of the shift by a gradient step with the contrast vector, at the block "
        "chosen on other prompts",
        estimate=share(at, "cosine", least=-1.0),
        reference="higher of the two nulls' 95% quantiles",
        reference_estimate=share(at, "null"),
        notes=tuple(cautions(rows, "layer"))[:2],
        breakdowns=(*_by_contrast(rows), *known_labels(rows)),
    )


def reported(rows: Rows) -> Rows:
    """The chosen block of every seed and contrast, on the reported prompts."""
    return select(rows, table="layer", part="report", chosen=True, push="own")


def _by_contrast(rows: Rows) -> tuple[Breakdown, ...]:
    """The cosines at the chosen block under every contrast, space and push."""
    table = with_blocks(select(rows, table="layer", part="report", chosen=True))
    for row in table:
        below = number(row, "p_adjusted") < number(row, "p_limit")
        row["below"] = below or None
        row["against"] = (below and number(row, "cosine") < 0) or None
    return breakdown(
        "Cosines at the chosen block",
        table,
        by=(*PUSHED, "blocks"),
        values={
            "cosine": "cosine",
            "null": "higher null, 95%",
            "other": "other answer's step",
            "without_answer": "without the answers' directions",
            "whitened": "whitened",
            "p": "mean p",
            "p_limit": "limit of p",
        },
        counts={
            "below": "seeds with p below the limit, adjusted over blocks",
            "against": "of these, negative",
        },
        least=-1.0,
    )


def layer_chart(rows: Rows) -> object:
    """Cosine against block, with both nulls and the halves of the vector."""
    measured = {
        "cosine": "step towards the answer",
        "other": "step towards the other answer",
        "ceiling": "two halves of the vector",
        "shuffled": "labels shuffled, 95%",
        "matched": "random of equal covariance, 95%",
    }
    table = series_over_seeds(
        select(rows, part="report", push="own"), by=("behaviour", "block"), values=measured
    )
    return lines(
        table,
        x=Axis("block", "block", whole=True),
        y=Axis("value", "cosine with the contrast vector", domain=(-1, 1)),
        facet="behaviour",
        rules=list(measured.values())[2:],
    )


def chosen_chart(rows: Rows) -> object:
    """The chosen block of every contrast, in three metrics."""
    measured = {
        "cosine": "cosine",
        "without_answer": "without the answers' directions",
        "whitened": "whitened",
        "other": "other answer's step",
        "null": "higher null, 95%",
    }
    table = series_over_seeds(reported(_tagged(rows)), by=("behaviour",), values=measured)
    return dots(
        table,
        x=Axis("value", "cosine at the chosen block", domain=(-1, 1)),
        row=Axis("behaviour", "contrast"),
        colour="series",
        rules=["higher null, 95%"],
    )


def _tagged(rows: Rows) -> Rows:
    return [{**row, "table": "layer"} for row in rows]


TABLES = {
    "layer": (
        *CELL_KEYS,
        Column("part", "", "prompts: choose (the block), or report", "key"),
        Column("block", "", "0-based block", "key"),
        Column("chosen", "", "the block with the largest z on the prompts of choose", "key"),
        Column("cosine", "", "of shift and contrast vector", "measure", "null"),
        Column("shuffled", "", "95% quantile of its modulus, labels shuffled", "reference"),
        Column("matched", "", "the same, random vectors of equal covariance", "reference"),
        Column("null", "", "the higher one", "reference"),
        Column("isotropic", "", "1 / sqrt(h): too low for a stream that is not isotropic", "key"),
        Column("p", "", "two-sided, against shuffled labels", "measure", "p_limit"),
        Column("p_adjusted", "", "after Benjamini-Hochberg over blocks", "measure", "p_limit"),
        Column("p_limit", "", "5%", "reference"),
        Column("z", "", "cosine over the root mean square of the shuffled", "measure", "z_limit"),
        Column("z_limit", "", "about the 95% quantile of a normal null", "reference"),
        Column(
            "ceiling",
            "",
            "r, cosine of the contrast vectors of two halves; of wholes about 2 r / (1 + r)",
            "reference",
        ),
        Column("other", "", "step towards the other answer, report only", "measure", "null"),
        Column("without_answer", "", "without the directions of the answers", "measure", "cosine"),
        Column("whitened", "", "in units of the stream's covariance", "measure", "cosine"),
    ),
}
CLAIMS = (
    Claim(
        id="C6",
        statement="One gradient step shifts activations along the labelled-contrast vector",
        paper=f"cosine {PAPER}",
        rule=str(RULE),
        decide=decide,
        figure="layers",
        across=Across(
            "cosine of the shift by a gradient step with the contrast vector",
            reference="higher of the two nulls' 95% quantiles",
            limits=(-1.0, 1.0),
        ),
    ),
)
FIGURES = (
    Figure(
        "layers",
        "The step and the vector, block by block",
        "Cosine of the mean shift by a gradient step with the contrast vector; vector, gradient "
        "and shift use different prompts. Residual streams are anisotropic: chance is not 0 but "
        "the grey lines.",
        "layer",
        layer_chart,
    ),
    Figure(
        "chosen",
        "At the block chosen on other prompts",
        "The cosine, also without the directions that write the two answers, and after whitening "
        "by the stream's covariance.",
        "layer",
        chosen_chart,
    ),
)
