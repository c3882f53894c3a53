"""What a folder holds: a model's weights, a PEFT adapter, or both; decided here for everything."""

from pathlib import Path
from typing import Any, NamedTuple

from frenet._errors import UsageError
from frenet._files import DamagedFileError, read_object

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Pickled files that a Trainer leaves beside the weights; they are never opened.
_BESIDE = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")


class Held(NamedTuple):
    """What is in a folder.

    Attributes:
        folder: the folder.
        weights: files of a model's weights, which are what is used where a folder holds both.
        adapter: whether it holds an adapter of PEFT, which is only applied where it is asked for,
            or where the folder holds no weights.
        unread: files of weights that are there and not used.
    """

    folder: Path
    weights: tuple[Path, ...]
    adapter: bool
    unread: tuple[str, ...]

    @property
    def is_adapter(self) -> bool:
        """Whether the folder is an adapter and nothing else."""
        return self.adapter and not self.weights

    def notes(self) -> list[str]:
        """What is there and not used, one sentence each."""
        said = []
        if self.adapter and self.weights:
            base = adapter_settings(self.folder).get("base_model_name_or_path")
            said.append(
                f"{self.folder.name} holds weights and an adapter (base: {base}); the weights are "
                "used as they are, without the adapter"
            )
        if self.unread:
            said.append(
                f"{self.folder.name}: {self.weights[0].name} is read, and not {some(self.unread)}"
            )
        return said


def held(folder: Path) -> Held:
    """What a folder holds, by the names of its files.

    Weights are what transformers would load; without an adapter beside them also safetensors files
    of other names. Files of an adapter are never a model's weights.

    Raises:
        ValueError: an adapter's weights without its configuration, a damaged index, or an adapter
            beside pickled weights only, of which nobody can say whether they are merged.
    """
    names = sorted(path.name for path in folder.iterdir())
    adapter = ADAPTER_CONFIG in names
    if ADAPTER_WEIGHTS in names and not adapter:
        raise UsageError(
            f"{folder} holds {ADAPTER_WEIGHTS} and no {ADAPTER_CONFIG}, so that nobody knows what "
            "the adapter does; save the adapter again with both"
        )
    files = _whole_weights(folder, names)
    if not files and not adapter:
        files = [folder / name for name in names if name.endswith(".safetensors")]
    if adapter and not files and (pickled := _pickled_models(names)):
        raise UsageError(
            f"{folder} holds an adapter and pickled weights ({some(pickled)}), which are not "
            "opened, so that nobody knows whether the adapter is merged into them; move the "
            "adapter's files into a folder of their own"
        )
    used = {path.name for path in files}
    unread = [n for n in names if n.endswith(".safetensors") and n not in {*used, ADAPTER_WEIGHTS}]
    return Held(folder, tuple(files), adapter, tuple(unread) if files else ())


def require_model_folder(found: Held) -> None:
    """Raise ValueError unless a folder has a configuration and weights in safetensors files."""
    folder = found.folder
    names = sorted(path.name for path in folder.iterdir())
    if CONFIG not in names:
        inside = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and _holds_any(p)]
        hint = f"; a model or an adapter lies in {some(inside)} inside it" if inside else ""
        raise UsageError(
            f"{folder} is not a model: it has no {CONFIG} (found: {some(names)}){hint}; pass a "
            "folder in Hugging Face format, a .gguf file or a hub id"
        )
    if found.weights:
        return
    if pickled := _pickled_models(names):
        refuse_pickled(folder, pickled)
    raise UsageError(f"{folder} has a {CONFIG} and no weights: no .safetensors file in it")


def require_adapter_folder(folder: Path) -> Path:
    """The folder, after checking that it holds an adapter of PEFT in a safetensors file.

    Raises:
        ValueError: it does not.
    """
    if not folder.is_dir() or not (folder / ADAPTER_CONFIG).exists():
        raise UsageError(f"{folder} is no PEFT adapter: it has no {ADAPTER_CONFIG}")
    if not (folder / ADAPTER_WEIGHTS).exists():
        names = sorted(path.name for path in folder.iterdir())
        if pickled := [n for n in names if n.endswith(PICKLED) and not n.startswith(_BESIDE)]:
            refuse_pickled(folder, pickled)
        raise UsageError(
            f"{folder} has an {ADAPTER_CONFIG} and no {ADAPTER_WEIGHTS} (found: {some(names)}); "
            "save the adapter with save_pretrained of peft, or convert it"
        )
    return folder


def refuse_pickled(where: Path, names: list[str]) -> None:
    """Raise the ValueError that says why pickled weights stay closed, and how to convert them."""
    raise UsageError(
        f"{where} has its weights in pickled files only ({some(names)}), which can run any code "
        "when they are opened and are not; convert them once, where you trust them: "
        "model.save_pretrained(folder) of transformers, or of peft for an adapter, writes "
        "safetensors"
    )


def adapter_settings(folder: Path) -> dict[str, Any]:
    """What the configuration of an adapter says; see ``adapter_files.configuration``."""
    return read_object(folder / ADAPTER_CONFIG)


def _whole_weights(folder: Path, names: list[str]) -> list[Path]:
    """The files that transformers loads."""
    if WHOLE in names:
        return [folder / WHOLE]
    if INDEX not in names:
        return []
    index = folder / INDEX
    try:
        files = list(read_object(index, weight_map=dict)["weight_map"].values())
        if not all(isinstance(name, str) for name in files):
            raise DamagedFileError(index, "names a file by something else than text")
    except DamagedFileError as error:
        raise UsageError(f"{index} is no index of files (it {error.why}); fetch it again") from None
    return [folder / name for name in sorted(set(files))]


def _pickled_models(names: list[str]) -> list[str]:
    """Files of pickled weights that are not an adapter's."""
    beside = (*_BESIDE, "adapter_")
    return [n for n in names if n.endswith(PICKLED) and not n.startswith(beside)]


def _holds_any(folder: Path) -> bool:
    return (folder / CONFIG).exists() or (folder / ADAPTER_CONFIG).exists()


def some(names: list[str] | tuple[str, ...], most: int = 8) -> str:
    """The first few of some names, for a message."""
    shown = ", ".join(names[:most]) or "nothing"
    return f"{shown}, ... ({len(names)} in all)" if len(names) > most else shown
