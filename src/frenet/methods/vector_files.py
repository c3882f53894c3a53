"""Directions in weights from disk: adapters, checkpoints and task vectors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frenet._errors import UsageError
from frenet.methods.search_result_files import RECORD
from frenet.methods.steering_vector import FORMAT as STEERING
from frenet.methods.task_vectors import TaskVector, from_adapter, load_task_vector
from frenet.network.checkpoints.adapter_delta import UNTIE, base_weights
from frenet.network.checkpoints.adapter_load import check_adapter
from frenet.network.checkpoints.folders import ADAPTER_WEIGHTS, Held, held, require_adapter_folder
from frenet.network.checkpoints.promised import language_class
from frenet.network.checkpoints.tensor_files import TensorFiles
from frenet.network.tasks import base_model


def vectors_from_disk(model: nn.Module, sources: Sequence[str]) -> Iterator[TaskVector]:
    """The task vectors of some files and folders, with the parameter names of ``model``.

    Args:
        model: the base. An adapter on it is not part of the base.
        sources: folders of LoRA adapters, folders or files of checkpoints trained from this base,
            files of ``save_task_vector``, and folders of ``save_winner``.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a source does not fit the model, or only in part; the message names both.
    """
    wrong: list[ValueError | OSError] = []
    for source in sources:
        path = Path(source).expanduser()
        try:
            vector = _renamed(_read(model, path), model, path.name)
        except (ValueError, OSError) as error:
            wrong.append(error)
        else:
            yield vector
    _refuse(wrong, sources)


def check_sources(sources: Sequence[str], *, base: str = "") -> None:
    """Refuse files that are no direction in weights, before a model is loaded.

    Args:
        sources: files and folders.
        base: source of the model; adapters are compared with it. Empty: they are not.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a source cannot be read, is something else, or is an adapter of another base;
            the message names every one.
    """
    wrong: list[ValueError | OSError] = []
    for source in sources:
        path = Path(source).expanduser()
        try:
            folder, _ = _opened(path)
            if base and folder and folder.is_adapter:
                check_adapter(path, base)
        except (ValueError, OSError) as error:
            wrong.append(error)
    _refuse(wrong, sources)


def _refuse(wrong: Sequence[Exception], sources: Sequence[str]) -> None:
    """Raise one error for everything that is wrong with the sources."""
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        reasons = "; ".join(map(str, wrong))
        raise UsageError(f"{len(wrong)} of {len(sources)} vectors cannot be used: {reasons}")


def plain_base(model: nn.Module) -> nn.Module:
    """The base of a model without any wrapper; it shares the model's tensors.

    Raises:
        ValueError: the model has no transformers configuration.
    """
    from transformers import PretrainedConfig

    config: Any = getattr(base_model(model), "config", None)
    if not isinstance(config, PretrainedConfig):
        raise UsageError("only transformers models can be compared with files")
    with torch.device("meta"):
        bare: Any = language_class(config).from_config(config)
    # New parameters: the model's would get the requires_grad of the new model. Weights are tied as
    # in the model, not as in its configuration.
    weights = base_weights(base_model(model))
    new = {id(p): nn.Parameter(p.detach()) for p in weights.values()}
    bare.load_state_dict({n: new[id(p)] for n, p in weights.items()}, strict=False, assign=True)
    modules = dict(bare.named_modules())
    for name, buffer in base_model(model).named_buffers():
        path, _, last = name.replace(".base_layer", "").rpartition(".")
        if last in getattr(modules.get(path), "_buffers", {}):
            modules[path]._buffers[last] = buffer
    plain: nn.Module = bare
    return plain


def _opened(path: Path) -> tuple[Held | None, TensorFiles]:
    """The contents of a folder, if it is one, and the tensors of the folder or file, unread."""
    if not path.exists():
        raise FileNotFoundError(f"there is no adapter, checkpoint or task vector {path}")
    if path.suffix.lower() == ".gguf":
        raise UsageError(
            f"{path} is a GGUF file: pass a control vector as --steering FILE with --contrasts; "
            "convert a model with frenet convert and pass the folder"
        )
    folder = held(path) if path.is_dir() else None
    files = path
    if folder and folder.is_adapter:
        files = require_adapter_folder(path) / ADAPTER_WEIGHTS
    tensors = TensorFiles(files)
    if tensors.about.get("format") == STEERING:
        raise UsageError(
            f"{path} is a steering vector, which acts on activations, not on weights; pass it "
            "as --steering FILE with --contrasts, not as --vectors"
        )
    return folder, tensors


def _read(model: nn.Module, path: Path) -> TaskVector:
    folder, files = _opened(path)
    if folder and folder.is_adapter:
        return from_adapter(path, base=plain_base(model))
    if path.is_file() and files.about.get("format", "pt") != "pt":
        return load_task_vector(path)
    # The winner of a search holds only the weights that were searched.
    vector = _from_checkpoint(model, files, partly=(path / RECORD).exists())
    if vector is None and folder and folder.adapter:
        return from_adapter(path, base=plain_base(model))
    if vector is None:
        raise UsageError(f"the checkpoint {files.path} equals the model: no direction")
    return replace(vector, notes=tuple(folder.notes())) if folder else vector


def _from_checkpoint(model: nn.Module, files: TensorFiles, *, partly: bool) -> TaskVector | None:
    """The checkpoint minus the model's current weights, as copies; None: no change.

    Raises:
        ValueError: one side lacks a weight, or has it in another shape.
    """
    plain = plain_base(model)
    now = dict(plain.named_parameters())
    files = files.named_like(now)
    shapes = {name: tuple(p.shape) for name, p in now.items() if not partly or name in files.shapes}
    for name, shape in shapes.items():
        if files.shapes.get(name) != shape:
            raise UsageError(
                f"the checkpoint {files.path} has another architecture: {name} has shape {shape} "
                f"in the model and {files.shapes.get(name, 'is missing')} in the file"
            )
    _require_no_more(plain, files)
    diff = {name: files.read(name).float() - now[name].detach().float().cpu() for name in shapes}
    changed = {name: shape for name, shape in shapes.items() if bool(diff[name].any())}
    return TaskVector(changed, diff.__getitem__, str(files.path)) if changed else None


def _require_no_more(plain: nn.Module, files: TensorFiles) -> None:
    """Raise ValueError if a file has a weight that the model lacks.

    Buffers are not weights, and a copy of a tied weight is the same weight.
    """
    tied = dict(plain.named_parameters(remove_duplicate=False))
    first = {id(p): name for name, p in reversed(list(tied.items()))}
    buffers = {name.rpartition(".")[2] for name, _ in plain.named_buffers()}
    for name in files.shapes:
        if name in tied:
            first_name = first[id(tied[name])]
            if first_name == name or first_name not in files.shapes:
                continue
            if torch.equal(files.read(name), files.read(first_name)):
                continue
            raise UsageError(
                f"the checkpoint {files.path} has two weights, {first_name} and {name}, and the "
                "model has one tied weight; it belongs to another model, or was trained with "
                f"untied weights: then {UNTIE}"
            )
        if name.rpartition(".")[2] not in buffers:
            raise UsageError(
                f"the checkpoint {files.path} has another architecture: the model has no {name}, "
                f"which has shape {files.shapes[name]} in the file"
            )


def _own_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of the base by their names without PEFT's wrapper."""
    return {
        name.replace(".base_layer", ""): parameter
        for name, parameter in base_model(model).named_parameters()
        if ".lora_" not in name
    }


def _renamed(vector: TaskVector, model: nn.Module, origin: str) -> TaskVector:
    """The vector with weights named as in ``model``."""
    names: Mapping[int, str] = {id(p): name for name, p in model.named_parameters()}
    new_names = {plain: names[id(p)] for plain, p in _own_parameters(model).items()}
    if missing := [name for name in vector.shapes if name not in new_names]:
        raise UsageError(
            f"{vector.origin} changes {missing[0]} ({len(missing)} such weights), which the model "
            "lacks; it belongs to another base"
        )
    plain = {new_names[name]: name for name in vector.shapes}
    shapes = {new: vector.shapes[name] for new, name in plain.items()}
    same = all(new == name for new, name in plain.items())
    made = TaskVector(
        shapes, lambda name: vector.read(plain[name]), origin, vector.base if same else "",
        vector.notes,
    )  # fmt: skip
    (vector if same else made).space(model)
    return made
