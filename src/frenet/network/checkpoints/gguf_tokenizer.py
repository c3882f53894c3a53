"""The tokenizer of a GGUF file, with settings that transformers ignores."""

from pathlib import Path
from typing import Any

from frenet.network.checkpoints.gguf_file import GgufFile

# llama.cpp's names for the ways to split a text before merging (llama-vocab.cpp).
_AS_GPT2 = (
    "gpt-2", "gpt2", "mpt", "olmo", "jais", "trillion", "granite-docling", "phi-2", "gigachat",
    "a.x-4.0", "mellum", "exaone4",
)  # fmt: skip
_SINGLE_DIGITS = (
    "starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2",
)  # fmt: skip
# Ways that use a token for a whole piece of text without applying merges.
_WHOLE_PIECES = (
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "jina-v5-nano", "tekken",
)  # fmt: skip
# Ways with a beginning token by default.
_BEGUN = (*_WHOLE_PIECES, "chameleon")
_ADVICE = "texts may be split into other tokens; pass tokenizer= with the original one"
_PROBE = "a"


def load_tokenizer(path: Path, file: GgufFile) -> tuple[Any, list[str]]:
    """The tokenizer that a file describes, and a note for each key that it does not follow."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    notes = _cut(tokenizer, file) if file.metadata.get("tokenizer.ggml.model") == "gpt2" else []
    if _switch(file, "add_bos_token") and tokenizer.bos_token_id is not None:
        tokenizer.add_bos_token = True
    notes += _ends(tokenizer, file)
    return tokenizer, [f"{file.name}: {note}" for note in notes]


def _cut(tokenizer: Any, file: GgufFile) -> list[str]:
    """Split texts before merging as the file says."""
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
        return [f"tokenizer.ggml.pre = {kind} is unknown and read as gpt-2; {_ADVICE}"]
    return []


def _known_to_transformers() -> tuple[str, ...]:
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # older versions have no table
        return ()
    return tuple(GGUF_PRE_TOKENIZER_SPLITS)


def _switch(file: GgufFile, flag: str) -> Any:
    """A switch of the tokenizer, or llama.cpp's default."""
    kind = file.metadata.get("tokenizer.ggml.model")
    begun = kind == "llama" or (
        kind == "gpt2" and file.metadata.get("tokenizer.ggml.pre") in _BEGUN
    )
    usual = {"add_bos_token": begun, "add_eos_token": False, "add_space_prefix": kind == "llama"}
    return file.metadata.get(f"tokenizer.ggml.{flag}", usual[flag])


def _ends(tokenizer: Any, file: GgufFile) -> list[str]:
    """Notes if a text does not begin and end with the tokens and the space of the file."""
    metadata, notes = file.metadata, []
    ids = tokenizer(_PROBE)["input_ids"]
    for flag, place, name in (("add_bos_token", 0, "bos"), ("add_eos_token", -1, "eos")):
        on, special = _switch(file, flag), metadata.get(f"tokenizer.ggml.{name}_token_id")
        # A vocabulary without the letter gives no tokens.
        if special is not None and (bool(ids) and ids[place] == special) != on:
            notes.append(f"tokenizer.ggml.{flag} = {on} is not followed; {_ADVICE}")
    if metadata.get("tokenizer.ggml.model") == "llama":
        on = _switch(file, "add_space_prefix")
        first = tokenizer.convert_ids_to_tokens(
            tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
        )
        if first and first[0].startswith("\u2581") != on:
            notes.append(f"tokenizer.ggml.add_space_prefix = {on} is not followed; {_ADVICE}")
    return notes
