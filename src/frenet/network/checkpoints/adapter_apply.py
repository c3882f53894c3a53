"""Adapters put on their base by PEFT: every stored tensor in its place, or nothing."""

import copy
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.network.adapters import linear_modules, quiet_peft
from frenet.network.checkpoints.adapter_files import PREFIX, adapter_tensors, configuration
from frenet.network.checkpoints.folders import some
from frenet.network.memory import require_memory

_SHOWN, _PREFIX = 4, ("base_model", "model")
MERGE = (
    "merge it into its base (merge_and_unload of peft), save that, and take the difference of the "
    "checkpoints"
)
# What PEFT and the layers of a model raise where an adapter does not go on them.
_FAILURES = (
    ValueError, TypeError, RuntimeError, LookupError, AttributeError, NotImplementedError,
    ImportError, AssertionError,
)  # fmt: skip


def apply_adapter(model: nn.Module, folder: Path) -> tuple[Any, list[str]]:
    """PEFT's wrapper around ``model`` with the adapter of ``folder``, trainable.

    Args:
        model: the base, which the wrapper goes into.
        folder: of the adapter.

    Returns:
        The wrapper, and what to say about the stored names.

    Raises:
        ValueError: no LoRA adapter; one that PEFT cannot put on this model; tensors that are not
            exactly those that it has there, which the message lists with names or shapes.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    tensors = adapter_tensors(folder)
    before = dict(model.named_parameters(remove_duplicate=False))
    wrapped = _wrapped(model, folder)
    own = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    places = _places(list(tensors), list(shapes))
    _require_fit(folder, tensors, shapes, places, before)
    chosen = {name: tensors[stored] for stored, name in places.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_peft_model_state_dict(wrapped, chosen)
        found = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    for name, value in found.items():
        if not torch.equal(value.detach().cpu(), chosen[name].to(value.dtype)):
            raise UsageError(f"peft did not put {name} of the adapter {folder} on the model")
    renamed = [(stored, name) for stored, name in places.items() if stored != name]
    notes = [f"adapter {folder}: {len(renamed)} tensors are stored under other names, as "
             f"{renamed[0][0]} for {renamed[0][1]}"] if renamed else []  # fmt: skip
    return wrapped, notes


def _wrapped(model: nn.Module, folder: Path) -> Any:
    """PEFT's wrapper as the configuration has it, before anything is loaded."""
    from peft import LoraConfig, PeftConfig, get_peft_model
    from peft.utils.error import NoMatchingPeftModuleError

    settings = configuration(folder)
    if settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type")
        told = f"of kind {kind}" if kind else f"no adapter of peft ({some(sorted(settings))})"
        raise UsageError(f"{folder} is {told}; only LORA adapters are loaded")
    known = {field.name for field in fields(LoraConfig)}
    if strange := [key for key, value in settings.items() if key not in known and value]:
        raise UsageError(
            f"the adapter {folder} has settings that this version of peft does not know "
            f"({some(strange)}), and may change what it does; install the version that wrote it "
            f"({settings.get('peft_version') or 'a newer one'})"
        )
    try:
        # The entries that PEFT draws are replaced by the stored ones.
        with torch.random.fork_rng(devices=[]), quiet_peft(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(folder)
            config.inference_mode = False
            if not hasattr(model, "prepare_inputs_for_generation"):
                config.task_type = None  # the wrapper for language models generates
            return get_peft_model(model, config)
    except NoMatchingPeftModuleError:
        raise UsageError(
            f"the adapter {folder} belongs to another base: it adapts "
            f"{settings.get('target_modules')} and the model has "
            f"{', '.join(linear_modules(model))}"
        ) from None
    except _FAILURES as error:
        why = " ".join(str(error).split())[:300]
        raise UsageError(
            f"peft cannot put the adapter {folder} on this model: {type(error).__name__}: {why}; "
            f"{MERGE}"
        ) from error


def _places(stored: list[str], own: list[str]) -> dict[str, str]:
    """By stored name, the name on the model: the same, or the only one that it can stand for.

    Other tools put parts of their own into a name, such as the adapter's or a wrapper's, begin it
    further down, or have its parts in another order. Parts that no name on the model has are passed
    over, if the others are a whole name.
    """
    known = {part for name in own for part in name.split(".")}
    keys: dict[tuple[str, ...], set[str]] = {}
    for name in own:
        for key in _keys(tuple(name.split("."))):
            keys.setdefault(key, set()).add(name)
    taken = set(stored) & set(own)
    places = {name: name for name in stored if name in taken}
    for name in stored:
        parts = tuple(part for part in name.split(".") if part in known)
        dropped = len(parts) < name.count(".") + 1
        plain = parts[len(_PREFIX) :] if parts[: len(_PREFIX)] == _PREFIX else parts
        tried = [("whole", *plain), ("sorted", *sorted(plain))] + ([] if dropped else [plain])
        for key in tried if name not in places else ():
            if len(found := keys.get(key, set()) - taken) == 1:
                places[name] = found.pop()
                taken.add(places[name])
                break
    return places


def _keys(parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """What a name on the model may be found by."""
    plain = parts[len(_PREFIX) :]
    yield from (("whole", *plain), ("sorted", *sorted(plain)))
    yield from (plain[i:] for i in range(len(plain)))


def _require_fit(
    folder: Path,
    tensors: Mapping[str, Tensor],
    own: Mapping[str, tuple[int, ...]],
    places: Mapping[str, str],
    base: Mapping[str, Tensor],
) -> None:
    """Raise ValueError unless every tensor has its place, and every place a tensor of its shape."""
    for stored, name in places.items():
        shape = tuple(tensors[stored].shape)
        if shape != own[name]:
            raise UsageError(
                f"the adapter {folder} belongs to another base, or has the configuration of "
                f"another adapter: {stored} has shape {shape} in the file and {own[name]} on the "
                "model"
            )
    # PEFT also saves embeddings and heads that have an adapter, or that it takes for resized.
    extra = [name for name in tensors if name not in places and not _is_own(tensors, name, base)]
    for name in extra:
        held = base.get(_of_base(name))
        if held is not None and held.shape != tensors[name].shape:
            raise UsageError(
                f"the adapter {folder} was trained on a base with resized embeddings: {name} has "
                f"shape {tuple(tensors[name].shape)} in the file and {tuple(held.shape)} on the "
                f"model; resize the base (resize_token_embeddings({len(tensors[name])})), put the "
                "adapter on it, merge it, and save that with the adapter's tokenizer"
            )
    missing = sorted(own.keys() - set(places.values()))
    if extra or missing:
        raise UsageError(
            f"the adapter {folder} is not whole, or belongs to another base: only the file has "
            f"{some(sorted(extra), _SHOWN)}; only the model has {some(missing, _SHOWN)}; nothing "
            "is applied in part"
        )


def _is_own(tensors: Mapping[str, Tensor], name: str, base: Mapping[str, Tensor]) -> bool:
    """Whether a stored tensor is one of the base's own weights, which it would leave as it is."""
    found = base.get(_of_base(name))
    if found is None or found.is_meta or found.shape != tensors[name].shape:
        return False
    return bool(torch.equal(tensors[name].to(found.dtype), found.detach().cpu()))


def _of_base(name: str) -> str:
    return name.removeprefix(PREFIX).replace(".base_layer", "")


def changeable(folder: Path) -> str:
    """A pattern of the parameters that an adapter may change, for ``twin``.

    Those of every module whose last name occurs in the names of the stored tensors.
    """
    names = {part for name in adapter_tensors(folder) for part in name.split(".")}
    return rf"(^|\.)({'|'.join(map(re.escape, sorted(names)))})\.[^.]+$"


def twin(model: nn.Module, changed: str) -> Any:
    """A copy of a model that shares the weights that stay: those that may change are its own.

    Weights in half precision are copied to float32.

    Args:
        model: left as it is.
        changed: pattern of names of the parameters that may change.

    Raises:
        MemoryError: the copies do not fit.
    """
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    named = model.named_parameters(remove_duplicate=False)
    own = {id(p): p for name, p in named if half or re.search(changed, name)}
    size = sum(p.numel() * (4 if half else p.element_size()) for p in own.values())
    device = next(model.parameters()).device
    require_memory(
        size, "a copy of the weights that an adapter changes", device=device,
        remedy="free some memory, or take a smaller base",
    )  # fmt: skip
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        value = parameter.detach()
        if id(parameter) in own:
            value = value.float() if half and value.is_floating_point() else value.clone()
        memo[id(parameter)] = nn.Parameter(value, requires_grad=False)
    return copy.deepcopy(model, memo).eval()
