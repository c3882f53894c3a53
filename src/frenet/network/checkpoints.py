"""Folders with weights: what is in them, whether they may be opened, and what identifies them."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from frenet.network.tensor_files import weight_files

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Pickled files that a Trainer leaves beside the weights; they are never opened.
_BESIDE = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
_HASHED_ENTRIES = 1 << 16


def require_model_folder(folder: Path) -> None:
    """Raise ValueError unless ``folder`` has a configuration and weights in safetensors files."""
    names = sorted(path.name for path in folder.iterdir())
    if "config.json" not in names:
        raise ValueError(
            f"{folder} is not a model: it has no config.json (found: {_some(names)}); pass a "
            "folder in Hugging Face format, a .gguf file or a hub id"
        )
    if any(name.endswith(".safetensors") for name in names):
        return
    if pickled := [n for n in names if n.endswith(PICKLED) and not n.startswith(_BESIDE)]:
        refuse_pickled(folder, pickled)
    raise ValueError(f"{folder} has a config.json and no weights: no .safetensors file in it")


def refuse_pickled(where: Path, names: list[str]) -> None:
    """Raise the ValueError that says why pickled weights stay closed, and how to convert them."""
    raise ValueError(
        f"{where} has its weights in pickled files only ({_some(names)}), which can run any code "
        "when they are opened and are not; convert them once, where you trust them: "
        "model.save_pretrained(folder) of transformers, or of peft for an adapter, writes "
        "safetensors"
    )


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the weights of a folder, from the headers of the files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} is damaged, incomplete or a Git LFS pointer ({error}); fetch it again"
            ) from None
    return shapes


def fingerprint(model: nn.Module) -> str:
    """Hex digits that identify the weights: sha256 over names, dtypes, shapes and entries.

    Of a tensor with more than 65,536 entries that many are read, evenly spaced: two models that
    differ only between them have the same fingerprint.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _HASHED_ENTRIES)].cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:8]) or "nothing"
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 8 else shown
