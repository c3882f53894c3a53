"""A language model and its tokenizer from a hub id, a folder, a GGUF file or a PEFT adapter."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from frenet._errors import UnreachableError, UsageError
from frenet._notebook import Fact, Shown
from frenet.network.blocks import reads_ahead, text_reach
from frenet.network.checkpoints.adapter_files import adapter_folder, base_of
from frenet.network.checkpoints.adapter_load import load_adapter
from frenet.network.checkpoints.builtin_gpt2 import NAME, made_model
from frenet.network.checkpoints.folders import PICKLED, held, refuse_pickled, require_model_folder
from frenet.network.checkpoints.gguf import convert_gguf, say_on_stderr
from frenet.network.checkpoints.gguf_file import is_part
from frenet.network.checkpoints.made_folder import read_record
from frenet.network.checkpoints.pairs import fingerprint, tensor_shapes
from frenet.network.checkpoints.promised import language_class, require_stored
from frenet.network.checkpoints.tensor_files import TensorFiles
from frenet.network.data.builtin_data import is_made
from frenet.network.limits import context_length
from frenet.network.memory import require_memory
from frenet.network.tasks import base_model

__all__ = ["Loaded", "convert_gguf", "load"]

Kind = Literal["hub", "folder", "gguf"]
# Of a hub repository: what lies in its own folder, without a second copy of the weights.
_FETCHED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.bpe"]
_NOT_FETCHED = ["*/*", "consolidated*"]
# transformers would put an adapter that lies beside the weights on them; it looks there for it.
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
        model: the model, in evaluation mode; with an adapter its PEFT wrapper, whose adapter
            parameters require gradients.
        tokenizer: its tokenizer, as it came.
        source: what was asked for.
        kind: how the source was understood.
        dtype: of the weights in memory.
        fingerprint: hex digits that identify the weights; see ``checkpoints.fingerprint``.
        notes: what a report must say about the model, one sentence each.
        adapter: the adapter's source, where there is one.
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
        """Tokens that the model can read at once, where its configuration says so."""
        return context_length(self.model)

    def longest(self, tokens: int) -> int:
        """So many tokens, or as many as the model can read at once."""
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
            configuration names the base), "frenet:gpt2" (trained here at the first use), or, where
            that is no path, a hub id. The network is used for a hub id only, and not at all with
            HF_HUB_OFFLINE=1.
        dtype: of the weights in memory, whatever they are stored in.
        device: where the model is put; None: the GPU where there is one, else the CPU.
        adapter: folder or hub id of a LoRA adapter to put on the model.
        tokenizer: folder or hub id of the tokenizer, where the model comes without.
        untie: give the head weights of its own, where it shares those of the embedding, so that a
            checkpoint whose training has parted them differs from this model by a direction.
        say: gets a line before slow steps.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: not a model, pickled weights only, weights that do not fill the model or need a
            package that is not there, an adapter of another base, a model that reads what it is to
            predict; the message names file or tensor and the remedy.
        ConnectionError: the hub cannot be reached or has no such model.
        MemoryError: the weights need more memory than there is.
    """
    if not dtype.is_floating_point:
        raise UsageError(f"dtype={dtype} has no gradients; pass torch.float32 or torch.bfloat16")
    found = _resolved(source)
    if found.is_adapter:
        if adapter is not None:
            raise UsageError(f"{source} is an adapter itself; pass its base as source")
        adapter, found = found.place, _base(found.place)
    where, notes = found.place, []
    if found.kind == "gguf":
        where = convert_gguf(found.place, say=say)
        notes += _gguf_notes(where, dtype)
    place = _device(device)
    model, said = _model(where, dtype, place, name=found.name)
    notes += [*said, *found.notes, *(_untied(model) if untie else ())]
    tokens = _tokenizer(_place(tokenizer) if tokenizer is not None else where, model)
    if adapter is not None:
        model, said = load_adapter(model, adapter_folder(adapter), source=found.source)
        notes += said
    model = model.to(place).eval()
    _require_decoder(model, found.name)
    notes += _tower_notes(model)
    notes.append(f"{sum(p.numel() for p in model.parameters()):,} parameters on {place}")
    return Loaded(
        model, tokens, str(source), found.kind, dtype, fingerprint(model), tuple(notes),
        None if adapter is None else str(adapter),
    )  # fmt: skip


def _device(asked: torch.device | str | None) -> torch.device:
    """The device asked for, or the GPU where there is one; ValueError for one that is not there."""
    if not asked:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(asked)
        torch.empty(0, device=found)
    # What torch raises for a device hangs on its kind.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(
            f"device={str(asked)!r} cannot be used here: {first[:200]}; there is "
            f"{', '.join(_devices())}: pass one of these, or nothing for the GPU if there is one"
        ) from None
    return found


def _devices() -> list[str]:
    """The devices that a model can be put on here."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


def _place(source: str | Path) -> Path | str:
    """An existing path, or a hub id; an error for what can be neither."""
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
        raise FileNotFoundError(f"there is no file or folder {source}, and it is no hub id either")
    return text


class _Found(NamedTuple):
    """What a source is, on this machine.

    Attributes:
        source: as it was asked for.
        place: folder, or .gguf file.
        kind: how it was understood.
        name: for notes.
        is_adapter: whether it holds an adapter and no weights.
        notes: what is there and not used.
    """

    source: str
    place: Path
    kind: Kind
    name: str
    is_adapter: bool
    notes: tuple[str, ...]


def _resolved(source: str | Path) -> _Found:
    """What a source is; a hub id is fetched."""
    where = _place(source)
    if isinstance(where, Path) and where.is_file():
        return _Found(str(source), where, "gguf", where.name, False, ())
    kind: Kind = "hub" if isinstance(where, str) else "folder"
    folder = _fetched(where) if isinstance(where, str) else where
    found = held(folder)
    if not found.is_adapter:
        require_model_folder(found)
    notes = found.notes()
    if kind == "hub":
        notes.insert(0, f"hub revision {folder.name}")
    name = where if isinstance(where, str) else where.name
    return _Found(str(source), folder, kind, name, found.is_adapter, tuple(notes))


def _base(adapter: Path) -> _Found:
    """The base that an adapter names."""
    base = base_of(adapter)
    remedy = "pass the base as source and this folder as adapter"
    try:
        found = _resolved(base)
    except (FileNotFoundError, ConnectionError) as error:
        told = f"the adapter {adapter} names the base {base}, which cannot be read"
        raise type(error)(f"{told} ({error}); {remedy}") from error
    if found.is_adapter:
        raise UsageError(
            f"the adapter {adapter} names the base {base}, which holds an adapter and no weights; "
            f"merge that one into its base, then {remedy}"
        )
    return found


def _fetched(name: str) -> Path:
    """The folder of a hub id: its safetensors, configuration and tokenizer, nothing else."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_FETCHED, ignore_patterns=_NOT_FETCHED))
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error) from error


def _require_decoder(model: nn.Module, name: str) -> None:
    """No token has been seen before it is predicted."""
    if reads_ahead(model):
        raise UsageError(
            f"{name}: {type(base_model(model)).__name__} reads a text in both directions, so that "
            "it has seen every token that it is to predict, and its loss says nothing; where "
            'config.json has "use_bidirectional_attention", set that to false, and where it has '
            '"is_decoder", to true; otherwise load a decoder'
        )


def _tower_notes(model: nn.Module) -> list[str]:
    """What is left out of the coordinates."""
    towers = text_reach(model).towers
    if not towers:
        return []
    inner = base_model(model)
    count = sum(p.numel() for name in towers for p in inner.get_submodule(name).parameters())
    return [
        f"no text reaches {', '.join(towers)}, whose {count:,} parameters are not among the "
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
    """The model of a folder, complete, and what to say about it."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    found = held(where)
    require_model_folder(found)
    entries = sum(torch.Size(shape).numel() for shape in tensor_shapes(where).values())
    size = sum(file.stat().st_size for file in found.weights)
    needed = max(entries, require_stored(where, size)) * torch.finfo(dtype).bits // 8
    require_memory(needed, f"{where}", device=device, remedy="use a smaller model or dtype")
    files = TensorFiles(where)
    files.require_undamaged()
    options = {"trust_remote_code": False, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(where, **options)
        # The report of names is read instead of letting a part stay at random values.
        with torch.random.fork_rng(devices=[]), _quiet():
            model, report = language_class(config).from_pretrained(
                where, dtype=dtype, use_safetensors=True, ignore_mismatched_sizes=True,
                output_loading_info=True, adapter_kwargs=_NO_ADAPTER, **options,
            )  # fmt: skip
    # StrictDataclassError: config.json holds text where a number belongs, or the like.
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
        notes.append(f"{len(unused)} stored tensors have no place in the model: {unused[0]}, ...")
    return model, notes


def _require_used(files: TensorFiles, model: nn.Module, report: dict[str, Any]) -> None:
    """No stored tensor of a layer of the model is left out, such as a scale or a bias.

    Tensors of modules that the model does not have are noted: other heads, further layers.
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
            f"be used, the first is {lost[0]}: config.json does not say that these weights are "
            "quantised, and how, or that the layers have biases; restore it, or take an "
            "unquantised copy of the model"
        )


def _head_notes(model: Any) -> list[str]:
    """A stored head that is another one than the configuration says; from here on it says so."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    config = model.config.get_text_config(decoder=True)
    tied = getattr(config, "tie_word_embeddings", False)
    if head is None or not tied or getattr(head, "weight", None) is getattr(table, "weight", None):
        return []
    model.config.tie_word_embeddings = config.tie_word_embeddings = False
    return [
        "config.json ties the head to the embedding (tie_word_embeddings), and another head is "
        "stored: the stored one is used, untied"
    ]


def _untied(model: Any) -> list[str]:
    """A head that shares the weights of the embedding gets a copy of its own."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not table.weight:
        return []
    head.weight = nn.Parameter(head.weight.detach().clone())
    config = model.config.get_text_config(decoder=True)
    model.config.tie_word_embeddings = config.tie_word_embeddings = False
    return ["the head, which shares the weights of the embedding, has a copy of its own (untie)"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without bars, since what is read from disk is there at once, and without remarks on names.

    What they say is checked, and is in the notes.
    """
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    try:
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


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
    """Every parameter got its stored value, in its own shape, as a floating-point number."""
    for name, stored, wanted in report["mismatched_keys"]:
        raise UsageError(
            f"{where}: {name} is stored with shape {tuple(stored)} and the configuration wants "
            f"{tuple(wanted)}; config.json belongs to another model"
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
    """The tokenizer, checked to be a real one and to fit the model's embedding."""
    from transformers import AutoTokenizer

    folder = isinstance(where, Path)
    if isinstance(where, Path) and not any((where / name).exists() for name in _TOKENIZER_FILES):
        # transformers would make one up, with a single token.
        raise UsageError(
            f"{where} has no tokenizer ({', '.join(_TOKENIZER_FILES[:3])} ...); pass --tokenizer "
            "(tokenizer= in Python) with the folder or hub id of the base model"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            where, trust_remote_code=False, local_files_only=folder
        )
    # A tokenizer file that cannot be read raises whatever its parser does, RecursionError too.
    except Exception as error:
        raise _cannot_load(where, error, what="tokenizer") from error
    rows = model.get_input_embeddings().num_embeddings
    added = tokenizer.get_added_vocab()
    # Added tokens without a row are common and harmless while no text holds them.
    beyond = [t for t, i in tokenizer.get_vocab().items() if i >= rows and t not in added]
    if beyond:
        raise UsageError(
            f"the tokenizer of {where} has {len(tokenizer)} tokens and the model's embedding "
            f"{rows} rows, none for {beyond[0]!r}; pass the tokenizer that belongs to the model"
        )
    return tokenizer
