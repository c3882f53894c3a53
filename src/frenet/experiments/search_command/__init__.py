"""Settings, columns and figures of `frenet search`.

The command itself runs the search; its folder is read and reported like that of an experiment.
"""

from dataclasses import dataclass
from typing import Literal

from frenet.experiments.experiment import Cell, Column, Figure, Row, Rows, Study, finite, number
from frenet.experiments.figures.charts import Axis, dots, lines
from frenet.experiments.figures.wording import between, two
from frenet.experiments.setup.reading import LoadingConfig, TaskReadingConfig

PREDICTED, FOUND = "predicted, with its 95% band", "found"


@dataclass(frozen=True)
class SearchConfig(TaskReadingConfig, LoadingConfig):
    """Gaussian random search around the weights of a model."""

    model: str
    """A hub id, a folder in Hugging Face format or of a PEFT adapter, or a GGUF file."""
    tasks: tuple[str, ...]
    """Task files or data set names."""
    only: str = ""
    """Name of the task, if the files hold several."""
    adapter: str = ""
    """Folder or hub id of a LoRA adapter to put on the model; its parameters are searched."""
    space: Literal["lora", "full"] = "lora"
    """'lora': the parameters of the adapter, or of a new one if there is none; 'full': all weights.
    """
    rank: int = 4
    """Rank of a new adapter."""
    targets: tuple[str, ...] = ()
    """Modules that get a new adapter, by the last parts of their names. Empty: PEFT's choice for
    this family of models."""
    where: str = ""
    """Regular expression for the names of the parameters that move. Empty: all of the space."""
    score: Literal["loss", "accuracy", "exact"] = "loss"
    """Score to select by: the loss, token accuracy, or exact match of greedily generated answers.
    """
    sigma: str = "auto"
    """Standard deviation per coordinate; 'auto' takes the planned one."""
    noise: Literal["normal", "signs"] = "normal"
    """Normal numbers, or signs: +sigma or -sigma in every coordinate."""
    relative: bool = False
    """Sigma is in units of each tensor's root mean square."""
    antithetic: bool = False
    """Candidates come in pairs of opposite sign."""
    tied_noise: bool = False
    """Equal-shaped tensors share their noise, as in published code."""
    budget: int = 512
    """Candidates, each a forward pass over the selection batch."""
    select_size: int = 64
    """Examples on which all candidates are scored; all of them if there are fewer."""
    test_size: int = 256
    """Held-out examples for the result; all of them if there are fewer."""
    top: int = 5
    """Number of best candidates that also vote and are averaged."""
    probes: int = 0
    """Random vectors in the plan's estimate of the Hessian's trace, by Hessian products. 0: losses
    on both sides of so many that the plan costs at most about as much as the search, or as a search
    of 46 candidates."""
    seed: int = 0
    """Seed of adapter, examples and noise."""


def cells(config: SearchConfig) -> list[Cell]:
    """One cell for the plan, one per chunk of candidates, and one for the result."""
    from frenet.methods.search import CHUNK

    starts = range(0, config.budget, CHUNK)
    parts = [Cell.of(part="candidates", first=start) for start in starts]
    return [Cell.of(part="plan"), *parts, Cell.of(part="result")]


def best_chart(rows: Rows) -> object:
    """The best so far against candidates, with the predicted band."""
    table: list[Row] = []
    for row in rows:
        bare: Row = {"n": row["n"], "low": None, "high": None}
        table.append(bare | {"value": row["gain"], "series": FOUND})
        if row["predicted"] is not None:
            band: Row = {"low": row["low"], "high": row["high"]}
            table.append(bare | band | {"value": row["predicted"], "series": PREDICTED})
    return lines(
        table,
        x=Axis("n", "candidates", log=True),
        y=Axis("value", "gain of the best so far, on the selection batch"),
        rules=[PREDICTED],
    )


def best_finding(rows: Rows) -> str:
    """The gain of all candidates, and the predicted one."""
    last = max(rows, key=lambda row: number(row, "n"))
    if finite(last["gain"]) is None:
        return ""
    expected = finite(last["predicted"])
    predicted = "" if expected is None else f"; {two(expected)} was predicted"
    gain = two(number(last, "gain"))
    return f"The best of {last['n']} gains {gain} on the selection batch{predicted}."


def result_finding(rows: Rows) -> str:
    """The gain of every result on held-out data."""
    known = [dict(row) for row in rows if finite(row["gain"]) is not None]
    return f"The gain on held-out data is {between(known, 'what', 'gain')}." if known else ""


def result_chart(rows: Rows) -> object:
    """Gains on held-out data, with the winner's on its own batch."""
    table: list[Row] = []
    for row in rows:
        held: Row = {key: row[key] for key in ("what", "low", "high")}
        table.append(held | {"value": row["gain"], "series": "held out"})
        if row.get("selected") is not None:
            ends: Row = {"low": None, "high": None}
            own: Row = {"what": row["what"], "value": row["selected"], "series": "selection batch"}
            table.append(own | ends)
    return dots(table, x=Axis("value", "gain"), row="what", colour="series")


TABLES = {
    "plan": (
        Column("sigma", "", "standard deviation per coordinate", "key"),
        Column("candidates", "", "candidates N", "key"),
        Column("selected", "nats/token", "gain expected on the selection batch", "reference"),
        Column("held_out", "nats/token", "gain expected on held-out data", "reference"),
        Column("chosen", "", "whether the plan advises this setting", "key"),
    ),
    "candidate": (
        Column("index", "", "number of the candidate; the seed gives the rest", "key"),
        Column("score", "", "on the selection batch, larger is better", "measure", "before"),
        Column("before", "", "score of the unperturbed weights", "reference"),
    ),
    "best": (
        Column("n", "", "candidates so far", "key"),
        Column("gain", "", "of the best of them, on the selection batch", "measure", "predicted"),
        Column("predicted", "nats/token", "expected, if the score is the loss", "reference"),
        Column("low", "nats/token", "lower end of the predicted 95% band", "reference"),
        Column("high", "nats/token", "its upper end", "reference"),
    ),
    "result": (
        Column("what", "", "winner; average, or vote, of the best; a gradient step", "key"),
        Column("before", "", "held-out score of the unperturbed weights", "reference"),
        Column("after", "", "held-out score", "measure", "before"),
        Column("gain", "", "the difference, on held-out data", "measure", "low"),
        Column("low", "", "its 95% interval over examples", "reference"),
        Column("high", "", "its 95% interval over examples", "reference"),
        Column("selected", "", "gain on the selection batch", "measure", "gain"),
        Column("expected", "nats/token", "held-out gain expected by the plan", "reference"),
        Column("further", "nats/token", "held-out gain expected of 100 more", "reference"),
        Column("index", "", "of the winner", "key"),
        Column("sigma", "", "standard deviation per coordinate", "key"),
        Column("unmoved", "fraction", "weights that the dtype rounded back", "measure", "nothing"),
        Column("nothing", "fraction", "what it should be", "reference"),
    ),
    "notes": (Column("note", "", "caveats about model, data and plan", "key"),),
}
FIGURES = (
    Figure(
        "best",
        "What does the best of all candidates gain?",
        "Gain of the best candidate so far, on the selection batch. The band should hold 95% of "
        "searches, according to the gradient and curvature measured beforehand.",
        "best",
        best_chart,
        finds=best_finding,
    ),
    Figure(
        "result",
        "What is left on held-out data?",
        "The gain that counts is the held-out one: the best of many scores is high by luck.",
        "result",
        result_chart,
        finds=result_finding,
    ),
)
STUDY = Study(
    name="search",
    question="What does Gaussian random search around these weights bring?",
    claims=(),
    config=SearchConfig,
    tables=TABLES,
    figures=FIGURES,
)
