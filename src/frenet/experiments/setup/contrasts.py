"""What the steering experiments measure: a model, its blocks, and the parts of a contrast."""

import functools
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from frenet._errors import UsageError
from frenet._notebook import listed
from frenet.experiments.experiment import SYNTHETIC, Cell, Column, Row, kind_of
from frenet.experiments.setup import columns
from frenet.experiments.setup.knowledge import KNOWS, knowledge, known_state, known_text
from frenet.experiments.setup.networks import CHOOSE, only_first
from frenet.experiments.setup.reading import LoadingConfig, ReadingConfig, of_sources, reading_of

if TYPE_CHECKING:
    from torch import nn

    from frenet.network.checkpoints.load import Loaded
    from frenet.network.data.contrast import Contrast, UnansweredError
    from frenet.network.space import ParamSpace

# Disjoint parts of a contrast. One third of the prompts chooses the block. Of the rest, the first
# part gives gradients, the second is shifted, and the last gives all reported numbers.
TESTED = ("push", "moved", "report")
PARTS = ("choose", *TESTED)
PUSHES = ("own", "flipped")
# With fewer reported prompts, intervals over prompts are too narrow.
FEW = 20


@dataclass(frozen=True)
class SteeringConfig(ReadingConfig, LoadingConfig):
    """Which model, which contrasts, which prompts."""

    model: str = "synthetic"
    """'synthetic', a hub id, a folder in Hugging Face format, or a GGUF file; with full weights
    also the folder of a PEFT adapter."""
    tasks: tuple[str, ...] = ()
    """Files or data set names: labelled statements, A/B questions. Empty: the synthetic contrasts.
    """
    only: tuple[str, ...] = ()
    """Names of the contrasts to measure, if the files hold more. Empty: all."""
    max_tasks: int = 0
    """Measure only this many contrasts, the first ones, unless --only names some. 0: all."""
    positive: str = ""
    """Label of the positive side. Empty: yes, true, positive or 1, otherwise the first label."""
    words: tuple[str, ...] = ()
    """Answers of the positive and of the negative side. Empty: the labels."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each seed trains a new synthetic network and draws its prompts. A language model is one
    network, whose prompts further seeds would only deal anew: the first one is measured alone."""
    spaces: tuple[str, ...] = ("full",)
    """'full' (all weights) and 'lora' (rank-r adapters): the parameters of the gradient step."""
    rank: int = 4
    """Rank of the LoRA adapters."""
    targets: tuple[str, ...] = ()
    """Modules that get a LoRA adapter, by the last parts of their names. Empty: PEFT's choice for
    this family of models."""
    path: str = ""
    """Dotted name of the list of blocks, if frenet does not detect it."""
    width: int = 64
    """Width of the synthetic transformer."""
    train_steps: int = 2400
    """Steps in which the synthetic transformer is trained on its eight tasks."""
    pushes: tuple[str, ...] = ("own", "flipped")
    """Source of the gradient step: 'own', prompts of the class with their right answer; 'flipped',
    prompts of the other class with the wrong answer. 'own' decides the claims."""
    rows: int = 96
    """Most prompts in each of three parts: push (gradients), moved (shifted), report (results).
    Half as many as these three have choose the block."""
    halves: int = 20
    """Random splits into halves, for the reliability of contrast vector and shift."""
    groups: int = 10
    """Groups of the prompts of the gradient step, each with a gradient and a shift of its own, for
    the reliability of the shift."""
    shifted: int = 48
    """Most prompts that are shifted. Each takes about three forward passes for every group."""
    resamples: int = 1000
    """Bootstrap samples of the prompts."""
    blocks: tuple[int, ...] = ()
    """Blocks to measure, counted from 0. Empty: all."""
    known_only: bool = False
    """Measure only contrasts whose labels the model knows, by its own answers; no claim can be
    decided on the others."""

    @property
    def preparing_steps(self) -> int:
        """Training steps of the network of a seed before it is measured."""
        return self.train_steps if self.model == SYNTHETIC else 0


class Steered(NamedTuple):
    """A model and one contrast, divided.

    Attributes:
        model: the network, in evaluation mode.
        space: the parameters that step.
        blocks: 0-based indices.
        parts: of the contrast, by name.
        tokenizer: of the model; None for the synthetic one.
        notes: caveats for the report.
        path: dotted name of the list of blocks; None to detect it.
        others: the other contrasts of the same source, for vectors that have nothing to do with
            this one.
        unit: what is counted, see ``unit_of``.
    """

    model: "nn.Module"
    space: "ParamSpace"
    blocks: tuple[int, ...]
    parts: "dict[str, Contrast]"
    tokenizer: Any
    notes: tuple[str, ...]
    path: str | None = None
    others: "tuple[Contrast, ...]" = ()
    unit: str = "seed"

    @property
    def tested(self) -> int:
        """The number of prompts in the parts that are tested."""
        return sum(len(self.parts[name].items) for name in TESTED)


def unit_of(model: str) -> str:
    """What is counted: "seed", if each seed trains a network of its own, otherwise "prompt".

    frenet:gpt2 is trained once for all seeds, so that it is one network like a pretrained one.

    >>> unit_of("synthetic"), unit_of("frenet:gpt2"), unit_of("Qwen/Qwen2.5-0.5B")
    ('seed', 'prompt', 'prompt')
    """
    return "seed" if kind_of(model) == SYNTHETIC else "prompt"


def seeds_of(config: SteeringConfig) -> tuple[int, ...]:
    """The seeds that are measured: all, or the first one if prompts are the unit."""
    return config.seeds if unit_of(config.model) == "seed" else config.seeds[:1]


def cells(config: SteeringConfig) -> list[Cell]:
    """One cell per measured seed, space, contrast and way to push.

    Raises:
        ValueError: an unknown way to push.
    """
    if unknown := [push for push in config.pushes if push not in PUSHES]:
        raise UsageError(f"no push {unknown[0]!r}; there are {' and '.join(PUSHES)}")
    return [
        Cell.of(seed=seed, space=space, behaviour=name, push=push)
        for seed in seeds_of(config)
        for space in config.spaces
        for name in behaviours(config)
        for push in config.pushes
    ]


def behaviours(config: SteeringConfig) -> tuple[str, ...]:
    """Names of the contrasts that the configuration measures, without loading the model.

    Raises:
        ValueError: ``only`` names one that does not exist.
    """
    if config.model == SYNTHETIC:
        from frenet.network.synthetic.contrasts import ANSWERS

        if any(config.rows_read().values()):
            raise UsageError(
                "the synthetic network reads no files: leave --columns, --prompt, --completion and "
                "--chat out, or pass --model"
            )
        known = config.tasks or tuple(ANSWERS)
    else:
        from frenet.network.data.contrasts import answered_names

        if not config.tasks:
            raise UsageError(f"model {config.model} needs contrasts: pass --tasks FILE.jsonl")
        reading = reading_of(config.rows_read())
        known = tuple(n for source in config.tasks for n in answered_names(source, reading))
    if missing := [name for name in config.only if name not in known]:
        raise UsageError(f"no contrast {missing[0]!r}; there are {listed(known)}")
    return config.only or known[: config.max_tasks or None]


def prepare(config: SteeringConfig, cell: Cell) -> None:
    """Put the synthetic network of this cell into the cache."""
    if config.model == SYNTHETIC:
        _synthetic(config.width, config.train_steps, cell.seed)


def steered(config: SteeringConfig, cell: Cell) -> Steered:
    """Model, parameters and parts of the contrast of one cell.

    Raises:
        ValueError: an unknown space, a block that does not exist, or too few prompts.
        UnansweredError: one answer is the beginning of the other.
    """
    from frenet.network.adapters import attach_lora
    from frenet.network.blocks import residual_blocks
    from frenet.network.space import ParamSpace
    from frenet.network.synthetic.contrasts import ANSWERS, synthetic_contrast

    seed, space = cell.seed, cell["space"]
    if space not in ("full", "lora"):
        raise UsageError(f"unknown space {space!r}; there are full and lora")
    tokenizer, notes = None, []
    if config.model == SYNTHETIC:
        model = _synthetic(config.width, config.train_steps, seed)
        available = {
            name: synthetic_contrast(name, rows=_needed(config.rows), seed=seed)
            for name in (cell["behaviour"], *ANSWERS)
        }
    else:
        # Adapters change the model that they are put on.
        how = LoadingConfig(**{f.name: getattr(config, f.name) for f in fields(LoadingConfig)})
        loaded = (_loaded.__wrapped__ if space == "lora" else _loaded)(config.model, how)
        model, tokenizer = loaded.model, loaded.tokenizer
        notes += [f"{config.model}: weights measured in {loaded.dtype}", *loaded.notes]
        notes += _left_seeds(config)
        available = contrasts_of(config, loaded)
        notes += only_first(behaviours(config), available, "contrasts", CHOOSE)
    contrast = available[cell["behaviour"]]
    contrast.require_answers()
    if space == "lora":
        given = config.targets or None
        targets = ["q_proj", "v_proj"] if config.model == SYNTHETIC else given
        model = attach_lora(model, rank=config.rank, targets=targets, seed=seed)
        selected = ParamSpace.select(model)
    else:
        selected = ParamSpace.select(model, lambda _, p: p.is_floating_point())
        selected.require_float32(model, "a gradient step")
    parts = divided(contrast, rows=config.rows, seed=seed)
    count = len(residual_blocks(model, config.path or None)[1])
    if beyond := [block for block in config.blocks if not 0 <= block < count]:
        raise UsageError(f"there is no block {beyond[0]}; this model has blocks 0 to {count - 1}")
    sizes = ", ".join(f"{len(part.items)} {name}" for name, part in parts.items())
    notes += [*contrast.notes, *contrast.answer_notes]
    notes.append(f"{contrast.name}: {contrast.kind}; prompts: {sizes}")
    blocks = config.blocks or tuple(range(count))
    others = tuple(
        other for name, other in available.items() if name != contrast.name and _has_sides(other)
    )
    return Steered(
        model.eval(), selected, blocks, parts, tokenizer, tuple(notes), config.path or None,
        others, unit_of(config.model),
    )  # fmt: skip


def divided(contrast: "Contrast", *, rows: int, seed: int) -> "dict[str, Contrast]":
    """The parts of a contrast: one third chooses the block, the rest is tested in three parts.

    Args:
        contrast: the prompts.
        rows: most prompts in each tested part.
        seed: of the division.

    Raises:
        ValueError: there are too few prompts.
    """
    choose, *rest = contrast.divided(3, seed=seed, rows=_needed(rows) // 3)
    items = tuple(item for part in rest for item in part.items)
    tested = replace(contrast, items=items).divided(len(TESTED), seed=seed, rows=rows)
    return dict(zip(PARTS, (choose, *tested), strict=True))


def prompts_of_parts(config: SteeringConfig, prompts: int) -> tuple[int, int]:
    """How many prompts of a contrast choose the block, and how many each tested part has.

    >>> prompts_of_parts(SteeringConfig(rows=96), 600), prompts_of_parts(SteeringConfig(), 90)
    ((144, 96), (30, 20))
    """
    choose = min(prompts // 3, _needed(config.rows) // 3)
    return choose, min(2 * choose // len(TESTED), config.rows)


def shift_passes(config: SteeringConfig, tested: int) -> float:
    """Forward passes of one text that the shifts by the steps towards one answer take.

    Prompts of one class, half of a part, give the gradients of all groups; those of the other are
    shifted by each group's step, by a forward derivative that takes as long as three passes.
    """
    pushed = tested // 2
    return 3.0 * (pushed + min(config.groups, pushed) * min(config.shifted, pushed))


def _has_sides(contrast: "Contrast") -> bool:
    """Whether there are enough prompts for a contrast vector."""
    if contrast.kind == "statements":
        return min(len(contrast.of_class(label)) for label in (True, False)) >= 2
    return len(contrast.items) >= 2


def _needed(rows: int) -> int:
    """The prompts of a contrast whose tested parts have this many: half as many choose the block.

    >>> _needed(96)
    432
    """
    return 3 * -(-len(TESTED) * rows // 2)


def _left_seeds(config: SteeringConfig) -> list[str]:
    """A note on the seeds that are not measured."""
    left = [seed for seed in config.seeds if seed not in seeds_of(config)]
    if not left:
        return []
    named = f"seed{'s' if left[1:] else ''} {listed(map(str, left))}"
    return [
        f"{named}: not measured, since {config.model} is one network, whose prompts they would "
        "only deal anew; intervals are over prompts"
    ]


def contrasts_of(config: Any, loaded: "Loaded") -> "dict[str, Contrast]":
    """The contrasts of all files of a configuration, by name, for a model.

    Raises:
        ValueError: two files have one of the same name.
    """
    from frenet.network.data.contrasts import contrasts

    def read(source: str) -> "dict[str, Contrast]":
        return contrasts(
            source, loaded.tokenizer, max_length=loaded.longest(config.max_length),
            positive=config.positive or None, words=two_words(config.words), **config.rows_read(),
        )  # fmt: skip

    return of_sources(config.tasks, read)


def two_words(words: tuple[str, ...]) -> tuple[str, str] | None:
    """The two answers, or None for the labels.

    Raises:
        ValueError: not two different words.
    """
    if not words:
        return None
    if len(words) != 2 or words[0] == words[1]:
        raise UsageError(f"words={' '.join(words)}; pass two different ones, the positive first")
    return words[0], words[1]


@functools.lru_cache(maxsize=1)
def _loaded(model: str, how: LoadingConfig) -> Any:
    """The model, cached for the next cell: a large one takes a minute to load."""
    return how.load(model)


def _synthetic(width: int, steps: int, seed: int) -> "nn.Module":
    from frenet.network.synthetic.model import SyntheticConfig, trained_synthetic

    return trained_synthetic(SyntheticConfig(width=width, steps=steps), seed=seed)


SUBJECT_KEYS = (
    columns.SEED,
    columns.SPACE,
    Column("behaviour", "", "contrast", "key"),
)
CELL_KEYS = (
    *SUBJECT_KEYS,
    Column("push", "", "own: right answers of the class; flipped: wrong ones of the other", "key"),
)
UNIT = Column("unit", "", "what intervals count: seeds, or the prompts of one network", "key")
PROMPTS = Column("prompts", "", "prompts in push, moved and report", "key")
LOWER = "lower end of the 95% interval of the separation over prompts; of choices, of the accuracy"
# How reliable both vectors are.
CEILINGS = (
    Column(
        "ceiling",
        "",
        "r, cosine of the contrast vectors of two halves; of wholes about 2 r / (1 + r)",
        "reference",
    ),
    Column("ceiling_low", "", "lower end of its 95% interval over prompts", "reference"),
    Column("ceiling_high", "", "its upper end", "reference"),
    Column("ceiling_shift", "", "the same of the gradient step's shift", "reference"),
    Column("ceiling_shift_low", "", "its lower end", "reference"),
    Column("ceiling_shift_high", "", "its upper end", "reference"),
    Column(
        "reach",
        "",
        "sqrt(R Q), the most that a cosine of the two can be; R = 2 r / (1 + r) of each",
        "reference",
    ),
)
BEHAVIOUR_TABLES = {
    "behaviour": (
        *SUBJECT_KEYS,
        Column("kind", "", "statements, or choices between two letters", "key"),
        Column("prompts", "", "prompts in the reported part", "key"),
        Column("accuracy", "fraction", "prompts answered as labelled", "measure", "chance"),
        Column(
            "separation", "fraction", "pairs of prompts in the right order", "measure", "chance"
        ),
        Column("chance", "fraction", "of guessing", "reference"),
        Column("known_low", "fraction", LOWER, "reference"),
        Column("known_high", "fraction", "its upper end", "reference"),
        UNIT,
    ),
    "notes": (
        *SUBJECT_KEYS,
        Column("note", "", "caveats about model and prompts", "key"),
    ),
}


def left_out(cell: Cell, error: "UnansweredError") -> list[Row]:
    """The note in place of rows, from the cells of 'own'."""
    if cell["push"] != PUSHES[0]:
        return []
    keys: Row = {key: cell[key] for key in ("seed", "space", "behaviour")}
    remedy = "pass two other words as --words to frenet run"
    return [{"table": "notes", **keys, "note": f"{error}; {remedy}"}]


class Described(NamedTuple):
    """What comes before the measurements of a cell.

    Attributes:
        rows: of the tables behaviour and notes.
        measured: whether this contrast is measured with this way to push.
    """

    rows: list[Row]
    measured: bool


def describe(config: SteeringConfig, subject: Steered, cell: Cell) -> Described:
    """Does the model know the labels at all?

    Only the cells of 'own' have rows, since they do not depend on the push. Choices have no class
    to flip.
    """
    part = subject.parts["report"]
    own = cell["push"] == PUSHES[0]
    if not own and (part.kind == "choices" or not config.known_only):
        return Described([], measured=part.kind != "choices")
    row = knowledge(subject.model, part)
    state = known_state(row)
    measured = state == KNOWS or not config.known_only
    if not own:
        return Described([], measured)
    keys: Row = {key: cell[key] for key in ("seed", "space", "behaviour")}
    notes = [*subject.notes]
    if state != KNOWS:
        notes.append(f"{part.name}: this model {state} ({known_text(row)})")
    if len(part.items) < FEW:
        notes.append(
            f"{part.name}: results are from {len(part.items)} prompts; intervals over fewer than "
            f"{FEW} are too narrow"
        )
    rows = [
        {"table": "behaviour", **keys, **row, "unit": subject.unit},
        *({"table": "notes", **keys, "note": note} for note in notes),
    ]
    return Described(rows, measured)
