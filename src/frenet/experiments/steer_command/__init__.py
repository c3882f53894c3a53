"""`frenet steer recommend`: at which block, and how strongly, should a steering vector be added?

The command runs this cell like those of an experiment; it needs a contrast of the user, and so has
no presets.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frenet._errors import UsageError
from frenet._notebook import listed
from frenet.experiments.experiment import Cell, Experiment, Later, Study
from frenet.experiments.setup.commands import command_line
from frenet.experiments.setup.reading import LoadingConfig, ReadingConfig, reading_of
from frenet.experiments.steer_command.answers import sentences
from frenet.experiments.steer_command.figures import FIGURES, TABLES


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How block and dose are chosen."""

    max_cost: float = 0.1
    """Largest cost on neutral text with the vector at every token: mean KL divergence from the
    model without it, in nats per token."""
    rows: int = 48
    """Most prompts in each of three parts: one makes the vector, one chooses, one tests."""
    doses: tuple[float, ...] = (0.025, 0.035, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.8, 1.1)
    """Lengths of the added vector to try, in units of the stream's norm after the block."""
    blocks: tuple[int, ...] = ()
    """0-based blocks to try. Empty: some that are evenly spaced, then the neighbours of the best
    one."""
    draws: int = 16
    """Null vectors of each kind, label-shuffled and random with the stream's covariance; each is
    tried in both directions."""
    seed: int = 0
    """Seed of the division of the prompts, and of the null vectors."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings, ReadingConfig, LoadingConfig):
    """A model and a contrast."""

    model: str
    """A hub id, a folder in Hugging Face format or of a PEFT adapter, or a GGUF file."""
    tasks: tuple[str, ...]
    """Files or data set names: labelled statements, A/B questions. The vectors of their other
    contrasts are nulls."""
    only: str = ""
    """Name of the contrast, if the files contain several."""
    positive: str = ""
    """Label of the positive side. Empty: yes, true, positive or 1, else the first label."""
    words: tuple[str, ...] = ()
    """Answers of the positive and of the negative side. Empty: the labels."""
    path: str = ""
    """Dotted name of the list of blocks, if frenet does not find it."""


def cells(config: Config) -> list[Cell]:
    """One cell, of the contrast.

    Raises:
        ValueError: settings are out of range, the files hold pairs of texts, no contrast of this
            name, or several and none is named.
    """
    from frenet.network.data.contrasts import answered_names

    require_settings(config)
    reading = reading_of(config.rows_read())
    names = [name for source in config.tasks for name in answered_names(source, reading)]
    if config.only and config.only not in names:
        raise UsageError(f"no contrast {config.only!r}; there are {listed(names)}")
    if not config.only and len(names) != 1:
        raise UsageError(f"a vector has one contrast; pass --only with one of {listed(names)}")
    return [Cell.of(contrast=config.only or names[0])]


def require_settings(settings: Settings) -> None:
    """Raise ValueError if a setting is out of range."""
    if not 0 < settings.max_cost < math.inf:
        raise UsageError(f"max_cost={settings.max_cost} leaves no dose; pass a number above 0")
    if not settings.doses or not all(0 < dose < math.inf for dose in settings.doses):
        raise UsageError(
            f"doses={settings.doses}; pass numbers above 0 (for the other direction name the other "
            "label as --positive)"
        )
    for name, least in (("rows", 4), ("draws", 2)):
        if (value := getattr(settings, name)) < least:
            raise UsageError(f"{name}={value}; pass at least {least}")


def command(config: Mapping[str, Any]) -> str:
    """The command that repeats a run."""
    return command_line("frenet steer recommend", Config(model="", tasks=()), config)


STUDY = Study(
    name="steer-recommend",
    question="At which block, and how strongly, should a steering vector be added?",
    claims=(),
    config=Config,
    tables=TABLES,
    figures=FIGURES,
    command=command,
    answers=sentences,
)
# The same with its cell, for the engine that fills run folders.
RECOMMEND = Experiment.of_command(
    STUDY,
    cells=cells,
    run=Later("frenet.experiments.steer_command.measure:run"),
    prepare=Later("frenet.experiments.steer_command.measure:prepare"),
)
