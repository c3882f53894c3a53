"""What an experiment is: pure functions, and the words that explain its numbers."""

import importlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from frenet._errors import UsageError
from frenet._notebook import Fact, Shown
from frenet.statistics.intervals import Estimate

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]
Rows = Sequence[Mapping[str, Scalar]]
Verdict = Literal["supported", "contradicted", "equivalent", "undecided", "not testable"]
# In the order in which they are counted.
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
# Those that decide nothing.
OPEN: tuple[Verdict, ...] = ("undecided", "not testable")

# Kinds of network: the synthetic transformer, a pretrained language model, and the small GPT-2 that
# frenet trains itself.
Kind = Literal["synthetic", "model", "frenet:gpt2"]
SYNTHETIC: Kind = "synthetic"
MODEL: Kind = "model"
MADE: Kind = "frenet:gpt2"
DEFAULT_PRESET = "demo"
# The preset that the settings for language models start from.
LANGUAGE_MODEL_PRESET = "lm"
USUAL_PRESETS = ("smoke", "demo", "cpu", "gpu")


def kind_of(network: str) -> Kind:
    """The kind of a network, by the name that a configuration has for it.

    >>> kind_of("synthetic"), kind_of("frenet:gpt2"), kind_of("Qwen/Qwen2.5-0.5B")
    ('synthetic', 'frenet:gpt2', 'model')
    """
    if network == SYNTHETIC:
        return SYNTHETIC
    return MADE if network == MADE else MODEL


def number(row: Mapping[str, Scalar], name: str) -> float:
    """The number in one column of a row.

    Raises:
        ValueError: it holds none.
    """
    value = row[name]
    if isinstance(value, int | float):
        return float(value)
    raise UsageError(f"{name} is {value!r}, not a number")


def claim_order(name: str) -> list[str | int]:
    """The key by which names of claims are sorted: numbers count as numbers.

    >>> sorted(["C10", "C5b", "C2", "C5a", "S1"], key=claim_order)
    ['C2', 'C5a', 'C5b', 'C10', 'S1']
    """
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def integer(row: Mapping[str, Scalar], name: str) -> int:
    """The whole number in one column of a row, exactly, such as a seed of 64 bits.

    Raises:
        ValueError: it holds none.
    """
    value = row[name]
    return value if isinstance(value, int) else int(number(row, name))


def finite(value: object) -> float | None:
    """A finite float, or None: NaN and infinities have no place in JSON."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class Cell:
    """The unit of work and of resuming: a pure function of the configuration and of these keys.

    >>> Cell.of(seed=0, optimizer="adam:3e-5").id
    'seed=0,optimizer=adam~3e-5'
    """

    keys: tuple[tuple[str, str | int | float], ...]

    @classmethod
    def of(cls, **keys: str | int | float) -> "Cell":
        """The cell with these keys, in this order."""
        return cls(tuple(keys.items()))

    @property
    def id(self) -> str:
        """A name that is safe in a file system."""
        text = ",".join(f"{key}={value}" for key, value in self.keys)
        return "".join(c if c.isalnum() or c in "=,.-_" else "~" for c in text)

    @property
    def seed(self) -> int:
        """The seed, the unit of every interval and preparation; 0 if there is none."""
        return int(dict(self.keys).get("seed", 0))

    def __getitem__(self, key: str) -> Any:
        """The value of one key."""
        return dict(self.keys)[key]


@dataclass(frozen=True)
class Later:
    """A function by its place, ``module:name``, imported at the first call.

    So declarations do not wait for torch. Unlike a closure, it can be sent to a worker process.
    """

    place: str

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Import the function and call it."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)(*arguments, **named)


class Texts(NamedTuple):
    """The texts of one task or contrast, as a forecast of time and memory sees them.

    Attributes:
        rows: how many there are.
        tokens: mean length, after the cut to ``max_length``; in a training, with the padding of a
            minibatch.
        longest: largest length.
    """

    rows: int
    tokens: float
    longest: int


class Column(NamedTuple):
    """One column of one table of rows.

    ``beside`` names the column that holds this number's chance level, null or ceiling; keys and
    references themselves have none. ``role`` says which of the three the column is.
    """

    name: str
    unit: str
    meaning: str
    role: Literal["key", "measure", "reference"]
    beside: str | None = None


class Needs(NamedTuple):
    """What would settle a claim that is undecided, at the mean and spread seen.

    Attributes:
        unit: what is counted, such as a seed.
        n: how many there are.
        about: how many would settle it; None: not known, or more than can be had.
        low: the fewest, from the interval of the spread; None: as ``about``.
        high: the most.
        smallest: the smallest effect that n units show in 80% of runs, in the quantity's unit.
    """

    unit: str
    n: int
    about: int | None = None
    low: int | None = None
    high: int | None = None
    smallest: float | None = None

    def __str__(self) -> str:
        """In few words.

        >>> str(Needs("seed", 3, 7, 4, 40)), str(Needs("seed", 3, 7, 4)), str(Needs("seed", 1))
        ('3 of about 7 seeds, 4 to 40', '3 of about 7 seeds, 4 or more', '1 seed')
        """
        if self.about is None:
            return f"{self.n} {self.unit}{'' if self.n == 1 else 's'}"
        text = f"{self.n} of about {self.about:,} {self.unit}s"
        if self.low is None:
            return text
        most = "or more" if self.high is None else f"to {self.high:,}"
        return f"{text}, {self.low:,} {most}"


class Decision(NamedTuple):
    """A verdict with its reason.

    Attributes:
        verdict: one of five words.
        why: the criteria that decide, or the premise that does not hold.
        needs: what would settle it, if it is undecided.
        margin: within which it is equivalent.
        alone: the verdict of the criteria, if it is not testable because a premise is unknown.
    """

    verdict: Verdict
    why: str
    needs: Needs | None = None
    margin: float | None = None
    alone: Verdict | None = None

    @property
    def detail(self) -> str:
        """What belongs to the word in brackets; empty if nothing does."""
        if self.verdict == "equivalent" and self.margin is not None:
            return f"within {self.margin:g}"
        return str(self.needs) if self.verdict == "undecided" and self.needs else ""

    def __str__(self) -> str:
        return f"{self.verdict} ({self.detail})" if self.detail else self.verdict


class Breakdown(NamedTuple):
    """A claim's numbers in parts, such as by damage and optimiser.

    Attributes:
        title: what the parts are.
        rows: one per part, at least one, all with the same keys; text names the part.
    """

    title: str
    rows: tuple[Row, ...]


class Finding(NamedTuple):
    """What the stored rows say about one claim.

    Attributes:
        claim: its id.
        decision: of its rule.
        quantity: the name of what was measured.
        estimate: of the quantity, with its interval.
        reference: the chance level, null or ceiling of the quantity.
        reference_estimate: of the reference.
        notes: at most two cautions, each a whole sentence.
        breakdowns: everything by case.
        case: which of several cases of the claim, such as "in the weights"; empty: the only one.
        also: further numbers for the sentence of the claim, by the name that they have there.
    """

    claim: str
    decision: Decision
    quantity: str
    estimate: Estimate | None
    reference: str
    reference_estimate: Estimate | None
    notes: tuple[str, ...] = ()
    breakdowns: tuple[Breakdown, ...] = ()
    case: str = ""
    also: Mapping[str, Estimate | None] = MappingProxyType({})

    @property
    def verdict(self) -> Verdict:
        """The word of the decision."""
        return self.decision.verdict

    @property
    def why(self) -> str:
        """The reason of the decision."""
        return self.decision.why

    @property
    def reason(self) -> str:
        """The reason, and what the units at hand would have shown if it is undecided."""
        needs = self.decision.needs
        if needs is None or needs.smallest is None or self.verdict != "undecided":
            return self.why
        found = f"{needs.smallest:.2g} from the line is found in 80% of runs"
        return f"{self.why} (with {needs.n} {needs.unit}s, {found})"

    @property
    def name(self) -> str:
        """The claim, and which of its cases."""
        return f"{self.claim} {self.case}".rstrip()


class Across(NamedTuple):
    """How a claim's estimates on several networks are shown together.

    Attributes:
        quantity: the name of the estimate, the same on every network.
        levels: what the rule compares it with: label -> a value, and the other end of a band (None:
            it is one value).
        reference: the name of the reference estimate; empty: it is on another scale.
        limits: the least and the largest possible value.
        log: whether the mean over networks is that of logarithms.
        apart: why there is no mean over networks; empty: there is one.
        supports: the values that the rule asks for, as an interval; None: p-values decide.
    """

    quantity: str
    levels: Mapping[str, tuple[float, float | None]] = MappingProxyType({})
    reference: str = ""
    limits: tuple[float, float] = (-math.inf, math.inf)
    log: bool = False
    apart: str = ""
    supports: tuple[float, float] | None = None


class Claim(NamedTuple):
    """A claim of the paper and the rule, fixed before the run, that decides it from stored rows.

    Attributes:
        short: the statement for one line, at most 34 characters; empty: the statement.
        against: a word or two for the reference of its findings, at most 11 characters; empty: the
            findings' own words.
        across: how its estimates on several networks are shown together; None: not at all.
        says: the clauses of the sentence that gives its numbers, with {value}, {reference} and the
            names of ``Finding.also``; a clause whose number is missing is left out.
    """

    id: str
    statement: str
    paper: str
    rule: str
    decide: Callable[[Rows], Finding | tuple[Finding, ...]]
    figure: str
    across: Across | None = None
    short: str = ""
    against: str = ""
    says: tuple[str, ...] = ()


class Reach(NamedTuple):
    """How far and for how long one direction can be followed, for one seed.

    Attributes:
        direction: its name.
        space: of the parameters that are trained.
        share_of: the norm that ``far`` is a share of.
        seed: the seed.
        far: the largest distance at which the change is linear; None: not known.
        ends: its 95% interval; an end that is not known is None.
        unbounded: whether it is still linear at the largest distance tried.
        times: ``far`` in units of the direction's own length; None: it has none.
        life: the last measured step before half is lost, and the first after it (None: it outlives
            the run); None: no lifetime was measured.
        longest: the last measured step; 0: no lifetime was asked for.
        has_share: whether it holds more than chance at the start, so that it has a lifetime.
        leads: whether the first sentence of a report is about it.
    """

    direction: str
    space: str
    share_of: str
    seed: int
    far: float | None
    ends: tuple[float | None, float | None] = (None, None)
    unbounded: bool = False
    times: float | None = None
    life: tuple[float, float | None] | None = None
    longest: float = 0.0
    has_share: bool = True
    leads: bool = False


class Answer(NamedTuple):
    """What the rows of a run without a claim say about one thing.

    Attributes:
        subject: what it is about, such as a direction or a task.
        keys: the columns that distinguish answers about one subject, such as the seed.
        sentence: the answer.
    """

    subject: str
    keys: Row
    sentence: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.sentence}"


class Figure(NamedTuple):
    """A figure that answers one question, its ``title``.

    Attributes:
        chart: rows of the table to an Altair chart.
        front: whether it comes before the chapters of a report, below the claims.
        finds: rows of the table to what they show, in a sentence for the title, or to nothing.
        more: whether a report shows it only when "More figures" is opened.
    """

    id: str
    title: str
    caption: str
    table: str
    chart: Callable[[Rows], Any]
    front: bool = False
    finds: Callable[[Rows], str] | None = None
    more: bool = False


class Setting(NamedTuple):
    """A setting that a page of results shows with the claims, such as a kind of damage.

    Attributes:
        words: the text before its value.
        name: its name in the configuration.
        space: show it only if these parameters moved; empty: always.
    """

    words: str
    name: str
    space: str = ""


@dataclass(frozen=True, repr=False)
class Study(Shown):
    """What a run is read as: its tables, figures and claims.

    ``config`` is the type of its configurations. ``shown_settings`` are shown with the claims.
    ``command`` gives the lines that repeat a run from its stored configuration, if no command of
    frenet does. ``reread`` converts stored rows, also of earlier versions, to this version.
    ``answers`` puts the rows of a study without claims into sentences. ``reach`` reads how far and
    for how long directions can be followed, for the first screen of a report.
    """

    name: str
    question: str
    claims: tuple[Claim, ...]
    config: type[Any]
    tables: Mapping[str, tuple[Column, ...]]
    figures: tuple[Figure, ...]
    shown_settings: tuple[Setting, ...] = ()
    command: Callable[[Mapping[str, Any]], str] | None = None
    reread: Callable[[Rows], Rows] | None = None
    answers: Callable[[Rows], list[Answer]] | None = None
    reach: Callable[[Rows], list[Reach]] | None = None

    def _summary(self) -> str:
        return f"{self.name}. {self.question}"

    def _entries(self) -> Iterator[Fact]:
        for claim in self.claims:
            yield f"{claim.id}: {claim.statement}", f"in the paper: {claim.paper}", claim.rule


@dataclass(frozen=True, repr=False, kw_only=True)
class Experiment(Study):
    """One question, from configuration to claim: a study, and how its runs are made.

    The field ``model`` of ``config`` names the network. ``run`` yields the rows of one cell; every
    row has the key ``table`` that names one of ``tables``. ``prepare`` builds (or takes from the
    cache) what several cells share. ``in_demo``: whether ``frenet demo`` runs it by default.
    ``leads``: whether a reproduction runs its first seed before everything else, for a first
    report.

    ``presets`` are configurations for the synthetic transformer, except ``lm``, the base of those
    for language models: ``changes`` gives the differences from it by kind of network and preset;
    those of MODEL hold for MADE, too. ``reproduced`` gives the changes by ``frenet reproduce`` to a
    preset for the synthetic transformer. ``longest_recovery`` gives the most steps of a recovery,
    if the time of a cell depends on them. ``passes`` counts the forward passes of one text through
    a language model that a cell takes with given texts, if their number depends on that of the
    texts or on settings; a backward pass counts as two.
    """

    cells: Callable[[Any], list[Cell]]
    run: Callable[[Any, Cell], Iterator[Row]]
    presets: Mapping[str, Any]
    changes: Mapping[Kind, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    reproduced: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    longest_recovery: Callable[[Any], int] | None = None
    passes: Callable[[Any, Texts], float] | None = None
    prepare: Callable[[Any, Cell], None] | None = None
    in_demo: bool = True
    leads: bool = False

    @classmethod
    def of_command(
        cls,
        study: Study,
        *,
        cells: Callable[[Any], list[Cell]],
        run: Callable[[Any, Cell], Iterator[Row]],
        prepare: Callable[[Any, Cell], None],
    ) -> "Experiment":
        """A study that a command of its own runs: without presets, and in no reproduction."""
        shown = {part.name: getattr(study, part.name) for part in fields(study)}
        return cls(**shown, cells=cells, run=run, prepare=prepare, presets={}, in_demo=False)

    def has_preset(self, preset: str, kind: Kind = SYNTHETIC) -> bool:
        """Whether there are settings; with ``lm`` there are for every usual preset of a model."""
        usual = preset in USUAL_PRESETS and LANGUAGE_MODEL_PRESET in self.presets
        return preset in self.presets or (kind != SYNTHETIC and usual)

    def usual_preset(self, kind: Kind = SYNTHETIC) -> str:
        """The preset if none is named; the first one if there is no such preset."""
        usual = DEFAULT_PRESET if kind == SYNTHETIC else LANGUAGE_MODEL_PRESET
        return usual if usual in self.presets else next(iter(self.presets))

    def settings(self, preset: str, kind: Kind = SYNTHETIC) -> Any:
        """The configuration of a preset for a kind of network.

        Raises:
            ValueError: there is no such preset.
        """
        if not self.has_preset(preset, kind):
            there = ", ".join(self.presets)
            raise UsageError(f"no preset of {self.name} {preset!r}; there are: {there}")
        if kind == SYNTHETIC:
            return self.presets[preset]
        base = self.presets.get(LANGUAGE_MODEL_PRESET) or self.presets[preset]
        changed: dict[str, Any] = {}
        for each in (MODEL, kind):
            changed |= self.changes.get(each, {}).get(preset, {})
        return replace(base, **changed)


def answered(experiment: Study, rows: Rows) -> list[Answer]:
    """What the rows say in sentences; empty if the experiment has claims instead."""
    return experiment.answers(rows) if experiment.answers else []


def decided(experiment: Study, rows: Rows) -> list[tuple[Claim, Finding]]:
    """Apply the rule of every claim to the rows; if that raises, the claim is undecided."""
    return [(claim, finding) for claim in experiment.claims for finding in _decide(claim, rows)]


def _decide(claim: Claim, rows: Rows) -> tuple[Finding, ...]:
    try:
        found = claim.decide(rows)
    except Exception as error:  # rows of a run with failed cells may lack what a rule needs
        why = f"the rule could not be applied to these rows: {type(error).__name__}: {error}"
        return (Finding(claim.id, Decision("undecided", why), "", None, "", None),)
    return (found,) if isinstance(found, Finding) else found
