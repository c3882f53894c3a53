"""PEFT adapters on disk: found, checked against their base, never applied in part."""

import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frenet._files import DamagedFileError, canonical, pretty, read_object
from frenet.network.adapters import linear_modules, quiet_peft
from frenet.network.checkpoints import PICKLED, refuse_pickled
from frenet.network.tensor_files import TensorFiles, save_tensors

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
# The key, in the metadata of weights that frenet wrote, of the digest of their configuration; what
# people change in it when they move a base or an adapter is not covered.
_CONFIGURED = "frenet.adapter_config"
_MOVED = ("base_model_name_or_path", "revision", "inference_mode")
_SHOWN = 4


def adapter_folder(adapter: str | Path) -> Path:
    """The local folder of an adapter; a hub id is fetched, its safetensors and configuration only.

    Raises:
        FileNotFoundError: no such folder, and no hub id.
        ValueError: the folder holds no adapter, or a pickled one.
        ConnectionError: the hub cannot be reached or has no such adapter.
    """
    folder = Path(adapter).expanduser()
    if not folder.exists():
        folder = _fetched(str(adapter))
    if not folder.is_dir() or not (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder} is no PEFT adapter: it has no adapter_config.json")
    if not (folder / WEIGHTS).exists():
        if pickled := [p.name for p in sorted(folder.iterdir()) if p.suffix in PICKLED]:
            refuse_pickled(folder, pickled)
        raise ValueError(f"{folder} has an adapter_config.json and no {WEIGHTS}")
    return folder


def base_of(folder: Path) -> str:
    """The base model that the adapter's configuration names."""
    base = configuration(folder).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"the adapter {folder} does not say which base it belongs to; pass the base as source "
            "and this folder as adapter"
        )
    return str(base)


def load_adapter(model: nn.Module, folder: Path) -> tuple[nn.Module, list[str]]:
    """``model`` with the adapter of ``folder`` on it, trainable, and what to say about it.

    Raises:
        ValueError: not a LoRA adapter, or its tensors are not exactly those that it has on this
            model; the message lists both sets of names, or the tensor with both shapes.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils.error import NoMatchingPeftModuleError

    settings = configuration(folder)
    if settings.get("peft_type") != "LORA":
        raise ValueError(
            f"{folder} is a {settings.get('peft_type')} adapter; only LORA adapters are loaded"
        )
    files = TensorFiles(folder / WEIGHTS)
    files.require_undamaged()
    # PEFT also saves embeddings and heads that have an adapter, or that it takes for resized.
    stored = {name: shape for name, shape in files.shapes.items() if not is_own(files, name, model)}
    try:
        with torch.random.fork_rng(devices=[]), quiet_peft(), warnings.catch_warnings():
            # Missing names and wrong shapes are errors, a few lines on; PEFT only warns of them.
            warnings.filterwarnings("ignore", "Found missing adapter keys")
            warnings.filterwarnings("ignore", "Some weights of PeftModel were not initialized")
            wrapped: Any = PeftModel.from_pretrained(
                model, folder, is_trainable=True, ignore_mismatched_sizes=True
            )
    except NoMatchingPeftModuleError:
        raise ValueError(
            f"the adapter {folder} belongs to another base: it adapts "
            f"{settings.get('target_modules')} and the model has "
            f"{', '.join(linear_modules(model))}"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    _require_same(folder, stored, {name: tuple(value.shape) for name, value in own.items()})
    notes = [f"adapter {folder}: rank {settings.get('r')}, {len(own)} tensors"]
    if all(not value.any() for name, value in own.items() if "lora_B" in name):
        notes.append("every lora_B is zero: this adapter is untrained and changes nothing yet")
    return wrapped, notes


def _require_same(
    folder: Path, stored: dict[str, tuple[int, ...]], own: dict[str, tuple[int, ...]]
) -> None:
    extra, missing = sorted(stored.keys() - own.keys()), sorted(own.keys() - stored.keys())
    if extra or missing:
        raise ValueError(
            f"the adapter {folder} belongs to another base: only the file has {some(extra)}; only "
            f"the model has {some(missing)}; nothing is applied in part"
        )
    for name, shape in stored.items():
        if shape != own[name]:
            raise ValueError(
                f"the adapter {folder} belongs to another base: {name} has shape {shape} in the "
                f"file and {own[name]} on the model"
            )


def is_own(files: TensorFiles, name: str, base: nn.Module) -> bool:
    """Whether a stored tensor is one of the base's own weights, which it would leave as it is."""
    own = dict(base.named_parameters(remove_duplicate=False))
    found = own.get(name.removeprefix(PREFIX).replace(".base_layer", ""))
    if found is None or found.is_meta or tuple(found.shape) != files.shapes.get(name):
        return False
    return bool(torch.equal(files.read(name).to(found.dtype), found.detach().cpu()))


def configuration(folder: Path) -> dict[str, Any]:
    """What ``adapter_config.json`` of a folder says.

    Raises:
        DamagedFileError: it is no JSON object, or not the one that frenet wrote with the weights.
    """
    path = folder / "adapter_config.json"
    found = read_object(path)
    if (folder / WEIGHTS).exists():
        written = TensorFiles(folder / WEIGHTS).about.get(_CONFIGURED)
        if written is not None and written != _config_digest(found):
            raise DamagedFileError(path, f"is not the one that was written with {WEIGHTS}")
    return found


def write_adapter(
    config: Any,
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    auto_mapping: Mapping[str, str] | None = None,
) -> None:
    """Write configuration and weights as PEFT does, the same bytes every time, with digests.

    Args:
        config: PEFT's.
        tensors: by the names that PEFT gives them.
        folder: which is there; see ``whole_files``.
        auto_mapping: the class of the base, where the configuration has no kind of task.
    """
    config.save_pretrained(folder, auto_mapping_dict=auto_mapping)
    path = folder / "adapter_config.json"
    # PEFT turns sets into lists in the order of their hashes, which every process has anew.
    sets = {key for key, value in config.to_dict().items() if isinstance(value, set)}
    settings = {k: sorted(v) if k in sets else v for k, v in read_object(path).items()}
    path.write_text(pretty(settings), encoding="utf-8")
    about = {"format": "pt", _CONFIGURED: _config_digest(settings)}
    save_tensors(tensors, folder / WEIGHTS, about)


def _config_digest(config: dict[str, Any]) -> str:
    kept = {key: value for key, value in config.items() if key not in _MOVED}
    return hashlib.sha256(canonical(kept).encode()).hexdigest()


def _fetched(name: str) -> Path:
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is None:
        raise FileNotFoundError(f"there is no adapter folder {name}, and it is no hub id either")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["adapter_config.json", WEIGHTS]))
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"{name!r} is no folder here, and no adapter of that name can be fetched: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error


def some(names: list[str]) -> str:
    """The first few of some names, for a message."""
    if not names:
        return "nothing"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
