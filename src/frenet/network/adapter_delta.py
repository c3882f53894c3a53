"""LoRA adapters as changes of the weights: the products B A, without touching a model."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from frenet.network.adapter_files import (
    PREFIX,
    WEIGHTS,
    adapter_folder,
    configuration,
    is_own,
    some,
)
from frenet.network.tensor_files import Shapes, TensorFiles

_HALVES = {".lora_A": ".lora_B", ".lora_embedding_A": ".lora_embedding_B"}
# What else an adapter's configuration may ask for, and why that is no sum of products B A.
_OTHER = {
    "use_dora": "DoRA scales the columns of the sum of weight and product by trained magnitudes",
    "lora_bias": "lora_bias=True adds a bias",
    "modules_to_save": "modules_to_save replaces whole modules",
    "trainable_token_indices": "trainable_token_indices replaces rows of the embedding",
    "target_parameters": "target_parameters adapts parameters that belong to no linear module",
    "layer_replication": "layer_replication changes the layers themselves",
    "use_qalora": "QA-LoRA pools its inputs",
    "use_bdlora": "BD-LoRA has block-diagonal factors",
    "alora_invocation_tokens": "an activated adapter changes some tokens only",
    "arrow_config": "an arrow router mixes adapters token by token",
    "kasa_config": "KaSA has singular values of its own",
    "monteclora_config": "MonteCLoRA samples its factors",
}


class Factors(NamedTuple):
    """One adapter's part in one weight.

    Attributes:
        B: (o, r).
        A: (r, i).
        scale: alpha / r, or alpha / sqrt(r) with rsLoRA, times a coefficient.
        turned: the weight is stored as (i, o): GPT-2's Conv1D, and embeddings.
    """

    B: Float[Tensor, "o r"]
    A: Float[Tensor, "r i"]
    scale: float
    turned: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Of the change, as the weight is stored."""
        o, i = len(self.B), self.A.shape[1]
        return (i, o) if self.turned else (o, i)

    def product(self) -> Tensor:
        """scale * B A as the weight is stored, float32."""
        change = self.scale * (self.B.float() @ self.A.float())
        return change.T if self.turned else change


# By name of the weight in the plain base model; the change is the sum of the products.
Products = dict[str, list[Factors]]


def products_shapes(products: Products) -> Shapes:
    """Shape of every changed weight."""
    return {name: parts[0].shape for name, parts in products.items()}


def sum_of_products(products: Products, name: str) -> Tensor:
    """The change of one weight, float32."""
    total = products[name][0].product()
    for factors in products[name][1:]:
        total = total + factors.product()
    return total


def live_products(model: nn.Module, weights: Mapping[str, float] | None = None) -> Products:
    """What the adapters on a PEFT model do to its weights.

    It makes no difference whether adapters are merged, disabled or active at the moment: the
    factors are copied, and the model is left alone.

    Args:
        model: PEFT's wrapper.
        weights: coefficient by adapter name; None: 1 for each active adapter.

    Raises:
        ValueError: no adapter, none of such a name, one that is no sum of products B A, or one
            that changes one use of a tied weight.
    """
    known: Mapping[str, Any] = getattr(model, "peft_config", {})
    if not known:
        raise ValueError("the model carries no adapter; pass PEFT's wrapper around it")
    wrapper: Any = model
    chosen = dict.fromkeys(wrapper.active_adapters, 1.0) if weights is None else dict(weights)
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"no adapter {unknown[0]!r}; the model has {', '.join(known)}")
    for name in chosen:
        refuse_other_kinds(f"the adapter {name!r}", known[name].to_dict())
    found: Products = {}
    for path, module in model.named_modules():
        for adapter, weight in chosen.items():
            if (factors := _live(module, adapter, weight)) is not None:
                layer: Any = module
                refuse_tied(model, layer.base_layer.weight, path)
                found.setdefault(f"{path.removeprefix(PREFIX)}.weight", []).append(factors)
    return found


def _live(module: Any, adapter: str, weight: float) -> Factors | None:
    """The factors of one adapter in one module."""
    if adapter in getattr(module, "lora_A", {}):
        halves = module.lora_B[adapter].weight, module.lora_A[adapter].weight
        turned = bool(module.fan_in_fan_out)
    elif adapter in getattr(module, "lora_embedding_A", {}):
        halves = module.lora_embedding_B[adapter], module.lora_embedding_A[adapter]
        turned = True
    else:
        return None
    B, A = (half.detach().clone() for half in halves)
    return Factors(B, A, weight * float(module.scaling[adapter]), turned)


def stored_products(adapter: str | Path, base: nn.Module) -> Products:
    """What a stored PEFT adapter does to the weights of its base, which is not changed.

    Args:
        adapter: folder or hub id; safetensors.
        base: the plain base model, also without weights (on the meta device): it says which
            weights there are, and which way round they are stored.

    Raises:
        ValueError: no LoRA adapter, one that is no sum of products B A, or one whose names or
            shapes are not those of this base; the message lists them.
    """
    folder = adapter_folder(adapter)
    settings = configuration(folder)
    refuse_other_kinds(f"the adapter {folder}", settings)
    files = TensorFiles(folder / WEIGHTS)
    modules = dict(base.named_modules())
    pairs, others = _pairs(files)
    if missing := [module for module in pairs if module not in modules]:
        raise ValueError(
            f"the adapter {folder} belongs to another base: it adapts {some(missing)}; the model "
            f"has {some(_adaptable(modules))}"
        )
    # PEFT also saves embeddings that have an adapter, or that it takes for resized.
    if strange := [name for name in others if not is_own(files, name, base)]:
        raise ValueError(
            f"the adapter {folder} has tensors that are no half of a product, and not the base's "
            f"own weights either: {some(strange)}"
        )
    found: Products = {}
    for module, (a, b) in pairs.items():
        A, B = files.read(a), files.read(b)
        turned = ".lora_embedding_A" in a or type(modules[module]).__name__ == "Conv1D"
        factors = Factors(B, A, _scale(settings, module, len(A)), turned)
        own: Any = modules[module].weight
        if factors.shape != tuple(own.shape):
            raise ValueError(
                f"the adapter {folder} belongs to another base: it changes {module}.weight by a "
                f"matrix of shape {factors.shape}, which on this model has shape {tuple(own.shape)}"
            )
        refuse_tied(base, own, module)
        found[f"{module}.weight"] = [factors]
    return found


def refuse_other_kinds(what: str, settings: Mapping[str, Any]) -> None:
    """Raise ValueError, with the reason, where an adapter is no sum of products B A.

    Args:
        what: names the adapter in the message.
        settings: its configuration.
    """
    kind = settings.get("peft_type")
    if str(getattr(kind, "value", kind)) != "LORA":
        raise ValueError(f"{what} is a {kind} adapter; only LORA adapters are products B A")
    reasons = [why for key, why in _OTHER.items() if settings.get(key)]
    if settings.get("bias", "none") != "none":
        reasons.append(f"bias={settings['bias']!r} trains biases of the base")
    if reasons:
        raise ValueError(
            f"{what} is no sum of products B A: {reasons[0]}; merge it into its base "
            "(merge_and_unload of peft), save that, and take the difference of the checkpoints"
        )


def refuse_tied(model: nn.Module, weight: Tensor, module: str) -> None:
    """Raise ValueError where the weight is tied: the adapter changes one of its two uses only."""
    names = [n for n, p in model.named_parameters(remove_duplicate=False) if p is weight]
    if len(names) > 1:
        raise ValueError(
            f"the adapter on {module} changes one use of a weight that is tied ({some(names)}); "
            "added to the weight it would change both, so that it is no direction of this model; "
            "untie the weights, or leave the module out of the adapter"
        )


def _pairs(files: TensorFiles) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """By module name in the plain base, the names of its two stored factors; and all others."""
    left = dict.fromkeys(files.shapes)
    pairs = {}
    for name in files.shapes:
        half = next((a for a in _HALVES if a in name), None)
        other = name.replace(half, _HALVES[half]) if half else None
        if half and other in left:
            del left[name], left[other]
            pairs[name.split(half)[0].removeprefix(PREFIX)] = name, other
    return pairs, list(left)


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r or alpha / sqrt(r), by the module's own entries where it has any."""
    from peft.utils.other import get_pattern_key

    patterns = settings.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns.keys(), module), settings.get("lora_alpha", 8))
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _adaptable(modules: Mapping[str, nn.Module]) -> list[str]:
    return [
        name
        for name, module in modules.items()
        if isinstance(module, nn.Linear | nn.Embedding) or type(module).__name__ == "Conv1D"
    ]
