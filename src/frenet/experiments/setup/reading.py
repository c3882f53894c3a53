"""Settings that all commands share: how models are loaded, and how the user's files are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from frenet._errors import UsageError

if TYPE_CHECKING:
    from frenet.network.checkpoints.load import Loaded
    from frenet.network.data.tables import Reading
    from frenet.network.data.text import TextTask

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LoadingConfig:
    """How a language model comes into memory."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of a language model's weights in memory. Below float32 only adapters move; they
    stay in float32."""
    device: str = ""
    """Device of a language model, such as cpu or cuda:1. Empty: the GPU if there is one."""
    tokenizer: str = ""
    """Folder or hub id of the tokenizer of a language model. Empty: the model's tokenizer."""
    untie: bool = False
    """Give the head of a language model separate weights, if it shares those of the embedding."""

    def load(self, model: str, *, adapter: str = "") -> "Loaded":
        """The model of a hub id, folder or file, loaded as these settings say."""
        import torch

        from frenet.network.checkpoints.load import load

        return load(
            model, dtype=getattr(torch, self.dtype), device=self.device or None,
            adapter=adapter or None, tokenizer=self.tokenizer or None, untie=self.untie,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """Which columns are read, and how they become prompts and completions."""

    columns: tuple[str, ...] = ()
    """Roles of the columns of the task files, if their names do not say it: prompt=NAME
    completion=NAME label=NAME, fields of the known schemas, system=NAME with --chat, and
    ignore=NAME,NAME. Several columns of one role are joined by an empty line."""
    prompt: str = ""
    """Prompt with {field} for a value of the row, {field?} if the row may have none. Empty: that of
    the known schema."""
    completion: str = ""
    """The scored text, written in the same way. Empty: that of the known schema."""
    chat: bool = False
    """Apply the chat template of the model's tokenizer to prompts and answers. Rows of messages,
    and of prompt and response, always use it."""
    max_length: int = 256
    """Longest text in tokens. Longer prompts lose their beginning, longer plain texts their end,
    and a note counts them."""

    def rows_read(self) -> dict[str, Any]:
        """These settings as arguments of ``text_tasks`` and ``contrasts``."""
        return {
            "columns": self.columns or None,
            "prompt": self.prompt or None,
            "completion": self.completion or None,
            "chat": self.chat,
        }


@dataclass(frozen=True, kw_only=True)
class TaskReadingConfig(ReadingConfig):
    """The same for tasks; their labels may be written as other words."""

    words: tuple[str, ...] = ()
    """Words for the values of a label: 0=negative 1=positive. Empty: the values themselves."""

    def rows_read(self) -> dict[str, Any]:
        """These settings as arguments of ``text_tasks``."""
        return super().rows_read() | {"words": self.words}


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """Where to read a contrast that is needed in addition to the tasks."""

    contrasts: str = ""
    """File or data set name of the contrast behind the steering vector of a language model."""
    contrast_columns: tuple[str, ...] = ()
    """Roles of the columns of that file, written as --columns is for tasks."""
    contrast_prompt: str = ""
    """Prompt of its rows, written as --prompt is for tasks."""
    behaviour: str = ""
    """Name of the contrast, if there are several."""


def of_sources(sources: Sequence[str], read: Callable[[str], Mapping[str, T]]) -> dict[str, T]:
    """The tasks or contrasts of several sources, by name.

    Raises:
        ValueError: two sources have one of the same name.
    """
    by_name: dict[str, T] = {}
    for source in sources:
        more = read(source)
        if twice := sorted(set(by_name) & set(more)):
            raise UsageError(
                f"{source}: {twice[0]!r} is also a name in another file; rename one of them"
            )
        by_name |= more
    return by_name


def tasks_of(config: Any, loaded: "Loaded", *, seed: int = 0) -> "dict[str, TextTask]":
    """The tasks of all files of a configuration, by name, for a model.

    Raises:
        ValueError: two files have one of the same name.
    """
    from frenet.network.data.text import text_tasks

    def read(source: str) -> "dict[str, TextTask]":
        longest = loaded.longest(config.max_length)
        return text_tasks(
            source, loaded.tokenizer, max_length=longest, seed=seed, **config.rows_read()
        )

    return of_sources(config.tasks, read)


def reading_of(arguments: dict[str, Any]) -> "Reading":
    """The reading that these arguments of ``text_tasks`` or ``contrasts`` make."""
    from frenet.network.data.tables import Reading

    return Reading.of(arguments.pop("columns"), **arguments)
