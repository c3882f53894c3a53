"""LoRA adapters as changes of the weights: the products B A, without touching a model."""

import copy
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.network.blocks import short_text, text_logits
from frenet.network.checkpoints.adapter_apply import MERGE, apply_adapter, changeable, twin
from frenet.network.checkpoints.adapter_files import PREFIX, adapter_folder
from frenet.network.checkpoints.folders import some
from frenet.network.checkpoints.tensor_files import Shapes
from frenet.network.memory import require_memory
from frenet.network.padding import base_model, forward_arguments

UNTIE = "pass --untie (untie=True of frenet.load), which separates the head from the embedding"
# Tokens to run; the largest difference of logits, over the adapter's effect and in roundings.
_TOKENS, _APART, _ROUNDING = 8, 1e-2, 64
_HALVES = (".lora_A", ".lora_B", ".lora_embedding_A", ".lora_embedding_B")


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
        """Shape of the change, as the weight is stored."""
        o, i = len(self.B), self.A.shape[1]
        return (i, o) if self.turned else (o, i)

    def product(self) -> Tensor:
        """scale * B A as the weight is stored, float32."""
        change = self.scale * (self.B.float() @ self.A.float())
        return change.T if self.turned else change


# By the name of the weight in the plain base model; the change is the sum of the products.
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
    """The changes of a model's weights by its adapters.

    Adapters may be merged, disabled or active: the factors are copied, and the model does not
    change.

    Args:
        model: PEFT's wrapper, or a model with adapters added to it (``add_adapter`` of
            transformers).
        weights: coefficient by adapter name; None: 1 for each active adapter.

    Raises:
        ValueError: there is no adapter of the name, or one is no sum of products B A, or changes
            one use of a tied weight.
    """
    known: Mapping[str, Any] = getattr(model, "peft_config", {})
    if not known:
        raise UsageError("the model has no adapter; pass PEFT's wrapper around it")
    chosen = dict.fromkeys(active_adapters(model), 1.0) if weights is None else dict(weights)
    if unknown := [name for name in chosen if name not in known]:
        raise UsageError(f"no adapter {unknown[0]!r}; the model has {', '.join(known)}")
    what = f"the adapter {', '.join(map(repr, chosen))}"
    _require_lora(what, [known[name] for name in chosen])
    double = twin(model, r"\.base_layer\.")
    for layer in _layers(double):
        if getattr(layer, "merged", False):
            layer.unmerge()
        layer.enable_adapters(True)
        layer.set_adapter(list(chosen))
    products = adapter_products(model, list(chosen), what)
    weights_of = base_weights(model)
    for name in products:
        refuse_tied(model, weights_of[name], name.removesuffix(".weight"))
    _require_sum(double, list(chosen), products, base_weights(double), what)
    return {
        name: [f._replace(scale=chosen[adapter] * f.scale) for adapter, f in parts]
        for name, parts in products.items()
    }


def active_adapters(model: nn.Module) -> list[str]:
    """Names of the active adapters, also of a model without PEFT's wrapper."""
    return next((list(layer.active_adapters) for layer in _layers(model)), [])


def stored_products(adapter: str | Path, base: nn.Module) -> Products:
    """The changes of the base's weights by a stored PEFT adapter; the base does not change.

    Args:
        adapter: folder or hub id; safetensors.
        base: the plain base model. If it has no weights (on the meta device), the adapter is
            tested on a stand-in with random weights.

    Raises:
        ValueError: it is no LoRA adapter, no sum of products B A, or has other names or shapes
            than this base; the message lists them.
        MemoryError: a copy of the weights that it changes does not fit.
    """
    folder = adapter_folder(adapter)
    real = _with_weights(base)
    double = twin(real, changeable(folder))
    original = base_weights(real)
    wrapped, _ = apply_adapter(double, folder)
    what, names = f"the adapter {folder}", active_adapters(wrapped)
    products = adapter_products(wrapped, names, what)
    for name in products:
        refuse_tied(real, original.get(name), name.removesuffix(".weight"))
    _require_sum(wrapped, names, products, original, what)
    return {name: [factors for _, factors in parts] for name, parts in products.items()}


def _with_weights(base: nn.Module) -> nn.Module:
    """The model, or, if it has no weights, a random one with its configuration."""
    if not any(p.is_meta for p in base.parameters()):
        return base
    from transformers import PretrainedConfig

    config: Any = getattr(base, "config", None)
    if not isinstance(config, PretrainedConfig):
        raise UsageError(
            f"{type(base).__name__} is on the meta device and no model of transformers, so "
            "the adapter cannot be tested on it; pass the base with its weights"
        )
    size = sum(p.numel() for p in base.parameters()) * 4
    require_memory(
        size, "a stand-in for a base on the meta device", device=torch.device("cpu"),
        remedy="pass the base with its weights",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: nn.Module = type(base)(copy.deepcopy(config)).eval()
    return made


def _require_lora(what: str, configs: list[Any]) -> None:
    """Raise ValueError for adapters of other kinds, which have no factors."""
    for config in configs:
        kind = getattr(config.peft_type, "value", config.peft_type)
        if kind != "LORA":
            raise UsageError(f"{what} is of kind {kind}; only LORA adapters are products B A")


def _layers(model: nn.Module) -> list[Any]:
    """The modules that PEFT added."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]


def base_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the base by their plain names, also in a model with adapters."""
    return {
        name.removeprefix(PREFIX).replace(".base_layer", "").replace(".original_module", ""): p
        for name, p in model.named_parameters(remove_duplicate=False)
    }


def adapter_products(
    model: nn.Module, adapters: list[str], what: str
) -> dict[str, list[tuple[str, Factors]]]:
    """The factors of some adapters with their names, by the name of the weight.

    Raises:
        ValueError: an adapted module does not store its weight as one matrix.
    """
    products: dict[str, list[tuple[str, Factors]]] = {}
    for path, module in model.named_modules():
        for adapter in adapters:
            if (factors := _live(module, adapter)) is None:
                continue
            layer: Any = module
            weight = getattr(layer.base_layer, "weight", None)
            if not isinstance(weight, Tensor) or tuple(weight.shape) != factors.shape:
                raise UsageError(
                    f"{what} is no sum of products B A: {path} does not store its weight as one "
                    f"matrix of shape {factors.shape}; {MERGE}"
                )
            name = f"{path.removeprefix(PREFIX)}.weight"
            products.setdefault(name, []).append((adapter, factors))
    return products


def _live(module: Any, adapter: str) -> Factors | None:
    """The factors of one adapter in one module."""
    if adapter in getattr(module, "lora_A", {}):
        halves = module.lora_B[adapter], module.lora_A[adapter]
        halves = tuple(getattr(half, "weight", half) for half in halves)
        turned = bool(getattr(module, "fan_in_fan_out", False))
    elif adapter in getattr(module, "lora_embedding_A", {}):
        halves = module.lora_embedding_B[adapter], module.lora_embedding_A[adapter]
        turned = True
    else:
        return None
    B, A = (half.detach().clone() for half in halves)
    return Factors(B, A, float(module.scaling[adapter]), turned)


def _require_sum(
    wrapped: Any,
    adapters: list[str],
    products: Mapping[str, list[tuple[str, Factors]]],
    original: Mapping[str, Tensor],
    what: str,
) -> None:
    """Raise ValueError unless adapters change their base only by the sum of their products.

    A text runs with the adapters as PEFT applies them, and with the original weights of the base
    plus the products. Some tensors affect only some tokens, so the text may not show them.
    Therefore every tensor that is no factor of a product has to equal the base's tensor.

    Args:
        wrapped: a copy of the model with the active adapters; it changes.
        adapters: their names.
        products: products of these adapters, by the name of the weight.
        original: the base's weights without adapters.
        what: name of the adapters in the message.
    """
    others = [n for name in adapters for n in _others(wrapped, name, original)]
    if missing := [name for name in products if name not in original]:
        raise UsageError(
            f"{what} is no sum of products B A: it copies layers, and changes {some(missing, 4)}, "
            f"which the base does not have; {MERGE}"
        )
    if (ids := short_text(base_model(wrapped), _TOKENS)) is None:
        raise UsageError(
            f"{type(base_model(wrapped)).__name__} reads no text, so frenet cannot check that "
            f"{what} is a sum of products B A"
        )
    wrapped.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        applied = _run(wrapped, ids)
        for layer in _layers(wrapped):
            layer.enable_adapters(False)
        weights = base_weights(wrapped)
        for name in products:
            weights[name].data = original[name].detach().to(weights[name].dtype, copy=True)
        plain = _run(wrapped, ids)
        for name, parts in products.items():
            for _, factors in parts:
                weights[name].data += factors.product().to(weights[name].dtype)
        summed = _run(wrapped, ids)
    apart = float((applied - summed).norm())
    effect = float(max((applied - plain).norm(), (summed - plain).norm()))
    rounding = _ROUNDING * torch.finfo(applied.dtype).eps * float(plain.norm())
    causes = []
    if not apart <= _APART * effect + rounding:
        share = apart / effect if effect else math.inf
        causes.append(
            f"its logits by peft and by the sum differ by {share:.2g} of the adapter's effect"
        )
    if others:
        causes.append(f"it has tensors that are no factor of a product, such as {some(others, 4)}")
    if causes:
        raise UsageError(
            f"{what} is no sum of products B A added to its base: {', and '.join(causes)}; {MERGE}"
        )


def _run(model: nn.Module, ids: Tensor) -> Tensor:
    decoder = "decoder_input_ids" in forward_arguments(model)
    logits: Tensor = text_logits(model, ids, **({"decoder_input_ids": ids} if decoder else {}))
    return logits.float()


def _others(wrapped: Any, adapter: str, original: Mapping[str, Tensor]) -> list[str]:
    """Tensors of an adapter that are no factor of a product, and differ from the base's weights."""
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = get_peft_model_state_dict(
            wrapped, adapter_name=adapter, save_embedding_layers=False
        )
    others = []
    for name, value in state.items():
        if name.removesuffix(".weight").endswith(_HALVES):
            continue
        weight = original.get(name.removeprefix(PREFIX).replace(".base_layer", ""))
        # A trained bias is the very parameter of the model, so its old value is unknown.
        if (
            weight is None
            or weight is value
            or weight.data_ptr() == value.data_ptr()
            or not torch.equal(weight.to(value.dtype), value)
        ):
            others.append(name)
    return others


def refuse_tied(model: nn.Module, weight: Tensor | None, module: str) -> None:
    """Raise ValueError if the weight is tied: the adapter changes only one of its two uses."""
    named = model.named_parameters(remove_duplicate=False)
    names = [name for name, parameter in named if parameter is weight]
    if len(names) > 1:
        raise UsageError(
            f"the adapter on {module} changes one use of a tied weight ({some(names)}); "
            "added to the weight it would change both, so it is no direction of this model; "
            f"{UNTIE}, or leave the module out of the adapter"
        )
