"""Options of ``frenet steer``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from frenet.cli.options import Folder, OneProcess, Switch
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
    """Name of the contrast, if the files contain several."""
    positive: str = ""
    """Label of the positive side. Empty: yes, true, positive or 1, else the first label."""
    words: tuple[str, ...] = ()
    """Answers of the positive and of the negative side. Empty: the labels."""
    path: str = ""
    """Dotted name of the list of blocks, if frenet does not find it."""


@dataclass(frozen=True)
class Extract(Source):
    """Options of ``frenet steer extract``."""

    out: Out = Path("vector.safetensors")
    """File to write; its name ends in .safetensors."""
    how: Literal["mean", "principal", "gradient"] = "mean"
    """'mean' difference of the two sides; first 'principal' component of the paired differences;
    shift by a 'gradient' step towards the positive answer."""
    form: Literal["auto", "class", "answer"] = "auto"
    """'class': prompts of one class against prompts of the other; 'answer': every prompt with its
    positive answer against the same prompt with its negative answer."""
    blocks: tuple[int, ...] = ()
    """0-based blocks. Empty: all."""
    json: Switch = False
    """Print only JSON on standard output."""


@dataclass(frozen=True)
class Screen(ReadingConfig, LoadingConfig):
    """Options of ``frenet steer screen``."""

    model: str
    """A hub id, a folder in Hugging Face format or of a PEFT adapter, or a GGUF file."""
    tasks: tuple[str, ...]
    """Files or data set names: labelled statements, A/B questions."""
    only: tuple[str, ...] = ()
    """Names of the contrasts to ask about, if the files contain more. Empty: all."""
    positive: str = ""
    """Label of the positive side. Empty: yes, true, positive or 1, else the first label."""
    words: tuple[str, ...] = ()
    """Answers of the positive and of the negative side. Empty: the labels."""
    rows: int = 200
    """Most prompts of each contrast, drawn at random, half of them of each class."""
    json: Switch = False
    """Print only JSON on standard output."""


@dataclass(frozen=True, kw_only=True)
class Recommending(OneProcess):
    """How ``frenet steer recommend`` runs."""

    out: Folder = None
    """Folder for the results, and in it "vector.safetensors" with the advice, if there is one. By
    default runs/ and a name made from the settings."""


@dataclass(frozen=True)
class Compare(ReadingConfig, LoadingConfig):
    """Options of ``frenet steer compare``."""

    first: Vector
    """A .safetensors file of frenet, or a GGUF control vector."""
    second: Vector
    """A second file."""
    model: str = ""
    """With --tasks: the model to measure chance on."""
    tasks: tuple[str, ...] = ()
    """With --model: the prompts to measure chance on."""
    only: str = ""
    """Name of the contrast, if the files contain several."""
    path: str = ""
    """Dotted name of the list of blocks, if frenet does not find it."""
    json: Switch = False
    """Print only JSON on standard output."""


@dataclass(frozen=True)
class Apply(LoadingConfig):
    """Options of ``frenet steer apply``."""

    vector: Vector
    """A .safetensors file of frenet, or a GGUF control vector."""
    model: str
    """A hub id, a folder in Hugging Face format or of a PEFT adapter, or a GGUF file."""
    prompt: tuple[str, ...]
    """Texts to continue."""
    chat: bool = False
    """Put each text as the user's turn into the chat template of the model's tokenizer; the model
    continues as the assistant."""
    block: int | None = None
    """0-based block to add it at. By default the advised one (of steer recommend), or the middle
    one of the vector's blocks."""
    doses: tuple[float, ...] = ()
    """Lengths of the added vector, in units of the stream's norm where the vector was read (of a
    vector that does not say it: at the ends of these prompts). Empty: the advised dose in both
    directions, or -0.3 and 0.3."""
    position: Literal["generated", "all", "last"] = "generated"
    """Tokens to add it at: 'generated', the prompt's last token and all new ones; 'all'; or
    'last', the prompt's last token."""
    tokens: int = 48
    """Largest number of new tokens."""
    path: str = ""
    """Dotted name of the list of blocks, if frenet does not find it."""
    json: Switch = False
    """Print only JSON on standard output."""


@dataclass(frozen=True)
class Export:
    """Options of ``frenet steer export``."""

    vector: Vector
    """A .safetensors file of frenet, or a GGUF control vector."""
    out: Out
    """File to write; without --layout, .gguf or .safetensors sets the format."""
    layout: Literal["", "llama.cpp", "easysteer", "hotwire", "vllm-lens"] = ""
    """Program that serves the model: 'llama.cpp' (.gguf), or a plugin of vLLM, 'easysteer' (.gguf
    and a .json beside it), 'hotwire' (.pt) or 'vllm-lens' (.json)."""
    block: int | None = None
    """0-based block to serve it at. By default the advised one, or the only one."""
    dose: float | None = None
    """Length of what is added, in units of the stream's norm. By default the advised one."""
    position: Literal["all", "generated"] = "all"
    """Tokens to add it at: 'all'; or, with easysteer, 'generated', the prompt's last one and all
    new ones."""
    architecture: str = "llama"
    """Architecture of the model, a hint in GGUF files."""
