"""Comparing config.json with the size of the stored weights before the model is built."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks

from frenet._errors import UsageError

# No format stores more weights per byte, however quantised.
PER_BYTE = 8
LAYERS = "num_hidden_layers"


class _TooMuchError(Exception):
    """The parameters created so far are more than can have been stored."""


def require_stored(folder: Path, stored: int) -> int:
    """Number of parameters that the configuration of a folder promises.

    The model is created without memory for its weights, and only until it has more parameters than
    can have been stored: otherwise a configuration with 10^7 layers and a megabyte of weights would
    take all the memory, and minutes.

    Args:
        folder: a folder with config.json and weights.
        stored: bytes of the weights.

    Returns:
        The number of parameters; 0 if only loading will show it.

    Raises:
        ValueError: more parameters, or layers, than can have been stored.
    """
    limit = PER_BYTE * stored
    layers = max(_layers(folder), default=0)
    if layers > limit:
        raise UsageError(_refusal(folder, f"{layers:,} layers", stored))
    model = bare_model(folder, stored)
    return sum(parameter.numel() for parameter in model.parameters()) if model else 0


def tied_names(folder: Path, stored: int) -> dict[str, str]:
    """Names of tied weights, with the first name of each, as the configuration of a folder says.

    Args:
        folder: a folder with config.json and weights.
        stored: bytes of the weights.

    Raises:
        ValueError: as ``require_stored``.
    """
    if (model := bare_model(folder, stored)) is None:
        return {}
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    first_names = {name: first.setdefault(id(parameter), name) for name, parameter in named}
    return {name: one for name, one in first_names.items() if name != one}


def bare_model(folder: Path, stored: int) -> Any:
    """The model of a configuration, on the meta device; None if it cannot be created.

    Args:
        folder: a folder with config.json and weights.
        stored: bytes of the weights.

    Raises:
        ValueError: more parameters than can have been stored.
    """
    from transformers import AutoConfig

    options = {"trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, **options)
        with torch.random.fork_rng(devices=[]), torch.device("meta"), _counted(PER_BYTE * stored):
            return language_class(config).from_config(config, **options)
    except _TooMuchError as error:
        what = f"a model of at least {error.args[0]:,} parameters"
        raise UsageError(_refusal(folder, what, stored)) from None
    # The loader reports everything else.
    except Exception:
        return None


def language_class(config: Any) -> Any:
    """The class of transformers that builds the model of a configuration, with logits of text.

    Models that also read images or sound have other classes; the configuration names the class
    that was saved.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    saved = set(getattr(config, "architectures", None) or ())
    autos = [
        auto
        for auto in (AutoModelForCausalLM, AutoModelForImageTextToText)
        if type(config) in auto._model_mapping
    ]
    for auto in autos:
        mapped = auto._model_mapping[type(config)]
        kinds = mapped if isinstance(mapped, tuple) else (mapped,)
        if saved & {kind.__name__ for kind in kinds}:
            return auto
    return autos[0] if autos else AutoModelForCausalLM


def _refusal(folder: Path, what: str, stored: int) -> str:
    return (
        f"{folder / 'config.json'} promises {what}, but the weights in this folder have "
        f"{stored:,} bytes; the configuration belongs to another model, or weights are missing"
    )


def _layers(folder: Path) -> Iterator[int]:
    """Every number of layers in config.json, by its name in transformers or in the model class."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        todo: list[Any] = [json.loads((folder / "config.json").read_text(encoding="utf-8"))]
    except (OSError, ValueError, RecursionError):
        return
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            kind = part.get("model_type")
            known = (
                CONFIG_MAPPING[kind] if isinstance(kind, str) and kind in CONFIG_MAPPING else None
            )
            alias = getattr(known, "attribute_map", {}).get(LAYERS, LAYERS)
            yield from (part[n] for n in (LAYERS, alias) if isinstance(part.get(n), int))
            todo += part.values()
        elif isinstance(part, list):
            todo += part


@contextmanager
def _counted(limit: int) -> Iterator[None]:
    """Stop the creation of a model when its parameters exceed ``limit`` entries in total."""
    made = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal made
        made += parameter.numel() if parameter is not None else 0
        if made > limit:
            raise _TooMuchError(made)

    handle = hooks.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
