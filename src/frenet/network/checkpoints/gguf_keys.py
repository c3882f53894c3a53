"""The settings of a GGUF file's architecture, for a configuration of transformers."""

from typing import Any

from frenet._errors import UsageError
from frenet.network.checkpoints.gguf_file import AGAIN, GgufFile


class Settings:
    """The keys of a file's architecture that are not yet carried over, and the configuration."""

    def __init__(self, file: GgufFile, config: Any) -> None:
        self.file, self.config = file, config
        # Attributes of the class: a configuration also stores any other value.
        self.plain = type(config)()
        prefix = f"{file.architecture}."
        keys = ((key, value) for key, value in file.metadata.items() if key.startswith(prefix))
        self.left = {key.removeprefix(prefix): _one(value) for key, value in keys}

    def take(self, key: str, absent: Any = None) -> Any:
        """The value of a key, which is then done; ``absent`` if the file lacks it."""
        return self.left.pop(key, absent)

    def has(self, name: str) -> bool:
        """Whether this class of configurations has the attribute and it can be set."""
        fixed = isinstance(getattr(type(self.config), name, None), property)
        return hasattr(self.plain, name) and not fixed

    def set(self, name: str, value: Any) -> None:
        """Set an attribute if its value differs."""
        from huggingface_hub.errors import StrictDataclassError

        if getattr(self.config, name, None) == value:
            return
        try:
            setattr(self.config, name, value)
        except (ValueError, TypeError, StrictDataclassError):
            raise UsageError(
                f"{self.file.name}: {value!r} is no value of {name}; the file is damaged: {AGAIN}"
            ) from None

    def refuse(self, key: str, value: Any) -> ValueError:
        """The error of a key that cannot be carried over."""
        return UsageError(
            f"{self.file.name}: {self.file.architecture}.{key} = {value} changes what the model "
            f"computes, but {type(self.config).__name__} of transformers has no such setting; "
            "load the folder in Hugging Face format that the file was made from"
        )


def _one(value: Any) -> Any:
    """The value of an array with the same value for all blocks; other values unchanged."""
    same = isinstance(value, list) and value and all(each == value[0] for each in value)
    return value[0] if same else value
