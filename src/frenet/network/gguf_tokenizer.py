"""The tokenizer of a GGUF file, and what of it transformers does not read."""

from pathlib import Path
from typing import Any

from frenet.network.gguf_file import GgufFile

# llama.cpp's names of the ways to cut a text before merging (llama-vocab.cpp).
_AS_GPT2 = ("gpt-2", "gpt2", "mpt", "olmo", "jais", "trillion", "granite-docling")
_SINGLE_DIGITS = (
    "starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b",
)  # fmt: skip
# Those that take a whole piece of text that is a token without asking the merges.
_WHOLE_PIECES = (
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "jina-v5-nano", "tekken",
)  # fmt: skip
_ADVICE = "texts may be cut into other tokens; pass tokenizer= with the original one"
_PROBE = "a"


def load_tokenizer(path: Path, file: GgufFile) -> tuple[Any, list[str]]:
    """The tokenizer that a file describes, and a note for each of its keys that is not followed."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    notes = _cut(tokenizer, file) if file.metadata.get("tokenizer.ggml.model") == "gpt2" else []
    notes += _ends(tokenizer, file)
    return tokenizer, [f"{file.name}: {note}" for note in notes]


def _cut(tokenizer: Any, file: GgufFile) -> list[str]:
    """Cut texts as the file says before merging."""
    from tokenizers import pre_tokenizers

    kind = file.metadata.get("tokenizer.ggml.pre", "default")
    backend = tokenizer.backend_tokenizer
    if kind in _WHOLE_PIECES:
        backend.model.ignore_merges = True
    if kind in _SINGLE_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif kind not in _AS_GPT2 and kind not in _known_to_transformers():
        return [f"tokenizer.ggml.pre = {kind} is not known here, and read as gpt-2; {_ADVICE}"]
    return []


def _known_to_transformers() -> tuple[str, ...]:
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # older versions know none
        return ()
    return tuple(GGUF_PRE_TOKENIZER_SPLITS)


def _ends(tokenizer: Any, file: GgufFile) -> list[str]:
    """Whether a text begins with the token and the space that the file says, and ends so."""
    metadata, notes = file.metadata, []
    ids = tokenizer(_PROBE)["input_ids"]
    for flag, place, name in (("add_bos_token", 0, "bos"), ("add_eos_token", -1, "eos")):
        wanted, special = (
            metadata.get(f"tokenizer.ggml.{flag}"),
            metadata.get(f"tokenizer.ggml.{name}_token_id"),
        )
        if wanted is not None and special is not None and (ids[place] == special) != wanted:
            notes.append(f"tokenizer.ggml.{flag} = {wanted} is not followed; {_ADVICE}")
    wanted = metadata.get("tokenizer.ggml.add_space_prefix")
    if wanted is not None and metadata.get("tokenizer.ggml.model") == "llama":
        first = tokenizer.convert_ids_to_tokens(
            tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
        )
        if first[0].startswith("\u2581") != wanted:
            notes.append(f"tokenizer.ggml.add_space_prefix = {wanted} is not followed; {_ADVICE}")
    return notes
