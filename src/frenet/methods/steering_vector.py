"""A steering vector: arithmetic and files."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet._files import DamagedFileError, canonical, require_object, whole
from frenet._notebook import Fact, Shown
from frenet.geometry.alignment import cosine
from frenet.network.blocks import residual_blocks
from frenet.network.checkpoints.tensor_files import DIGESTS, load_tensors, save_tensors

FORMAT = "frenet-steering-vector-1"
# The architecture that llama.cpp expects of a control vector.
CONTROL = "controlvector"


@dataclass(frozen=True, repr=False)
class SteeringVector(Shown):
    """A direction of the residual stream after each of some blocks.

    Attributes:
        directions: by 0-based block index, (h,) in float32.
        origin: how it was made.
        model: fingerprint of the model it belongs to; empty if unknown.
        data: fingerprint of the contrast it was made from.

    >>> v = SteeringVector({3: torch.tensor([1.0, 0.0])}, "by hand")
    >>> (2 * v - v).directions[3]
    tensor([1., 0.])
    """

    directions: Mapping[int, Float[Tensor, " h"]]
    origin: str
    model: str = ""
    data: str = ""

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that have a direction."""
        return tuple(sorted(self.directions))

    @property
    def width(self) -> int:
        """h, the width of the stream."""
        return len(next(iter(self.directions.values())))

    def _summary(self) -> str:
        return f"{self.origin}, blocks {', '.join(map(str, self.blocks))}"

    def _entries(self) -> Iterator[Fact]:
        for block in self.blocks:
            norm, chance = float(self.directions[block].norm()), self.width**-0.5
            expected = f"cosines of random vectors are about {chance:.3g}"
            yield f"norm after block {block}", norm, expected

    def __add__(self, other: "SteeringVector") -> "SteeringVector":
        return self._with(other, 1.0)

    def __sub__(self, other: "SteeringVector") -> "SteeringVector":
        return self._with(other, -1.0)

    def __neg__(self) -> "SteeringVector":
        return self * -1.0

    def __mul__(self, factor: int | float) -> "SteeringVector":
        scaled = {block: factor * v for block, v in self.directions.items()}
        return replace(self, directions=scaled, origin=f"{factor:g} ({self.origin})")

    __rmul__ = __mul__

    def at(self, block: int) -> Float[Tensor, " h"]:
        """The direction after one block.

        Raises:
            ValueError: there is none for this block.
        """
        if block not in self.directions:
            listed = ", ".join(map(str, self.blocks))
            raise UsageError(f"the vector has no direction for block {block}; it has {listed}")
        return self.directions[block]

    def cosine(self, other: "SteeringVector") -> dict[int, float]:
        """Cosine with another vector at each block that both have.

        Raises:
            ValueError: the vectors belong to different models, or share no block.
        """
        self._require_like(other)
        return {b: cosine(self.directions[b], other.directions[b]) for b in self._common(other)}

    def require_fits(self, model: nn.Module, fingerprint: str, *, path: str | None = None) -> None:
        """Raise ValueError if the vector belongs to another model."""
        blocks = residual_blocks(model, path)[1]
        if self.model and self.model != fingerprint:
            raise UsageError(
                f"the vector was made for the model {self.model[:12]}, this one is "
                f"{fingerprint[:12]}; extract it again on this model, or load the model with the "
                "--dtype of the vector"
            )
        if beyond := [block for block in self.blocks if not 0 <= block < len(blocks)]:
            raise UsageError(
                f"the vector has a direction for block {beyond[0]}; this model has blocks 0 to "
                f"{len(blocks) - 1}"
            )

    def _with(self, other: "SteeringVector", sign: float) -> "SteeringVector":
        self._require_like(other)
        joined = {b: self.directions[b] + sign * other.directions[b] for b in self._common(other)}
        word = "+" if sign > 0 else "-"
        return replace(self, directions=joined, origin=f"({self.origin}) {word} ({other.origin})")

    def _common(self, other: "SteeringVector") -> list[int]:
        common = sorted(set(self.directions) & set(other.directions))
        if not common:
            raise UsageError(
                f"the vectors share no block: one has {self.blocks}, the other {other.blocks}"
            )
        return common

    def _require_like(self, other: "SteeringVector") -> None:
        if self.width != other.width:
            raise UsageError(
                f"the vectors belong to different models: {self.width} entries of "
                f"{self.model[:12] or 'an unknown model'}, {other.width} of "
                f"{other.model[:12] or 'an unknown model'}"
            )
        if self.model and other.model and self.model != other.model:
            raise UsageError(
                f"the vectors were made on different weights: {self.model[:12]} and "
                f"{other.model[:12]}; a model has other weights in another dtype: extract both "
                "vectors from the same model with the same --dtype"
            )


def save_vector(vector: SteeringVector, path: str | Path) -> Path:
    """Write a vector as safetensors: one tensor per block, and its origin.

    Raises:
        ValueError: an entry is not finite.
    """
    _require_finite(vector)
    tensors = {f"block.{b}": v.float() for b, v in vector.directions.items()}
    about = {"format": FORMAT, "origin": vector.origin, "model": vector.model, "data": vector.data}
    return save_tensors(tensors, Path(path).expanduser(), about)


def load_vector(path: str | Path) -> SteeringVector:
    """Read a vector that ``save_vector`` wrote, or a control vector of llama.cpp.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is neither, or is damaged.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix.lower() == ".gguf":
        return _load_control_vector(path)
    if path.suffix.lower() != ".safetensors":
        raise UsageError(f"{path} is no steering vector; pass a .safetensors or a .gguf file")
    tensors, about = load_tensors(path)
    if about.get("format") != FORMAT:
        raise UsageError(
            f"{path} is not a steering vector from frenet steer extract; pass directions in "
            "weights as --vectors to frenet probe"
        )
    require_object(about, path, origin=str, model=str, data=str)
    directions = {}
    for name, direction in tensors.items():
        block = name.removeprefix("block.")
        if not block.isdigit() or direction.ndim != 1:
            raise DamagedFileError(path, f"has the tensor {name!r}, which is no direction")
        directions[int(block)] = direction
    if not directions:
        raise DamagedFileError(path, "holds no direction")
    return SteeringVector(directions, about["origin"], about["model"], about["data"])


def save_control_vector(vector: SteeringVector, path: str | Path, *, architecture: str) -> Path:
    """Write a vector in the GGUF format of llama.cpp, which adds it at every position.

    ``direction.l`` is added to the stream after the 0-based block l; the format has no direction
    for block 0.

    Args:
        vector: written unscaled; llama.cpp has an option for the scale.
        path: ends in .gguf.
        architecture: of the model, such as "llama" or "qwen2"; a hint.

    Raises:
        ValueError: the vector has a direction for block 0 only, or an entry that is not finite.

    Source: the loader in llama.cpp, common_control_vector_load.
    """
    from gguf import GGUFWriter

    path = Path(path).expanduser()
    _require_finite(vector)
    blocks = [block for block in vector.blocks if block > 0]
    if not blocks:
        raise UsageError(
            "the vector has a direction for block 0 only, which GGUF control vectors cannot hold; "
            "extract a later block"
        )
    directions = {block: vector.directions[block].float().cpu() for block in blocks}
    with whole(path) as part:
        writer = GGUFWriter(part, CONTROL)
        writer.add_string(f"{CONTROL}.model_hint", architecture)
        writer.add_uint32(f"{CONTROL}.layer_count", len(blocks))
        writer.add_string("general.description", vector.origin)
        writer.add_string(DIGESTS, _digest(directions, vector.origin))
        for block, direction in directions.items():
            writer.add_tensor(f"direction.{block}", direction.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def _digest(directions: Mapping[int, Tensor], origin: str) -> str:
    """sha256 of the directions of a control vector, with their blocks and origin."""
    about = {"origin": origin, "blocks": {str(b): len(v) for b, v in directions.items()}}
    state = hashlib.sha256(canonical(about).encode())
    for block in sorted(directions):
        state.update(directions[block].contiguous().numpy().tobytes())
    return state.hexdigest()


def _load_control_vector(path: Path) -> SteeringVector:
    from gguf import GGUFReader

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UsageError(f"{path} is not a GGUF file: it does not start with the bytes GGUF")
    try:
        reader = GGUFReader(path)
        text = {
            name: field.contents()
            for name in ("general.architecture", "general.description", DIGESTS)
            if (field := reader.fields.get(name))
        }
    except Exception as error:  # the reader trusts the file, and raises no error class of its own
        raise DamagedFileError(
            path, f"is damaged or incomplete ({error}); download it again"
        ) from None
    kind = text.get("general.architecture")
    if kind != CONTROL:
        raise UsageError(f"{path} is a GGUF file of {kind!r}, not a control vector")
    directions = {}
    for tensor in reader.tensors:
        name, _, block = tensor.name.partition(".")
        if name != "direction" or not block.isdigit():
            raise UsageError(f"{path} has the tensor {tensor.name!r}, which is no direction")
        directions[int(block)] = torch.from_numpy(tensor.data.copy()).float().reshape(-1)
    if not directions:
        raise UsageError(f"{path} holds no direction")
    origin = text.get("general.description", f"control vector {path.name}")
    # Control vectors of other programs have no digest.
    if DIGESTS in text and text[DIGESTS] != _digest(directions, origin):
        raise DamagedFileError(path, "has changed since it was written (sha256); export it again")
    return SteeringVector(directions, origin)


def _require_finite(vector: SteeringVector) -> None:
    for block, direction in vector.directions.items():
        if not math.isfinite(float(direction.sum())):
            raise UsageError(f"the direction for block {block} is not finite; extract it again")
