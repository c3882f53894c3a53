"""Text tasks: prompts with completions, tokenised once, from files and data sets."""

import functools
import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet._notebook import listed
from frenet.geometry import rng
from frenet.network.data.builtin_data import is_made
from frenet.network.data.examples import Example, Options, encoded, prepare
from frenet.network.data.files import OnBad, shown
from frenet.network.data.schemas import Template
from frenet.network.data.scoring import continuation_log_probabilities, weighted_accuracy
from frenet.network.data.sources import Source
from frenet.network.data.tables import Columns, Reading, read_table
from frenet.network.data.tokens import Encoded, encode, of_one_prompt
from frenet.network.measuring import measuring
from frenet.network.tasks import Batch, Split, collate, token_loss


@dataclass(frozen=True)
class TextTask:
    """A task over prompts and completions; only the completion's tokens are scored.

    Args:
        name: the task's name.
        examples: the examples of train, select and test; no prompt is in two of them.
        tokenizer: the model's tokenizer; it does not change.
        max_length: most tokens of an example; the prompt is cut from the left to fit.
        labels: the label set of a classification task, empty for an open-ended one.
        notes: what was dropped, cut or decided while loading, one sentence each.
        padding_side: side of the padding of shorter rows; measurements do not depend on it.
        score_rows: rows of the fixed sample that ``score`` uses.
        whole: use a split that is smaller than a batch as one batch, instead of an error.
        chat: whether a chat template wrote the texts, which are then read unchanged.
    """

    name: str
    examples: dict[Split, tuple[Example, ...]] = field(repr=False)
    tokenizer: Any = field(repr=False)
    max_length: int
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    padding_side: str = "left"
    score_rows: int = 128
    whole: bool = False
    chat: bool = False

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Mean loss in nats per target token."""
        return token_loss(model, batch)

    def batches(self, split: Split, batch_size: int, seed: int) -> Iterator[Batch]:
        """Endless batches; every epoch is a new permutation without the incomplete last batch.

        Raises:
            ValueError: the split has no rows, or fewer than one batch, and ``whole`` is False.
        """
        rows = self.examples[split]
        if not rows:
            raise UsageError(f"task {self.name!r} has no {split} rows; pass more rows")
        if self.whole:
            batch_size = min(batch_size, len(rows))
        if not 1 <= batch_size <= len(rows):
            raise UsageError(
                f"batch_size={batch_size} for the {len(rows)} {split} rows of task {self.name!r}; "
                f"pass between 1 and {len(rows)}, or more rows"
            )
        return self._batches(split, batch_size, rng.generator(seed, "batches", self.name, split))

    def _batches(
        self, split: Split, batch_size: int, generator: torch.Generator
    ) -> Iterator[Batch]:
        rows = self.examples[split]
        while True:
            order = torch.randperm(len(rows), generator=generator).tolist()
            for start in range(0, len(rows) - batch_size + 1, batch_size):
                yield self.collate([rows[i] for i in order[start : start + batch_size]])

    def collate(self, rows: Sequence[Example]) -> Batch:
        """The batch of these examples, as wide as its longest row."""
        ids = [(row.encoded.context, row.encoded.target) for row in rows]
        return collate(ids, padding_side=self.padding_side)

    def sample(self, split: Split) -> tuple[Example, ...]:
        """The fixed rows that ``score`` uses: at most ``score_rows`` of the split."""
        rows = self.examples[split]
        order = torch.randperm(len(rows), generator=rng.generator(0, "score", self.name, split))
        return tuple(rows[i] for i in order[: self.score_rows].tolist())

    def score(self, model: nn.Module, split: Split) -> dict[str, float]:
        """``token_accuracy`` and ``exact_match`` in [0, 1] on a fixed sample of the split.

        With a label set it also has ``accuracy``, the share of rows for which the right label has
        the largest summed log-probability, and ``chance``, the share of the most common label.
        """
        rows = self.sample(split)
        groups = [self.collate(rows[i : i + 16]) for i in range(0, len(rows), 16)]
        with measuring(model):
            result = weighted_accuracy(model, groups)
        if self.labels:
            chosen = self.label_scores(model, [row.prompt for row in rows]).argmax(1).tolist()
            right = [self.labels[c] == row.completion for c, row in zip(chosen, rows, strict=True)]
            most = Counter(row.completion for row in rows).most_common(1)[0][1]
            result |= {"accuracy": sum(right) / len(rows), "chance": most / len(rows)}
        return result

    def label_scores(
        self, model: nn.Module, prompts: Sequence[str], *, batch_size: int = 16
    ) -> Float[Tensor, "n labels"]:
        """Log-probability in nats of every label after every prompt, summed over its tokens.

        A prompt that does not fit ``max_length`` loses its beginning, equally for every label, and
        a warning counts these prompts.

        Raises:
            ValueError: the task has no label set, or a prompt leaves no room for a label.
        """
        if not self.labels:
            raise UsageError(f"task {self.name!r} has no label set; pass Template(labels=...)")
        pairs = [(prompt, label) for prompt in prompts for label in self.labels]
        tokens = encode(self.tokenizer, pairs, max_length=self.max_length, chat=self.chat)
        good = [item for item in tokens if isinstance(item, Encoded)]
        if len(good) < len(tokens):
            index, why = next((i, w) for i, w in enumerate(tokens) if isinstance(w, str))
            raise UsageError(f"label {pairs[index][1]!r} after {shown(pairs[index][0])}: {why}")
        n = len(self.labels)
        good = [same for i in range(0, len(good), n) for same in of_one_prompt(good[i : i + n])]
        if cut := sum(item.cut > 0 for item in good[::n]):
            warnings.warn(
                f"task {self.name!r}: {cut} of {len(prompts)} prompts are too long for "
                f"max_length={self.max_length} and lose their beginning",
                RuntimeWarning,
                stacklevel=2,
            )
        with measuring(model):
            flat = continuation_log_probabilities(model, good, batch_size=batch_size)
        return flat.reshape(len(prompts), len(self.labels))

    def shuffled(self, seed: int) -> "TextTask":
        """The label-shuffled control: completions permuted within each split.

        Raises:
            ValueError: the task is plain text, which has no answers to permute.
        """
        if not all(row.prompt for rows in self.examples.values() for row in rows):
            raise UsageError(f"task {self.name!r} is plain text: it has no answers to shuffle")
        examples: dict[Split, tuple[Example, ...]] = {}
        notes = list(self.notes)
        options = Options(f"task {self.name!r}", self.tokenizer, self.max_length, chat=self.chat)
        for split, rows in self.examples.items():
            source = rng.generator(seed, "shuffled", self.name, split)
            order = torch.randperm(len(rows), generator=source).tolist()
            pairs = list(zip(rows, order, strict=True))
            wrong = [row._replace(completion=rows[i].completion) for row, i in pairs]
            same = sum(row.completion == rows[i].completion for row, i in pairs)
            notes.append(f"{split}: answers permuted, {same} of {len(rows)} rows keep their answer")
            examples[split] = encoded(wrong, options, bad=[])
        return replace(self, examples=examples, notes=tuple(notes))

    @property
    def fingerprint(self) -> str:
        """Hex digits that identify the name, the label set and every example of every split."""
        digest = hashlib.sha256(repr((self.name, self.labels)).encode())
        for split, rows in self.examples.items():
            for row in rows:
                digest.update(repr((split, row.encoded.context, row.encoded.target)).encode())
        return digest.hexdigest()

    def tokens(self, split: Split, index: int) -> list[tuple[int, str, bool]]:
        """The ids of one example with their text, and whether they are scored."""
        encoded = self.examples[split][index].encoded
        ids = encoded.context + encoded.target
        texts = self.tokenizer.convert_ids_to_tokens(ids)
        scored = [False] * len(encoded.context) + [True] * len(encoded.target)
        return list(zip(ids, texts, scored, strict=True))


def text_tasks(
    source: Source,
    tokenizer: Any,
    *,
    max_length: int,
    seed: int = 0,
    columns: Columns | None = None,
    prompt: str | None = None,
    completion: str | None = None,
    words: Mapping[str, str] | Sequence[str] | None = None,
    chat: bool = False,
    template: Template | None = None,
    on_bad: OnBad = "error",
    limit: int | None = None,
) -> dict[str, TextTask]:
    """The tasks of a file, of rows in memory, or of a data set on the hub, by name.

    Args:
        source: a JSONL, JSON or CSV file; a list of mappings from columns to values, or a
            ``datasets.Dataset`` or ``DatasetDict`` (a task without a name is called "rows");
            "frenet:words" or "frenet:comparisons", which are built in; or, if there is no such
            path, the name of a data set on the hub, with its configuration after a colon
            ("glue:sst2"). Only a name on the hub needs the network.
        tokenizer: the model's tokenizer.
        max_length: the model's context length in tokens, or less.
        seed: fixes the splits that the file lacks.
        columns: the columns of each role, such as {"prompt": "text", "label": "stars", "ignore":
            "id"}. Roles are prompt, completion, label, ignore, system and the fields of the known
            schemas; several columns of one role are joined by an empty line.
        prompt: text with ``{field}`` that replaces the schema's prompt.
        completion: the same for the schema's completion.
        words: replacements for the values of a label, such as {"0": "bad", "1": "good"}.
        chat: whether prompts and completions go through the tokenizer's chat template. Rows of
            ``messages``, and of ``prompt`` and ``response``, always do, and only the assistant's
            tokens are scored.
        template: how a row becomes prompt and completion; None recognises the known schemas.
        on_bad: "error" stops at the first bad row, "skip" leaves bad rows out and says so in the
            notes.
        limit: most rows of each task in each split, chosen by ``seed``.

    Raises:
        RowError: a bad row; names file, line and value.
        ValueError: no known schema fits, an unread column is usually part of a prompt or a label,
            or a task has fewer than three prompts.
        FileNotFoundError, ConnectionError: the source cannot be reached.
    """
    if max_length < 2:
        raise UsageError(f"max_length={max_length}; pass at least 2")
    if limit is not None and limit < 1:
        raise UsageError(f"limit={limit}; pass at least 1, or None for all rows")
    reading = Reading.of(
        columns, template=template, prompt=prompt, completion=completion, words=words, chat=chat
    )
    read = read_table(source, reading, on_bad=on_bad, tokenizer=tokenizer)
    labels = read.template.labels
    options = Options(
        read.source, tokenizer, max_length, seed, labels, on_bad, limit, chat=read.chat
    )
    before = (*(f"skipped: {error}" for error in read.bad), *read.notes)
    tasks = {}
    for name, part in read.by_task.items():
        examples, labels, notes = prepare(name, part, options)
        tasks[name] = TextTask(
            name, examples, tokenizer, max_length, labels, (*before, *notes), chat=read.chat
        )
    return tasks


def reading_notes(tasks: Iterable[TextTask]) -> list[str]:
    """The notes of tasks and the sizes of their splits, each text with the names of its tasks."""
    names_of: dict[str, list[str]] = {}
    for task in tasks:
        rows = ", ".join(f"{len(part)} {split}" for split, part in task.examples.items())
        for text in dict.fromkeys((*task.notes, f"rows: {rows}")):
            names_of.setdefault(text, []).append(task.name)
    return [f"{listed(names)}: {text}" for text, names in names_of.items()]


def task_names(
    source: Source, reading: Reading | None = None, *, on_bad: OnBad = "error"
) -> tuple[str, ...]:
    """The names that ``text_tasks`` gives the tasks of ``source``; needs no tokenizer."""
    if isinstance(source, str) and is_made(source) and reading in (None, Reading()):
        return _built_in(source)
    return tuple(read_table(source, reading or Reading(), on_bad=on_bad).by_task)


@functools.cache
def _built_in(source: str) -> tuple[str, ...]:
    """Names of the tasks of a built-in data set, which a reproduction asks for many times."""
    return tuple(read_table(source, Reading()).by_task)
