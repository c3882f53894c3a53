"""Steering vectors in the files that serving programs read, with what a server has to be told.

Every file says in its metadata what is added where: without it the same numbers at another layer,
by another operation or at another strength give wrong text, and no error.
"""

import base64
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from frenet._errors import UsageError
from frenet._files import canonical, pretty, whole
from frenet._version import __version__
from frenet.methods.steering_vector import (
    HOOK,
    OPERATION,
    SteeringVector,
    save_control_vector,
)

Layout = Literal["llama.cpp", "easysteer", "hotwire", "vllm-lens"]
Position = Literal["all", "generated"]
# The clause of EasySteer for the tokens to steer.
CLAUSES: Mapping[Position, dict[str, Any]] = {
    "all": {"prompt": "all", "generation": "all"},
    "generated": {"prompt_positions": [-1], "generation": "all"},
}


@dataclass(frozen=True)
class Served:
    """A steering vector at one block, as a server is to add it.

    h <- h + scale v after the block, at the tokens of ``position``.

    Attributes:
        vector: with a direction for the block.
        block: 0-based; the vector is added to its output.
        dose: length of what is added, in units of the stream's norm.
        scale: factor of the direction that gives this dose.
        position: "all" tokens, or the prompt's last one and all "generated" ones.
        architecture: of the model, such as "llama"; a hint.
    """

    vector: SteeringVector
    block: int
    dose: float
    scale: float
    position: Position = "all"
    architecture: str = "llama"

    @property
    def direction(self) -> Tensor:
        """The direction (h,), unscaled, in float32 on the CPU."""
        return self.vector.at(self.block).detach().float().cpu().contiguous()

    def about(self) -> dict[str, Any]:
        """What the numbers mean, for metadata."""
        return {
            "made_by": f"frenet {__version__}",
            "operation": OPERATION,
            "hook": HOOK,
            "layers": {str(self.block): "0-based index of the decoder layer"},
            "position": self.position,
            "scale": self.scale,
            "dose": self.dose,
            "stream_norm": self.vector.norms[self.block],
            "origin": self.vector.origin,
            "model": self.vector.model,
            "data": self.vector.data,
        }


def served(
    vector: SteeringVector,
    *,
    block: int | None = None,
    dose: float | None = None,
    position: Position = "all",
    architecture: str = "llama",
) -> Served:
    """A vector at one block, as a server is to add it.

    Args:
        vector: its ``norms`` turn the dose into a scale.
        block: None: the advised one, or the only one.
        dose: None: the advised one.
        position: tokens to add it at.
        architecture: of the model; a hint in GGUF files.

    Raises:
        ValueError: see ``SteeringVector.use`` and ``scale``.
    """
    block, dose = vector.use(block, dose)
    return Served(vector, block, dose, vector.scale(block, dose), position, architecture)


def save_served(what: Served, path: str | Path, layout: Layout) -> tuple[Path, ...]:
    """Write a vector in the layout of a serving program.

    "llama.cpp": a GGUF control vector. "easysteer": the same for one block, and a steering spec in
    JSON. "hotwire": a .pt file that holds one vector. "vllm-lens": a JSON list with one steering
    vector. The vector is written unscaled.

    Args:
        what: vector, block, dose and position.
        path: the file; its suffix is that of the layout.
        layout: one of the four.

    Returns:
        The files.

    Raises:
        ValueError: the layout cannot hold the block or the position; the suffix is another one; or
            an entry is not finite.
    """
    path = Path(path).expanduser()
    writer, suffix, positions = _WRITERS[layout]
    if path.suffix != suffix:
        raise UsageError(f"{path} does not end in {suffix}, which {layout} reads")
    if what.position not in positions:
        raise UsageError(
            f"{layout} adds a vector at every token, and its files cannot say --position "
            f"{what.position}; pass --position all, or --layout easysteer"
        )
    if not bool(what.direction.isfinite().all()):
        raise UsageError(f"the direction for block {what.block} is not finite; extract it again")
    return writer(what, path)


def usage(what: Served, path: Path, layout: Layout) -> list[str]:
    """How a server is told to add the vector of a file, one line each."""
    scale = f"{what.scale:.6g}"
    if layout == "llama.cpp":
        # llama.cpp splits the argument at commas and colons.
        if {":", ","} & set(str(path)):
            raise UsageError(f"llama.cpp cannot read {path}: rename it without comma and colon")
        named = shlex.quote(f"{path}:{scale}")
        layers = f"--control-vector-layer-range {what.block} {what.block}"
        return [
            f"llama.cpp: --control-vector-scaled {named} {layers}",
            f"older llama.cpp, with FNAME SCALE in its help: --control-vector-scaled "
            f"{shlex.quote(str(path))} {scale} {layers}",
        ]
    if layout == "easysteer":
        return [f"EasySteer: vllm serve MODEL --steering-config {shlex.quote(str(_spec(path)))}"]
    if layout == "hotwire":
        spec = json.dumps({"id": path.stem, "layer": what.block, "scale": float(scale)})
        return [
            f"hotwire: HOTWIRE_VECTORS={shlex.quote(str(path))}, and with each request",
            f"vllm_xargs: {json.dumps({'hotwire': spec})}",
        ]
    return [
        "vllm-lens: SamplingParams(extra_args={'apply_steering_vectors': "
        f"json.load(open({str(path)!r}))}})"
    ]


def _llama(what: Served, path: Path) -> tuple[Path, ...]:
    if what.block == 0:
        raise UsageError(
            "a control vector of llama.cpp has no direction for block 0; pass a later one as "
            "--block, or another --layout"
        )
    return (save_control_vector(what.vector, path, architecture=what.architecture),)


def _easysteer(what: Served, path: Path) -> tuple[Path, ...]:
    """A GGUF file with the direction of one block, which may be block 0, and the spec."""
    from gguf import GGUFWriter

    with whole(path) as part:
        writer = GGUFWriter(part, "controlvector")
        writer.add_string("controlvector.model_hint", what.architecture)
        writer.add_string("controlvector.method", "frenet")
        writer.add_uint32("controlvector.layer_count", 1)
        writer.add_string("general.description", what.vector.origin)
        writer.add_string("frenet.about", canonical(what.about()))
        writer.add_tensor(f"direction.{what.block}", what.direction.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    vector = {
        "source": str(path), "algorithm": "direct", "scale": what.scale, "layers": [what.block],
        "normalize": False, "apply": CLAUSES[what.position], "name": path.stem,
    }  # fmt: skip
    with whole(_spec(path)) as part:
        part.write_text(pretty({"vectors": [vector]}), encoding="utf-8")
    return path, _spec(path)


def _spec(path: Path) -> Path:
    """The steering spec beside a GGUF file of EasySteer."""
    return path.with_suffix(".json")


def _hotwire(what: Served, path: Path) -> tuple[Path, ...]:
    """The first tensor of the dictionary is the vector; the reader ignores the rest."""
    with whole(path) as part:
        torch.save({"vector": what.direction, "about": canonical(what.about())}, part)
    return (path,)


def _lens(what: Served, path: Path) -> tuple[Path, ...]:
    direction = what.direction[None]
    activations = {
        "data": base64.b64encode(direction.numpy().astype("<f4").tobytes()).decode("ascii"),
        "dtype": "float32", "original_dtype": "torch.float32", "shape": list(direction.shape),
    }  # fmt: skip
    vector = {
        "activations": activations, "layer_indices": [what.block], "scale": what.scale,
        "norm_match": False, "position_indices": None, "about": what.about(),
    }  # fmt: skip
    with whole(path) as part:
        part.write_text(pretty([vector]), encoding="utf-8")
    return (path,)


_Writer = Callable[[Served, Path], tuple[Path, ...]]
_WRITERS: Mapping[Layout, tuple[_Writer, str, tuple[Position, ...]]] = {
    "llama.cpp": (_llama, ".gguf", ("all",)),
    "easysteer": (_easysteer, ".gguf", ("all", "generated")),
    "hotwire": (_hotwire, ".pt", ("all",)),
    "vllm-lens": (_lens, ".json", ("all",)),
}
