"""Options of ``frenet steer``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from frenet.cli.options import Switch
from frenet.experiments.setup.reading import LoadingConfig, ReadingConfig

Vector = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="VECTOR")]
Out = Annotated[Path, tyro.conf.arg(metavar="FILE")]


@dataclass(frozen=True)
class Source(ReadingConfig, LoadingConfig):
    """A model and a contrast."""

    model: str
    """A hub id, a folder in Hugging Face format or of a PEFT adapter, or a GGUF file."""
    tasks: tuple[str, ...]
    """Files or data set names: labelled statements, A/B questions, pairs of texts."""
    only: str = ""
    """Name of the contrast, where the files hold several."""
    positive: str = ""
    """Label word of the positive side. Empty: yes, true, positive or 1, else the first one."""
    words: tuple[str, ...] = ()
    """What the positive and the negative side answer with. Empty: the labels themselves."""
    max_length: int = 256
    """Longest prompt in tokens; longer ones lose their beginning."""
    path: str = ""
    """Dotted name of the list of blocks, where it is not found by itself."""


@dataclass(frozen=True)
class Extract(Source):
    """Options of ``frenet steer extract``."""

    out: Out = Path("vector.safetensors")
    """Where the vector goes; ends in .safetensors."""
    how: Literal["mean", "principal", "gradient"] = "mean"
    """'mean' difference of the two sides; first 'principal' component of the paired differences;
    shift by a 'gradient' step towards the positive answer."""
    form: Literal["auto", "class", "answer"] = "auto"
    """'class': prompts of one class against those of the other; 'answer': every prompt with its
    positive answer against the same with its negative one."""
    blocks: tuple[int, ...] = ()
    """0-based blocks. Empty: all."""
    json: Switch = False
    """Print the result as JSON on standard output, and nothing else there."""


@dataclass(frozen=True)
class Compare(ReadingConfig, LoadingConfig):
    """Options of ``frenet steer compare``."""

    first: Vector
    """A .safetensors file of frenet, or a GGUF control vector."""
    second: Vector
    """Another one."""
    model: str = ""
    """With --tasks: the model whose streams say what chance is."""
    tasks: tuple[str, ...] = ()
    """With --model: prompts whose streams say what chance is."""
    only: str = ""
    """Name of the contrast, where the files hold several."""
    path: str = ""
    """Dotted name of the list of blocks, where it is not found by itself."""
    json: Switch = False
    """Print the result as JSON on standard output, and nothing else there."""


@dataclass(frozen=True)
class Apply(LoadingConfig):
    """Options of ``frenet steer apply``."""

    vector: Vector
    """A .safetensors file of frenet, or a GGUF control vector."""
    model: str
    """A hub id, a folder in Hugging Face format or of a PEFT adapter, or a GGUF file."""
    prompt: tuple[str, ...]
    """Texts to go on with."""
    chat: bool = False
    """Each text is the user's turn in the chat template of the model's tokenizer, and the model
    goes on as the assistant."""
    block: int | None = None
    """0-based block to add it at. By default the middle one of those that the vector has."""
    doses: tuple[float, ...] = (-0.3, 0.3)
    """Lengths of the added vector, in units of the stream's norm at the ends of the prompts."""
    position: Literal["generated", "all", "last"] = "generated"
    """Tokens to add it at: the prompt's last one and all new ones, all, or the last one only."""
    tokens: int = 48
    """Most new tokens."""
    path: str = ""
    """Dotted name of the list of blocks, where it is not found by itself."""
    json: Switch = False
    """Print the result as JSON on standard output, and nothing else there."""


@dataclass(frozen=True)
class Export:
    """Options of ``frenet steer export``."""

    vector: Vector
    """A .safetensors file of frenet, or a GGUF control vector."""
    out: Out
    """Ends in .gguf or .safetensors, which says what is written."""
    architecture: str = "llama"
    """Of the model, a hint in GGUF files."""
