"""How candidates of a search are selected, and on which examples."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from frenet._errors import UsageError
from frenet.methods.scores import Score
from frenet.network.tasks import Batch, Task


@dataclass(frozen=True)
class Selection:
    """How candidates are selected, and on which data the winner is reported.

    Attributes:
        score: "loss" (its negative), "accuracy" of tokens, "exact" (greedily generated answers),
            or a function of model and batch that returns a float, larger is better.
        select_size: examples of the select split: one batch, the same for all candidates.
        test_size: examples of the test split, for the result.
        top: K; the best K candidates also vote, and are averaged.
        seed: chooses the examples and the bootstrap.
    """

    score: Score = "loss"
    select_size: int = 64
    test_size: int = 256
    top: int = 1
    seed: int = 0

    def within(self, task: Task) -> "Selection":
        """The same, with at most as many examples as the splits of the task have."""
        splits = getattr(task, "examples", None)
        if not isinstance(splits, Mapping):
            return self
        sizes = (self.select_size, self.test_size)
        select, test = map(min, sizes, (len(splits["select"]), len(splits["test"])))
        return replace(self, select_size=select, test_size=test)


def require_disjoint(select: Batch, test: Batch) -> None:
    """Raise ValueError if an example is in both batches."""
    keys, others = _keys(select), set(_keys(test))
    if shared := [i for i, key in enumerate(keys) if key in others]:
        raise UsageError(
            f"{len(shared)} of the {len(keys)} examples that candidates are selected on are also "
            f"in the test split, first row {shared[0]}; the task's splits must be disjoint"
        )


def drop_duplicates(batch: Batch) -> Batch:
    """The batch without duplicate rows: they would make every interval too narrow."""
    if "input_ids" not in batch:  # not text: rows cannot be compared
        return batch
    keys = _keys(batch)
    first = [i for i, key in enumerate(keys) if keys.index(key) == i]
    return {key: value[first] for key, value in batch.items()}


def _keys(batch: Batch) -> list[tuple[int, ...]]:
    """For every row its tokens without the padding, and its targets."""
    keys = []
    for i, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        real = batch["attention_mask"][i].bool() if "attention_mask" in batch else slice(None)
        keys.append((*ids[real].tolist(), *labels[real].tolist()))
    return keys
