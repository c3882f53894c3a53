"""Loading an adapter onto a model, and checking that the model is its base."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.geometry.linalg import dot
from frenet.network.checkpoints.adapter_apply import (
    apply_adapter,
    changeable,
    require_base,
    twin,
)
from frenet.network.checkpoints.adapter_delta import (
    Products,
    active_adapters,
    adapter_products,
    base_weights,
    sum_of_products,
)
from frenet.network.checkpoints.adapter_files import configuration
from frenet.network.checkpoints.folders import CONFIG, held
from frenet.network.checkpoints.promised import bare_model
from frenet.network.checkpoints.tensor_files import TensorFiles

# Largest difference, over the norm, of equal weights that were rounded to another dtype.
_ROUNDED = 1e-2
# If the cosine between the difference of two bases and an adapter is above, it is merged.
_MERGED = 0.5
# Number of weights to compare: reading all of a large base takes as long as loading it.
_COMPARED = 4
# Largest relative difference of two trials of what an adapter subtracts from its base.
_REPEATED = 1e-3


def load_adapter(
    model: nn.Module, folder: Path, *, source: str | Path | None = None
) -> tuple[nn.Module, list[str]]:
    """``model`` with the trainable adapter of ``folder``, and notes about it.

    Args:
        model: the base; the adapter is added in place.
        folder: folder of the adapter.
        source: source of the base; None: it is not compared with the base that the adapter names.

    Raises:
        ValueError: it is no LoRA adapter; its tensors do not match this model (the message lists
            both sets of names, or both shapes); the adapter is already merged into the model; or
            its initialisation subtracts something random from the base.
    """
    settings = configuration(folder)
    starts = isinstance(settings.get("init_lora_weights"), str)
    more = _start_notes(model, folder) if starts else []
    weights = {
        name: p.detach().clone() if starts else p.detach()
        for name, p in base_weights(model).items()
    }
    wrapped, name_notes = apply_adapter(model, folder)
    products = products_of(wrapped, f"the adapter {folder}")
    if source is not None:
        more += base_notes(folder, source, weights, products)
    if all(not factors.B.any() for parts in products.values() for factors in parts):
        more.append("every lora_B is zero: this adapter is untrained and changes nothing yet")
    rank, count = settings.get("r"), 2 * len(products)
    return wrapped, [f"adapter {folder}: rank {rank}, {count} tensors", *name_notes, *more]


def check_adapter(folder: Path, source: str | Path) -> None:
    """Refuse an adapter of another base, before that base is loaded.

    Args:
        folder: folder of the adapter.
        source: source of the base. If it is no folder, and no hub id that was fetched before, the
            adapter is compared with it only when it is loaded.

    Raises:
        ValueError: the adapter's tensors do not match those of the base.
    """
    place = _place(str(source))
    weights = held(place).weights if place and (place / CONFIG).exists() else ()
    size = sum(file.stat().st_size for file in weights if file.exists())
    if place and size and (bare := bare_model(place, size)) is not None:
        require_base(bare, folder)


def products_of(wrapped: Any, what: str) -> Products:
    """The products of the active adapters, whatever else the adapters change."""
    products = adapter_products(wrapped, active_adapters(wrapped), what)
    return {name: [factors for _, factors in parts] for name, parts in products.items()}


def _start_notes(model: nn.Module, folder: Path) -> list[str]:
    """Notes on what an adapter's initialisation subtracts from its base, tried twice on copies."""
    weights, ends = base_weights(model), []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            wrapped, _ = apply_adapter(twin(model, changeable(folder)), folder)
        ends.append(base_weights(wrapped))
    taken = [_apart(ends[0][name], weights[name]) for name in weights]
    apart = sum(_apart(ends[0][name], ends[1][name]) ** 2 for name in weights) ** 0.5
    whole = sum(part**2 for part in taken) ** 0.5
    if apart > _REPEATED * whole:
        raise UsageError(
            f"the initialisation of the adapter {folder} subtracts something random from its base, "
            "so the base of its training cannot be restored; save it as an ordinary adapter "
            "(path_initial_model_for_weight_conversion of peft's save_pretrained)"
        )
    changed = [name for name, part in zip(weights, taken, strict=True) if part > 0]
    if not changed:
        return []
    norm = sum(float(weights[name].detach().norm()) ** 2 for name in changed) ** 0.5
    return [
        f"the initialisation of the adapter changes its base: {len(changed)} weights differ from "
        f"the loaded ones, by {whole / norm:.2g} of their norm"
    ]


def _apart(one: Tensor, other: Tensor) -> float:
    if one.data_ptr() == other.data_ptr():
        return 0.0
    return float((one.detach().float() - other.detach().float()).norm())


def base_notes(
    folder: Path, source: str | Path, weights: Mapping[str, Tensor], products: Products
) -> list[str]:
    """Notes if an adapter names another base than the one that it is loaded onto.

    Bases with different names may have the same weights: if the named base is on this machine,
    some of the weights are compared.

    Args:
        folder: folder of the adapter.
        source: source of the base.
        weights: weights of the base, by name.
        products: what the adapter adds to them.

    Raises:
        ValueError: the adapter is already merged into the weights; or the weights are in the
            folder of the adapter, and the named base is not on this machine for a comparison.
    """
    named = configuration(folder).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        return []
    place = _place(named)
    if str(source) == named or (place is not None and place == _place(str(source))):
        return []
    pair = f"the adapter {folder} was trained on the base {named} and is loaded onto {source}"
    files = _files(place)
    compared = _compared(files, weights, products) if files else None
    if compared is None:
        if _place(str(source)) == folder.resolve():
            raise UsageError(
                f"{pair}; these weights are in the same folder, and the adapter may already be "
                "merged into them; pass the base, or the weights without the adapter"
            )
        return [f"{pair}; the former is not on this machine, so their weights are not compared"]
    apart, cosine = compared
    if cosine > _MERGED:
        raise UsageError(
            f"{pair}, but is already merged into the latter; pass {named} with the adapter, or "
            f"{source} without"
        )
    if apart <= _ROUNDED:
        return []
    return [f"{pair}; their weights differ by {apart:.2g} of the former's norm"]


def _place(name: str) -> Path | None:
    """The folder or file of a model on this machine, for a hub id in the cache; else None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        if (path := Path(name).expanduser()).exists():
            return path.resolve()
        cached = try_to_load_from_cache(name, "config.json")
    except (OSError, ValueError, RuntimeError, HFValidationError):
        return None
    return Path(cached).parent.resolve() if isinstance(cached, str) else None


def _files(place: Path | None) -> TensorFiles | None:
    """The weights of a base; None if they cannot be read."""
    try:
        return TensorFiles(place) if place and place.is_dir() and held(place).weights else None
    except (OSError, ValueError):
        return None


def _compared(
    files: TensorFiles, weights: Mapping[str, Tensor], products: Products
) -> tuple[float, float] | None:
    """Distance and direction of some adapted weights from those of the named base.

    Returns:
        ||W - W_0|| / ||W_0||, and the cosine of W - W_0 and the adapter's change; None if there is
        nothing to compare.
    """
    files = files.named_like(products)
    shared = [n for n in products if files.shapes.get(n) == tuple(weights[n].shape)]
    shared = shared[:: max(1, len(shared) // _COMPARED)]
    if not shared or any(weights[name].is_meta for name in shared):
        return None
    apart = along = change = whole = 0.0
    for name in shared:
        first, product = files.read(name).float(), sum_of_products(products, name).cpu()
        difference = weights[name].float().cpu() - first
        apart += dot(difference, difference)
        along += dot(difference, product)
        change += dot(product, product)
        whole += dot(first, first)
    cosine = along / (apart * change) ** 0.5 if apart and change else 0.0
    return (apart / whole) ** 0.5 if whole else 0.0, cosine
