"""PEFT adapters on disk: locating, reading and writing them."""

import hashlib
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frenet._errors import UnreachableError, UsageError
from frenet._files import DamagedFileError, canonical, pretty, read_object
from frenet.network.checkpoints.folders import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_settings,
    require_adapter_folder,
)
from frenet.network.checkpoints.tensor_files import TensorFiles, save_tensors

PREFIX = "base_model.model."
WEIGHTS = ADAPTER_WEIGHTS
# The metadata key, in weights from frenet, of the digest of their configuration. The digest leaves
# out fields that people change when they move a base or an adapter.
_CONFIGURED = "frenet.adapter_config"
_MOVED = ("base_model_name_or_path", "revision", "inference_mode")


def adapter_folder(adapter: str | Path) -> Path:
    """The local folder of an adapter; of a hub id only safetensors and configuration are fetched.

    Raises:
        FileNotFoundError: it is neither a folder nor a hub id.
        ValueError: the folder has no adapter, or a pickled one.
        ConnectionError: the hub cannot be reached or has no such adapter.
    """
    folder = Path(adapter).expanduser()
    if not folder.exists():
        folder = _fetched(str(adapter))
    return require_adapter_folder(folder)


def base_of(folder: Path) -> str:
    """The base model that the adapter's configuration names."""
    base = configuration(folder).get("base_model_name_or_path")
    if not base:
        raise UsageError(
            f"the adapter {folder} does not say which base it belongs to; pass the base as source "
            "and this folder as adapter"
        )
    return str(base)


def adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter, by their stored names.

    Raises:
        DamagedFileError: one of them is not what frenet wrote.
        ValueError: one is empty (DeepSpeed ZeRO-3 saves weights so unless it gathers them), or has
            an entry that is not finite.
    """
    files = TensorFiles(folder / WEIGHTS)
    if empty := [name for name, shape in files.shapes.items() if prod(shape) == 0]:
        raise UsageError(
            f"{folder / WEIGHTS} has {len(empty)} empty tensors of {len(files.shapes)}, the first "
            f"is {empty[0]} of shape {files.shapes[empty[0]]}: DeepSpeed ZeRO-3 saves them so if "
            "it does not gather the weights first; save the adapter again from the training's "
            "checkpoint (zero_to_fp32.py, or stage3_gather_16bit_weights_on_model_save)"
        )
    tensors = {name: files.read(name) for name in files.shapes}
    if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise UsageError(
            f"{folder / WEIGHTS} has entries that are not finite in {len(broken)} tensors, the "
            f"first is {broken[0]}: its training diverged; use an earlier checkpoint"
        )
    return tensors


def configuration(folder: Path) -> dict[str, Any]:
    """The contents of ``adapter_config.json`` in a folder.

    Raises:
        DamagedFileError: it is no JSON object, or not the one that frenet wrote with the weights.
    """
    path = folder / ADAPTER_CONFIG
    settings = adapter_settings(folder)
    if (folder / WEIGHTS).exists():
        written = TensorFiles(folder / WEIGHTS).about.get(_CONFIGURED)
        if written is not None and written != _config_digest(settings):
            raise DamagedFileError(path, f"is not the one that was written with {WEIGHTS}")
    return settings


def write_adapter(
    config: Any,
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    auto_mapping: Mapping[str, str] | None = None,
) -> None:
    """Write configuration and weights in PEFT's format, with digests and reproducible bytes.

    Args:
        config: PEFT's configuration.
        tensors: tensors by PEFT's names.
        folder: an existing folder; see ``whole_files``.
        auto_mapping: the class of the base, if the configuration has no task type.
    """
    config.save_pretrained(folder, auto_mapping_dict=auto_mapping)
    path = folder / ADAPTER_CONFIG
    # PEFT turns sets into lists in the order of their hashes, which differs between processes.
    sets = {key for key, value in config.to_dict().items() if isinstance(value, set)}
    settings = {k: sorted(v) if k in sets else v for k, v in read_object(path).items()}
    path.write_text(pretty(settings), encoding="utf-8")
    about = {"format": "pt", _CONFIGURED: _config_digest(settings)}
    save_tensors(tensors, folder / WEIGHTS, about)


def _config_digest(config: dict[str, Any]) -> str:
    covered = {key: value for key, value in config.items() if key not in _MOVED}
    return hashlib.sha256(canonical(covered).encode()).hexdigest()


def _fetched(name: str) -> Path:
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is None:
        raise FileNotFoundError(f"there is no adapter folder {name}, and it is no hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[ADAPTER_CONFIG, WEIGHTS]))
    except (OSError, ValueError) as error:
        raise UnreachableError(
            f"{name!r} is no folder here, and no adapter of that name can be fetched: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
