"""What the rows of `task_vector_range` say about each vector, in a sentence."""

from collections.abc import Iterator

from frenet.experiments.experiment import Answer, Rows, number
from frenet.experiments.intervals import select

# As a share of its task's loss: shares of a smaller gain are mostly noise.
LEAST_GAIN = 0.1
LEAST = "less than a tenth of the loss"


def sentences(rows: Rows) -> list[Answer]:
    """One sentence for the vector of each task of each cell."""
    along = select(rows, table="along")
    answers = []
    for seed, space, task in dict.fromkeys((r["seed"], r["space"], r["task"]) for r in along):
        part = select(rows, seed=seed, space=space, task=task)
        answers.append(Answer(str(task), {"seed": seed, "space": space}, _sentence(part)))
    return answers


def _sentence(rows: Rows) -> str:
    """What the rows of one vector say."""
    along = select(rows, table="along")
    parts = [f"loss {along[0]['start']:.3g} without its vector"]
    for coordinates in dict.fromkeys(row["coordinates"] for row in along):
        on_the_way = _on_the_way(select(rows, coordinates=coordinates))
        parts.append(f"in the {coordinates} {', '.join(on_the_way)}")
    pairs = select(rows, table="pair")
    parts += (
        f"{row['kept']:.2f} of its gain is left after adding the vector of {row['other']} in the "
        f"{row['coordinates']} ({row['kept_random']:.2f} with a random vector)"
        for row in pairs
        if row["kept"] is not None
    )
    if any(row["kept"] is None for row in pairs):
        parts.append(f"its gain is too small to measure what is left of it ({LEAST})")
    return "; ".join(parts)


def _on_the_way(rows: Rows) -> Iterator[str]:
    """Losses at the end of training and at the ends of a line, and how far it is linear."""
    along = {number(row, "a"): row for row in select(rows, table="along")}
    for a in dict.fromkeys((1.0, max(along), min(along))):
        if a in along and a != 0:
            random = f"{along[a]['random']:.3g} along a random vector"
            yield f"{along[a]['loss']:.3g} at {a:g} ({random})"
    for row in select(rows, table="radius"):
        end = "up to at least" if row["unbounded"] else "up to"
        yield f"linear within {row['eps']:.0%} {end} {row['times']:.3g} of its length"
