"""`frenet pair`: do two directions in the weights compose, and how should they be merged?

The command runs these cells like those of an experiment; it needs two files of the user, and so has
no presets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frenet._errors import UsageError
from frenet.experiments.experiment import Cell, Experiment, Later, Study
from frenet.experiments.pair_command.answers import sentences
from frenet.experiments.pair_command.figures import FIGURES, TABLES
from frenet.experiments.setup.commands import command_line
from frenet.experiments.setup.reading import LoadingConfig, TaskReadingConfig

# What is measured, in this order; each is a cell of its own, so that a stopped run resumes there.
LOSSES, SCALE, BLOCKS, ORDER, MERGE = PARTS = ("losses", "scale", "blocks", "order", "merge")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a pair is measured."""

    select_size: int = 48
    """Examples of each task on which coefficients and blocks are chosen; all of them if there are
    fewer."""
    test_size: int = 64
    """Held-out examples of each task for every reported number; all of them if there are fewer."""
    eps: float = 0.2
    """Relative deviation that ends a radius: of a change from its slope for one direction, of the
    sum from the two changes alone for both."""
    scales: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    """Coefficients of each direction that are tried; all pairs of them."""
    densities: tuple[float, ...] = (0.2, 0.5)
    """Shares of the entries that TIES and DARE keep, for two adapters. Empty: neither."""
    by_block: bool = True
    """Whether to search coefficients for single blocks, too."""
    batch_size: int = 32
    """Examples of each task in the gradients that say whether the order of training matters. 0:
    leave that out."""
    seed: int = 0
    """Seed of examples, random directions, pruning and resamples."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings, TaskReadingConfig, LoadingConfig):
    """Two directions in the weights of a model, and the task of each."""

    model: str
    """A hub id, a folder in Hugging Face format, or a GGUF file: the base of both directions."""
    tasks: tuple[str, ...]
    """Task files or data set names. They hold the task of each direction."""
    only: tuple[str, ...] = ()
    """Names of the two tasks, that of A first. Empty: if the name of each direction contains that
    of one task, it belongs to it; otherwise the tasks belong to A and B in the order of the
    files."""
    vectors: tuple[str, ...] = ()
    """Both directions: adapters, checkpoints or saved task vectors."""


def cells(config: Config) -> list[Cell]:
    """One cell for each part.

    Raises:
        ValueError: settings are out of range, or a file is no direction in weights.
        FileNotFoundError: a direction that does not exist.
    """
    from frenet.methods.vector_files import check_sources

    require_settings(config)
    if len(config.vectors) != 2:
        raise UsageError(f"{len(config.vectors)} directions; pass two: frenet pair A B")
    if config.only and len(config.only) != 2:
        raise UsageError(f"--only names {len(config.only)} tasks; pass two, that of A first")
    if config.dtype != "float32":
        raise UsageError(
            f"both directions are lines in the weights, and {config.dtype} rounds their small "
            "steps away; pass --dtype float32"
        )
    check_sources(config.vectors, base=config.model)
    parts = [part for part in PARTS if part != ORDER or config.batch_size]
    return [Cell.of(part=part) for part in parts]


def require_settings(settings: Settings) -> None:
    """Raise ValueError if a setting is out of range."""
    for name, least in (("select_size", 2), ("test_size", 2), ("batch_size", 0)):
        if (value := getattr(settings, name)) < least:
            raise UsageError(f"{name}={value}; pass at least {least}")
    if not 0 < settings.eps < 1:
        raise UsageError(f"eps={settings.eps}; pass a number between 0 and 1")
    if len(settings.scales) < 2 or min(settings.scales) < 0 or 1.0 not in settings.scales:
        raise UsageError(
            f"scales={settings.scales}; pass at least two, none below 0, and 1 among them"
        )
    if any(not 0 < density < 1 for density in settings.densities):
        raise UsageError(f"densities={settings.densities}; pass numbers between 0 and 1")


def command(config: Mapping[str, Any]) -> str:
    """The command that repeats a run."""
    return command_line("frenet pair", Config(model="", tasks=()), config, first="vectors")


STUDY = Study(
    name="pair",
    question="Do two directions in the weights compose, and how should they be merged?",
    claims=(),
    config=Config,
    tables=TABLES,
    figures=FIGURES,
    command=command,
    answers=sentences,
)
# The same with its cells, for the engine that fills run folders.
PAIR = Experiment.of_command(
    STUDY,
    cells=cells,
    run=Later("frenet.experiments.pair_command.measure:run"),
    prepare=Later("frenet.experiments.pair_command.measure:prepare"),
)
