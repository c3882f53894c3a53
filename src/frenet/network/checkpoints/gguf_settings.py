"""The settings of a GGUF file: every key of its architecture is carried over, or refused by name.

transformers reads the keys that it knows and drops the others. Here every key of the architecture
is carried over, with llama.cpp's default for an absent key. A key that is left at the end changes
the function in a way that the model does not support.
"""

from collections.abc import Callable
from typing import Any

from frenet._errors import UsageError
from frenet.network.checkpoints.gguf_file import AGAIN, GgufFile
from frenet.network.checkpoints.gguf_keys import Settings
from frenet.network.checkpoints.gguf_rope import Rope, carry_rope

# Keys that do not change the logits of a text.
NO_EFFECT = {
    "context_length": "says how long texts may be; no weight or position depends on it",
    "tensor_data_layout": "names the order of rows that every converter writes",
    "rope.scaling.finetuned": "says how the model was trained; llama.cpp only warns by it",
    "rope.dimension_sections": "text has the same position on all axes",
    "pooling_type": "says how to make one vector of a text; logits come before that",
}
# Attributes of configurations for each key; the first one that a configuration has is set.
NAMES = {
    "vocab_size": ("vocab_size",),
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "use_parallel_residual": ("use_parallel_residual", "parallel_attn"),
    "logit_scale": ("logit_scale",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "attention.head_count": ("num_attention_heads",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": (
        "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps",
    ),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "shortconv.l_cache": ("conv_L_cache",),
    "ssm.conv_kernel": ("conv_kernel",),
    "ssm.inner_size": ("intermediate_size",),
    "ssm.state_size": ("state_size",),
    "ssm.time_step_rank": ("time_step_rank",),
}  # fmt: skip
# Biases that a configuration switches on; a file only has their tensors.
_BIASES = {"blk.0.attn_q.bias": "attention_bias", "blk.0.ffn_up.bias": "mlp_bias"}
# Keys with a word as value; all others that matter are numbers or switches.
_WORDS = ("rope.scaling.type", "tensor_data_layout")
# Sections of the metadata that belong to no architecture.
_SECTIONS = ("general", "tokenizer", "split", "quantize", "GGUF")


def carry_over(file: GgufFile, config: Any) -> Rope | None:
    """Carry all settings of a file over to a configuration, and return its rotary positions.

    Raises:
        ValueError: the configuration has no such setting, or a key is of another architecture.
    """
    _require_own(file)
    settings = Settings(file, config)
    for key, value in settings.left.items():
        if isinstance(value, str) != (key in _WORDS) and (
            key in _WORDS or key in NAMES or "." in key
        ):
            raise UsageError(
                f"{file.name} is damaged: {file.architecture}.{key} is {value!r}; {AGAIN}"
            )
    steps: tuple[Callable[[Settings], None], ...] = (
        _blocks, _key_value_heads, _head_width, _window, _attention, _experts, _from_tensors,
    )  # fmt: skip
    for step in steps:
        step(settings)
    rope = carry_rope(settings)
    for key, names in NAMES.items():
        if key in settings.left:
            _named(settings, key, names)
    for key in NO_EFFECT:
        settings.take(key)
    for key, value in settings.left.items():
        raise settings.refuse(key, value)
    return rope


def _require_own(file: GgufFile) -> None:
    """Refuse model keys under the name of another architecture, a sign of damage."""
    from gguf import Keys

    known = {
        text.removeprefix("{arch}.")
        for group in vars(Keys).values()
        if isinstance(group, type)
        for text in vars(group).values()
        if isinstance(text, str) and text.startswith("{arch}.")
    } | set(NAMES)
    for key in file.metadata:
        section, _, rest = key.partition(".")
        if section not in (*_SECTIONS, file.architecture) and rest in known:
            raise UsageError(
                f"{file.name}: {key} is no key of the architecture {file.architecture}: the file "
                "is damaged, or mixed from two; fetch it again"
            )


def _named(settings: Settings, key: str, names: tuple[str, ...]) -> None:
    """Carry over a key that is one attribute."""
    value = settings.left[key]
    place = next((name for name in names if settings.has(name)), None)
    if isinstance(value, list):
        return
    # Converters write 0 for parts that a model does not have.
    if place is not None and (value or isinstance(value, bool)):
        settings.set(place, value)
        settings.take(key)
    elif not value:
        settings.take(key)


def _blocks(settings: Settings) -> None:
    """Keys with the same value in all these models, and the tokens at the ends of a text."""
    for key, usual in (("attention.causal", True), ("ssm.dt_b_c_rms", False)):
        if settings.left.get(key, usual) == usual:
            settings.take(key)
    ids = {name: f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos")}
    for name, key in ids.items():
        settings.set(f"{name}_token_id", settings.file.metadata.get(key))
    # Otherwise the padding row of the embedding would have no gradient.
    settings.set("pad_token_id", None)
    width = getattr(settings.config, "hidden_size", 0)
    has_place = any(settings.has(name) for name in NAMES["feed_forward_length"])
    if not has_place and settings.left.get("feed_forward_length") == 4 * width:
        settings.take("feed_forward_length")


def _key_value_heads(settings: Settings) -> None:
    """Heads of keys and values: one number, or one per block with 0 for convolutions."""
    key, config = "attention.head_count_kv", settings.config
    heads = getattr(config, "num_attention_heads", 0)
    value = settings.left.get(key, heads)
    if isinstance(value, list):
        kinds = getattr(config, "layer_types", None) or []
        expected = [max(value) if kind != "conv" else 0 for kind in kinds]
        value = max(value) if value == expected else value
    if isinstance(value, list):
        return
    if settings.has("num_key_value_heads"):
        settings.set("num_key_value_heads", value or heads)
    elif settings.has("multi_query"):
        # The rows of several groups are stored in an order that transformers does not restore.
        if value != 1:
            return
        settings.set("multi_query", True)
    elif value not in (0, heads):
        return
    settings.take(key)


def _head_width(settings: Settings) -> None:
    config = settings.config
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        for key in ("attention.key_length", "attention.value_length"):
            if not settings.left.get(key):
                settings.take(key)
        return
    usual = config.hidden_size // heads
    keys = settings.left.get("attention.key_length", usual)
    values = settings.left.get("attention.value_length", usual)
    if keys == values and (settings.has("head_dim") or keys == usual):
        if settings.has("head_dim"):
            settings.set("head_dim", keys)
        settings.take("attention.key_length")
        settings.take("attention.value_length")


def _window(settings: Settings) -> None:
    """A window of attention, in all blocks or in those of the configuration."""
    config, key, file = settings.config, "attention.sliding_window", settings.file
    # llama.cpp has a default for Gemma 2. Without a width it treats all blocks of Gemma 3 as
    # global; their class still needs a width, which is then unused.
    absent = 4096 if file.architecture == "gemma2" else 0
    width = settings.left.get(key, absent)
    unused = file.architecture == "gemma3" and not width
    # The stored value: an array of ones makes every block local, and the number 1 none.
    pattern = file.metadata.get(f"{file.architecture}.attention.sliding_window_pattern")
    kinds = getattr(config, "layer_types", None)
    if unused:
        pattern = 1
    if kinds and pattern is not None:
        slides = _slides(pattern, len(kinds))
        if len(slides) == len(kinds) and "conv" not in kinds:
            kinds = ["sliding_attention" if each else "full_attention" for each in slides]
            settings.set("layer_types", kinds)
            settings.take("attention.sliding_window_pattern")
    sliding = "sliding_attention" in (kinds or ())
    in_all = settings.has("sliding_window") and not settings.has("use_sliding_window")
    if sliding:
        if not width:
            raise UsageError(
                f"{file.name} lacks {file.architecture}.{key}, the width of its blocks of local "
                "attention; fetch a newer file"
            )
        settings.set("sliding_window", width)
    elif in_all:
        settings.set("sliding_window", config.sliding_window if unused else width or None)
    elif width and width < getattr(config, "max_position_embeddings", 0):
        return
    settings.take(key)


def _slides(pattern: Any, count: int) -> list[bool]:
    """Which blocks attend locally: block by block, or all but the last one of every group.

    A group size of 0 makes all blocks local.
    """
    if isinstance(pattern, list):
        return [bool(each) for each in pattern]
    if isinstance(pattern, bool):
        return [pattern] * count
    return [not pattern or i % pattern < pattern - 1 for i in range(count)]


def _attention(settings: Settings) -> None:
    """The scale of attention logits.

    GGUF has no key for Gemma's scale. llama.cpp recognises the two models of 27B by their number of
    blocks, and uses the model's width per head for them. All other released models have the default
    of their class, 256, the width of their heads.
    """
    file, config, blocks = settings.file, settings.config, settings.left.get("block_count")
    if not settings.has("query_pre_attn_scalar"):
        if settings.has("attention_multiplier") and settings.left.get("attention.scale"):
            settings.set("attention_multiplier", settings.take("attention.scale"))
        return
    if (file.architecture, blocks) in (("gemma2", 46), ("gemma3", 62)):
        share = config.hidden_size // config.num_attention_heads
        settings.set("query_pre_attn_scalar", share)
    if scale := settings.take("attention.scale"):
        settings.set("query_pre_attn_scalar", scale**-2)


def _experts(settings: Settings) -> None:
    """The weights of experts: most classes use the softmax of their scores."""
    gating = settings.left.get("expert_gating_func", 1)
    name = {1: "softmax", 2: "sigmoid"}.get(gating)
    if settings.has("scoring_func") and name:
        settings.set("scoring_func", name)
        settings.take("expert_gating_func")
    elif gating == 1:
        settings.take("expert_gating_func")
    if settings.left.get("expert_weights_scale") == 1:
        settings.take("expert_weights_scale")


def _from_tensors(settings: Settings) -> None:
    """Settings that follow from the tensors of a file: biases, and an untied head."""
    names = {tensor.name for tensor in settings.file.tensors}
    for tensor, name in _BIASES.items():
        if tensor in names and settings.has(name):
            settings.set(name, True)
    # Converters write True if a model's configuration says nothing. llama.cpp and transformers look
    # for a norm between the two halves of a block instead.
    if settings.file.architecture == "stablelm":
        settings.take("use_parallel_residual")
    if settings.config.tie_word_embeddings and "output.weight" in names:
        head, embedding = (settings.file.values(n) for n in ("output.weight", "token_embd.weight"))
        if head is not None and embedding is not None and (head != embedding).any():
            settings.set("tie_word_embeddings", False)
