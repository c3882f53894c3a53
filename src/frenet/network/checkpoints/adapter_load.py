"""An adapter on a model that is measured, compared with the base that it was trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.geometry.linalg import dot
from frenet.network.checkpoints.adapter_apply import apply_adapter, changeable, twin
from frenet.network.checkpoints.adapter_delta import (
    Products,
    active_adapters,
    adapter_products,
    base_weights,
    sum_of_products,
)
from frenet.network.checkpoints.adapter_files import configuration
from frenet.network.checkpoints.folders import held
from frenet.network.checkpoints.tensor_files import TensorFiles

# Weights that differ by less of their norm are the same ones, rounded to another dtype.
_ROUNDED = 1e-2
# Cosine between the difference of two bases and an adapter, above which the adapter is in it.
_MERGED = 0.5
# Weights that are compared: reading all of a large base takes as long as loading it.
_COMPARED = 4
# Of what an adapter takes out of its base, how much two tries may differ.
_REPEATED = 1e-3


def load_adapter(
    model: nn.Module, folder: Path, *, source: str | Path | None = None
) -> tuple[nn.Module, list[str]]:
    """``model`` with the adapter of ``folder`` on it, trainable, and what to say about it.

    Args:
        model: the base; the adapter goes into it.
        folder: of the adapter.
        source: where the base came from; None: it is not compared with the base that the adapter
            names.

    Raises:
        ValueError: not a LoRA adapter; its tensors are not exactly those that it has on this model
            (the message lists both sets of names, or the tensor with both shapes); the model has
            the adapter in its weights already; or what the adapter takes out of its base when it
            starts is random.
    """
    settings = configuration(folder)
    starts = isinstance(settings.get("init_lora_weights"), str)
    more = _start_notes(model, folder) if starts else []
    own = {n: p.detach().clone() if starts else p.detach() for n, p in base_weights(model).items()}
    wrapped, said = apply_adapter(model, folder)
    products = products_of(wrapped, f"the adapter {folder}")
    if source is not None:
        more += base_notes(folder, source, own, products)
    if all(not factors.B.any() for parts in products.values() for factors in parts):
        more.append("every lora_B is zero: this adapter is untrained and changes nothing yet")
    rank, count = settings.get("r"), 2 * len(products)
    return wrapped, [f"adapter {folder}: rank {rank}, {count} tensors", *said, *more]


def products_of(wrapped: Any, what: str) -> Products:
    """The products of the active adapters, whatever else they do."""
    found = adapter_products(wrapped, active_adapters(wrapped), what)
    return {name: [factors for _, factors in parts] for name, parts in found.items()}


def _start_notes(model: nn.Module, folder: Path) -> list[str]:
    """What an adapter takes out of its base when it starts, tried twice on copies."""
    own, ends = base_weights(model), []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            wrapped, _ = apply_adapter(twin(model, changeable(folder)), folder)
        ends.append(base_weights(wrapped))
    taken = [_apart(ends[0][name], own[name]) for name in own]
    apart = sum(_apart(ends[0][name], ends[1][name]) ** 2 for name in own) ** 0.5
    whole = sum(part**2 for part in taken) ** 0.5
    if apart > _REPEATED * whole:
        raise UsageError(
            f"the adapter {folder} takes something out of its base when it starts, by a random "
            "method, so that the base that it was trained on cannot be made again; save it as an "
            "ordinary adapter (path_initial_model_for_weight_conversion of peft's save_pretrained)"
        )
    changed = [name for name, part in zip(own, taken, strict=True) if part > 0]
    if not changed:
        return []
    norm = sum(float(own[name].detach().norm()) ** 2 for name in changed) ** 0.5
    return [
        f"the adapter takes something out of its base when it starts: {len(changed)} weights under "
        f"it differ from those that were loaded, by {whole / norm:.2g} of their norm"
    ]


def _apart(one: Tensor, other: Tensor) -> float:
    if one.data_ptr() == other.data_ptr():
        return 0.0
    return float((one.detach().float() - other.detach().float()).norm())


def base_notes(
    folder: Path, source: str | Path, own: Mapping[str, Tensor], products: Products
) -> list[str]:
    """What to say where an adapter names another base than the one that it is put on.

    The names may differ while the weights are the same: where the named base lies on this machine,
    some of the weights are compared.

    Args:
        folder: of the adapter.
        source: where the base came from.
        own: its weights, by name.
        products: what the adapter adds to them.

    Raises:
        ValueError: the weights are those of the named base with the adapter in them already, or
            lie beside the adapter and the named base is not here to see whether they are.
    """
    named = configuration(folder).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        return []
    place = _place(named)
    if str(source) == named or (place is not None and place == _place(str(source))):
        return []
    told = f"the adapter {folder} was trained on the base {named} and is put on {source}"
    files = _files(place)
    compared = _compared(files, own, products) if files else None
    if compared is None:
        if _place(str(source)) == folder.resolve():
            raise UsageError(
                f"{told}, whose weights lie beside the adapter and may have it in them already; "
                "pass the base, or the weights without the adapter"
            )
        return [f"{told}; the former is not here, so that their weights are not compared"]
    apart, cosine = compared
    if cosine > _MERGED:
        raise UsageError(
            f"{told}, whose weights have it in them already; pass {named} with the adapter, or "
            f"{source} without"
        )
    if apart <= _ROUNDED:
        return []
    return [f"{told}, whose weights differ from the former's by {apart:.2g} of their norm"]


def _place(name: str) -> Path | None:
    """The folder or file of a model on this machine, of a hub id in the cache; None: not here."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        if (path := Path(name).expanduser()).exists():
            return path.resolve()
        found = try_to_load_from_cache(name, "config.json")
    except (OSError, ValueError, RuntimeError, HFValidationError):
        return None
    return Path(found).parent.resolve() if isinstance(found, str) else None


def _files(place: Path | None) -> TensorFiles | None:
    """The weights of a base; None where they cannot be read."""
    try:
        return TensorFiles(place) if place and place.is_dir() and held(place).weights else None
    except (OSError, ValueError):
        return None


def _compared(
    files: TensorFiles, own: Mapping[str, Tensor], products: Products
) -> tuple[float, float] | None:
    """How far some adapted weights are from the named base's, and in which direction.

    Returns:
        ||W - W_0|| / ||W_0||, and the cosine of W - W_0 and the adapter's change; None where there
        is nothing to compare.
    """
    files = files.named_like(products)
    shared = [n for n in products if files.shapes.get(n) == tuple(own[n].shape)]
    shared = shared[:: max(1, len(shared) // _COMPARED)]
    if not shared or any(own[name].is_meta for name in shared):
        return None
    apart = along = change = whole = 0.0
    for name in shared:
        first, product = files.read(name).float(), sum_of_products(products, name).cpu()
        difference = own[name].float().cpu() - first
        apart += dot(difference, difference)
        along += dot(difference, product)
        change += dot(product, product)
        whole += dot(first, first)
    cosine = along / (apart * change) ** 0.5 if apart and change else 0.0
    return (apart / whole) ** 0.5 if whole else 0.0, cosine
