"""Directions in weights from disk, for a model in memory: adapters, checkpoints, task vectors."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frenet.methods.task_vectors import TaskVector, from_adapter, load_task_vector
from frenet.methods.winners import RECORD
from frenet.network.tasks import base_model
from frenet.network.tensor_files import TensorFiles


def vectors_from_disk(model: nn.Module, sources: Sequence[str]) -> Iterator[TaskVector]:
    """The task vectors of some files and folders, named as the parameters of ``model`` are.

    Args:
        model: the base, also with an adapter on it, which is then no part of the base.
        sources: folders of LoRA adapters, folders or files of checkpoints that were trained from
            this base, files that ``save_task_vector`` wrote, and folders of
            ``save_winner``.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a source that fits the model not at all, or in part; both sides are named.
    """
    for source in sources:
        path = Path(source).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"there is no adapter, checkpoint or task vector {source}")
        yield _renamed(_read(model, path), model, path.name)


def plain_base(model: nn.Module) -> nn.Module:
    """The base of a model without any wrapper, with the model's own tensors, not copied.

    Raises:
        ValueError: the model has no configuration of transformers.
    """
    from transformers import AutoModelForCausalLM, PretrainedConfig

    config: Any = getattr(base_model(model), "config", None)
    if not isinstance(config, PretrainedConfig):
        raise ValueError("only models of transformers can be compared with files")
    with torch.device("meta"):
        bare: Any = AutoModelForCausalLM.from_config(config)
    # Detached: the parameters themselves would take over what the new model's require.
    own = {name: parameter.detach() for name, parameter in _own_parameters(model).items()}
    bare.load_state_dict(own, strict=False, assign=True)
    bare.tie_weights()
    plain: nn.Module = bare
    return plain


def _read(model: nn.Module, path: Path) -> TaskVector:
    if path.is_dir() and (path / "adapter_config.json").exists():
        return from_adapter(path, base=plain_base(model))
    files = TensorFiles(path)
    if path.is_file() and files.about.get("format", "pt") != "pt":
        return load_task_vector(path)
    # The winner of a search holds the weights that were searched, and no others.
    return _from_checkpoint(model, files, partly=(path / RECORD).exists())


def _from_checkpoint(model: nn.Module, files: TensorFiles, *, partly: bool) -> TaskVector:
    """The checkpoint minus the weights that the model has now, which are copied."""
    own = dict(plain_base(model).named_parameters())
    files = files.named_like(own)
    shapes = {name: tuple(p.shape) for name, p in own.items() if not partly or name in files.shapes}
    for name, shape in shapes.items():
        if files.shapes.get(name) != shape:
            raise ValueError(
                f"the checkpoint {files.path} is of another architecture: {name} has shape {shape} "
                f"in the model and {files.shapes.get(name, 'is not there')} in the file"
            )
    held = {name: files.read(name).float() - own[name].detach().float().cpu() for name in shapes}
    changed = {name: shape for name, shape in shapes.items() if bool(held[name].any())}
    if not changed:
        raise ValueError(f"the checkpoint {files.path} has the model's own weights: no direction")
    return TaskVector(changed, held.__getitem__, str(files.path))


def _own_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of the base by their plain names, also inside PEFT's wrapper."""
    return {
        name.replace(".base_layer", ""): parameter
        for name, parameter in base_model(model).named_parameters()
        if ".lora_" not in name
    }


def _renamed(vector: TaskVector, model: nn.Module, origin: str) -> TaskVector:
    """The vector with the names that its weights have in ``model``."""
    names: Mapping[int, str] = {id(p): name for name, p in model.named_parameters()}
    own = {plain: names[id(p)] for plain, p in _own_parameters(model).items()}
    if missing := [name for name in vector.shapes if name not in own]:
        raise ValueError(
            f"{vector.origin} changes {missing[0]} ({len(missing)} such weights), which the model "
            "does not have; it belongs to another base"
        )
    plain = {own[name]: name for name in vector.shapes}
    shapes = {new: vector.shapes[name] for new, name in plain.items()}
    if same := all(new == name for new, name in plain.items()):
        vector.space(model)
    return TaskVector(
        shapes, lambda name: vector.read(plain[name]), origin, vector.base if same else ""
    )
