"""Tensors in safetensors files, read and written one at a time."""

import copy
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# Entries of each tensor that are read to tell one set of weights from another.
_SAMPLED = 1 << 12

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}

Shapes = dict[str, tuple[int, ...]]
Read = Callable[[str], Tensor]


class TensorFiles:
    """The floating-point tensors of a .safetensors file, or of a folder (see ``weight_files``).

    Nothing is read but the headers until a tensor is asked for.

    Attributes:
        shapes: by name, in the order of the files. Integer and boolean tensors (buffers such as
            the masks of older GPT-2 checkpoints) are no weights and are left out.
        stored: by the same names, those that the tensors have in the files.
        about: metadata of the files.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: no safetensors file, or a damaged one.
    """

    def __init__(self, source: str | Path) -> None:
        path = Path(source).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"there is no file or folder {path}")
        if path.is_file() and path.suffix != ".safetensors":
            raise ValueError(f"{path} is no .safetensors file; convert it, or pass another one")
        files = weight_files(path) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path} holds no .safetensors file")
        self.path = path
        self.shapes: Shapes = {}
        self.stored: dict[str, str] = {}
        self.about: dict[str, str] = {}
        self._files: dict[str, Any] = {}
        for file in files:
            self._look(file)

    def _look(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
            self.about |= file.metadata() or {}
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                if part.get_dtype().startswith(("F", "BF")):
                    self.shapes[name] = tuple(part.get_shape())
                    self.stored[name] = name
                    self._files[name] = file
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} is damaged, incomplete or a Git LFS pointer ({error}); fetch it again"
            ) from None

    def read(self, name: str) -> Tensor:
        """One tensor, in the dtype in which it is stored."""
        stored = self.stored[name]
        tensor: Tensor = self._files[stored].get_tensor(stored)
        return tensor

    def named_like(self, names: Iterable[str]) -> "TensorFiles":
        """The same tensors by the names of a whole model, where the base model was saved alone.

        transformers reads either: the published GPT-2 has h.0.attn.c_attn.weight, and its model
        transformer.h.0.attn.c_attn.weight.

        Args:
            names: of the whole model's weights, or of some of them.
        """
        heads = {name.partition(".")[0] for name in self.shapes}
        whole = {
            short: f"{head}.{short}"
            for head, _, short in (name.partition(".") for name in names)
            if head not in heads and short in self.shapes
        }
        found = copy.copy(self)
        found.shapes = {whole.get(name, name): shape for name, shape in self.shapes.items()}
        found.stored = {whole.get(name, name): stored for name, stored in self.stored.items()}
        return found


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that transformers would load, or else all safetensors files in it.

    A second copy of the weights, such as consolidated.safetensors, is left alone.

    Raises:
        ValueError: the index of the files is damaged.
    """
    if (whole := folder / "model.safetensors").exists():
        return [whole]
    if (index := folder / "model.safetensors.index.json").exists():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError) as error:
            raise ValueError(f"{index} is no index of files ({error}); fetch it again") from None
        return [folder / name for name in sorted(set(names))]
    return sorted(folder.glob("*.safetensors"))


def write_tensors(
    path: str | Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Read,
    about: Mapping[str, str],
    *,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> Path:
    """Write tensors to a safetensors file, with one of them in memory at a time.

    Args:
        path: the file; it appears when it is whole.
        shapes: of the tensors, by name.
        read: gives the tensor of a name.
        about: metadata of the file.
        dtypes: by name; float32 where there is none.

    Raises:
        ValueError: an entry is not finite; the message names the tensor.
    """
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {name: (dtypes or {}).get(name, torch.float32) for name in shapes}
    text = _header(shapes, kinds, about)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in shapes:
                tensor = read(name).detach().to("cpu", kinds[name]).contiguous()
                # A sum is several times as fast, and rarely infinite where the entries are finite.
                sum_ = tensor.sum(dtype=torch.float32)
                if not torch.isfinite(sum_) and not torch.isfinite(tensor).all():
                    raise ValueError(f"{name} has an entry that is not finite, and is not written")
                file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _header(
    shapes: Mapping[str, tuple[int, ...]],
    kinds: Mapping[str, torch.dtype],
    about: Mapping[str, str],
) -> bytes:
    """The header of a safetensors file, in JSON."""
    header: dict[str, Any] = {"__metadata__": dict(about)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + kinds[name].itemsize * prod(shape)
        code = _CODES[kinds[name]]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    # The format wants the data to start at a multiple of 8 bytes.
    return text + b" " * (-len(text) % 8)


def digest(shapes: Mapping[str, tuple[int, ...]], read: Read) -> str:
    """Hex digits that identify the weights of these names: their shapes and sampled entries."""
    found = hashlib.sha256()
    for name in sorted(shapes):
        flat = read(name).detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLED)].cpu().float().contiguous()
        found.update(f"{name} {tuple(shapes[name])}\n".encode())
        found.update(sample.numpy().tobytes())
    return found.hexdigest()[:16]
