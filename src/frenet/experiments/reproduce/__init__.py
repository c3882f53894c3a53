"""The whole argument for several networks: which experiments, with which settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from frenet._errors import UsageError
from frenet._notebook import listed
from frenet.experiments.experiment import MADE, SYNTHETIC, Experiment, kind_of
from frenet.experiments.setup.contrasts import SteeringConfig
from frenet.experiments.setup.reading import (
    ContrastConfig,
    LoadingConfig,
    TaskReadingConfig,
    reading_of,
)


@dataclass(frozen=True)
class Reproduction(TaskReadingConfig, LoadingConfig):
    """Every experiment on every network."""

    networks: tuple[str, ...] = (SYNTHETIC, MADE)
    """synthetic, frenet:gpt2, hub ids, folders, GGUF files."""
    tasks: tuple[str, ...] = ("frenet:words",)
    """Task files or data set names for the language models."""
    statements: tuple[str, ...] = ("frenet:comparisons",)
    """Labelled statements or A/B questions for the language models."""
    statement_columns: tuple[str, ...] = ()
    """Roles of the columns of the statements, written as --columns is for tasks."""
    statement_prompt: str = ""
    """Prompt of the statements, written as --prompt is for tasks."""
    only: tuple[str, ...] = ()
    """Names of the tasks and statements to measure, if the files hold more. Empty: as many as the
    preset takes."""
    experiments: tuple[str, ...] = ()
    """Run only these experiments. Empty: all; with demo and smoke, those of frenet demo."""
    seeds: tuple[int, ...] = ()
    """Seeds of all experiments. Empty: those of the preset."""
    targets: tuple[str, ...] = ()
    """Modules that get a LoRA adapter, by the last parts of their names. Empty: PEFT's choice for
    this family of models."""


# Settings that all experiments have under the same name.
SHARED = ("targets", "dtype", "device", "untie", "max_length")
PRESETS = {
    "smoke": Reproduction(),
    "demo": Reproduction(),
    "cpu": Reproduction(),
    "gpu": Reproduction(
        networks=(
            SYNTHETIC, MADE, "distilbert/distilgpt2", "openai-community/gpt2", "Qwen/Qwen2.5-0.5B",
            "Qwen/Qwen2.5-1.5B",
        ),
    ),
}  # fmt: skip


class Part(NamedTuple):
    """One experiment on one network."""

    network: str
    experiment: Experiment
    config: Any


def parts(reproduction: Reproduction, preset: str) -> list[Part]:
    """The experiments to run, network by network.

    Raises:
        ValueError: no networks, one twice, or an unknown experiment.
    """
    from frenet.experiments import EXPERIMENTS

    if not reproduction.networks:
        raise UsageError("there are no networks; pass --networks synthetic, or a model")
    if twice := [n for n in reproduction.networks if reproduction.networks.count(n) > 1]:
        raise UsageError(f"--networks names {twice[0]} twice")
    if unknown := [name for name in reproduction.experiments if name not in EXPERIMENTS]:
        raise UsageError(f"no experiment {unknown[0]!r}; there are {', '.join(EXPERIMENTS)}")
    _refuse_unknown(reproduction)
    whole = preset in ("cpu", "gpu")
    kinds = [kind_of(network) for network in reproduction.networks]
    # Unless it is named, an experiment without this preset is left out.
    names = reproduction.experiments or [
        e.name
        for e in EXPERIMENTS.values()
        if (whole or e.in_demo) and all(e.has_preset(preset, kind) for kind in kinds)
    ]
    if not names:
        raise UsageError(f"no experiment has a preset {preset!r} for these networks")
    # Those that decide claims first.
    chosen = sorted((EXPERIMENTS[name] for name in names), key=lambda e: not e.claims)
    return [
        Part(network, experiment, settings(experiment, network, reproduction, preset=preset))
        for network in reproduction.networks
        for experiment in chosen
    ]


def settings(
    experiment: Experiment, network: str, reproduction: Reproduction, *, preset: str
) -> Any:
    """The configuration of one experiment on one network."""
    kind = kind_of(network)
    base = experiment.settings(preset, kind)
    if reproduction.seeds:
        base = replace(base, seeds=reproduction.seeds)
    if kind == SYNTHETIC:
        return replace(base, **experiment.reproduced.get(preset, {}))
    steering = isinstance(base, SteeringConfig)
    given: dict[str, Any] = {
        "model": network,
        "tasks": reproduction.statements if steering else reproduction.tasks,
        "only": _only(reproduction, steering=steering),
        "chat": reproduction.chat,
        **{name: getattr(reproduction, name) for name in SHARED},
        # The model that frenet trains brings its tokenizer.
        "tokenizer": reproduction.tokenizer if kind != MADE else "",
    }
    own = {"columns": reproduction.columns, "prompt": reproduction.prompt}
    stated = {"columns": reproduction.statement_columns, "prompt": reproduction.statement_prompt}
    if steering:
        given["known_only"] = True
    given |= stated if steering else own | {
        "completion": reproduction.completion, "words": reproduction.words,
    }  # fmt: skip
    if isinstance(base, ContrastConfig) and reproduction.statements:
        given["contrasts"] = reproduction.statements[0]
        given |= {f"contrast_{name}": value for name, value in stated.items()}
    return replace(base, **given)


def _only(reproduction: Reproduction, *, steering: bool) -> tuple[str, ...]:
    """The requested names that this kind of source has."""
    there = _names(reproduction, steering=steering) if reproduction.only else ()
    return tuple(name for name in reproduction.only if name in there)


def _names(reproduction: Reproduction, *, steering: bool) -> list[str]:
    """Names of all statements, or of all tasks, of the sources."""
    from frenet.network.data.contrasts import answered_names
    from frenet.network.data.tables import Reading
    from frenet.network.data.text import task_names

    if not steering:
        reading = reading_of(reproduction.rows_read())
        return [name for source in reproduction.tasks for name in task_names(source, reading)]
    reading = Reading.of(
        reproduction.statement_columns, prompt=reproduction.statement_prompt or None
    )
    return [name for source in reproduction.statements for name in answered_names(source, reading)]


def _refuse_unknown(reproduction: Reproduction) -> None:
    """Raise ValueError if ``only`` names something that no source has."""
    if not reproduction.only:
        return
    known = _names(reproduction, steering=False) + _names(reproduction, steering=True)
    if missing := [name for name in reproduction.only if name not in known]:
        raise UsageError(f"no task or statements {missing[0]!r}; there are {listed(known)}")


def folder_names(all_parts: Sequence[Part]) -> list[str]:
    """Names of the parts' folders: network and experiment; a whole path if its end is ambiguous."""
    networks = list(dict.fromkeys(part.network for part in all_parts))
    short = {network: short_name(network) for network in networks}
    taken = list(short.values())
    for network, name in short.items():
        if taken.count(name) > 1:
            short[network] = _safe(network)
    return [f"{short[part.network]}-{part.experiment.name}" for part in all_parts]


def short_name(network: str) -> str:
    """The last part of a model's name or path, safe in a file system.

    >>> short_name("Qwen/Qwen2.5-0.5B"), short_name("frenet:gpt2"), short_name("a/My Model.gguf")
    ('Qwen2.5-0.5B', 'gpt2', 'My-Model')
    """
    last = network.rstrip("/").replace("\\", "/").rpartition("/")[2].rpartition(":")[2]
    return _safe(last.removesuffix(".gguf"))


def _safe(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text).strip("-.")


def by_network(all_parts: Sequence[Part]) -> Mapping[str, list[Part]]:
    """The parts of each network, in order."""
    return {
        network: [part for part in all_parts if part.network == network]
        for network in dict.fromkeys(part.network for part in all_parts)
    }
