"""The contents of a folder: a model's weights, a PEFT adapter, or both; decided only here."""

from pathlib import Path
from typing import Any, NamedTuple

from frenet._errors import UsageError
from frenet._files import DamagedFileError, read_object

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Pickled files that a Trainer writes next to the weights; they are never opened.
_BESIDE = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")


class Held(NamedTuple):
    """The contents of a folder.

    Attributes:
        folder: the folder.
        weights: files of a model's weights; if there is also an adapter, the weights are used.
        adapter: whether there is an adapter of PEFT, which is only applied on request, or if there
            are no weights.
        unread: files of weights that are not used.
    """

    folder: Path
    weights: tuple[Path, ...]
    adapter: bool
    unread: tuple[str, ...]

    @property
    def is_adapter(self) -> bool:
        """Whether the folder has an adapter and no weights."""
        return self.adapter and not self.weights

    def notes(self) -> list[str]:
        """What is not used, one sentence each."""
        notes = []
        if self.adapter and self.weights:
            base = adapter_settings(self.folder).get("base_model_name_or_path")
            notes.append(
                f"{self.folder.name} holds weights and an adapter (base: {base}); the weights are "
                "used without the adapter"
            )
        if self.unread:
            notes.append(
                f"{self.folder.name}: {self.weights[0].name} is read, and not {some(self.unread)}"
            )
        return notes


def held(folder: Path) -> Held:
    """The contents of a folder, by the names of its files.

    Weights are the files that transformers would load; if there is no adapter, also safetensors
    files with other names. Files of an adapter are never a model's weights.

    Raises:
        ValueError: an adapter's weights without its configuration, a damaged index, or an adapter
            with only pickled weights, which it may already be merged into.
    """
    names = sorted(path.name for path in folder.iterdir())
    adapter = ADAPTER_CONFIG in names
    if ADAPTER_WEIGHTS in names and not adapter:
        raise UsageError(
            f"{folder} holds {ADAPTER_WEIGHTS} and no {ADAPTER_CONFIG}; save the adapter again "
            "with both"
        )
    files = _whole_weights(folder, names)
    if not files and not adapter:
        files = [folder / name for name in names if name.endswith(".safetensors")]
    if adapter and not files and (pickled := _pickled_models(names)):
        raise UsageError(
            f"{folder} holds an adapter and pickled weights ({some(pickled)}), which frenet does "
            "not open to see whether the adapter is merged into them; move the adapter's files "
            "into a separate folder"
        )
    used = {path.name for path in files}
    unread = [n for n in names if n.endswith(".safetensors") and n not in {*used, ADAPTER_WEIGHTS}]
    return Held(folder, tuple(files), adapter, tuple(unread) if files else ())


def require_model_folder(contents: Held) -> None:
    """Raise ValueError unless a folder has a configuration and weights in safetensors files."""
    folder = contents.folder
    names = sorted(path.name for path in folder.iterdir())
    if CONFIG not in names:
        inside = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and _holds_any(p)]
        hint = f"; there is a model or an adapter in {some(inside)} inside it" if inside else ""
        raise UsageError(
            f"{folder} is not a model: it has no {CONFIG} (found: {some(names)}){hint}; pass a "
            "folder in Hugging Face format, a .gguf file or a hub id"
        )
    if contents.weights:
        return
    if pickled := _pickled_models(names):
        refuse_pickled(folder, pickled)
    raise UsageError(f"{folder} has a {CONFIG} and no weights: no .safetensors file in it")


def require_adapter_folder(folder: Path) -> Path:
    """The folder, after a check that it has an adapter of PEFT in a safetensors file.

    Raises:
        ValueError: it has none.
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
    """Raise the ValueError that refuses pickled weights and says how to convert them."""
    raise UsageError(
        f"{where} has its weights only in pickled files ({some(names)}), which can run any code "
        "when opened; if you trust them, convert them once: model.save_pretrained(folder) of "
        "transformers, or of peft for an adapter, writes safetensors"
    )


def adapter_settings(folder: Path) -> dict[str, Any]:
    """The configuration of an adapter; see ``adapter_files.configuration``."""
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
            raise DamagedFileError(index, "has a file name that is no text")
    except DamagedFileError as error:
        raise UsageError(f"{index} is no index of files (it {error.why}); fetch it again") from None
    return [folder / name for name in sorted(set(files))]


def _pickled_models(names: list[str]) -> list[str]:
    """Files of pickled weights that do not belong to an adapter."""
    others = (*_BESIDE, "adapter_")
    return [n for n in names if n.endswith(PICKLED) and not n.startswith(others)]


def _holds_any(folder: Path) -> bool:
    return (folder / CONFIG).exists() or (folder / ADAPTER_CONFIG).exists()


def some(names: list[str] | tuple[str, ...], most: int = 8) -> str:
    """The first few of some names, for a message."""
    shown = ", ".join(names[:most]) or "nothing"
    return f"{shown}, ... ({len(names)} in all)" if len(names) > most else shown
