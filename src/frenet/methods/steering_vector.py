"""A steering vector: arithmetic and files."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet._files import DamagedFileError, canonical, parse_json, require_object, whole
from frenet._notebook import Fact, Shown
from frenet.geometry.alignment import cosine
from frenet.measure.activations import add
from frenet.network.blocks import residual_blocks
from frenet.network.checkpoints.tensor_files import DIGESTS, load_tensors, save_tensors
from frenet.network.hooks.sites import Site

FORMAT = "frenet-steering-vector-1"
# Keys of the stream norms and of the advice in a file's metadata.
NORMS, ADVISED = "norms", "advised"
# What a vector means, for the metadata of files that other programs read.
OPERATION = "h <- h + scale * vector"
HOOK = "output of the decoder layer (residual stream)"
DOSING = (f"frenet.{NORMS}", f"frenet.{ADVISED}")
# The architecture that llama.cpp expects of a control vector.
CONTROL = "controlvector"


class Advised(NamedTuple):
    """Where and how strongly ``frenet steer recommend`` advises to add a vector.

    Attributes:
        block: 0-based; the vector is added to its output.
        dose: length of what is added, in units of the stream's norm after the block.
    """

    block: int
    dose: float


@dataclass(frozen=True, repr=False)
class SteeringVector(Shown):
    """A direction of the residual stream after each of some blocks.

    Attributes:
        directions: by 0-based block index, (h,) in float32.
        origin: how it was made.
        model: fingerprint of the model it belongs to; empty if unknown.
        data: fingerprint of the contrast it was made from.
        norms: by block, the root mean square norm of the stream where the direction was read: the
            unit of a dose. Empty if unknown.
        advised: the block and the dose to use; None: no advice. Sums and multiples have none.

    >>> v = SteeringVector({3: torch.tensor([1.0, 0.0])}, "by hand")
    >>> (2 * v - v).directions[3]
    tensor([1., 0.])
    """

    directions: Mapping[int, Float[Tensor, " h"]]
    origin: str
    model: str = ""
    data: str = ""
    norms: Mapping[int, float] = field(default_factory=dict)
    advised: Advised | None = None

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
        if self.advised:
            yield f"advised dose at block {self.advised.block}", self.advised.dose, "0: no vector"

    def __add__(self, other: "SteeringVector") -> "SteeringVector":
        return self._with(other, 1.0)

    def __sub__(self, other: "SteeringVector") -> "SteeringVector":
        return self._with(other, -1.0)

    def __neg__(self) -> "SteeringVector":
        return self * -1.0

    def __mul__(self, factor: int | float) -> "SteeringVector":
        scaled = {block: factor * v for block, v in self.directions.items()}
        origin = f"{factor:g} ({self.origin})"
        return replace(self, directions=scaled, origin=origin, advised=None)

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

    def use(self, block: int | None = None, dose: float | None = None) -> Advised:
        """The block and the dose, completed by the advice.

        Args:
            block: None: the advised one, or the only one.
            dose: None: the advised one.

        Raises:
            ValueError: there is no advice and several blocks; the dose is missing, or not finite;
                or the advised dose belongs to another block.
        """
        if block is None:
            block = self._only_block()
        self.at(block)
        if dose is None:
            if self.advised is None or self.advised.block != block:
                raise UsageError(
                    f"there is no advised dose for block {block}; pass one (--dose), or get advice "
                    "from frenet steer recommend"
                )
            dose = self.advised.dose
        if not math.isfinite(dose):
            raise UsageError(f"dose {dose} is not finite; pass a number, such as 0.3")
        return Advised(block, dose)

    def _only_block(self) -> int:
        """The advised block, or the only one."""
        if self.advised:
            return self.advised.block
        if len(self.directions) > 1:
            listed = ", ".join(map(str, self.blocks))
            raise UsageError(
                f"the vector has several blocks ({listed}); pass one as block (--block)"
            )
        return next(iter(self.directions))

    def scale(self, block: int, dose: float) -> float:
        """The factor of the direction at a dose, dose x stream norm / norm of the direction.

        Raises:
            ValueError: there is no direction for the block, it is zero, or the stream's norm is not
                known.
        """
        length = float(self.at(block).norm())
        if not length > 0:
            raise UsageError(f"the direction for block {block} is zero and has no dose")
        if block not in self.norms:
            raise UsageError(
                f"the norm of the stream after block {block} is not known, so that a dose has no "
                "length; extract the vector again with frenet steer extract, or pass norms to "
                "SteeringVector"
            )
        return dose * self.norms[block] / length

    @contextmanager
    def applied(
        self,
        model: nn.Module,
        *,
        block: int | None = None,
        dose: float | None = None,
        position: Literal["last", "all", "generated"] = "generated",
        path: str | None = None,
    ) -> Iterator[None]:
        """Add the vector to the stream in every forward pass inside the context.

        h_l <- h_l + dose rho_l v_l / ||v_l||, rho_l the norm of the stream in ``norms``.

        Args:
            model: the vector's model; unchanged afterwards.
            block: 0-based; None: the advised one, or the only one.
            dose: in units of the stream's norm, negative for the other direction; None: the
                advised one.
            position: tokens to add it at, see ``Site``.
            path: dotted name of the list of blocks; None: frenet looks for it.

        Raises:
            ValueError: see ``use`` and ``scale``; or the model has another width or no such block.
        """
        block, dose = self.use(block, dose)
        added = self.scale(block, dose) * self.at(block)
        with add(model, {Site(block, position): added}, path=path):
            yield

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
        origin = f"({self.origin}) {word} ({other.origin})"
        return replace(self, directions=joined, origin=origin, advised=None)

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
    return save_tensors(tensors, Path(path).expanduser(), about | _dosing(vector))


def _dosing(vector: SteeringVector) -> dict[str, str]:
    """What is known of doses, as metadata of a file."""
    about = {}
    if vector.norms:
        about[NORMS] = canonical({str(block): norm for block, norm in vector.norms.items()})
    if vector.advised:
        about[ADVISED] = canonical(vector.advised._asdict())
    return about


def _dosed(about: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The same from the metadata, as arguments of a vector."""
    found: dict[str, Any] = {}
    if NORMS in about:
        norms = require_object(parse_json(about[NORMS], path), path)
        if not all(key.isdigit() and isinstance(norm, float) for key, norm in norms.items()):
            raise DamagedFileError(path, "has norms of the stream that are no numbers by block")
        found["norms"] = {int(block): norm for block, norm in norms.items()}
    if ADVISED in about:
        advised = require_object(parse_json(about[ADVISED], path), path, block=int, dose=float)
        found["advised"] = Advised(advised["block"], advised["dose"])
    return found


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
    return SteeringVector(
        directions, about["origin"], about["model"], about["data"], **_dosed(about, path)
    )


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
        dosing = _dosing(vector)
        layers = "direction.l belongs to decoder layer l, counted from 0"
        about = {"operation": OPERATION, "hook": HOOK, "layers": layers, "position": "all"}
        for key, text in (about | dosing).items():
            writer.add_string(f"frenet.{key}", text)
        writer.add_string(DIGESTS, _digest(directions, vector.origin, dosing))
        for block, direction in directions.items():
            writer.add_tensor(f"direction.{block}", direction.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def _digest(directions: Mapping[int, Tensor], origin: str, dosing: Mapping[str, str]) -> str:
    """sha256 of the directions of a control vector, with their blocks, origin and doses."""
    blocks = {str(b): len(v) for b, v in directions.items()}
    about = {"origin": origin, "blocks": blocks, **dosing}
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
            name: entry.contents()
            for name in ("general.architecture", "general.description", DIGESTS, *DOSING)
            if (entry := reader.fields.get(name))
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
    dosing = {key.removeprefix("frenet."): text[key] for key in DOSING if key in text}
    if DIGESTS in text and text[DIGESTS] != _digest(directions, origin, dosing):
        raise DamagedFileError(path, "has changed since it was written (sha256); export it again")
    return SteeringVector(directions, origin, **_dosed(dosing, path))


def _require_finite(vector: SteeringVector) -> None:
    for block, direction in vector.directions.items():
        if not math.isfinite(float(direction.sum())):
            raise UsageError(f"the direction for block {block} is not finite; extract it again")
