"""How a search of the user's own shows itself: settings, columns and figures of `frenet search`.

It is no experiment with a question and cells of its own: the command runs it, and its folder is
read and reported like that of one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from frenet.experiments.experiment import Cell, Column, Experiment, Figure, Row, Rows
from frenet.experiments.figures.charts import Axis, dots, lines
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
    """Name of the task, where the files hold several."""
    adapter: str = ""
    """Folder or hub id of a LoRA adapter to put on the model; its parameters are searched."""
    space: Literal["lora", "full"] = "lora"
    """'lora': an adapter's parameters, a fresh one's where there is none; 'full': all weights."""
    rank: int = 4
    """Rank of a fresh adapter."""
    targets: tuple[str, ...] = ()
    """Modules that a fresh adapter goes on, by the last parts of their names. Empty: those that
    PEFT takes for a model of this family."""
    where: str = ""
    """Regular expression for the names of the parameters that move. Empty: all of the space."""
    score: Literal["loss", "accuracy", "exact"] = "loss"
    """What to select by: the loss, the accuracy of tokens, or whole greedily generated answers."""
    sigma: str = "auto"
    """Standard deviation per coordinate; 'auto' takes the planned one."""
    relative: bool = False
    """Sigma is in units of each tensor's root mean square."""
    antithetic: bool = False
    """Candidates come in pairs of opposite sign."""
    tied_noise: bool = False
    """Equal-shaped tensors share their noise, as in published code."""
    budget: int = 512
    """Candidates, each a forward pass over the selection batch."""
    select_size: int = 64
    """Examples that all candidates are scored on; fewer where there are fewer."""
    test_size: int = 256
    """Held-out examples for the result; fewer where there are fewer."""
    top: int = 5
    """The best K are also voted and averaged."""
    probes: int = 8
    """Probes of the plan's trace estimate."""
    seed: int = 0
    """Of adapter, examples and noise."""
    max_length: int = 256
    """Longest text in tokens; longer prompts lose their beginning."""


def cells(config: SearchConfig) -> list[Cell]:
    """One cell a chunk of candidates, and one for what came of them."""
    from frenet.methods.search import CHUNK

    starts = range(0, config.budget, CHUNK)
    parts = [Cell.of(part="candidates", first=start) for start in starts]
    return [Cell.of(part="plan"), *parts, Cell.of(part="result")]


def run(config: SearchConfig, cell: Cell) -> Iterator[Row]:
    """Chunks need a model in memory and each other's scores: the command runs them."""
    raise NotImplementedError("run a search with frenet search")


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
        Column("chosen", "", "this is the setting that is advised", "key"),
    ),
    "candidate": (
        Column("index", "", "number of the candidate: with the seed it brings it back", "key"),
        Column("score", "", "on the selection batch, larger is better", "measure", "before"),
        Column("before", "", "score of the weights as they are", "reference"),
    ),
    "best": (
        Column("n", "", "candidates so far", "key"),
        Column("gain", "", "of the best of them, on the selection batch", "measure", "predicted"),
        Column("predicted", "nats/token", "expected, where the score is the loss", "reference"),
        Column("low", "nats/token", "lower end of the predicted 95% band", "reference"),
        Column("high", "nats/token", "its upper end", "reference"),
    ),
    "result": (
        Column("what", "", "the winner; the average, or the vote, of the best", "key"),
        Column("before", "", "held-out score of the weights as they are", "reference"),
        Column("after", "", "held-out score", "measure", "before"),
        Column("gain", "", "the difference, on held-out data", "measure", "low"),
        Column("low", "", "its 95% interval over examples", "reference"),
        Column("high", "", "its 95% interval over examples", "reference"),
        Column("selected", "", "gain where it was selected", "measure", "gain"),
        Column("expected", "nats/token", "held-out gain that was planned", "reference"),
        Column("index", "", "of the winner", "key"),
        Column("sigma", "", "standard deviation per coordinate", "key"),
        Column("unmoved", "fraction", "weights that the dtype rounded back", "measure", "nothing"),
        Column("nothing", "fraction", "what it should be", "reference"),
    ),
    "notes": (Column("note", "", "what must be known about model, data and plan", "key"),),
}
FIGURES = (
    Figure(
        "best",
        "The best so far",
        "Gain of the best candidate on the batch that it is selected on. The band holds 95% of "
        "searches, by the gradient and curvature measured before this one.",
        "best",
        best_chart,
    ),
    Figure(
        "result",
        "What is left on held-out data",
        "The gain that counts is the held-out one: the best of many scores is high by luck.",
        "result",
        result_chart,
    ),
)
SEARCH = Experiment(
    name="search",
    question="What does Gaussian random search around these weights bring?",
    claims=(),
    config=SearchConfig,
    cells=cells,
    run=run,
    tables=TABLES,
    figures=FIGURES,
    presets={},
)
