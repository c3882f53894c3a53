"""What `frenet pair` measures: a model, two directions in its weights, and the task of each."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import nn

from frenet._errors import UsageError
from frenet._notebook import listed
from frenet.experiments.pair_command import Config, Settings
from frenet.experiments.setup.networks import at_most
from frenet.experiments.setup.reading import tasks_of
from frenet.methods.composition import SAME, Joint, Relation, joint, relation
from frenet.methods.search import drop_duplicates
from frenet.methods.task_vectors import TaskVector
from frenet.methods.vector_files import vectors_from_disk
from frenet.network.checkpoints.folders import held
from frenet.network.data.text import TextTask, reading_notes
from frenet.network.tasks import Batch, Split, Task, repeatable

# The two directions in rows and sentences that do not name them.
A, B = SIDES = ("A", "B")


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with two directions and two tasks.

    Attributes:
        model: at theta, in evaluation mode.
        labels: names of both directions.
        vectors: both directions.
        folders: of both, if both are adapters of PEFT; otherwise empty.
        tasks: the task of each direction.
        joint: the parameters that any of them changes, and both directions in them, by "A" and "B".
        select: of both tasks by name, the examples to choose on.
        test: the examples to report on.
        settings: how to measure.
        notes: caveats for the report.
    """

    model: nn.Module
    labels: tuple[str, str]
    vectors: tuple[TaskVector, TaskVector]
    folders: tuple[Path, ...]
    tasks: tuple[Task, Task]
    joint: Joint
    select: Mapping[str, Batch]
    test: Mapping[str, Batch]
    settings: Settings
    notes: tuple[str, ...]
    related: Relation

    @property
    def owns(self) -> tuple[tuple[Task, str, str], tuple[Task, str, str]]:
        """For both tasks: the task, the side of its own direction, and the other side."""
        return (self.tasks[0], A, B), (self.tasks[1], B, A)

    def label(self, side: str) -> str:
        """The name of a direction."""
        return self.labels[SIDES.index(side)]


def subject_of(
    model: nn.Module,
    vectors: Sequence[TaskVector],
    tasks: Sequence[Task],
    *,
    settings: Settings,
    labels: Sequence[str],
    folders: Sequence[Path] = (),
    notes: Sequence[str] = (),
) -> Subject:
    """Two directions and their tasks, checked.

    Raises:
        ValueError: the directions are one and the same, zero or of another base; the tasks are one
            and the same; or a task has no examples in a split.
    """
    first, second = vectors
    if tasks[0].name == tasks[1].name:
        raise UsageError(
            f"both directions have the task {tasks[0].name!r}; pass the task of each, under two "
            "names"
        )
    for label, vector in zip(labels, vectors, strict=True):
        length = vector.norm()
        if not length > 0:
            raise UsageError(f"{label} changes no weight, so it has no direction")
    both = joint(model, dict(zip(SIDES, vectors, strict=True)))
    related = relation(first, second)
    if abs(related.cosine) > 1 - SAME:
        same = "one and the same direction" if related.cosine > 0 else "opposite directions"
        raise UsageError(
            f"{labels[0]} and {labels[1]} are {same} (cosine {related.cosine:.6f}), so there is no "
            "pair; frenet probe --vectors says how far it can be scaled"
        )
    seed = settings.seed
    select = {t.name: _batch(t, "select", settings.select_size, seed) for t in tasks}
    test = {t.name: _batch(t, "test", settings.test_size, seed) for t in tasks}
    sizes = [
        f"{task.name}: chosen on {len(select[task.name]['labels'])} examples, reported on "
        f"{len(test[task.name]['labels'])} others"
        for task in tasks
    ]
    owned = [
        f"{label}: {text}" for label, v in zip(labels, vectors, strict=True) for text in v.notes
    ]
    return Subject(
        model.eval(), (labels[0], labels[1]), (first, second), tuple(folders), (tasks[0], tasks[1]),
        both, select, test, settings, (*notes, *owned, *sizes), related,
    )  # fmt: skip


def _batch(task: Task, split: Split, size: int, seed: int) -> Batch:
    """The examples of a split, each once."""
    if isinstance(task, TextTask) and not task.examples.get(split):
        raise UsageError(f"task {task.name!r} has no {split} rows; pass a file with rows for them")
    batch = next(repeatable(task, split, at_most(task, split, size), seed), None)
    if batch is None:
        raise UsageError(f"task {task.name!r} gives no batch of its {split} split")
    return drop_duplicates(batch)


@lru_cache(maxsize=1)
def load_subject(config: Config) -> Subject:
    """Load the model, both directions and both tasks of a configuration.

    The last one is kept, since every part of a run needs it; ``load_subject.cache_clear()`` forgets
    it.

    Raises:
        ValueError: a file does not fit, or it is not clear which tasks are meant.
        FileNotFoundError: a file is missing.
    """
    loaded = config.load(config.model)
    if hasattr(loaded.model, "peft_config"):
        raise UsageError(
            f"{config.model} is an adapter on its base; pass the base as --model, and the adapter "
            "as A or B"
        )
    names = labels(config.vectors)
    tasks = tasks_of(config, loaded, seed=config.seed)
    chosen, why = own_tasks(list(tasks), names, config.only)
    vectors = list(vectors_from_disk(loaded.model, config.vectors))
    folders = [Path(source).expanduser() for source in config.vectors]
    adapters = folders if all(map(is_adapter, folders)) else []
    notes = [
        f"{config.model}: weights measured in {loaded.dtype}", *loaded.notes,
        *reading_notes(tasks[name] for name in chosen), why,
    ]  # fmt: skip
    return subject_of(
        loaded.model, vectors, [tasks[name] for name in chosen], settings=config, labels=names,
        folders=adapters, notes=notes,
    )  # fmt: skip


def is_adapter(path: Path) -> bool:
    """Whether a source is read as an adapter of PEFT."""
    return path.is_dir() and held(path).is_adapter


def labels(sources: Sequence[str]) -> tuple[str, str]:
    """Names of both directions: the last part of the path, or all of it if both have the same.

    >>> labels(["runs/animals", "runs/moods/"]), labels(["a/adapter", "b/adapter"])
    (('animals', 'moods'), ('a/adapter', 'b/adapter'))
    """
    first, second = (Path(source).name for source in sources)
    return (sources[0], sources[1]) if first == second else (first, second)


def own_tasks(
    names: Sequence[str], labels: Sequence[str], only: Sequence[str] = ()
) -> tuple[tuple[str, str], str]:
    """The task of each direction, and a sentence that says how they were assigned.

    A name and a label belong together if one contains the other, without regard to case and
    punctuation. If that decides nothing and there are two tasks, they are taken in their order.

    Raises:
        ValueError: there are fewer than two tasks, one that is not known, or more than two that the
            labels do not decide between.

    >>> own_tasks(["moods", "animals"], ["lora-animals", "lora-moods"])[0]
    ('animals', 'moods')
    >>> own_tasks(["x", "y"], ["first", "second"])[0]
    ('x', 'y')
    """
    if unknown := [name for name in only if name not in names]:
        raise UsageError(f"no task {unknown[0]!r}; there are {listed(names)}: pass two as --only")
    if only:
        return _assigned(only, labels, "by --only")
    if len(names) < 2:
        raise UsageError(
            f"the files hold one task ({listed(names)}), and a pair needs the task of each "
            "direction; pass a second file with --tasks"
        )
    pairs = list(itertools.permutations(names, 2))
    fits = [sum(map(_alike, pair, labels)) for pair in pairs]
    best = [pair for pair, fit in zip(pairs, fits, strict=True) if fit == max(fits)]
    if len(best) == 1:
        return _assigned(best[0], labels, "by their names")
    if len(names) > 2:
        raise UsageError(
            f"the files hold {len(names)} tasks ({listed(names)}), and the names of the directions "
            f"({listed(labels)}) do not say which are theirs; pass --only with the task of the "
            "first and that of the second"
        )
    return _assigned(names, labels, "by the order of the files")


def _assigned(names: Sequence[str], labels: Sequence[str], how: str) -> tuple[tuple[str, str], str]:
    said = " and ".join(f"{n} is that of {label}" for n, label in zip(names, labels, strict=True))
    return (names[0], names[1]), f"tasks assigned {how}: {said}"


def _alike(name: str, label: str) -> bool:
    """Whether one of two texts contains the other, letters and digits alone."""
    one, other = ("".join(c for c in text.lower() if c.isalnum()) for text in (name, label))
    return bool(one and other) and (one in other or other in one)
