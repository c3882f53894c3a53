"""Shapes and ties of stored weights, and a fingerprint of weights in memory."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from frenet._errors import UsageError
from frenet.network.checkpoints.folders import held
from frenet.network.checkpoints.promised import tied_names
from frenet.network.checkpoints.tensor_files import TensorFiles

_HASHED_ENTRIES = 1 << 16


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the weights of a folder, from the headers of the files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in held(folder).weights:
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UsageError(
                f"{path} is damaged, incomplete or a Git LFS pointer ({error}); fetch it again"
            ) from None
    return shapes


def fingerprint(model: nn.Module) -> str:
    """Hex digits that identify the weights: sha256 over names, dtypes, shapes and entries.

    Of a larger tensor about 65,536 evenly spaced entries are read: two models that differ only in
    the others have the same fingerprint.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _HASHED_ENTRIES)].cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tied_copies(files: TensorFiles) -> dict[str, str]:
    """Stored tensors that are copies of a tied weight, with the name of that weight.

    The configuration in their folder says which weights are tied; a copy has the same entries.
    """
    return {
        name: one
        for name, one in tied_weights(files).items()
        if {name, one} <= files.shapes.keys() and torch.equal(files.read(name), files.read(one))
    }


def tied_weights(files: TensorFiles) -> dict[str, str]:
    """Names of tied weights, with the first name of each, from the configuration."""
    if not files.path.is_dir():
        return {}
    size = sum(file.stat().st_size for file in held(files.path).weights)
    return tied_names(files.path, size)
