"""Tensors in safetensors files, read and written one at a time, with digests.

Files from frenet contain the sha256 of every tensor, with its name, dtype and shape, and of the
metadata with all names; reading a tensor compares it. Files of other programs have no digests and
are not checked.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frenet._errors import UsageError
from frenet._files import (
    OUT,
    DamagedFileError,
    canonical,
    named_errors,
    parse_json,
    require_object,
    whole,
)
from frenet.network.checkpoints.folders import held

# The key of the digests in a file's metadata, and the name under which they cover the metadata.
DIGESTS, ALL = "frenet.sha256", ""
# The metadata key of the only name under which a file may be read.
NAME = "frenet.name"
# Entries of each tensor in the digest of a set of weights.
_SAMPLED = 1 << 12

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

Shapes = dict[str, tuple[int, ...]]
Read = Callable[[str], Tensor]


class TensorFiles:
    """The floating-point tensors of a .safetensors file, or of a folder (see ``folders.held``).

    Only the headers are read until ``read`` is called.

    Attributes:
        shapes: shapes by name, in the order of the files. Integer and boolean tensors (buffers
            such as the masks of older GPT-2 checkpoints) are no weights and are left out.
        stored: for the same names, the names in the files.
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
            raise UsageError(f"{path} is no .safetensors file; convert it, or pass another one")
        contents = held(path) if path.is_dir() else None
        files = contents.weights if contents else (path,)
        if contents and contents.is_adapter:
            raise UsageError(
                f"{path} holds an adapter and no weights of a model; read it with from_adapter and "
                "its base, or pass a checkpoint"
            )
        if not files:
            raise UsageError(f"{path} holds no .safetensors file")
        self.path = path
        self.shapes: Shapes = {}
        self.stored: dict[str, str] = {}
        self.about: dict[str, str] = {}
        self._files: dict[str, Any] = {}
        # By stored name: the file, and the digest that its tensor has there.
        self._digests: dict[str, tuple[Path, str | None]] = {}
        for file in files:
            self._look(file)

    def _look(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
            about = dict(file.metadata() or {})
            digests = _digests_of(path, about, file.keys())
            self.about |= {key: value for key, value in about.items() if key != DIGESTS}
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                if part.get_dtype().startswith(("F", "BF")):
                    self.shapes[name] = tuple(part.get_shape())
                    self.stored[name] = name
                    self._files[name] = file
                    if digests is not None:
                        self._digests[name] = path, digests.get(name)
        except (SafetensorError, OSError) as error:
            raise UsageError(
                f"{path} is damaged, incomplete or a Git LFS pointer ({error}); fetch it again"
            ) from None

    def read(self, name: str) -> Tensor:
        """One tensor, in its stored dtype.

        Raises:
            DamagedFileError: it is not what frenet wrote; its first read compares the digest.
        """
        stored = self.stored[name]
        tensor: Tensor = self._files[stored].get_tensor(stored)
        if stored in self._digests:
            path, digest = self._digests[stored]
            _require_digest(path, stored, tensor, digest)
            del self._digests[stored]
        return tensor

    def require_undamaged(self) -> None:
        """Read every tensor that has a digest; for files that another library will load.

        Raises:
            DamagedFileError: one of them is not what frenet wrote.
        """
        for name, stored in self.stored.items():
            if stored in self._digests:
                self.read(name)

    def named_like(self, names: Iterable[str]) -> "TensorFiles":
        """The same tensors by the names of the whole model, if only its base model was saved.

        transformers reads both: the published GPT-2 has h.0.attn.c_attn.weight, and its model
        transformer.h.0.attn.c_attn.weight.

        Args:
            names: names of some or all weights of the whole model.
        """
        heads = {name.partition(".")[0] for name in self.shapes}
        whole = {
            short: f"{head}.{short}"
            for head, _, short in (name.partition(".") for name in names)
            if head not in heads and short in self.shapes
        }
        renamed = copy.copy(self)
        renamed.shapes = {whole.get(name, name): shape for name, shape in self.shapes.items()}
        renamed.stored = {whole.get(name, name): stored for name, stored in self.stored.items()}
        return renamed


def save_tensors(
    tensors: Mapping[str, Tensor],
    path: str | Path,
    about: Mapping[str, str] | None = None,
    *,
    named: bool = False,
    moves: str = OUT,
) -> Path:
    """Write tensors in memory, in their dtypes, finite or not.

    Args:
        tensors: tensors by name.
        path: the file; it appears when it is complete.
        about: metadata of the file.
        named: allow reading only under this file name, so that files cannot be confused.
        moves: the option or variable that moves it to another disk, for messages.

    Raises:
        OSError: as ``whole``.
    """
    fixed = {NAME: Path(path).name} if named else {}
    return write_tensors(
        path,
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        tensors.__getitem__,
        {**(about or {}), **fixed},
        dtypes={name: tensor.dtype for name, tensor in tensors.items()},
        finite=False,
        moves=moves,
    )


def load_tensors(path: Path, *, sealed: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, mapped from the disk, and its metadata.

    Args:
        path: the file.
        sealed: require digests.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: no safetensors file, a cut one, or content that differs from its digests.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedFileError(path, f"cannot be read as safetensors: {error}") from None
    digests = _digests_of(path, about, tensors)
    if about.get(NAME, path.name) != path.name:
        raise DamagedFileError(path, f"has the content of {about[NAME]}")
    if sealed and digests is None:
        raise DamagedFileError(path, "has no digests, so damage cannot be seen")
    for name, tensor in tensors.items() if digests is not None else ():
        _require_digest(path, name, tensor, (digests or {}).get(name))
    return tensors, {key: value for key, value in about.items() if key != DIGESTS}


def write_tensors(
    path: str | Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Read,
    about: Mapping[str, str],
    *,
    dtypes: Mapping[str, torch.dtype] | None = None,
    finite: bool = True,
    moves: str = OUT,
) -> Path:
    """Write tensors to a safetensors file, with one of them in memory at a time.

    Args:
        path: the file; it appears when it is complete.
        shapes: shapes of the tensors, by name.
        read: returns the tensor of a name.
        about: metadata of the file.
        dtypes: dtypes by name; float32 for other names.
        finite: refuse entries that are not finite.
        moves: the option or variable that moves the file to another disk, for messages.

    Raises:
        ValueError: an entry is not finite; the message names the tensor.
        OSError: as ``whole``.
    """
    path = Path(path).expanduser()
    kinds = {name: (dtypes or {}).get(name, torch.float32) for name in shapes}
    # The order of the format, so that every tensor starts at a multiple of its entries' size.
    order = sorted(shapes, key=lambda name: -kinds[name].itemsize)
    digests = dict.fromkeys([ALL, *order], "0" * hashlib.sha256().digest_size * 2)
    digests[ALL] = _about_digest(about, order)
    size = len(_header(shapes, kinds, about, digests))
    with whole(path, moves=moves) as part, part.open("r+b") as file:
        file.seek(8 + size)
        for name in order:
            tensor = read(name).detach().to("cpu", kinds[name]).contiguous()
            if finite:
                _require_finite(name, tensor)
            digests[name] = _tensor_digest(name, tensor)
            with named_errors(path, moves=moves):
                file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        file.seek(0)
        file.write(size.to_bytes(8, "little") + _header(shapes, kinds, about, digests))
    return path


def _require_finite(name: str, tensor: Tensor) -> None:
    # A sum is several times as fast, and rarely overflows if the entries are finite.
    sum_ = tensor.sum(dtype=torch.float32)
    if not torch.isfinite(sum_) and not torch.isfinite(tensor).all():
        raise UsageError(f"{name} has an entry that is not finite; nothing is written")


def _header(
    shapes: Mapping[str, tuple[int, ...]],
    kinds: Mapping[str, torch.dtype],
    about: Mapping[str, str],
    digests: Mapping[str, str],
) -> bytes:
    """The header of a safetensors file as JSON, with tensors in the order of the digests."""
    header: dict[str, Any] = {"__metadata__": {**about, DIGESTS: json.dumps(digests)}}
    end = 0
    for name in digests:
        if name == ALL:
            continue
        start, end = end, end + kinds[name].itemsize * prod(shapes[name])
        code = _CODES[kinds[name]]
        header[name] = {"dtype": code, "shape": list(shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    # In this format the data start at a multiple of 8 bytes.
    return text + b" " * (-len(text) % 8)


def _about_digest(about: Mapping[str, str], names: Iterable[str]) -> str:
    return hashlib.sha256(canonical([dict(about), sorted(names)]).encode()).hexdigest()


def _tensor_digest(name: str, tensor: Tensor) -> str:
    """sha256 of a tensor's name, dtype, shape and entries."""
    state = hashlib.sha256(f"{name}\n{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def _digests_of(
    path: Path, about: Mapping[str, str], names: Iterable[str]
) -> dict[str, Any] | None:
    """The digests in a file's metadata, checked against it; None if frenet did not write it."""
    if DIGESTS not in about:
        return None
    digests = require_object(parse_json(about[DIGESTS], path), path)
    rest = {key: value for key, value in about.items() if key != DIGESTS}
    if digests.get(ALL) != _about_digest(rest, names):
        raise DamagedFileError(
            path, "has other metadata, or other tensors, than frenet wrote; make it again"
        )
    return digests


def _require_digest(path: Path, name: str, tensor: Tensor, digest: str | None) -> None:
    if _tensor_digest(name, tensor) != digest:
        raise DamagedFileError(
            path, f"has another tensor {name} than frenet wrote (sha256); make it again"
        )


def digest(shapes: Mapping[str, tuple[int, ...]], read: Read) -> str:
    """Hex digits that identify the weights with these names: their shapes and sampled entries."""
    state = hashlib.sha256()
    for name in sorted(shapes):
        flat = read(name).detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLED)].cpu().float().contiguous()
        state.update(f"{name} {tuple(shapes[name])}\n".encode())
        state.update(sample.numpy().tobytes())
    return state.hexdigest()[:16]
