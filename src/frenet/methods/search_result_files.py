"""Winners of a search on disk: a seed record, and weights that other programs can load."""

import copy
import hashlib
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet._files import DamagedFileError, pretty, read_object, sealed, unsealed, whole_files
from frenet._version import __version__
from frenet.geometry.subspace import Basis
from frenet.methods.candidates import Candidates, Noise, Where, space_of
from frenet.network.checkpoints.adapter_delta import active_adapters
from frenet.network.checkpoints.adapter_files import PREFIX, write_adapter
from frenet.network.checkpoints.pairs import fingerprint
from frenet.network.checkpoints.tensor_files import save_tensors
from frenet.network.padding import base_model

RECORD, WEIGHTS, FORMAT = "candidate.json", "weights.safetensors", 3
# Formats of records whose noise only earlier versions draw, and the last of those versions.
EARLIER, LAST = (1, 2), "0.1.0"


@runtime_checkable
class Found(Protocol):
    """What is stored of a result of ``random_search``; see ``SearchResult``."""

    @property
    def noise(self) -> Noise:
        """Reproduces every candidate from its index."""
        ...

    @property
    def held_out(self) -> Any:
        """The winner's gain on the test split."""
        ...

    @property
    def winner(self) -> int:
        """Index of the best candidate."""
        ...

    @property
    def selected_gain(self) -> float:
        """Its gain on the selection data."""
        ...


def save_winner(model: nn.Module, where: Where, result: Found, folder: Path | str) -> Path:
    """Write the winner of a search into a folder.

    ``candidate.json`` holds seed, index and sigma, with the fingerprints of the weights and of the
    basis. An adapter on its base is also written in PEFT's format; otherwise the displaced
    parameters go into ``weights.safetensors``, by name.

    Args:
        model: the network of the search, at the same weights; restored bit for bit.
        where: as in the search.
        result: of the search.
        folder: created if missing.

    Returns:
        The folder.
    """
    folder = Path(folder)
    space = space_of(where)
    record = {
        "format": FORMAT,
        "frenet": __version__,
        "fingerprint": fingerprint(model),
        "parameters": list(space.names),
        "basis": where.origin if isinstance(where, Basis) else None,
        **({"basis_fingerprint": digest} if (digest := _digest(where)) else {}),
        "noise": asdict(result.noise),
        "index": result.winner,
        "selected_gain": result.selected_gain,
        "held_out": {
            "before": result.held_out.before,
            "after": result.held_out.after,
            "gain": [
                part if part is not None and math.isfinite(part) else None
                for part in result.held_out.gain[:4]
            ],
        },
    }
    with (
        whole_files(folder, last=RECORD) as part,
        Candidates(model, where, result.noise) as candidates,
    ):
        candidates.put(result.winner)
        if all("lora_" in name for name in space.names) and hasattr(model, "peft_config"):
            _write_adapter(model, part)
        else:
            values = space.parameters(model)
            tensors = {n: p.detach() for n, p in zip(space.names, values, strict=True)}
            save_tensors(tensors, part / WEIGHTS)
        (part / RECORD).write_text(pretty(sealed(record)), encoding="utf-8")
    return folder


def _write_adapter(model: Any, folder: Path) -> None:
    """Write the active adapter in PEFT's format, without the model card."""
    from peft import get_peft_model_state_dict

    (name, *_), base = active_adapters(model), base_model(model)
    config = copy.copy(model.peft_config[name])
    config.base_model_name_or_path = (
        config.base_model_name_or_path or getattr(base, "name_or_path", None) or None
    )
    config.inference_mode = True
    kind = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
    tensors = get_peft_model_state_dict(model, adapter_name=name)
    # transformers' own models with adapters have names without PEFT's prefix.
    tensors = {PREFIX + key.removeprefix(PREFIX): value for key, value in tensors.items()}
    write_adapter(config, tensors, folder, auto_mapping=None if config.task_type else kind)


def _record(path: Path) -> dict[str, Any]:
    """A seed record.

    Raises:
        DamagedFileError: the record was changed, or is from another version of frenet.
        UsageError: its noise was drawn by an earlier version, in a way that this one does not know.
    """
    record = read_object(
        path, fingerprint=str, parameters=list, noise=dict, index=int, basis=(str, type(None))
    )
    if record.get("format") in EARLIER:
        raise UsageError(
            f"{path} is the record of a search by frenet {record.get('frenet', LAST)}, which drew "
            f"other numbers from a seed than this version; load the winner's weights, which lie "
            f"beside it, or replay the record with frenet {LAST}"
        )
    if record.get("format") != FORMAT:
        raise DamagedFileError(path, "is from another version of frenet")
    return unsealed(record, path)


def load_winner(model: nn.Module, where: Where, folder: Path | str) -> Float[Tensor, " d"]:
    """The displacement that a seed record reproduces, exactly.

    Args:
        model: the network of the search.
        where: as in the search.
        folder: written by ``save_winner``.

    Raises:
        FileNotFoundError: the folder holds no record.
        DamagedFileError: the record was changed.
        ValueError: the record belongs to other weights, other parameters, or another basis, or
            an earlier version drew its noise.
    """
    path = Path(folder) / RECORD
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no search result: it has no {RECORD}")
    record = _record(path)
    if record["fingerprint"] != fingerprint(model):
        raise UsageError(
            f"{path} belongs to other weights (fingerprint {record['fingerprint'][:12]}, this "
            f"model has {fingerprint(model)[:12]}); load the model of the search"
        )
    if record["parameters"] != list(space_of(where).names):
        first = next(iter(record["parameters"]), "none")
        raise UsageError(
            f"{path} belongs to {len(record['parameters'])} other parameters, first {first}; "
            "select the same ones"
        )
    _require_same_basis(path, record, where)
    with Candidates(model, where, Noise(**record["noise"])) as candidates:
        return candidates.delta(record["index"])


def _require_same_basis(path: Path, record: dict[str, Any], where: Where) -> None:
    """Raise ValueError if the noise was drawn inside another basis, or without one."""
    origin, digest = record["basis"], _digest(where)
    if (origin is None, record.get("basis_fingerprint")) == (digest is None, digest):
        return
    searched = "without a basis" if origin is None else f"in a basis ({origin})"
    other = "a basis" if origin is None else "another one"
    passed = f"{other} ({where.origin})" if isinstance(where, Basis) else "no basis"
    raise UsageError(
        f"{path} is from a search {searched}, but {passed} was passed; pass the same, or use "
        "the winner's weights in the same folder"
    )


def _digest(where: Where) -> str | None:
    """sha256 of every entry of a basis; None for a space, which its names identify."""
    if not isinstance(where, Basis):
        return None
    return hashlib.sha256(where.U.detach().cpu().contiguous().numpy().data).hexdigest()
