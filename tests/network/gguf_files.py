"""GGUF files of tiny models, laid out as llama.cpp's converter does it: for tests."""

import re

import gguf
import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

TOKENS = 99
# Names of llama.cpp where they are not those of transformers.
NAMES = {
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gemma3_text": "gemma3",
    "mistral": "llama",
}


def tiny(kind, seed=0, **more):
    """A tiny model of a family, its weights large enough to give different logits."""
    settings = {
        "vocab_size": TOKENS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
    }  # fmt: skip
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[kind](**{**settings, **more})
    config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            assert parameter.isfinite().all(), name
    return model


def logits(model, length=40):
    ids = torch.arange(3, 3 + length)[None]
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def described(model):
    """The metadata that llama.cpp's converter writes for a model, by key without architecture."""
    config = model.config
    kind = config.model_type
    found = {
        "context_length": getattr(config, "max_position_embeddings", 64),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
    }
    wide = next(
        (
            w
            for n in ("intermediate_size", "ffn_hidden_size", "n_inner")
            if (w := getattr(config, n, None))
        ),
        4 * config.hidden_size,
    )
    found["feed_forward_length"] = wide if kind != "bloom" else 4 * config.hidden_size
    if kind == "mamba":
        return found | {
            "feed_forward_length": 0, "attention.head_count": 0,
            "ssm.conv_kernel": config.conv_kernel, "ssm.inner_size": config.intermediate_size,
            "ssm.state_size": config.state_size, "ssm.time_step_rank": int(config.time_step_rank),
            "attention.layer_norm_rms_epsilon": float(config.layer_norm_epsilon),
            "ssm.dt_b_c_rms": False,
        }  # fmt: skip
    heads = config.num_attention_heads
    found["attention.head_count"] = heads
    if kind == "falcon":
        found["attention.head_count_kv"] = 1
    elif kind != "gpt2":
        found["attention.head_count_kv"] = getattr(config, "num_key_value_heads", None) or heads
    for name in (
        "rms_norm_eps",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "norm_epsilon",
        "norm_eps",
    ):
        if (value := getattr(config, name, None)) is not None:
            rms = name == "rms_norm_eps" or kind == "lfm2"
            found[f"attention.layer_norm_{'rms_' if rms else ''}epsilon"] = float(value)
    rope = getattr(config, "rope_parameters", None)
    if rope:
        full = rope.get("full_attention", rope)
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        found["rope.freq_base"] = float(full["rope_theta"])
        found["rope.dimension_count"] = int(width * full.get("partial_rotary_factor", 1.0))
        if width * heads != config.hidden_size or kind.startswith(("gemma", "qwen3")):
            found["attention.key_length"] = found["attention.value_length"] = width
    if kind.startswith("gemma") or (kind == "phi3" and config.sliding_window):
        found["attention.sliding_window"] = config.sliding_window
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None):
            found[name] = float(getattr(config, name))
    if kind.endswith("_moe"):
        found |= {
            "expert_count": config.num_experts, "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": config.moe_intermediate_size,
        }  # fmt: skip
    if kind == "qwen2_moe":
        found["expert_shared_feed_forward_length"] = config.shared_expert_intermediate_size
    if kind == "stablelm":
        found["use_parallel_residual"] = bool(config.use_parallel_residual)
    if kind == "lfm2":
        attends = [each == "full_attention" for each in config.layer_types]
        found["attention.head_count_kv"] = [config.num_key_value_heads * each for each in attends]
        found["shortconv.l_cache"] = config.conv_L_cache
    return found


def add(writer, key, value):
    """A key with the type that the converter gives it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def add_tokenizer(writer, **more):
    """One token a character; byte-level, with two merges."""
    signs = ["<s>", "</s>", "<unk>", *(chr(i) for i in range(33, 127)), "ab", "12"]
    assert len(signs) == TOKENS
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(more.get("pre", "gpt-2"))
    writer.add_token_list(signs)
    writer.add_token_types([3, 3, 3] + [1] * (TOKENS - 3))
    writer.add_token_merges(["a b", "1 2"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def stored(model, name, value):
    """A weight as it lies in the file."""
    config, kind = model.config, model.config.model_type
    array = value.float().numpy()
    heads = {"q_proj": config.num_attention_heads} if kind in ("llama", "mistral") else {}
    if heads:
        heads["k_proj"] = config.num_key_value_heads
    for part, count in heads.items():
        if part in name:
            array = (
                array.reshape(count, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
            )
    if kind.startswith(("gemma", "nemotron")) and "norm" in name and name.endswith("weight"):
        array = array + 1
    if kind == "gpt2" and re.search(r"(c_attn|c_proj|c_fc)\.weight", name):
        array = array.T
    if kind == "bloom" and "query_key_value" in name:
        split = array.reshape(config.n_head, 3, -1, *array.shape[1:]).swapaxes(0, 1)
        array = split.reshape(array.shape)
    if kind == "mamba" and name.endswith("A_log"):
        array = -np.exp(array)
    if "shared_expert_gate" in name:
        array = array[0]
    if (kind == "mamba" and "conv1d.weight" in name) or (kind == "lfm2" and "conv.conv" in name):
        array = array[:, 0]
    return np.ascontiguousarray(array)


def tensors(model):
    """All tensors of a model by their names in the file."""
    kind = model.config.model_type
    arch = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[NAMES.get(kind, kind)]
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    found = {}
    tied = model.config.tie_word_embeddings
    for name, value in model.state_dict().items():
        if name.endswith(("inv_freq", ".attn.bias", "masked_bias")) or (
            tied and name == "lm_head.weight"
        ):
            continue
        if m := re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj", name):
            parts = {"ffn_down_exps": value}
            if m[2] == "gate_up":
                parts = dict(
                    zip(("ffn_gate_exps", "ffn_up_exps"), value.chunk(2, dim=1), strict=True)
                )
            found |= {
                f"blk.{m[1]}.{part}.weight": np.ascontiguousarray(each.numpy())
                for part, each in parts.items()
            }
            continue
        base, suffix = name, ""
        if name.endswith((".weight", ".bias")):
            base, _, suffix = name.rpartition(".")
            suffix = f".{suffix}"
        own = names.get_name(base) or names.get_name(base.removeprefix("transformer."))
        assert own is not None, name
        found[own + suffix] = stored(model, name, value)
    return found


def write_gguf(
    path, model, *, architecture=None, facts=(), without=(), extra=(), quantised=(), **tokenizer
):
    """A GGUF file of a model.

    ``facts`` are keys that are added or changed, with or without the architecture before them,
    ``without`` keys and tensors that are left out, ``extra`` tensors that are added, and
    ``quantised`` the types of tensors by name.
    """
    kind = model.config.model_type
    architecture = architecture or NAMES.get(kind, kind)
    writer = gguf.GGUFWriter(path, architecture)
    keys = described(model) | {"vocab_size": TOKENS} | dict(facts)
    sections = ("general.", "split.", "tokenizer.", "other.")
    for key, value in keys.items():
        if key not in without:
            add(writer, key if key.startswith(sections) else f"{architecture}.{key}", value)
    add_tokenizer(writer, **tokenizer)
    for name, array in (tensors(model) | dict(extra)).items():
        if name in without:
            continue
        if (wanted := dict(quantised).get(name)) is None:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
