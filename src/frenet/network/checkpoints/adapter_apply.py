"""Applying adapters to their base with PEFT: every stored tensor in its place, or an error."""

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
# What PEFT and the layers of a model raise if an adapter does not fit.
_FAILURES = (
    ValueError, TypeError, RuntimeError, LookupError, AttributeError, NotImplementedError,
    ImportError, AssertionError,
)  # fmt: skip


class OtherBaseError(UsageError):
    """An adapter does not fit a model."""


def apply_adapter(model: nn.Module, folder: Path) -> tuple[Any, list[str]]:
    """PEFT's wrapper around ``model`` with the adapter of ``folder``, trainable.

    Args:
        model: the base; the adapter is added in place.
        folder: folder of the adapter.

    Returns:
        The wrapper, and notes about the stored names.

    Raises:
        ValueError: the folder has no LoRA adapter, PEFT cannot apply it to this model, or its
            tensors do not match those of the model; the message lists names or shapes.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    wrapped, tensors, places = _fitted(model, folder)
    chosen = {name: tensors[stored] for stored, name in places.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_peft_model_state_dict(wrapped, chosen)
        loaded = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    for name, value in loaded.items():
        if not torch.equal(value.detach().cpu(), chosen[name].to(value.dtype)):
            raise UsageError(f"peft did not load {name} of the adapter {folder} into the model")
    renamed = [(stored, name) for stored, name in places.items() if stored != name]
    notes = [f"adapter {folder}: {len(renamed)} tensors are stored under other names, such as "
             f"{renamed[0][0]} for {renamed[0][1]}"] if renamed else []  # fmt: skip
    return wrapped, notes


def require_base(model: nn.Module, folder: Path) -> None:
    """Refuse an adapter of another base by names and shapes alone.

    Args:
        model: the model, which may be without weights (on the meta device); the adapter is added
            in place, with no values.
        folder: folder of the adapter.

    Raises:
        OtherBaseError: its tensors do not match those of the model.
    """
    try:
        _fitted(model, folder)
    except OtherBaseError:
        raise
    # Without weights PEFT may fail for other reasons; whoever loads the adapter reports them.
    except UsageError:
        return


def _fitted(model: nn.Module, folder: Path) -> tuple[Any, dict[str, Tensor], dict[str, str]]:
    """PEFT's wrapper without values, the stored tensors, and the name on the model of each."""
    from peft import get_peft_model_state_dict

    tensors = adapter_tensors(folder)
    before = dict(model.named_parameters(remove_duplicate=False))
    wrapped = _wrapped(model, folder)
    expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    places = _places(list(tensors), list(shapes))
    _require_fit(folder, tensors, shapes, places, before)
    return wrapped, tensors, places


def _wrapped(model: nn.Module, folder: Path) -> Any:
    """PEFT's wrapper for the adapter's configuration, before any weights are loaded."""
    from peft import LoraConfig, PeftConfig, get_peft_model
    from peft.utils.error import NoMatchingPeftModuleError

    settings = configuration(folder)
    if settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type")
        what = f"of kind {kind}" if kind else f"no adapter of peft ({some(sorted(settings))})"
        raise UsageError(f"{folder} is {what}; pass a LORA adapter")
    known = {field.name for field in fields(LoraConfig)}
    if unknown := [key for key, value in settings.items() if key not in known and value]:
        raise UsageError(
            f"the adapter {folder} has settings that this version of peft does not know "
            f"({some(unknown)}) and that may matter; install the version that wrote it "
            f"({settings.get('peft_version') or 'a newer one'})"
        )
    try:
        # The stored entries replace those that PEFT draws.
        with torch.random.fork_rng(devices=[]), quiet_peft(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(folder)
            config.inference_mode = False
            if not hasattr(model, "prepare_inputs_for_generation"):
                config.task_type = None  # the wrapper for language models generates
            return get_peft_model(model, config)
    except NoMatchingPeftModuleError:
        raise OtherBaseError(
            f"the adapter {folder} belongs to another base: it adapts "
            f"{settings.get('target_modules')} and the model has "
            f"{', '.join(linear_modules(model))}; {_own_base(folder)}"
        ) from None
    except _FAILURES as error:
        why = " ".join(str(error).split())[:300]
        raise UsageError(
            f"peft cannot apply the adapter {folder} to this model: {type(error).__name__}: {why}; "
            f"{MERGE}"
        ) from error


def _places(stored: list[str], names: list[str]) -> dict[str, str]:
    """For each stored name, the name on the model: the same, or the only one that matches.

    Other tools insert parts into a name, such as the name of the adapter or of a wrapper, omit its
    beginning, or order its parts differently. Parts that no name on the model has are ignored, if
    the others form a whole name.
    """
    known = {part for name in names for part in name.split(".")}
    keys: dict[tuple[str, ...], set[str]] = {}
    for name in names:
        for key in _keys(tuple(name.split("."))):
            keys.setdefault(key, set()).add(name)
    taken = set(stored) & set(names)
    places = {name: name for name in stored if name in taken}
    for name in stored:
        parts = tuple(part for part in name.split(".") if part in known)
        dropped = len(parts) < name.count(".") + 1
        plain = parts[len(_PREFIX) :] if parts[: len(_PREFIX)] == _PREFIX else parts
        tried = [("whole", *plain), ("sorted", *sorted(plain))] + ([] if dropped else [plain])
        for key in tried if name not in places else ():
            if len(matches := keys.get(key, set()) - taken) == 1:
                places[name] = matches.pop()
                taken.add(places[name])
                break
    return places


def _keys(parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The keys that match a name on the model."""
    plain = parts[len(_PREFIX) :]
    yield from (("whole", *plain), ("sorted", *sorted(plain)))
    yield from (plain[i:] for i in range(len(plain)))


def _require_fit(
    folder: Path,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    places: Mapping[str, str],
    base: Mapping[str, Tensor],
) -> None:
    """Raise OtherBaseError unless every tensor has its place, and every place one of its shape."""
    apart = [stored for stored, name in places.items() if tensors[stored].shape != shapes[name]]
    if apart:
        first = apart[0]
        raise OtherBaseError(
            f"the adapter {folder} belongs to another base, or has the configuration of another "
            f"adapter: {first} has shape {tuple(tensors[first].shape)} in the file and "
            f"{shapes[places[first]]} on the model ({len(apart)} such tensors); "
            f"{_own_base(folder)}"
        )
    # PEFT also saves embeddings and heads that have an adapter, or that it considers resized.
    extra = [name for name in tensors if name not in places and not _is_own(tensors, name, base)]
    for name in extra:
        held = base.get(_of_base(name))
        if held is not None and held.shape != tensors[name].shape:
            raise OtherBaseError(
                f"the adapter {folder} was trained on a base with resized embeddings: {name} has "
                f"shape {tuple(tensors[name].shape)} in the file and {tuple(held.shape)} on the "
                f"model; resize the base (resize_token_embeddings({len(tensors[name])})), put the "
                "adapter on it, merge it, and save that with the adapter's tokenizer"
            )
    missing = sorted(shapes.keys() - set(places.values()))
    if extra or missing:
        raise OtherBaseError(
            f"the adapter {folder} is incomplete, or belongs to another base: only the file has "
            f"{some(sorted(extra), _SHOWN)}; only the model has {some(missing, _SHOWN)}; nothing "
            f"is applied in part; {_own_base(folder)}"
        )


def _own_base(folder: Path) -> str:
    """The way out of an adapter's wrong base."""
    named = configuration(folder).get("base_model_name_or_path")
    known = f"its configuration names the base {named}: pass that" if named else "pass its base"
    return f"{known} as the model"


def _is_own(tensors: Mapping[str, Tensor], name: str, base: Mapping[str, Tensor]) -> bool:
    """Whether a stored tensor equals a weight of the base, so that it changes nothing.

    A base without weights cannot tell, and counts as equal.
    """
    weight = base.get(_of_base(name))
    if weight is None or weight.shape != tensors[name].shape:
        return False
    return weight.is_meta or bool(
        torch.equal(tensors[name].to(weight.dtype), weight.detach().cpu())
    )


def _of_base(name: str) -> str:
    return name.removeprefix(PREFIX).replace(".base_layer", "")


def changeable(folder: Path) -> str:
    """A pattern of the parameters that an adapter may change, for ``twin``.

    It matches every module with a last name that occurs in the names of the stored tensors.
    """
    names = {part for name in adapter_tensors(folder) for part in name.split(".")}
    return rf"(^|\.)({'|'.join(map(re.escape, sorted(names)))})\.[^.]+$"


def twin(model: nn.Module, changed: str) -> Any:
    """A copy of a model with copies only of the weights that may change; it shares the others.

    Weights in half precision are copied to float32.

    Args:
        model: the model, which does not change.
        changed: pattern of the names of parameters that may change.

    Raises:
        MemoryError: the copies do not fit.
    """
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    named = model.named_parameters(remove_duplicate=False)
    copied = {id(p): p for name, p in named if half or re.search(changed, name)}
    size = sum(p.numel() * (4 if half else p.element_size()) for p in copied.values())
    device = next(model.parameters()).device
    require_memory(
        size, "a copy of the weights that an adapter changes", device=device,
        remedy="free some memory, or take a smaller base",
    )  # fmt: skip
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        value = parameter.detach()
        if id(parameter) in copied:
            value = value.float() if half and value.is_floating_point() else value.clone()
        memo[id(parameter)] = nn.Parameter(value, requires_grad=False)
    return copy.deepcopy(model, memo).eval()
