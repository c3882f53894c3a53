"""Writing the merge that `frenet pair` advises: an adapter, a checkpoint or a task vector."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from frenet._errors import UsageError
from frenet.experiments.experiment import Rows, number
from frenet.experiments.intervals import select
from frenet.experiments.pair_command.answers import advised
from frenet.experiments.pair_command.merge import PER_BLOCK, block_blend, by_peft
from frenet.experiments.pair_command.subject import Subject
from frenet.methods.lora_from_delta import save_as_adapter, save_sum
from frenet.methods.merge import MERGED, save_merged
from frenet.methods.task_vectors import TaskVector, combine, save_task_vector
from frenet.methods.vector_files import plain_base
from frenet.network.blocks import parameter_blocks
from frenet.network.checkpoints.adapter_delta import stored_products
from frenet.network.checkpoints.adapter_files import WEIGHTS

VECTOR = "task_vector.safetensors"
# The files that complete what was written.
LAST = (WEIGHTS, MERGED, VECTOR)
# Relative error of an adapter that peft has already reduced to its rank.
TOLERANCE = 1e-5


class Written(NamedTuple):
    """A merge on disk: its folder, and what it is, in words."""

    folder: Path
    what: str


def merged_vector(subject: Subject, rows: Rows) -> TaskVector:
    """The change of the weights by the advised merge.

    Raises:
        ValueError: the rows have no merge.
    """
    row = advised(rows)
    if row["kind"] == PER_BLOCK:
        space = subject.joint.space
        shapes = dict(zip(space.names, space.shapes, strict=True))
        return TaskVector(shapes, block_blend(subject, coefficients(rows)), "one per block")
    a, b = number(row, "a"), number(row, "b")
    if row.get("rank") is not None:
        made = _peft_vector(subject, str(row["merge"]))
        return a * made
    return combine([(a, subject.vectors[0]), (b, subject.vectors[1])])


def coefficients(rows: Rows) -> dict[str, tuple[float, ...]]:
    """The coefficients of single blocks in the rows."""
    found = select(rows, table="coefficient")
    return {str(row["block"]): (number(row, "a"), number(row, "b")) for row in found}


def write_merge(subject: Subject, rows: Rows, folder: Path, *, base: Path | None = None) -> Written:
    """Write the advised merge, as exactly as its format allows.

    Two adapters become one, whose factors stand side by side. Anything else becomes a checkpoint,
    or a task vector if there is no folder with the base's weights.

    Args:
        subject: what was measured.
        rows: of the run.
        folder: created if missing.
        base: the folder of the base.

    Raises:
        ValueError: the rows have no merge, or the sum does not fit into the format.
    """
    row = advised(rows)
    if subject.folders and row.get("rank") is None:
        return _exact(subject, rows, folder)
    vector = merged_vector(subject, rows)
    if subject.folders:
        fit = save_as_adapter(
            vector, folder, base=plain_base(subject.model), tolerance=TOLERANCE,
            max_rank=int(number(row, "rank")),
        )  # fmt: skip
        return Written(folder, f"adapter of rank {max(fit.ranks.values())}")
    if base is not None and base.is_dir():
        merged = save_merged(base, vector, folder)
        return Written(folder, f"checkpoint; its dtype rounds {merged.rounding:.1g} of the change")
    folder.mkdir(parents=True, exist_ok=True)
    save_task_vector(vector, folder / VECTOR)
    return Written(folder, "task vector, since there is no folder with the weights of the base")


def _exact(subject: Subject, rows: Rows, folder: Path) -> Written:
    """Two adapters as one, exactly."""
    row, plain = advised(rows), plain_base(subject.model)
    products = [stored_products(path, plain) for path in subject.folders]
    chosen = coefficients(rows)
    names = list({name: None for each in products for name in each})
    blocks = parameter_blocks(subject.model, names)

    def coefficient(i: int) -> Callable[[str], float]:
        if row["kind"] == PER_BLOCK:
            return lambda name: chosen[blocks[name]][i]
        return lambda name: number(row, "ab"[i])

    terms = [(coefficient(i), each) for i, each in enumerate(products)]
    fit = save_sum(terms, folder, base=plain)
    return Written(folder, f"adapter of rank {max(fit.ranks.values())}, exact")


def _peft_vector(subject: Subject, name: str) -> TaskVector:
    """A merge by PEFT, made again."""
    for merge in by_peft(subject, lambda _: None):
        if merge.vector is not None and name == f"{merge.name}, peft":
            return merge.vector
    raise UsageError(f"peft no longer makes {name}; run the command again with another --out")
