"""LoRA adapters through PEFT: target modules, attachment, and coordinates that cannot train."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from frenet._errors import UsageError
from frenet.geometry import rng
from frenet.network.space import ParamSpace

_HALVES = ((".lora_A.", ".lora_B."), (".lora_embedding_A.", ".lora_embedding_B."))


class StructuralZeros(NamedTuple):
    """Coordinates with a zero gradient because the other half of the adapter is zero."""

    zero: int
    total: int

    @property
    def share(self) -> float:
        """Their share of all coordinates, in [0, 1]."""
        return self.zero / self.total

    def __str__(self) -> str:
        return f"{self.zero} of {self.total} coordinates are structurally zero (B = 0)"


def lora_targets(model: nn.Module) -> tuple[str, ...]:
    """The modules that PEFT adapts in a model of this family: ``c_attn`` for GPT-2, and so on.

    Raises:
        ValueError: PEFT knows no targets for the model; the message lists its linear modules.
    """
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    family = getattr(getattr(model, "config", None), "model_type", None)
    if family in KNOWN:
        return tuple(KNOWN[family])
    what = f"model type {family!r}" if family else "a model without configuration"
    raise UsageError(
        f"no LoRA targets are known for {what}; pass targets= in Python, or --targets, with some "
        "of its linear modules: "
        f"{', '.join(linear_modules(model))}"
    )


def linear_modules(model: nn.Module) -> tuple[str, ...]:
    """Last parts of the names of the modules that can carry an adapter, each once, in order."""
    from transformers.pytorch_utils import Conv1D

    named = model.named_modules()
    names = [name for name, module in named if name and isinstance(module, (nn.Linear, Conv1D))]
    return tuple(dict.fromkeys(name.rpartition(".")[2] for name in names))


def attach_lora(
    model: nn.Module,
    *,
    rank: int = 4,
    alpha: float | int | None = None,
    targets: Sequence[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    r"""Add a fresh LoRA adapter to ``model`` in place, and return PEFT's wrapper around it.

    $$W \to W + \tfrac{\alpha}{r} B A, \qquad B = 0, \quad
      A_{ij} \sim U(-1/\sqrt{n_{in}}, 1/\sqrt{n_{in}})$$

    Afterwards only the adapter's parameters require gradients. A is drawn from ``seed``, with one
    stream per module; the global random state does not change. There is no dropout.

    Args:
        model: any module; transformers of known families need no ``targets``.
        rank: r, at least 1.
        alpha: the numerator of the scale; None: 2 r, which makes the scale 2.
        targets: last parts of the names of the modules to adapt; None: ``lora_targets(model)``.
        seed: fixes the adapter.

    Raises:
        ValueError: the model already has an adapter, a target names no module, or no targets are
            known.

    Source: Hu et al. 2021, arXiv 2106.09685.
    """
    if hasattr(model, "peft_config"):
        raise UsageError(
            "the model already has an adapter; pass the base that the adapter was trained on (as "
            "--model on the command line)"
        )
    if rank < 1:
        raise UsageError(f"rank={rank}; pass at least 1")
    chosen = tuple(targets) if targets is not None else lora_targets(model)
    config = _config(model, chosen, rank=rank, alpha=float(2 * rank if alpha is None else alpha))
    before = {id(module) for module in model.modules()}
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[]), quiet_peft():
        wrapped: Any = get_peft_model(model, config)
    for module in wrapped.modules():
        if id(module) not in before:
            module.training = model.training
    _draw(wrapped, seed)
    return wrapped


def structural_zeros(model: nn.Module, space: ParamSpace) -> StructuralZeros:
    """Count the coordinates of ``space`` without a gradient at the current adapter values.

    The gradient of A is ``scale * B^T G`` and that of B is ``scale * G A^T``. If one half is zero,
    as B is at the start, every gradient of the other half is exactly zero, whatever the task.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    zero = 0
    for name, size in zip(space.names, space.sizes, strict=True):
        other = parameters.get(other_half(name) or "")
        if other is not None and not other.detach().any():
            zero += size
    return StructuralZeros(zero, space.dim)


def other_half(name: str) -> str | None:
    """The other half of an adapter's parameter; None for any other parameter."""
    padded = f"{name}."
    for a, b in _HALVES:
        if a in padded:
            return padded.replace(a, b)[:-1]
        if b in padded:
            return padded.replace(b, a)[:-1]
    return None


def _config(model: nn.Module, targets: tuple[str, ...], *, rank: int, alpha: float) -> Any:
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    modules = dict(model.named_modules())
    matched: list[nn.Module] = []
    for target in targets:
        named = [m for name, m in modules.items() if name == target or name.endswith(f".{target}")]
        if not named:
            raise UsageError(
                f"no module is called {target!r}; the linear modules are "
                f"{', '.join(linear_modules(model))}"
            )
        matched += named
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=list(targets),
        # GPT-2 stores its weights as (in, out); PEFT has to know before it multiplies B A.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in matched),
    )


def _draw(wrapped: nn.Module, seed: int) -> None:
    """Draw the half of every adapter that does not start at zero, from one stream per module."""
    for name, parameter in wrapped.named_parameters():
        uniform, normal = ".lora_A." in name, ".lora_embedding_B." in name
        if not (uniform or normal):
            continue
        generator = rng.generator(seed, "lora", name)
        values = torch.empty(parameter.shape)
        if uniform:
            bound = 1 / math.sqrt(parameter[0].numel())
            values.uniform_(-bound, bound, generator=generator)
        else:
            values.normal_(generator=generator)
        with torch.no_grad():
            parameter.copy_(values)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence two warnings of PEFT that its caller cannot act on."""
    with warnings.catch_warnings():
        # PEFT still uses the old name of transformers 4.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        # A model with both orientations: PEFT sets the flag itself, module by module.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set")
        yield
