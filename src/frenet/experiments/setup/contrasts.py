"""What the steering experiments measure: a model, its blocks, and the parts of a contrast."""

import functools
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from frenet._errors import UsageError
from frenet._notebook import listed
from frenet.experiments.experiment import SYNTHETIC, Cell, Column, Row, number
from frenet.experiments.setup import columns
from frenet.experiments.setup.networks import CHOOSE, only_first
from frenet.experiments.setup.reading import LoadingConfig, ReadingConfig, of_sources, reading_of

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from frenet.network.checkpoints.load import Loaded
    from frenet.network.data.contrast import Contrast, UnansweredError
    from frenet.network.space import ParamSpace

# Disjoint parts of a contrast: the first gives gradients, the second prompts to shift, the third
# chooses the block, and the last gives all reported numbers.
PARTS = ("push", "moved", "choose", "report")
PUSHES = ("own", "flipped")
# Above this p-value a model cannot tell the two classes apart.
KNOWN = 0.05
ONE_MODEL = (
    "seeds deal the same prompts anew: intervals over them say how much hangs on the choice of "
    "prompts, not on the model"
)


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
    """Each seed splits the prompts anew into the parts, and trains a new synthetic network."""
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
    """Most prompts in each of the four parts: push, moved, choose, report."""
    blocks: tuple[int, ...] = ()
    """Blocks to measure, counted from 0. Empty: all."""
    max_length: int = 256
    """Longest prompt in tokens; longer ones lose their beginning."""

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
    """

    model: "nn.Module"
    space: "ParamSpace"
    blocks: tuple[int, ...]
    parts: "dict[str, Contrast]"
    tokenizer: Any
    notes: tuple[str, ...]
    path: str | None = None


def cells(config: SteeringConfig) -> list[Cell]:
    """One cell per seed, space, contrast and way to push.

    Raises:
        ValueError: an unknown way to push.
    """
    if unknown := [push for push in config.pushes if push not in PUSHES]:
        raise UsageError(f"no push {unknown[0]!r}; there are {' and '.join(PUSHES)}")
    return [
        Cell.of(seed=seed, space=space, behaviour=name, push=push)
        for seed in config.seeds
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
    from frenet.network.synthetic.contrasts import synthetic_contrast

    seed, space = cell.seed, cell["space"]
    if space not in ("full", "lora"):
        raise UsageError(f"unknown space {space!r}; there are full and lora")
    tokenizer, notes = None, []
    if config.model == SYNTHETIC:
        model = _synthetic(config.width, config.train_steps, seed)
        rows = len(PARTS) * config.rows
        contrast = synthetic_contrast(cell["behaviour"], rows=rows, seed=seed)
    else:
        # Adapters change the model that they are put on.
        how = LoadingConfig(**{f.name: getattr(config, f.name) for f in fields(LoadingConfig)})
        loaded = (_loaded.__wrapped__ if space == "lora" else _loaded)(config.model, how)
        model, tokenizer = loaded.model, loaded.tokenizer
        notes += [f"{config.model}: weights measured in {loaded.dtype}", *loaded.notes, ONE_MODEL]
        available = contrasts_of(config, loaded)
        contrast = available[cell["behaviour"]]
        notes += only_first(behaviours(config), available, "contrasts", CHOOSE)
    contrast.require_answers()
    if space == "lora":
        given = config.targets or None
        targets = ["q_proj", "v_proj"] if config.model == SYNTHETIC else given
        model = attach_lora(model, rank=config.rank, targets=targets, seed=seed)
        selected = ParamSpace.select(model)
    else:
        selected = ParamSpace.select(model, lambda _, p: p.is_floating_point())
        selected.require_float32(model, "a gradient step")
    parts = dict(zip(PARTS, contrast.divided(len(PARTS), seed=seed, rows=config.rows), strict=True))
    count = len(residual_blocks(model, config.path or None)[1])
    if beyond := [block for block in config.blocks if not 0 <= block < count]:
        raise UsageError(f"there is no block {beyond[0]}; this model has blocks 0 to {count - 1}")
    sizes = ", ".join(f"{len(part.items)} {name}" for name, part in parts.items())
    notes += [*contrast.notes, *contrast.answer_notes]
    notes.append(f"{contrast.name}: {contrast.kind}; prompts: {sizes}")
    blocks = config.blocks or tuple(range(count))
    path = config.path or None
    return Steered(model.eval(), selected, blocks, parts, tokenizer, tuple(notes), path)


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
        Column("p_known", "", "p-value of no difference", "measure", "p_limit"),
        Column("p_limit", "", "above it labels mean nothing to this model", "reference"),
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


def skipped(subject: Steered, cell: Cell) -> bool:
    """Whether this way to push does not apply: choices have no class to flip."""
    return cell["push"] == "flipped" and subject.parts["push"].kind == "choices"


def describe(subject: Steered, cell: Cell, differences: "np.ndarray | None" = None) -> list[Row]:
    """Rows of the tables behaviour and notes: does the model know the labels at all?

    Only the cells of 'own' give them, since they do not depend on the push. ``differences`` are
    the log-odds of the answers to the reported prompts, if already computed.
    """
    import numpy as np
    from scipy import stats

    from frenet.methods.steering_effect import answer_differences, prompted

    if cell["push"] != PUSHES[0]:
        return []
    part = subject.parts["report"]
    keys: Row = {key: cell[key] for key in ("seed", "space", "behaviour")}
    if differences is None:
        differences = answer_differences(subject.model, prompted(part.items)).double().numpy()
    labels = np.array([item.label is not False for item in part.items])
    right = (differences > 0) == labels
    row: Row = {
        "table": "behaviour", **keys, "kind": part.kind, "prompts": len(labels), "chance": 0.5,
        "accuracy": float(right.mean()), "p_limit": KNOWN,
    }  # fmt: skip
    if part.kind == "statements":
        sides = differences[labels], differences[~labels]
        ranks = stats.mannwhitneyu(*sides, alternative="two-sided")
        row["separation"] = float(ranks.statistic) / (len(sides[0]) * len(sides[1]))
        row["p_known"] = float(ranks.pvalue)
    else:
        row["p_known"] = float(stats.binomtest(int(right.sum()), len(right)).pvalue)
    notes = [*subject.notes]
    if number(row, "p_known") > KNOWN:
        notes.append(
            f"{part.name}: this model cannot tell the two sides apart ({row['accuracy']:.2f} "
            f"right, p = {row['p_known']:.2f}), so neither labels nor cosines mean anything here"
        )
    return [row, *({"table": "notes", **keys, "note": note} for note in notes)]
