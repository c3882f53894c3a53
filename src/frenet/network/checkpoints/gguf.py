"""GGUF files: one conversion into a folder of dequantised weights that loads fast."""

import copy
import errno
import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frenet._errors import UsageError
from frenet._files import OUT, DamagedFileError, DiskFullError, named_errors, whole_files
from frenet._notebook import one_line
from frenet.network.checkpoints.cache import VARIABLE, cache_dir
from frenet.network.checkpoints.fingerprint import sampled
from frenet.network.checkpoints.gguf_file import AGAIN, GgufFile, read_gguf
from frenet.network.checkpoints.gguf_rope import Rope, require_turned
from frenet.network.checkpoints.gguf_settings import carry_over
from frenet.network.checkpoints.gguf_tokenizer import load_tokenizer
from frenet.network.checkpoints.made_folder import RECORD, read_record, seal_folder, whole_folder
from frenet.network.checkpoints.quiet import quiet_transformers
from frenet.network.memory import require_memory

# Keys of transformers' table that are sections of the file, or no decoders.
_NOT_DECODERS = ("general", "tokenizer", "t5", "umt5")
# The conversion holds the dequantised tensors and one copy of them in float32.
_BYTES_PER_PARAMETER = 8
# Incremented when the same file would give another folder, so that older folders are not used.
_CONVERSION = 4


def supported_architectures() -> tuple[str, ...]:
    """GGUF architectures that transformers loads as a decoder."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    return tuple(sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - set(_NOT_DECODERS)))


def say_on_stderr(message: str) -> None:
    """Print a message about a slow step on standard error."""
    print(one_line(message), file=sys.stderr, flush=True)


def convert_gguf(
    path: str | Path,
    *,
    cache: Path | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = say_on_stderr,
) -> Path:
    """The folder with the dequantised weights and the tokenizer of a GGUF file.

    The first call converts, which takes a minute for a small model; later calls with the same
    content compare that folder with the digests of its files, once per process, and return it. A
    damaged folder is reported and made again.

    Args:
        path: the .gguf file.
        cache: folder of converted folders; None: ``gguf`` in ``cache_dir()``.
        out: the folder, instead of one in the cache; new, empty, or of this conversion.
        say: called with one line before the conversion, with the type and cost of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no complete GGUF file of a model; its architecture, a setting or a
            tensor type is not supported; its weights do not fill the model; or the folder ``out``
            has other contents.
        MemoryError: the conversion needs more memory than there is.
        DiskFullError: the disk has no room for the folder.
        OSError: the folder cannot be written.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    digest = _digest(path)
    folder = out or (cache or cache_dir() / "gguf") / f"{path.stem}-{digest[:16]}"
    if out is not None:
        _require_free(out, digest)
    moves = VARIABLE if out is None else OUT
    with named_errors(folder, moves=moves):
        folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        if whole_folder(folder, {"sampled_sha256": digest}):
            if read_record(folder).get("conversion") == _CONVERSION:
                return folder
            say(f"{folder} was made by an earlier version: {path.name} is converted again")
    except DamagedFileError as error:
        say(f"{error.where} {error.why}: {path.name} is converted again")
    _convert(path, folder, digest, say, moves=moves)
    return folder


def _require_free(out: Path, digest: str) -> None:
    """Refuse a folder with other files, or with another model."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / RECORD).exists()):
        raise UsageError(
            f"{out} holds files that frenet did not write; pass --out with a new or empty folder"
        )
    if (out / RECORD).exists() and read_record(out).get("sampled_sha256") != digest:
        raise UsageError(
            f"{out} holds the conversion of another file; pass --out with a new or empty folder"
        )


def _convert(
    path: Path, folder: Path, digest: str, say: Callable[[str], None], *, moves: str
) -> None:
    """Make the folder, after a check of memory and disk space."""
    file = read_gguf(path)
    _require_supported(file)
    needed = _BYTES_PER_PARAMETER * file.parameters
    require_memory(
        needed, f"converting {path.name}", device=torch.device("cpu"), remedy="free some memory"
    )
    _require_disk(4 * file.parameters, folder.parent, moves)
    say(
        f"converting {path.name} once: {file.architecture}, {file.quantisation}, "
        f"{file.parameters:,} parameters, {needed / 2**30:.2f} GiB of memory, "
        f"{4 * file.parameters / 2**30:.2f} GiB in {folder}"
    )
    files = whole_files(folder, last=RECORD, alone=True, moves=moves)
    # The bar of the longest step, which is transformers' own, stays.
    with quiet_transformers(), files as unfinished:
        notes = _write_converted(path, file, unfinished)
        about = {
            "file": path.name,
            "sampled_sha256": digest,
            "architecture": file.architecture,
            "quantisation": file.quantisation,
            "parameters": file.parameters,
            "notes": notes,
            "conversion": _CONVERSION,
        }
        seal_folder(unfinished, about)


def _require_supported(file: GgufFile) -> None:
    """Refuse other architectures; llama.cpp and transformers differ in hyphens of some names."""
    supported = supported_architectures()
    if _bare(file.architecture) not in map(_bare, supported):
        raise UsageError(
            f"{file.name}: GGUF architecture {file.architecture!r} is not supported; supported are "
            f"{', '.join(supported)}"
        )


def _bare(name: str) -> str:
    return name.replace("-", "").replace("_", "")


def _write_converted(path: Path, file: GgufFile, folder: Path) -> list[str]:
    """Write model and tokenizer of the file in Hugging Face format, and return notes."""
    from transformers import AutoModelForCausalLM

    settings = {"gguf_file": path.name}
    config = _configuration(path, file)
    rope = carry_over(file, config)
    with torch.random.fork_rng(devices=[]):
        loaded, report = AutoModelForCausalLM.from_pretrained(
            path.parent, config=config, dtype=torch.float32, output_loading_info=True,
            ignore_mismatched_sizes=True, **settings,
        )  # fmt: skip
        _require_complete(loaded, report, file=file, rope=rope)
        # A model from GGUF counts as quantised and cannot be saved, but its copy can.
        # Some architectures are dequantised while loading and have no such mark.
        config = copy.deepcopy(loaded.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict(), strict=True, assign=True)
    fresh.tie_weights()
    if rope is not None:
        require_turned(path.name, fresh, rope)
    _require_informative(path, fresh)
    fresh.save_pretrained(folder)
    tokenizer, notes = load_tokenizer(path, file)
    tokenizer.save_pretrained(folder)
    return notes


def _configuration(path: Path, file: GgufFile) -> Any:
    """The configuration that transformers makes from the metadata."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError, TypeError, OSError, StrictDataclassError) as error:
        uneven = [
            f"{key} = {value}"
            for key, value in file.metadata.items()
            if key.startswith(f"{file.architecture}.") and isinstance(value, list)
        ]
        arrays = f"; it differs from block to block in {', '.join(uneven)}" if uneven else ""
        raise UsageError(
            f"{path.name}: transformers makes no configuration of its metadata ({one_line(error)})"
            f"{arrays}; load the folder in Hugging Face format that it was made from"
        ) from error
    # transformers reads a file of this name as a Mistral, which its tensors do not fill. Without a
    # window, which this architecture of llama.cpp lacks, a Mistral is a Llama.
    if config.model_type == "mistral":
        rest = {key: value for key, value in config.to_dict().items() if key != "sliding_window"}
        config = CONFIG_MAPPING["llama"].from_dict(rest | {"model_type": "llama"})
    return config


def _require_complete(
    model: nn.Module, report: dict[str, Any], *, file: GgufFile, rope: Rope | None
) -> None:
    """Refuse a file unless it fills every parameter and every tensor has a use."""
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    config: Any = model.config
    processor = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)(config=config.to_dict())
    # Experts are listed without the last part of their tensors' names.
    known = set(get_gguf_hf_weights_map(model, processor)) | (rope.tensors if rope else set())
    names = [tensor.name for tensor in file.tensors]
    unplaced = [n for n in names if n not in known and n.removesuffix(".weight") not in known]
    unfilled = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
    if unplaced or unfilled:
        raise UsageError(
            f"{file.name} does not fill a {file.architecture} model: parameters without a "
            f"tensor: {', '.join(unfilled[:5]) or 'none'}; tensors without a parameter: "
            f"{', '.join(unplaced[:5]) or 'none'}; load the folder in Hugging Face format that "
            "the file was made from"
        )


def _require_informative(path: Path, model: nn.Module) -> None:
    """Refuse weights or logits that are not finite, and equal logits (a lost embedding)."""
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise UsageError(
                f"{path} is damaged: {name} has entries that are not finite numbers; {AGAIN}"
            )
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.arange(1, 9)[None], use_cache=False).logits
    if not bool(torch.isfinite(logits).all()):
        raise UsageError(
            f"{path} is damaged: its weights are so large that its logits are not finite; {AGAIN}"
        )
    spread = float((logits.amax(-1) - logits.amin(-1)).min())
    if not spread > 1e-4:
        raise UsageError(
            f"{path.name} gives the same logit to every token (spread {spread:.1e}): tensors were "
            "lost while loading; load the folder in Hugging Face format that the file was made from"
        )


def _digest(path: Path) -> str:
    """sha256 over the size and evenly spaced blocks, which is fast."""
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    for block in sampled(path):
        digest.update(block)
    return digest.hexdigest()


def _require_disk(needed: int, folder: Path, moves: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFullError(
            errno.ENOSPC,
            f"the converted model needs {needed / 2**30:.2f} GiB in {folder} and "
            f"{free / 2**30:.2f} GiB are free; set {moves} to a larger disk",
        )
