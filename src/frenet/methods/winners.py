"""Winners of a search on disk: as a seed record, and as weights that others can load."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from frenet._version import __version__
from frenet.geometry.subspace import Basis
from frenet.methods.candidates import Candidates, Noise, Where, space_of
from frenet.methods.search import SearchResult
from frenet.network.cache import save_atomically
from frenet.network.checkpoints import fingerprint

RECORD, WEIGHTS, FORMAT = "candidate.json", "weights.safetensors", 1


def save_winner(model: nn.Module, where: Where, result: SearchResult, folder: Path | str) -> Path:
    """Write the winner of a search into a folder.

    ``candidate.json`` holds seed, index and sigma, with the fingerprints of the weights that they
    displace and of the basis that they displace them in. An adapter on its base is also written as
    PEFT writes it, and everything else as ``weights.safetensors`` with the displaced parameters by
    name.

    Args:
        model: the network that was searched around, at the same weights; comes back bit for bit.
        where: as in the search.
        result: what the search gave.
        folder: made where it is not there.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    space = space_of(where)
    record = {
        "format": FORMAT,
        "frenet": __version__,
        "fingerprint": fingerprint(model),
        "parameters": list(space.names),
        "basis": where.origin if isinstance(where, Basis) else None,
        **({"basis_fingerprint": found} if (found := _digest(where)) else {}),
        "noise": asdict(result.noise),
        "index": result.winner,
        "selected_gain": result.selected_gain,
        "held_out": {
            "before": result.held_out.before,
            "after": result.held_out.after,
            "gain": list(result.held_out.gain),
        },
    }
    with Candidates(model, where, result.noise) as candidates:
        candidates.put(result.winner)
        wrapper: Any = model
        if all("lora_" in name for name in space.names) and hasattr(model, "peft_config"):
            wrapper.save_pretrained(folder)
        else:
            values = space.parameters(model)
            save_atomically(
                {n: p.detach() for n, p in zip(space.names, values, strict=True)}, folder / WEIGHTS
            )
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return folder


def load_winner(model: nn.Module, where: Where, folder: Path | str) -> Float[Tensor, " d"]:
    """The displacement that a seed record brings back, exactly.

    Args:
        model: the network that was searched around.
        where: as in the search.
        folder: what ``save_winner`` wrote.

    Raises:
        FileNotFoundError: the folder holds no record.
        ValueError: the record is of other weights, of other parameters, or of another basis.
    """
    path = Path(folder) / RECORD
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no search result: it has no {RECORD}")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if record["fingerprint"] != fingerprint(model):
        raise ValueError(
            f"{path} is a result of other weights (fingerprint {record['fingerprint'][:12]}, this "
            f"model has {fingerprint(model)[:12]}); load the model that was searched around"
        )
    if record["parameters"] != list(space_of(where).names):
        first = next(iter(record["parameters"]), "none")
        raise ValueError(
            f"{path} is about {len(record['parameters'])} other parameters, the first of them "
            f"{first}; select the same ones"
        )
    _require_same_basis(path, record, where)
    with Candidates(model, where, Noise(**record["noise"])) as candidates:
        return candidates.delta(record["index"])


def _require_same_basis(path: Path, record: dict[str, Any], where: Where) -> None:
    """Raise ValueError where the noise was drawn inside another basis, or inside none."""
    origin, found = record["basis"], _digest(where)
    if (origin is None, record.get("basis_fingerprint")) == (found is None, found):
        return
    searched = "no basis" if origin is None else f"a basis ({origin})"
    other = "a basis" if origin is None else "another one"
    passed = f"{other} ({where.origin})" if isinstance(where, Basis) else "no basis"
    raise ValueError(
        f"{path} is of a search in {searched}, and {passed} was passed; pass what was searched in, "
        "or take the weights of the winner, which lie beside it"
    )


def _digest(where: Where) -> str | None:
    """Hex digits that identify every entry of a basis; None for a space, which its names tell."""
    if not isinstance(where, Basis):
        return None
    return hashlib.sha256(where.U.detach().cpu().contiguous().numpy().data).hexdigest()
