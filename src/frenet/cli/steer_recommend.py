"""``frenet steer recommend``: at which block, and how strongly, should a vector be added?"""

from pathlib import Path
from typing import Any

from frenet.cli.execution import path_text, run_here
from frenet.cli.options import parse_both, printing
from frenet.cli.steer_options import Recommending
from frenet.experiments.experiment import Rows, answered
from frenet.experiments.intervals import select
from frenet.experiments.steer_command import RECOMMEND, Config
from frenet.experiments.steer_command.answers import advised

ABOUT = (
    "At which block, and how strongly, should a contrast's steering vector be added? Block and "
    "dose are chosen on some prompts and tested on others: the effect has to exceed that of every "
    "null vector of equal length (labels shuffled, random with the stream's covariance, other "
    "contrasts), and the cost on neutral text to stay within --max-cost."
)
VECTOR = "vector.safetensors"


def recommend(args: list[str]) -> int:
    """``frenet steer recommend``."""
    running, config = parse_both(
        Recommending, Config, args, command="steer recommend", about=ABOUT,
        titles=("running", "advice"),
    )  # fmt: skip
    with printing(running.json) as show:
        ended = run_here(RECOMMEND, config, running)
        rows = ended.run.rows
        vector = _written(config, rows, ended.run.path)
        if running.json:
            found = {"vector": path_text(vector), **_numbers(rows)}
            show(ended.facts("steer recommend") | found)
        else:
            for answer in answered(RECOMMEND, rows):
                show(str(answer))
            _show_curve(rows)
            ended.show(show, *([] if vector is None else [f"vector: {vector}"]))
    return ended.code


def _written(config: Config, rows: Rows, out: Path) -> Path | None:
    """Write the vector with its advice, if there is one and it is not there yet."""
    row = advised(rows)
    if row is None:
        return None
    from frenet.experiments.steer_command.subject import advised_vector, load_subject
    from frenet.methods.steering_vector import save_vector

    path = out / VECTOR
    return path if path.exists() else save_vector(advised_vector(load_subject(config), row), path)


def _numbers(rows: Rows) -> dict[str, Any]:
    """The sentences, and the rows of every table but the notes."""
    answers = [{"subject": a.subject, "sentence": a.sentence} for a in answered(RECOMMEND, rows)]
    tables = {
        name: [{k: v for k, v in row.items() if k != "table"} for row in select(rows, table=name)]
        for name in ("advice", "dose", "tried")
    }
    return {"answers": answers, **tables}


def _show_curve(rows: Rows) -> None:
    """The table of effect against cost for the terminal."""
    from rich.console import Console
    from rich.table import Table

    found = select(rows, table="dose")
    if not found:
        return
    title = f"block {found[0]['block']}, held-out prompts and texts"
    table = Table("dose", "P", "largest null", "cost", "random vector's cost", title=title)
    for row in found:
        dose = f"{row['dose']:g}" + (" (chosen)" if row["chosen"] else "")
        shares = (f"{row[name]:.3f}" for name in ("share", "null"))
        costs = (f"{row[name]:.2g}" for name in ("cost", "cost_random"))
        table.add_row(dose, *shares, *costs)
    Console().print(table)
