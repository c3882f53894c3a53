"""`frenet search`: a plan, a search that can be resumed, and its result."""

import dataclasses
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frenet._errors import UsageError
from frenet._files import DamagedFileError, read_object, write_whole
from frenet.experiments.experiment import Cell, Row
from frenet.experiments.search_command import STUDY, TABLES, SearchConfig, cells
from frenet.experiments.search_command.setup import (
    Subject,
    best_rows,
    expected,
    fixed_sigma,
    further_advice,
    further_gain,
    load_subject,
    make_plan,
    plan_notes,
    plan_rows,
    require_worth,
    result_rows,
)
from frenet.runs.engine import Interrupted
from frenet.runs.files import DamagedRunError, require_path
from frenet.runs.header import Header
from frenet.runs.machine import cpu_count, device_of, versions
from frenet.runs.progress import duration
from frenet.runs.reading import read_run
from frenet.runs.records import (
    cell_stem,
    config_dict,
    encode_row,
    input_digests,
    table_columns,
)
from frenet.runs.store import Run, RunFolder

if TYPE_CHECKING:
    from torch import nn

    from frenet.methods.candidates import Noise
    from frenet.methods.evaluation import Evaluator
    from frenet.methods.search import Engine, Gain, SearchResult

Say = Callable[[str], None]
PLAN, WINNER = "plan.json", "winner"
ENDS = ("plan", "result")


def run_search(
    config: SearchConfig,
    out: Path,
    *,
    engine: "Engine | None" = None,
    say: Say = print,
    worth: float | None = None,
) -> Run:
    """Search into a run folder, resume a search, or return the finished one.

    If ``sigma`` is "auto", a plan is stored before the first candidate is scored. Scores are stored
    in chunks as they come, and the winner as a seed record and as weights in ``out/winner``.

    Args:
        config: what to search, and how.
        out: the run folder.
        engine: evaluates the candidates; None: in this process.
        say: takes lines of progress.
        worth: gain in nats per token for which 100 candidates are worth their time; progress then
            says whether more are. It changes no result.

    Raises:
        RunFolderError: the folder holds another search, or one of another model.
        Interrupted: Ctrl-C; scores are kept.
        ValueError: no gain is expected at any sigma, and ``sigma`` is "auto"; or there is a worth,
            but no plan to compare it with.
        FloatingPointError: a score is not finite.
    """
    if config.budget < 1:
        raise UsageError(f"budget={config.budget} is below one candidate; pass at least 1")
    if config.top < 1:
        raise UsageError(f"top={config.top} leaves no winner to report; pass at least 1")
    fixed_sigma(config)
    require_worth(config, worth)
    require_path(out)
    subject = load_subject(config)
    header = _header(config, subject)
    if engine is not None:  # it may evaluate elsewhere
        header = dataclasses.replace(header, device=None)
    with RunFolder(out, header) as store:
        if not store.finished:
            if store.note:
                say(store.note)
            try:
                _search(config, subject, store, engine=engine, say=say, worth=worth)
            except KeyboardInterrupt:
                scored = sum(store.done(cell) for cell in cells(config) if cell["part"] not in ENDS)
                raise Interrupted(
                    f"stopped: {scored} chunks of candidates are scored and stored in {out}; run "
                    "the same command again to resume"
                ) from None
            store.finish(cells(config), workers=1)
    return read_run(out)


def _header(config: SearchConfig, subject: Subject) -> Header:
    import torch

    settings = config_dict(config)
    return Header(
        experiment=STUDY.name,
        config=settings,
        cells=[cell_stem(cell) for cell in cells(config)],
        inputs={**input_digests(settings), "the weights": subject.fingerprint},
        threads=min(torch.get_num_threads(), cpu_count()),
        versions=versions(),
        device=device_of(config),
    )


def _search(
    config: SearchConfig,
    subject: Subject,
    store: RunFolder,
    *,
    engine: "Engine | None",
    say: Say,
    worth: float | None,
) -> None:
    """Do everything that is not stored yet."""
    from frenet.methods.candidates import Noise
    from frenet.methods.search import here, random_search
    from frenet.methods.search_result_files import save_winner

    start = time.monotonic()
    planned = _planned(config, subject, store, say)
    noise = Noise(
        planned["sigma"],
        seed=config.seed,
        relative=config.relative,
        antithetic=config.antithetic,
        tied=config.tied_noise,
        kind=config.noise,
    )
    watch = Progress(subject, noise, config.budget, say, planned=planned, worth=worth)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        result = random_search(
            subject.model, subject.task, subject.space,
            noise=noise, num_candidates=config.budget, selection=subject.selection,
            engine=_storing(engine or here, store, watch),
        )  # fmt: skip
    save_winner(subject.model, subject.space, result, store.path / WINNER)
    step = _gradient_step(subject, noise, result, say)
    rows = [*result_rows(result, planned, top=config.top, step=step), *best_rows(result, planned)]
    for warning in caught:
        say(f"warning: {warning.message}")
        rows.append({"table": "notes", "note": str(warning.message)})
    _store(store, Cell.of(part="result"), rows, seconds=time.monotonic() - start)


def _gradient_step(
    subject: Subject, noise: "Noise", result: "SearchResult", say: Say
) -> "Gain | None":
    """Held-out gain of a gradient step as long as the winner; None if there is none to take."""
    from frenet.methods.search import equal_step

    try:
        return equal_step(
            subject.model, subject.task, subject.space,
            noise=noise, index=result.winner, selection=subject.selection,
        )  # fmt: skip
    except (FloatingPointError, MemoryError) as error:
        say(f"no gradient step to compare the winner with: {error}")
        return None


def _planned(config: SearchConfig, subject: Subject, store: RunFolder, say: Say) -> dict[str, Any]:
    """Sigma and expectations, from the stored plan or from a new one."""
    cell = Cell.of(part="plan")
    if store.done(cell) and (stored := _stored_plan(store, cell)):
        return stored
    start = time.monotonic()
    rows: list[Row] = []
    sigma = fixed_sigma(config)
    if sigma is not None:
        # What a plan would find is not needed, and costs about as much as the search.
        planned: dict[str, Any] = {"sigma": sigma, "best": {}, "held_out": None}
        texts = subject.notes
    else:
        made = make_plan(config, subject, say)
        if made.best is None:
            raise UsageError(f"{made.advice}; or pass --sigma to search anyway")
        sigma = made.best.sigma
        say(made.advice)
        planned = {"sigma": sigma, **expected(config, made, sigma)}
        rows, texts = plan_rows(made), (*plan_notes(subject), made.advice)
    text = json.dumps(planned, indent=2) + "\n"
    notes: list[Row] = [{"table": "notes", "note": text} for text in texts]
    about = {"plan": text}
    _store(store, cell, [*rows, *notes], seconds=time.monotonic() - start, about=about)
    write_whole(store.path / PLAN, text)
    return planned


def _stored_plan(store: RunFolder, cell: Cell) -> dict[str, Any] | None:
    """The stored plan; plan.json, a copy for people, is rewritten if it differs.

    Early builds stored the plan in plan.json alone, without a digest.

    Raises:
        RunFolderError: the plan of an early build is damaged.
    """
    file = store.path / PLAN
    head = store.stored(cell).head
    if "plan" not in head:
        if not file.exists():
            return None
        try:
            return read_object(file, sigma=(int, float))
        except DamagedFileError as error:
            raise DamagedRunError.of(
                error, "the settings of the search are unknown without it: use another --out"
            ) from error
    text: str = head["plan"]
    if not file.exists() or file.read_bytes() != text.encode():
        write_whole(file, text)
    return dict(json.loads(text))


def _storing(engine: "Engine", store: RunFolder, watch: "Progress") -> "Engine":
    """An engine that stores its scores, and returns stored scores."""

    def storing(
        model: "nn.Module", evaluator: "Evaluator", chunks: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Sequence[int], Sequence[float]]]:
        named = [(Cell.of(part="candidates", first=chunk[0]), chunk) for chunk in chunks]
        waiting = []
        for cell, chunk in named:
            if (stored := _stored_scores(store, cell, chunk)) is None:
                waiting.append(chunk)
            else:
                watch.scored(chunk, stored, new=False)
                yield chunk, stored
        start = time.monotonic()
        for chunk, scores in engine(model, evaluator, waiting):
            rows: list[Row] = [
                {"table": "candidate", "index": i, "score": score, "before": watch.before}
                for i, score in zip(chunk, scores, strict=True)
            ]
            cell = Cell.of(part="candidates", first=chunk[0])
            _store(store, cell, rows, seconds=time.monotonic() - start)
            start = time.monotonic()
            watch.scored(chunk, scores, new=True)
            yield chunk, scores

    return storing


def _stored_scores(store: RunFolder, cell: Cell, chunk: Sequence[int]) -> list[float] | None:
    """The scores of a chunk; None if they are not stored, or not for all candidates."""
    if not store.done(cell):
        return None
    rows = [json.loads(line) for line in store.stored(cell).lines]
    if [row.get("index") for row in rows] != list(chunk):
        return None
    return [row["score"] for row in rows]


def _store(
    store: RunFolder,
    cell: Cell,
    rows: Sequence[Row],
    *,
    seconds: float,
    about: Mapping[str, Any] | None = None,
) -> None:
    tables = table_columns(TABLES)
    lines = [encode_row(row, tables) for row in rows]
    store.store(cell, lines, seconds=seconds, about=about)


class Progress:
    """Reports the progress of a search, with the held-out gain of the best candidate so far.

    Every new best (there are about ln N) costs two forward passes over the held-out examples. The
    held-out gain does not affect any choice.
    """

    def __init__(
        self,
        subject: Subject,
        noise: "Noise",
        budget: int,
        say: Say,
        *,
        planned: Mapping[str, Any],
        worth: float | None,
    ) -> None:
        from frenet.methods.evaluation import row_scores
        from frenet.methods.search import drop_duplicates

        self._subject, self._noise, self._budget, self._say = subject, noise, budget, say
        self._planned, self._worth = planned, worth
        task, chosen = subject.task, subject.selection
        select = drop_duplicates(next(task.batches("select", chosen.select_size, chosen.seed)))
        self._test = drop_duplicates(next(task.batches("test", chosen.test_size, chosen.seed)))
        self._held_out = row_scores(subject.model, chosen.score, self._test)
        self.before = float(row_scores(subject.model, chosen.score, select, whole=True).means())
        self._best, self._gain, self._done, self._new = (-math.inf, -1), 0.0, 0, 0
        self._start = time.monotonic()

    def scored(self, chunk: Sequence[int], scores: Sequence[float], *, new: bool) -> None:
        """Take the scores of a chunk; ``new``: they were not stored before."""
        self._done += len(chunk)
        self._new += len(chunk) if new else 0
        score, index = max(zip(scores, (-i for i in chunk), strict=True))
        if (score, index) > self._best:
            self._best, self._gain = (score, index), self._held_out_gain(-index)
        if not new:
            return
        elapsed = time.monotonic() - self._start
        left = elapsed / self._new * (self._budget - self._done)
        self._say(
            f"[{self._done}/{self._budget}] best: candidate {-self._best[1]}, gain "
            f"{self._best[0] - self.before:.4g} on selection, {self._gain:.4g} on held-out data; "
            f"{duration(elapsed)} elapsed, about {duration(left)} left"
        )
        further = further_gain(self._planned, self._best[0] - self.before)
        if more := further_advice(further, self._worth):
            self._say(more)

    def _held_out_gain(self, index: int) -> float:
        from frenet.methods.candidates import Candidates
        from frenet.methods.evaluation import row_scores

        subject = self._subject
        with Candidates(subject.model, subject.space, self._noise) as candidates:
            candidates.put(index)
            after = row_scores(subject.model, subject.selection.score, self._test)
        return float(after.means() - self._held_out.means())
