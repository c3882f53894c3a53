"""A language model and its tokenizer from a hub id, a folder, a GGUF file or a PEFT adapter."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from frenet._errors import UnreachableError, UsageError
from frenet._notebook import Fact, Shown
from frenet.network.blocks import reads_ahead, text_reach
from frenet.network.checkpoints.adapter_files import adapter_folder, base_of
from frenet.network.checkpoints.adapter_load import check_adapter, load_adapter
from frenet.network.checkpoints.builtin_gpt2 import NAME, made_model
from frenet.network.checkpoints.folders import PICKLED, held, refuse_pickled, require_model_folder
from frenet.network.checkpoints.gguf import convert_gguf, say_on_stderr
from frenet.network.checkpoints.gguf_file import is_part
from frenet.network.checkpoints.made_folder import read_record
from frenet.network.checkpoints.pairs import fingerprint, tensor_shapes
from frenet.network.checkpoints.promised import language_class, require_stored
from frenet.network.checkpoints.quiet import quiet_transformers
from frenet.network.checkpoints.tensor_files import TensorFiles
from frenet.network.data.builtin_data import is_made
from frenet.network.limits import context_length
from frenet.network.memory import require_memory
from frenet.network.tasks import base_model

__all__ = ["Loaded", "convert_gguf", "load"]

Kind = Literal["hub", "folder", "gguf"]
# Files to fetch from the top folder of a hub repository, without a second copy of the weights.
_FETCHED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.bpe"]
_NOT_FETCHED = ["*/*", "consolidated*"]
# Otherwise transformers applies an adapter in the folder of the weights; it looks here instead.
_NO_ADAPTER = {"subfolder": "no adapter is asked for"}
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model", "tekken.json",
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class Loaded(Shown):
    """A model ready for measuring.

    Attributes:
        model: the model, in evaluation mode; with an adapter its PEFT wrapper, in which the
            adapter's parameters require gradients.
        tokenizer: its tokenizer, unchanged.
        source: the source that was passed.
        kind: kind of the source.
        dtype: dtype of the weights in memory.
        fingerprint: hex digits that identify the weights; see ``checkpoints.fingerprint``.
        notes: what a report must say about the model, one sentence each.
        adapter: the adapter's source, or None.
    """

    model: nn.Module
    tokenizer: Any
    source: str
    kind: Kind
    dtype: torch.dtype
    fingerprint: str
    notes: tuple[str, ...]
    adapter: str | None = None

    def _summary(self) -> str:
        adapter = f" with the adapter {self.adapter}" if self.adapter else ""
        return f"{self.source}{adapter} ({self.kind}), {str(self.dtype).removeprefix('torch.')}"

    def _entries(self) -> Iterator[Fact]:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        yield "parameters", count, f"fingerprint {self.fingerprint}"
        yield from (("note", note, "") for note in self.notes)

    @property
    def context_length(self) -> int | None:
        """Number of tokens that the model can read at once, if its configuration says so."""
        return context_length(self.model)

    def longest(self, tokens: int) -> int:
        """``tokens``, or the number that the model can read at once if that is less."""
        return min(tokens, self.context_length or tokens)


def load(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    adapter: str | Path | None = None,
    tokenizer: str | Path | None = None,
    untie: bool = False,
    say: Callable[[str], None] = say_on_stderr,
) -> Loaded:
    """Load a causal language model for measuring: safetensors only, no code from the checkpoint.

    Args:
        source: a folder in Hugging Face format, a .gguf file, the folder of a PEFT adapter (its
            configuration names the base), "frenet:gpt2" (trained at its first use), or, if there
            is no such path, a hub id. Only a hub id needs the network, and with HF_HUB_OFFLINE=1
            nothing does.
        dtype: dtype of the weights in memory, whatever their stored dtype.
        device: device of the model; None: the GPU if there is one, else the CPU.
        adapter: folder or hub id of a LoRA adapter for the model.
        tokenizer: folder or hub id of the tokenizer, for a model without one.
        untie: copy the weights of the head if it shares those of the embedding, so that a
            checkpoint that trained them separately differs from this model by a direction.
        say: called with a line before slow steps.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is no model; its weights are pickled, incomplete or need a missing package;
            the adapter belongs to another base; or the model reads the tokens that it should
            predict. The message names file or tensor and the remedy.
        ConnectionError: the hub cannot be reached or has no such model.
        MemoryError: the weights need more memory than there is.
    """
    if not dtype.is_floating_point:
        raise UsageError(f"dtype={dtype} has no gradients; pass torch.float32 or torch.bfloat16")
    resolved = _resolved(source)
    if resolved.is_adapter:
        if adapter is not None:
            raise UsageError(f"{source} is an adapter itself; pass its base as source")
        adapter, resolved = resolved.place, _base(resolved.place)
    where, notes = resolved.place, []
    if resolved.kind == "gguf":
        where = convert_gguf(resolved.place, say=say)
        notes += _gguf_notes(where, dtype)
    folder = None if adapter is None else adapter_folder(adapter)
    if folder is not None:
        check_adapter(folder, where)
    place = _device(device)
    model, model_notes = _model(where, dtype, place, name=resolved.name)
    notes += [*model_notes, *resolved.notes, *(_untied(model) if untie else ())]
    tokens = _tokenizer(_place(tokenizer) if tokenizer is not None else where, model)
    if folder is not None:
        model, adapter_notes = load_adapter(model, folder, source=resolved.source)
        notes += adapter_notes
    model = model.to(place).eval()
    _require_decoder(model, resolved.name)
    notes += _tower_notes(model)
    notes.append(f"{sum(p.numel() for p in model.parameters()):,} parameters on {place}")
    return Loaded(
        model, tokens, str(source), resolved.kind, dtype, fingerprint(model), tuple(notes),
        None if adapter is None else str(adapter),
    )  # fmt: skip


def _device(name: torch.device | str | None) -> torch.device:
    """The device of this name, by default the GPU if there is one; ValueError if it is missing."""
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # The type of torch's error depends on the kind of the device.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(
            f"device={str(name)!r} cannot be used here: {first[:200]}; there is "
            f"{', '.join(_devices())}: pass one of these, or nothing for the GPU if there is one"
        ) from None
    return device


def _devices() -> list[str]:
    """The devices of this machine."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


def _place(source: str | Path) -> Path | str:
    """An existing path, or a hub id; an error if it can be neither."""
    if is_made(source):
        if source != NAME:
            raise UsageError(f"frenet makes no model {source!r}; there is {NAME}")
        return made_model()
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix.lower() in PICKLED:
            refuse_pickled(path, [path.name])
        if path.suffix.lower() != ".gguf" and not is_part(path):
            raise UsageError(
                f"{path} is not a model; pass the folder that holds config.json and the weights, "
                "or a .gguf file"
            )
        return path
    if path.exists():
        return path
    text = str(source)
    parent_is_here = len(path.parts) > 1 and Path(path.parts[0]).expanduser().exists()
    if (
        isinstance(source, Path)
        or parent_is_here
        or path.suffix.lower() in (".gguf", ".safetensors", *PICKLED)
        or _HUB_ID.fullmatch(text) is None
    ):
        raise FileNotFoundError(f"there is no file or folder {source}, and it is no hub id")
    return text


class _Resolved(NamedTuple):
    """A source on this machine.

    Attributes:
        source: the source that was passed.
        place: folder, or .gguf file.
        kind: kind of the source.
        name: name in notes.
        is_adapter: whether it has an adapter and no weights.
        notes: what is not used.
    """

    source: str
    place: Path
    kind: Kind
    name: str
    is_adapter: bool
    notes: tuple[str, ...]


def _resolved(source: str | Path) -> _Resolved:
    """A source on this machine; a hub id is fetched."""
    where = _place(source)
    if isinstance(where, Path) and where.is_file():
        return _Resolved(str(source), where, "gguf", where.name, False, ())
    kind: Kind = "hub" if isinstance(where, str) else "folder"
    folder = _fetched(where) if isinstance(where, str) else where
    contents = held(folder)
    if not contents.is_adapter:
        require_model_folder(contents)
    notes = contents.notes()
    if kind == "hub":
        notes.insert(0, f"hub revision {folder.name}")
    name = where if isinstance(where, str) else where.name
    return _Resolved(str(source), folder, kind, name, contents.is_adapter, tuple(notes))


def _base(adapter: Path) -> _Resolved:
    """The base that an adapter names."""
    base = base_of(adapter)
    remedy = "pass the base as source and this folder as adapter"
    try:
        resolved = _resolved(base)
    except (FileNotFoundError, ConnectionError) as error:
        why = f"the adapter {adapter} names the base {base}, which cannot be read"
        raise type(error)(f"{why} ({error}); {remedy}") from error
    if resolved.is_adapter:
        raise UsageError(
            f"the adapter {adapter} names the base {base}, which holds an adapter and no weights; "
            f"merge that one into its base, then {remedy}"
        )
    return resolved


def _fetched(name: str) -> Path:
    """The folder of a hub id, with only its safetensors, configuration and tokenizer."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_FETCHED, ignore_patterns=_NOT_FETCHED))
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error) from error


def _require_decoder(model: nn.Module, name: str) -> None:
    """Refuse a model that sees tokens before it predicts them."""
    if reads_ahead(model):
        raise UsageError(
            f"{name}: {type(base_model(model)).__name__} reads a text in both directions, so "
            "it sees the tokens that it should predict, and its loss means nothing; set "
            '"use_bidirectional_attention" to false or "is_decoder" to true, if config.json has '
            "them; otherwise load a decoder"
        )


def _tower_notes(model: nn.Module) -> list[str]:
    """A note on the parameters that are not among the coordinates."""
    towers = text_reach(model).towers
    if not towers:
        return []
    inner = base_model(model)
    count = sum(p.numel() for name in towers for p in inner.get_submodule(name).parameters())
    return [
        f"no text reaches {', '.join(towers)}; its {count:,} parameters are not among the "
        "coordinates unless where= selects them"
    ]


def _gguf_notes(folder: Path, dtype: torch.dtype) -> list[str]:
    record = read_record(folder)
    return [
        f"{record['file']}: stored as {record['quantisation']}, dequantised, measured in {dtype}; "
        "results refer to the dequantised weights",
        *record["notes"],
    ]


def _model(
    where: Path, dtype: torch.dtype, device: torch.device, *, name: str
) -> tuple[Any, list[str]]:
    """The complete model of a folder, and notes about it."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    contents = held(where)
    require_model_folder(contents)
    entries = sum(torch.Size(shape).numel() for shape in tensor_shapes(where).values())
    size = sum(file.stat().st_size for file in contents.weights)
    needed = max(entries, require_stored(where, size)) * torch.finfo(dtype).bits // 8
    require_memory(needed, f"{where}", device=device, remedy="use a smaller model or dtype")
    files = TensorFiles(where)
    files.require_undamaged()
    options = {"trust_remote_code": False, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(where, **options)
        # The report of names is checked, so that no part keeps random values.
        with torch.random.fork_rng(devices=[]), quiet_transformers():
            model, report = language_class(config).from_pretrained(
                where, dtype=dtype, use_safetensors=True, ignore_mismatched_sizes=True,
                output_loading_info=True, adapter_kwargs=_NO_ADAPTER, **options,
            )  # fmt: skip
    # StrictDataclassError: config.json has a value of a wrong type.
    except (
        *(OSError, ValueError, RuntimeError, KeyError, ImportError), StrictDataclassError,
    ) as error:  # fmt: skip
        raise _cannot_load(where, error) from error
    _require_filled(where, model, report)
    _require_used(files, model, report)
    notes = [
        f"{name}: {config.model_type}, stored in {config.dtype or 'no stated dtype'}, measured in "
        f"{dtype}, {model.config._attn_implementation} attention"
    ]
    notes += _head_notes(model)
    if unused := sorted(report["unexpected_keys"]):
        notes.append(f"{len(unused)} stored tensors are not part of the model: {unused[0]}, ...")
    return model, notes


def _require_used(files: TensorFiles, model: nn.Module, report: dict[str, Any]) -> None:
    """Refuse stored tensors of the model's layers that would not be used, such as scales or biases.

    Tensors of modules that the model does not have only get a note: other heads, more layers.
    """
    modules = dict(model.named_modules())
    lost = []
    for name in sorted(report["unexpected_keys"]):
        layer = modules.get(name.rpartition(".")[0])
        if layer is None or next(layer.parameters(recurse=False), None) is None:
            continue
        if name not in files.shapes or files.read(name).float().any():
            lost.append(name)
    if lost:
        raise UsageError(
            f"{files.path}: {len(lost)} stored tensors belong to layers of the model and would not "
            f"be used, the first is {lost[0]}: config.json does not say how these weights are "
            "quantised, or that the layers have biases; restore it, or use an unquantised copy of "
            "the model"
        )


def _head_notes(model: Any) -> list[str]:
    """A note if the stored head is not tied, against the configuration, which is corrected."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    config = model.config.get_text_config(decoder=True)
    tied = getattr(config, "tie_word_embeddings", False)
    if head is None or not tied or getattr(head, "weight", None) is getattr(table, "weight", None):
        return []
    model.config.tie_word_embeddings = config.tie_word_embeddings = False
    return [
        "config.json ties the head to the embedding (tie_word_embeddings), but another head is "
        "stored: the stored one is used, untied"
    ]


def _untied(model: Any) -> list[str]:
    """Copy the weights of a head that shares those of the embedding."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not table.weight:
        return []
    head.weight = nn.Parameter(head.weight.detach().clone())
    config = model.config.get_text_config(decoder=True)
    model.config.tie_word_embeddings = config.tie_word_embeddings = False
    return ["the head, tied to the embedding, is separated from it (untie)"]


def _cannot_load(
    where: Path | str, error: Exception, *, what: str = "causal language model"
) -> Exception:
    why = " ".join(str(error).split())
    if "trust_remote_code" in why:
        return UsageError(f"{where} needs code of its own to load, which frenet does not run")
    if isinstance(error, ImportError):
        return UsageError(
            f"{where} needs a package that is not installed, as quantised weights do: {why[:300]}; "
            "load an unquantised copy of the model, or its GGUF file, or install the package"
        )
    if isinstance(where, str):
        return UnreachableError(
            f"{where!r} is no path here, and no model of that name can be loaded from the hub: "
            f"{why[:300]}; check the spelling and the network, or pass a local folder"
        )
    return UsageError(f"{where} cannot be loaded as a {what}: {why[:300]}")


def _require_filled(where: Path | str, model: nn.Module, report: dict[str, Any]) -> None:
    """Refuse a model unless every parameter has a stored value, in its shape, floating-point."""
    for name, stored, expected in report["mismatched_keys"]:
        raise UsageError(
            f"{where}: {name} is stored with shape {tuple(stored)}, but the configuration needs "
            f"{tuple(expected)}; config.json belongs to another model"
        )
    if missing := sorted(report["missing_keys"]):
        raise UsageError(
            f"{where}: {len(missing)} parameters have no stored value, the first is {missing[0]}; "
            "they would be random: the weights are incomplete or belong to another model"
        )
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise UsageError(
                f"{where}: {name} is stored as {parameter.dtype}, which has no gradient; load an "
                "unquantised copy of the model, or its GGUF file"
            )


def _tokenizer(where: Path | str, model: Any) -> Any:
    """The tokenizer, after a check that it has files and fits the model's embedding."""
    from transformers import AutoTokenizer

    folder = isinstance(where, Path)
    if isinstance(where, Path) and not any((where / name).exists() for name in _TOKENIZER_FILES):
        # transformers would invent one with a single token.
        raise UsageError(
            f"{where} has no tokenizer ({', '.join(_TOKENIZER_FILES[:3])} ...); pass --tokenizer "
            "(tokenizer= in Python) with the folder or hub id of the base model"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            where, trust_remote_code=False, local_files_only=folder
        )
    # The parser of a damaged tokenizer file may raise anything, also RecursionError.
    except Exception as error:
        raise _cannot_load(where, error, what="tokenizer") from error
    rows = model.get_input_embeddings().num_embeddings
    added = tokenizer.get_added_vocab()
    # Added tokens without a row are common, and harmless if no text has them.
    beyond = [t for t, i in tokenizer.get_vocab().items() if i >= rows and t not in added]
    if beyond:
        raise UsageError(
            f"the tokenizer of {where} has {len(tokenizer)} tokens and the model's embedding "
            f"{rows} rows, none for {beyond[0]!r}; pass the tokenizer that belongs to the model"
        )
    return tokenizer
