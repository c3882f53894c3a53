"""Checks before a training begins: what frenet cannot watch, and how much space it needs."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frenet._errors import UsageError
from frenet.experiments.watched_training import WatchConfig
from frenet.integrations.path import SUM_BYTES
from frenet.integrations.recording import CHUNK_BYTES
from frenet.measure.trajectory_files import bytes_per_step
from frenet.network.memory import free_disk, require_disk, require_memory
from frenet.network.space import ParamSpace

SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
REMEDY = "select fewer parameters (LoRA, or where=), or train fewer steps"


def refuse_sharded(model: nn.Module, optimizer: Any) -> None:
    """Raise ValueError if processes shard parameters or gradients."""
    from torch.distributed.tensor import DTensor

    state = getattr(optimizer, "accelerator_state", None)
    kind = str(getattr(getattr(state, "distributed_type", None), "value", ""))
    split = [
        name
        for name, parameter in model.named_parameters()
        if isinstance(parameter, DTensor) or hasattr(parameter, "ds_id")
    ]
    if kind in SHARDED or split:
        how = kind if kind in SHARDED else f"tensors in shards ({split[0]})"
        raise UsageError(
            f"this training shards parameters or gradients over processes ({how}), so no "
            "process sees a whole step; train with data parallelism (DDP) or in one process"
        )


def space_digest(space: ParamSpace) -> str:
    """sha256 of names and shapes."""
    return hashlib.sha256(repr((space.names, space.shapes)).encode()).hexdigest()[:16]


def check_training(args: Any, steps: int, config: WatchConfig) -> None:
    """Raise ValueError if a training cannot be watched with this configuration.

    Args:
        args: Trainer's arguments.
        steps: planned.
        config: of the callback.
    """
    if config.k >= steps:
        raise UsageError(
            f"k={config.k} first steps leave no later ones in a training of {steps} steps; "
            f"pass k <= {steps - 1}"
        )
    if config.gradients and args.fp16 and not args.max_grad_norm:
        raise UsageError(
            "with fp16 and max_grad_norm=0 a callback gets gradients multiplied by the loss scale; "
            "set max_grad_norm, use bf16, or pass gradients=False"
        )


def require_room(space: ParamSpace, config: WatchConfig, *, steps: int, out: Path) -> str:
    """The space that a recording takes, in words.

    Raises:
        MemoryError: there is not enough disk space or memory.
    """
    step = bytes_per_step(space.dim, config.gradients)
    # Three sets of n gradients for each probe on disk, and four times that in memory to measure.
    sets = 3 * config.n * 4 * space.dim
    disk = steps * step + len(config.probes) * sets
    looking = 4 * sets if config.probes else 0
    memory = 3 * max(CHUNK_BYTES, step) + (SUM_BYTES + 2 * 4 * config.k) * space.dim + looking
    what = f"recording {steps} steps of {space.dim:,} parameters ({step / 2**20:.2f} MiB a step)"
    require_disk(disk, what, folder=out, remedy=REMEDY)
    require_memory(memory, what, device=torch.device("cpu"), remedy=REMEDY)
    return (
        f"{what}: {disk / 2**30:.2f} GiB in {out} ({free_disk(out) / 2**30:.2f} GiB are free), "
        f"and up to {memory / 2**30:.2f} GiB of memory"
    )
