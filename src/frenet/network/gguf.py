"""GGUF files: converted once into a folder of dequantised weights that loads fast."""

import copy
import errno
import hashlib
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from frenet._files import DamagedFileError, DiskFullError, named_errors, whole_files
from frenet._notebook import one_line
from frenet.network.cache import VARIABLE, cache_dir
from frenet.network.made_folder import RECORD, seal_folder, whole_folder
from frenet.network.memory import require_memory
from frenet.network.sampled import sampled

# Keys of transformers' table that are sections of the file or no decoders.
_NOT_DECODERS = ("general", "tokenizer", "t5", "umt5")
# While converting, the dequantised tensors and one copy of them in float32.
_BYTES_PER_PARAMETER = 8


class GgufHeader(NamedTuple):
    """What a GGUF file says about itself."""

    architecture: str
    quantisation: str
    parameters: int
    tensors: tuple[str, ...]


def supported_architectures() -> tuple[str, ...]:
    """GGUF architectures that transformers can turn into a decoder."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    return tuple(sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - set(_NOT_DECODERS)))


def say_on_stderr(message: str) -> None:
    """The default voice of slow steps."""
    print(one_line(message), file=sys.stderr, flush=True)


def convert_gguf(
    path: str | Path, *, cache: Path | None = None, say: Callable[[str], None] = say_on_stderr
) -> Path:
    """The folder with the dequantised weights and the tokenizer of a GGUF file.

    The first call converts, which takes a minute for a small model; later calls with the same
    content compare that folder with the digests of its files, once in a process, and return it. A
    folder that is damaged is named and made again.

    Args:
        path: the .gguf file.
        cache: where converted folders are kept; None: ``gguf`` in ``cache_dir()``.
        say: gets one line before the conversion: what the file is and what it will cost.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a GGUF file, an architecture that is not supported, or weights that do not
            fill the model.
        MemoryError: the conversion needs more memory than there is.
        DiskFullError: the disk has no room for the folder.
        OSError: the folder cannot be written.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    digest = _digest(path)
    folder = (cache or cache_dir() / "gguf") / f"{path.stem}-{digest[:16]}"
    with named_errors(folder, moves=VARIABLE):
        folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        if whole_folder(folder, {"sampled_sha256": digest}):
            return folder
    except DamagedFileError as error:
        say(f"{error.where} {error.why}: {path.name} is converted again")
    _convert(path, folder, digest, say)
    return folder


def _convert(path: Path, folder: Path, digest: str, say: Callable[[str], None]) -> None:
    """Make the folder, after asking whether memory and disk have room."""
    header = read_header(path)
    needed = _BYTES_PER_PARAMETER * header.parameters
    require_memory(
        needed, f"converting {path.name}", device=torch.device("cpu"), remedy="free some memory"
    )
    _require_disk(4 * header.parameters, folder.parent)
    say(
        f"converting {path.name} once: {header.architecture}, {header.quantisation}, "
        f"{header.parameters:,} parameters, {needed / 2**30:.2f} GiB of memory, "
        f"{4 * header.parameters / 2**30:.2f} GiB in {folder}"
    )
    with whole_files(folder, last=RECORD, alone=True, moves=VARIABLE) as unfinished:
        _write_converted(path, header, unfinished)
        record = {"file": path.name, "sampled_sha256": digest, **header._asdict()}
        del record["tensors"]
        seal_folder(unfinished, record)


def read_header(path: Path) -> GgufHeader:
    """Architecture, quantisation and tensor names; ValueError for what cannot be loaded."""
    from gguf import GGUFReader

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file: it does not start with the bytes GGUF")
    try:
        reader = GGUFReader(path)
        architecture = str(reader.fields["general.architecture"].contents())
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise ValueError(f"{path} is damaged or incomplete ({error}); fetch it again") from None
    if architecture not in supported_architectures():
        raise ValueError(
            f"{path.name}: GGUF architecture {architecture!r} is not supported; supported are "
            f"{', '.join(supported_architectures())}"
        )
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    quantisation = " + ".join(f"{kind} ({n} tensors)" for kind, n in types.most_common())
    total = sum(int(tensor.n_elements) for tensor in reader.tensors)
    return GgufHeader(architecture, quantisation, total, tuple(t.name for t in reader.tensors))


def _write_converted(path: Path, header: GgufHeader, folder: Path) -> None:
    """Model and tokenizer of the file, in Hugging Face format."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with torch.random.fork_rng(devices=[]):
        loaded, report = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
        )
        _require_complete(path, loaded, report, header=header)
        # A model loaded from GGUF counts as quantised and cannot be saved; its copy can.
        config = copy.deepcopy(loaded.config)
        del config.quantization_config
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict(), strict=True, assign=True)
    fresh.tie_weights()
    _require_informative(path, fresh)
    fresh.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)


def _require_complete(
    path: Path, model: nn.Module, report: dict[str, Any], *, header: GgufHeader
) -> None:
    """Every parameter has a tensor in the file, and every tensor a parameter."""
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    config: Any = model.config
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=config.to_dict())
    known = get_gguf_hf_weights_map(model, processor)
    # Tensors of experts are split by name while loading.
    unplaced = [name for name in header.tensors if name not in known and "_exps." not in name]
    lacking = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
    if unplaced or lacking:
        raise ValueError(
            f"{path.name} does not fill a {header.architecture} model: parameters without a "
            f"tensor: {', '.join(lacking[:5]) or 'none'}; tensors without a parameter: "
            f"{', '.join(unplaced[:5]) or 'none'}; the file needs another loader"
        )


def _require_informative(path: Path, model: nn.Module) -> None:
    """Logits are finite and not all the same, as they are where the embedding got lost."""
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.arange(1, 9)[None], use_cache=False).logits
    spread = float((logits.amax(-1) - logits.amin(-1)).min())
    if not spread > 1e-4:
        raise ValueError(
            f"{path.name} gives the same logit to every token (spread {spread:.1e}): tensors were "
            "lost while loading; the file needs another loader"
        )


def _digest(path: Path) -> str:
    """sha256 over the size and evenly spaced blocks: cheap, and by content."""
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    for block in sampled(path):
        digest.update(block)
    return digest.hexdigest()


def _require_disk(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFullError(
            errno.ENOSPC,
            f"the converted model needs {needed / 2**30:.2f} GiB in {folder} and "
            f"{free / 2**30:.2f} GiB are free; set FRENET_CACHE to a larger disk",
        )
