"""`frenet.pair`: the numbers of the command `frenet pair`, from Python."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from frenet._errors import UsageError
from frenet._notebook import Fact, Shown
from frenet.experiments.experiment import Answer, Row, Rows
from frenet.experiments.pair_command import ORDER, PARTS, Settings, require_settings
from frenet.experiments.pair_command.answers import sentences
from frenet.experiments.pair_command.measure import rows_of
from frenet.experiments.pair_command.merged import Written, merged_vector, write_merge
from frenet.experiments.pair_command.subject import Subject, is_adapter, labels, subject_of
from frenet.methods.task_vectors import TaskVector
from frenet.methods.vector_files import check_sources, vectors_from_disk
from frenet.network.tasks import Task

Source = str | Path | TaskVector


@dataclass(frozen=True, repr=False)
class Pair(Shown):
    """What was measured of two directions in the weights of a model.

    Attributes:
        rows: all numbers, as the command stores them; ``table`` names the table of a row.
        subject: model, directions and tasks.
    """

    rows: Rows
    subject: Subject

    @property
    def answers(self) -> list[Answer]:
        """The numbers in sentences, the losses first and the merge last."""
        return sentences(self.rows)

    @property
    def notes(self) -> list[str]:
        """Caveats about the model, the directions and the data."""
        return [str(row["note"]) for row in self.rows if row["table"] == "notes"]

    @property
    def merged(self) -> TaskVector:
        """The change of the weights by the advised merge."""
        return merged_vector(self.subject, self.rows)

    def save(self, folder: Path | str, *, base: Path | str | None = None) -> Written:
        """Write the advised merge.

        Args:
            folder: for one adapter if both directions are adapters, otherwise for a checkpoint, or
                for a task vector without ``base``.
            base: the folder of the base model.
        """
        where = None if base is None else Path(base).expanduser()
        return write_merge(self.subject, self.rows, Path(folder).expanduser(), base=where)

    def _summary(self) -> str:
        return f"{' and '.join(self.subject.labels)}: {self.answers[-1]}"

    def _entries(self) -> Iterator[Fact]:
        for answer in self.answers:
            yield answer.subject, answer.sentence, ""


def pair(
    model: nn.Module,
    first: Source,
    second: Source,
    *,
    tasks: Sequence[Task],
    say: Callable[[str], None] | None = None,
    **settings: Any,
) -> Pair:
    """Whether two directions in the weights compose, and how to merge them.

    Measures the losses of both tasks without, with each and with both directions; how far both can
    be scaled together; how much of each gain the sum keeps; the blocks in which they interact; from
    which step size on the order of training matters; and merges of both, chosen on the select split
    and reported on the test split. The weights come back bit for bit.

    Args:
        model: the base of both directions, in float32.
        first: A: the folder of an adapter or a checkpoint, a saved task vector, or a
            ``TaskVector``.
        second: B.
        tasks: that of A and that of B.
        say: takes a line before each long step.
        settings: as the options of ``frenet pair``: ``select_size``, ``test_size``, ``eps``,
            ``scales``, ``densities``, ``by_block``, ``batch_size``, ``seed``.

    Raises:
        ValueError: the directions are one and the same, zero, or of another base; the tasks are one
            and the same; a task has no examples to choose or to report on; a setting is out of
            range.
        FileNotFoundError: there is no such file.
    """
    chosen = Settings(**settings)
    require_settings(chosen)
    if len(tasks) != 2:
        raise UsageError(f"{len(tasks)} tasks; pass that of A and that of B")
    sources = (first, second)
    check_sources([str(source) for source in sources if not isinstance(source, TaskVector)])
    vectors = [
        source if isinstance(source, TaskVector)
        else next(iter(vectors_from_disk(model, [str(source)])))
        for source in sources
    ]  # fmt: skip
    on_disk = [Path(s).expanduser() for s in sources if not isinstance(s, TaskVector)]
    adapters = on_disk if len(on_disk) == 2 and all(map(is_adapter, on_disk)) else []
    names = labels([str(s) for s in on_disk]) if len(on_disk) == 2 else ("A", "B")
    subject = subject_of(model, vectors, tasks, settings=chosen, labels=names, folders=adapters)
    rows: list[Row] = []
    for part in PARTS:
        if part != ORDER or chosen.batch_size:
            rows += rows_of(subject, part, say or (lambda _: None))
    return Pair(rows, subject)
