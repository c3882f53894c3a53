"""The contents of a GGUF file, or a specific error if it cannot be read.

The gguf package does not read the header here: its reader (0.19) compares no length with the size
of the file, so a file of 112 bytes with an array of supposedly 2^40 numbers keeps it busy for ever,
with growing memory. Its tables give the size of each type, and it dequantises blocks.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import importlib.metadata
import math
import mmap
import re
import struct
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from frenet._errors import UsageError

AGAIN = "compare its size and sha256 with those of its source, and fetch it again"
_CONVERT = "convert the original model again with llama.cpp's convert_hf_to_gguf.py"
# Beginnings of other files with the name of a GGUF file; the first match counts.
_BEGINNINGS = (
    (rb"\Z", "is empty; fetch it again"),
    (rb"version https://git-lfs", "is a Git LFS pointer and not the file; run: git lfs pull"),
    (rb"\s*<", "is a web page, so the download failed; fetch it again, signed in if necessary"),
    (rb"(lmgg|fmgg|tjgg)", f"is in a format of llama.cpp from before GGUF; {_CONVERT}"),
)
# Names of parts that were cut by size, and have to be joined before they can be read.
_CUT = re.compile(r"\.gguf[.-](part\d+of\d+|split-?\w+)$", re.IGNORECASE)
# Numbers of types that llama.cpp removed from the format (ggml.h).
_REMOVED_TYPES = (4, 5, 31, 32, 33, 36, 37, 38)
# Values of general.type for files without a model.
_NO_MODEL = {
    "adapter": "a LoRA adapter; pass the folder of the PEFT adapter that it was made from",
    "imatrix": "an importance matrix; pass the file of the model",
    "mmproj": "the projector of a multimodal model; pass the file of the language model",
    "vocab": "a vocabulary without a model; pass the file of the model",
}
# Formats of numbers in metadata, by the number of their type; 8 is text and 9 an array.
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_TEXT, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4


class GgufTensor(NamedTuple):
    """Place and storage of a tensor.

    Attributes:
        name: name in the file.
        kind: type, as in the gguf package.
        shape: the slowest dimension first, as in torch.
        offset: offset of its first byte in the file.
        size: size in bytes.
    """

    name: str
    kind: Any
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def entries(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


class GgufFile(NamedTuple):
    """Metadata and tensors of a GGUF file of a whole model.

    Attributes:
        path: path of the file.
        architecture: llama.cpp's name of the architecture.
        metadata: all keys with their values.
        tensors: tensors in the order of the file.
    """

    path: Path
    architecture: str
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def name(self) -> str:
        """Name of the file, for messages."""
        return self.path.name

    @property
    def parameters(self) -> int:
        """Number of entries of all tensors."""
        return sum(tensor.entries for tensor in self.tensors)

    @property
    def quantisation(self) -> str:
        """Types of tensors with their counts, the most frequent first."""
        types = Counter(tensor.kind.name for tensor in self.tensors)
        return " + ".join(f"{kind} ({n} tensors)" for kind, n in types.most_common())

    def values(self, name: str) -> np.ndarray | None:
        """The dequantised entries of a tensor; None if there is none of that name."""
        from gguf import dequantize

        for tensor in self.tensors:
            if tensor.name == name:
                data = np.memmap(self.path, np.uint8, "r", tensor.offset, (tensor.size,))
                rows = data.reshape(*tensor.shape[:-1], -1)
                return np.array(dequantize(rows, tensor.kind))
        return None


def is_part(path: Path) -> bool:
    """Whether the name is that of a part of a GGUF file that was cut by size."""
    return _CUT.search(path.name) is not None


def read_gguf(path: Path) -> GgufFile:
    """Metadata and tensors of a file.

    Raises:
        ValueError: it is no GGUF file; its version, byte order or content is not supported; it is
            a part of a file, or damaged; or gguf cannot unpack a type of its tensors.
    """
    _require_readable(path)
    walk = _Walk(path)
    tensors, keys = walk.number("Q"), walk.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = walk.text()
        if key in metadata:
            raise walk.damaged(f"it has the key {key} twice")
        metadata[key] = walk.value(walk.number("I"))
    _require_whole(path, metadata, tensors)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise walk.damaged("it does not name its architecture")
    infos = [_info(walk) for _ in range(tensors)]
    names = Counter(info[0] for info in infos)
    if twice := [name for name, count in names.items() if count > 1]:
        raise walk.damaged(f"it has the tensor {twice[0]} twice")
    file = GgufFile(path, architecture, metadata, _placed(walk, metadata, infos))
    _require_unpackable(file)
    return file


class _Walk:
    """A position in a file, for reading values one after another."""

    def __init__(self, path: Path) -> None:
        self.path, self.place = path, 8
        with path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            ValueError: the file ends earlier.
        """
        if count > len(self.data) - self.place:
            raise self.damaged(f"it ends within its header, at byte {self.place:,}")
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self, kind: str) -> Any:
        """The next number, by its letter in ``struct``."""
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        """The next text."""
        raw = self.take(self.number("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"no text before byte {self.place:,}") from None

    def value(self, kind: int) -> Any:
        """The next value of metadata, by the number of its type."""
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            raise self.damaged(f"a value of an unknown type, {kind}, before byte {self.place:,}")
        inner, count = self.number("I"), self.number("Q")
        if inner not in _NUMBERS:
            # Every text and every array takes at least 8 bytes.
            if 8 * count > len(self.data):
                raise self.damaged(f"an array of {count} values at byte {self.place:,}")
            return [self.value(inner) for _ in range(count)]
        letter = _NUMBERS[inner]
        values = self.take(count * struct.calcsize(letter))
        return list(struct.unpack(f"<{count}{letter}", values))

    def damaged(self, why: str) -> ValueError:
        """The error of a damaged or incomplete file."""
        if is_part(self.path):
            return UsageError(f"{self.path} {_of_a_cut_file(self.path)}")
        return UsageError(
            f"{self.path} is damaged or incomplete ({why}); it has {len(self.data):,} bytes: "
            f"{AGAIN}"
        )


def _info(walk: _Walk) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type number and offset of the next tensor."""
    name, count = walk.text(), walk.number("I")
    if not 1 <= count <= _MOST_DIMENSIONS:
        raise walk.damaged(f"{name} has {count} dimensions")
    shape = tuple(walk.number("Q") for _ in range(count))[::-1]
    return name, shape, walk.number("I"), walk.number("Q")


def _placed(
    walk: _Walk, metadata: dict[str, Any], infos: list[tuple[str, tuple[int, ...], int, int]]
) -> tuple[GgufTensor, ...]:
    """The tensors, which must follow each other without gap or overlap, as in llama.cpp."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise walk.damaged(f"general.alignment = {alignment}")
    start = -(-walk.place // alignment) * alignment
    place, tensors = start, []
    for name, shape, number, offset in infos:
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise UsageError(
                f"{walk.path}: {name} is of type {number}, {_unknown(number)}"
            ) from None
        entries, size = GGML_QUANT_SIZES[kind]
        if shape[-1] % entries or start + offset != place:
            raise walk.damaged(
                f"{name} of shape {shape} and type {kind.name} begins at byte {start + offset:,}, "
                f"but the tensors before it end at {place:,}"
            )
        taken = math.prod(shape) // entries * size
        tensors.append(GgufTensor(name, kind, shape, place, taken))
        if place + taken > len(walk.data):
            raise walk.damaged(f"{name} ends at byte {place + taken:,}")
        place += -(-taken // alignment) * alignment
    return tuple(tensors)


def _unknown(number: int) -> str:
    if number in _REMOVED_TYPES:
        return f"which was removed from the format; {_CONVERT}"
    if number < 256:
        return f"which gguf {_package()} does not know; run: pip install -U gguf, or {_CONVERT}"
    return f"which no version of the format has: the file is damaged; {AGAIN}"


def _require_readable(path: Path) -> None:
    """Refuse a file unless it begins like GGUF of a supported version and byte order."""
    with path.open("rb") as file:
        start = file.read(64)
    if start[:4] != b"GGUF":
        for beginning, what in _BEGINNINGS:
            if re.match(beginning, start):
                raise UsageError(f"{path} {what}")
        if is_part(path):
            raise UsageError(f"{path} {_of_a_cut_file(path)}")
        raise UsageError(f"{path} is not a GGUF file: it does not start with the bytes GGUF")
    version = struct.unpack_from("<I", start.ljust(8, b"\0"), 4)[0]
    if version == 1:
        raise UsageError(f"{path} is of version 1 of GGUF, of August 2023; {_CONVERT}")
    if version and version % 2**16 == 0:
        raise UsageError(
            f"{path} is big-endian, but this machine is not; convert a copy of it with: "
            "gguf-convert-endian FILE little"
        )
    if 3 < version < 16:
        raise UsageError(
            f"{path} is of version {version} of GGUF, which gguf {_package()} does not read; run: "
            "pip install -U gguf"
        )


def _of_a_cut_file(path: Path) -> str:
    whole = path.name[: path.name.lower().index(".gguf") + 5]
    return f"is a part of a file that was cut by size; join the parts: cat PARTS > {whole}"


def _require_whole(path: Path, metadata: dict[str, Any], tensors: int) -> None:
    """Refuse a file unless it has a model, and all of it."""
    count, number = metadata.get("split.count", 1), metadata.get("split.no", 0)
    if isinstance(count, int) and isinstance(number, int) and count > 1:
        raise UsageError(
            f"{path} is part {number + 1} of {count} of a split file; join them with "
            "llama.cpp: llama-gguf-split --merge FIRST_PART WHOLE.gguf"
        )
    kind = metadata.get("general.type", "model")
    if kind != "model" or not tensors:
        what = _NO_MODEL.get(kind if kind != "model" else "vocab", f"of the type {kind!r}")
        raise UsageError(f"{path} holds no model: it is {what}")
    if metadata.get("general.architecture") == "controlvector":
        raise UsageError(f"{path} is a control vector; frenet steer reads it")


def _require_unpackable(file: GgufFile) -> None:
    """Refuse a type of tensor that gguf cannot convert to floating-point numbers."""
    from gguf import GGML_QUANT_SIZES, dequantize

    for tensor in {tensor.kind: tensor for tensor in reversed(file.tensors)}.values():
        block = np.zeros((1, GGML_QUANT_SIZES[tensor.kind][1]), np.uint8)
        try:
            dequantize(block, tensor.kind)
        except NotImplementedError:
            raise UsageError(
                f"{file.path}: {tensor.name} is stored as {tensor.kind.name}, which gguf "
                f"{_package()} cannot convert to numbers; run: pip install -U gguf, or {_CONVERT}"
            ) from None


def _package() -> str:
    return importlib.metadata.version("gguf")
