"""Directions in weights from disk, for a model in memory: adapters, checkpoints, task vectors."""

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
from frenet.network.checkpoints.folders import ADAPTER_WEIGHTS, Held, held, require_adapter_folder
from frenet.network.checkpoints.promised import language_class
from frenet.network.checkpoints.tensor_files import TensorFiles
from frenet.network.tasks import base_model


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


def check_sources(sources: Sequence[str]) -> None:
    """Refuse what can be seen to be no direction in weights, before a model is loaded.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a source that cannot be read, or is something else; of several each is named.
    """
    wrong: list[ValueError | OSError] = []
    for source in sources:
        try:
            _opened(Path(source).expanduser())
        except (ValueError, OSError) as error:
            wrong.append(error)
    _refuse(wrong, sources)


def _refuse(wrong: Sequence[Exception], sources: Sequence[str]) -> None:
    """Raise what is wrong with some sources, all of it at once."""
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        told = "; ".join(map(str, wrong))
        raise UsageError(f"{len(wrong)} of {len(sources)} vectors cannot be used: {told}")


def plain_base(model: nn.Module) -> nn.Module:
    """The base of a model without any wrapper, with the model's own tensors, not copied.

    Raises:
        ValueError: the model has no configuration of transformers.
    """
    from transformers import PretrainedConfig

    config: Any = getattr(base_model(model), "config", None)
    if not isinstance(config, PretrainedConfig):
        raise UsageError("only models of transformers can be compared with files")
    with torch.device("meta"):
        bare: Any = language_class(config).from_config(config)
    # New parameters: those themselves would take over what the new model's require. Tied ones are
    # those that are tied in the model, whatever its configuration says.
    own = base_weights(base_model(model))
    new = {id(p): nn.Parameter(p.detach()) for p in own.values()}
    bare.load_state_dict({n: new[id(p)] for n, p in own.items()}, strict=False, assign=True)
    modules = dict(bare.named_modules())
    for name, buffer in base_model(model).named_buffers():
        path, _, last = name.replace(".base_layer", "").rpartition(".")
        if last in getattr(modules.get(path), "_buffers", {}):
            modules[path]._buffers[last] = buffer
    plain: nn.Module = bare
    return plain


def _opened(path: Path) -> tuple[Held | None, TensorFiles]:
    """What a folder holds, if it is one, and the tensors of it or of the file, not read yet."""
    if not path.exists():
        raise FileNotFoundError(f"there is no adapter, checkpoint or task vector {path}")
    if path.suffix.lower() == ".gguf":
        raise UsageError(
            f"{path} is a GGUF file: pass a control vector as --steering FILE with --contrasts, "
            "and of a model the folder that frenet convert makes"
        )
    found = held(path) if path.is_dir() else None
    files = path
    if found and found.is_adapter:
        files = require_adapter_folder(path) / ADAPTER_WEIGHTS
    tensors = TensorFiles(files)
    if tensors.about.get("format") == STEERING:
        raise UsageError(
            f"{path} is a steering vector, which acts on activations and not on weights; pass it "
            "as --steering FILE with --contrasts, not as --vectors"
        )
    return found, tensors


def _read(model: nn.Module, path: Path) -> TaskVector:
    found, files = _opened(path)
    if found and found.is_adapter:
        return from_adapter(path, base=plain_base(model))
    if path.is_file() and files.about.get("format", "pt") != "pt":
        return load_task_vector(path)
    # The winner of a search holds the weights that were searched, and no others.
    vector = _from_checkpoint(model, files, partly=(path / RECORD).exists())
    if vector is None and found and found.adapter:
        return from_adapter(path, base=plain_base(model))
    if vector is None:
        raise UsageError(f"the checkpoint {files.path} has the model's own weights: no direction")
    return replace(vector, notes=tuple(found.notes())) if found else vector


def _from_checkpoint(model: nn.Module, files: TensorFiles, *, partly: bool) -> TaskVector | None:
    """The checkpoint minus the weights that the model has now, which are copied; None: no change.

    Raises:
        ValueError: a weight that the other one does not have, or in another shape.
    """
    plain = plain_base(model)
    own = dict(plain.named_parameters())
    files = files.named_like(own)
    shapes = {name: tuple(p.shape) for name, p in own.items() if not partly or name in files.shapes}
    for name, shape in shapes.items():
        if files.shapes.get(name) != shape:
            raise UsageError(
                f"the checkpoint {files.path} is of another architecture: {name} has shape {shape} "
                f"in the model and {files.shapes.get(name, 'is not there')} in the file"
            )
    _require_no_more(plain, files)
    kept = {name: files.read(name).float() - own[name].detach().float().cpu() for name in shapes}
    changed = {name: shape for name, shape in shapes.items() if bool(kept[name].any())}
    return TaskVector(changed, kept.__getitem__, str(files.path)) if changed else None


def _require_no_more(plain: nn.Module, files: TensorFiles) -> None:
    """Raise ValueError where a file has a weight that the model does not have.

    Buffers are no weights, and a copy of a tied weight is the same weight.
    """
    tied = dict(plain.named_parameters(remove_duplicate=False))
    first = {id(p): name for name, p in reversed(list(tied.items()))}
    buffers = {name.rpartition(".")[2] for name, _ in plain.named_buffers()}
    for name in files.shapes:
        if name in tied:
            own = first[id(tied[name])]
            if own == name or own not in files.shapes:
                continue
            if torch.equal(files.read(name), files.read(own)):
                continue
            raise UsageError(
                f"the checkpoint {files.path} has two weights, {own} and {name}, where the model "
                "has one that is tied; it belongs to another model, or its training has parted "
                f"them: then {UNTIE}"
            )
        if name.rpartition(".")[2] not in buffers:
            raise UsageError(
                f"the checkpoint {files.path} is of another architecture: the model has no {name}, "
                f"which has shape {files.shapes[name]} in the file"
            )


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
        raise UsageError(
            f"{vector.origin} changes {missing[0]} ({len(missing)} such weights), which the model "
            "does not have; it belongs to another base"
        )
    plain = {own[name]: name for name in vector.shapes}
    shapes = {new: vector.shapes[name] for new, name in plain.items()}
    same = all(new == name for new, name in plain.items())
    made = TaskVector(
        shapes, lambda name: vector.read(plain[name]), origin, vector.base if same else "",
        vector.notes,
    )  # fmt: skip
    (vector if same else made).space(model)
    return made
