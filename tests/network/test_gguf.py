"""GGUF files: what a file says is what the model computes, or the file is refused by its cause."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_files import TOKENS, logits, tiny, write_gguf
from transformers import CONFIG_MAPPING, LlamaConfig

from frenet.network.checkpoints.gguf import convert_gguf
from frenet.network.checkpoints.gguf_file import GgufFile, read_gguf
from frenet.network.checkpoints.gguf_settings import carry_over
from frenet.network.checkpoints.load import load
from frenet.network.checkpoints.made_folder import RECORD, read_record, seal_folder

BASE = {"rope_type": "default", "rope_theta": 10000.0}
DENSE = "load the folder in Hugging Face format"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FRENET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path):
    """A function that writes a GGUF file of a model."""

    def write(model=None, name="tiny.gguf", **options):
        return write_gguf(tmp_path / name, model or tiny("llama"), **options)

    return write


def read(path):
    return load(path, device="cpu", say=lambda _: None)


def off(path, model, length=40):
    """The largest difference between the logits of a file and of the model that it is of."""
    return float((logits(read(path).model, length) - logits(model, length)).abs().max())


def refused(path):
    with pytest.raises(ValueError, match="gguf") as found:
        convert_gguf(path, say=lambda _: None)
    assert "\n" not in str(found.value)
    return str(found.value)


# What is carried over

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GEMMA = {"head_dim": 8, "sliding_window": 16}
FAMILIES = {
    "llama": {},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "llama with wide heads": {"head_dim": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 7.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {**GEMMA, "num_hidden_layers": 7},
    "phi3": {},
    "phi3 with a window": {"sliding_window": 8},
    "phi3 that turns half of a head": {"partial_rotary_factor": 0.5},
    "falcon": {"num_key_value_heads": None, "ffn_hidden_size": 48},
    "starcoder2": {"norm_epsilon": 1e-2, "rope_parameters": {**BASE, "rope_theta": 500.0}},
    "stablelm": {"rope_parameters": {**BASE, "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
    "stablelm in parallel": {"use_parallel_residual": True, "use_qkv_bias": True,
                             "layer_norm_eps": 1e-2},
    "nemotron": {"head_dim": 8, "norm_eps": 1e-2,
                 "rope_parameters": {**BASE, "partial_rotary_factor": 1.0}},
    "gpt2": {"n_inner": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "bloom": {"n_layer": 2, "n_head": 4, "num_key_value_heads": None},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "mamba": {"state_size": 4, "num_attention_heads": None, "intermediate_size": 64},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 40},
    "qwen3_moe": {**EXPERTS, "head_dim": 8, "norm_topk_prob": True},
}  # fmt: skip


@pytest.mark.reads(
    kind="GGUF",
    given="a file of llama, qwen2, qwen3, gemma2, gemma3, phi3, falcon, starcoder2, stablelm, "
    "nemotron, gpt2, bloom, mamba, lfm2, qwen2moe or qwen3moe",
    outcome="used: dequantised, with all settings of its metadata",
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_gives_the_logits_of_the_model_it_was_written_from(file, family):
    model = tiny(family.split()[0], **FAMILIES[family])
    assert off(file(model), model) < 1e-5


def test_a_window_that_the_file_does_not_state_is_none(file):
    """transformers takes the name for another class of models, which has a window of 4,096 and
    which it cannot fill then."""
    model = tiny("llama")
    loaded = read(file(model, facts={"general.name": "mistral"}))
    assert getattr(loaded.model.config, "sliding_window", None) is None
    assert torch.allclose(logits(loaded.model), logits(model), atol=1e-5)


def test_a_window_that_is_no_shorter_than_the_context_changes_nothing(file):
    model = tiny("qwen2")
    assert off(file(model, facts={"attention.sliding_window": 64}), model) < 1e-5
    path = file(model, "short.gguf", facts={"attention.sliding_window": 8})
    assert "qwen2.attention.sliding_window = 8" in refused(path)


@pytest.mark.parametrize(("family", "blocks"), [("gemma2", 46), ("gemma3_text", 62)])
def test_gemma_of_27b_scales_attention_by_its_width(family, blocks):
    """llama.cpp knows it by the number of blocks; the file has no key for it."""
    keys = {
        "block_count": blocks, "embedding_length": 96, "attention.head_count": 4,
        "attention.sliding_window": 16, "attention.key_length": 16, "attention.value_length": 16,
    }  # fmt: skip
    for count, wanted in ((blocks, 24), (blocks - 1, 256)):
        config = CONFIG_MAPPING[family](
            hidden_size=96, num_attention_heads=4, num_hidden_layers=count, head_dim=16
        )
        own = {f"gemma.{key}": value for key, value in (keys | {"block_count": count}).items()}
        name = family.removesuffix("_text")
        metadata = {key.replace("gemma.", f"{name}."): value for key, value in own.items()}
        carry_over(GgufFile(Path("x.gguf"), name, metadata, ()), config)
        assert config.query_pre_attn_scalar == wanted


def test_blocks_of_local_attention_are_those_of_the_file(file):
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    shape = {**GEMMA, "sliding_window": 8, "num_hidden_layers": 4}
    model = tiny("gemma3_text", layer_types=kinds, **shape)
    slides = [kind == "sliding_attention" for kind in kinds]
    path = file(model, facts={"attention.sliding_window_pattern": slides})
    assert off(path, model) < 1e-5


@pytest.mark.parametrize(
    ("pattern", "slides"),
    [
        (3, [True, True, False, True]), (1, [False] * 4), (0, [True] * 4), (True, [True] * 4),
        ([1, 1, 1, 1], [True] * 4), ([1, 0, 0, 0], [True, False, False, False]),
    ],
)  # fmt: skip
def test_a_pattern_of_local_attention_is_a_period_or_a_list(pattern, slides):
    """A period of 0 says it of all blocks and one of 1 of none; numbers in a list are switches."""
    config = CONFIG_MAPPING["gemma3_text"](num_hidden_layers=4, head_dim=8)
    keys = {"block_count": 4, "attention.sliding_window": 16}
    metadata = {f"gemma3.{key}": value for key, value in keys.items()}
    metadata["gemma3.attention.sliding_window_pattern"] = pattern
    carry_over(GgufFile(Path("x.gguf"), "gemma3", metadata, ()), config)
    assert [kind == "sliding_attention" for kind in config.layer_types] == slides


def test_gemma_3_without_a_window_attends_to_all_tokens(file):
    """Of Gemma 2 llama.cpp knows the window, which a file may leave out."""
    shape = {**GEMMA, "sliding_window": 8, "num_hidden_layers": 7}
    model = tiny("gemma3_text", layer_types=["full_attention"] * 7, **shape)
    path = file(model, without=["attention.sliding_window"])
    assert off(path, model) < 1e-5
    assert float((logits(model) - logits(tiny("gemma3_text", **shape))).abs().max()) > 1e-2
    other = read(file(tiny("gemma2", **GEMMA), "two.gguf", without=["attention.sliding_window"]))
    assert other.model.config.sliding_window == 4096


def test_stablelm_is_parallel_where_no_norm_stands_between(file):
    """llama.cpp goes by the tensor; converters wrote True where a configuration said nothing."""
    model = tiny("stablelm", use_parallel_residual=False)
    path = file(model, facts={"use_parallel_residual": True})
    assert off(path, model) < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_is_stored_is_the_head(file, tied):
    """transformers ties this family's head to its embedding, whatever the file holds."""
    model = tiny("falcon", ffn_hidden_size=48, num_key_value_heads=None, tie_word_embeddings=tied)
    own = {} if not tied else {"output.weight": model.lm_head.weight.detach().numpy()}
    path = file(model, extra=own)
    assert off(path, model) < 1e-5
    assert read(path).model.config.tie_word_embeddings == tied


# Rotary positions


def stretched(rope, **more):
    return tiny("llama", rope_parameters={**BASE, **rope}, **more)


SCALINGS = {
    "linear": (
        {"rope_type": "linear", "factor": 4.0},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "a factor without a type": (
        {"rope_type": "linear", "factor": 4.0},
        {"rope.scaling.factor": 4.0},
    ),
    "the key of 2023": ({"rope_type": "linear", "factor": 4.0}, {"rope.scale_linear": 4.0}),
    "none, whatever the factor": (
        {},
        {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
    ),
    "a factor of 1": ({}, {"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
         "rope.scaling.original_context_length": 16, "rope.scaling.finetuned": True},
    ),
    "yarn with its slopes": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
         "beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 0.5 * (1 + 0.1 * np.log(4))},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
         "rope.scaling.original_context_length": 16, "rope.scaling.yarn_beta_fast": 8.0,
         "rope.scaling.yarn_beta_slow": 2.0, "rope.scaling.attn_factor": 0.5},
    ),
    "another base": ({"rope_theta": 500.0}, {}),
}  # fmt: skip


@pytest.mark.reads(
    kind="GGUF",
    given="a file that scales the rotary positions: linear, YaRN, the key of 2023",
    outcome="used: with the frequencies of llama.cpp",
)
@pytest.mark.parametrize("name", SCALINGS)
def test_stretched_positions_are_carried_over(file, name):
    rope, facts = SCALINGS[name]
    model = stretched(rope)
    assert off(file(model, facts=facts), model) < 1e-4
    if rope and rope.get("rope_type"):
        assert float((logits(model) - logits(stretched({}))).abs().max()) > 1e-2


def llama_factors(width, factor=8.0, low=1.0, high=4.0, length=8192, base=10000.0):
    """The tensor rope_freqs.weight as llama.cpp's converter makes it."""
    found = []
    for i in range(0, width, 2):
        wave = 2 * np.pi * base ** (i / width)
        smooth = (length / wave - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        found.append(1.0 if smooth > 1 else factor if smooth < 0 else between)
    return np.array(found, np.float32)


LLAMA_3 = {
    "3.1": {"base": 500000.0, "length": 8192},
    "3.2": {"base": 500000.0, "length": 8192, "factor": 32.0},
    "of a short context": {"base": 10000.0, "length": 32},
}


@pytest.mark.reads(
    kind="GGUF",
    given="a file of Llama 3.1 or later, with the tensor rope_freqs.weight",
    outcome="used: with the frequencies of Llama 3",
)
@pytest.mark.parametrize("name", LLAMA_3)
def test_llama_3_has_the_frequencies_of_its_tensor(file, name):
    says, width = LLAMA_3[name], 64
    rope = {
        "rope_type": "llama3", "rope_theta": says["base"], "factor": says.get("factor", 8.0),
        "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": says["length"],
    }  # fmt: skip
    model = tiny("llama", head_dim=width, rope_parameters=rope)
    factors = llama_factors(width, **says)
    assert 1 < sum((factors > 1) & (factors < factors.max())) < width // 2
    loaded = read(file(model, extra={"rope_freqs.weight": factors}))
    found = loaded.model.model.rotary_emb.inv_freq
    assert torch.allclose(found, model.model.rotary_emb.inv_freq, rtol=1e-5, atol=0)
    assert torch.allclose(logits(loaded.model), logits(model), atol=1e-4)
    parameters = loaded.model.config.rope_parameters
    assert parameters["rope_type"] == "llama3"
    if says["length"] == 8192 and loaded.context_length >= 8192:
        assert parameters["low_freq_factor"] == pytest.approx(1, rel=1e-4)


def test_factors_of_no_known_form_are_the_frequencies_all_the_same(file):
    factors = np.array([1.0, 3.0, 2.0, 7.5], np.float32)
    model = tiny("llama")
    before = model.model.rotary_emb.inv_freq.clone()
    loaded = read(file(model, extra={"rope_freqs.weight": factors}))
    model.model.rotary_emb.inv_freq.copy_(before / torch.from_numpy(factors))
    assert torch.allclose(logits(loaded.model), logits(model), atol=1e-5)
    ones = {"rope_freqs.weight": np.ones(4, np.float32)}
    assert read(file(tiny("llama"), "ones.gguf", extra=ones)).model.config.rope_parameters == BASE


@pytest.mark.parametrize("length", [10, 40])
def test_phi_3_has_its_short_and_long_factors(file, length):
    """40 tokens are more than the 16 of the training before; the long factors are for those."""
    short, long = [1.0, 1.1, 1.2, 1.3], [1.0, 2.0, 4.0, 9.0]
    rope = {
        **BASE, "rope_type": "longrope", "short_factor": short, "long_factor": long,
        "original_max_position_embeddings": 16, "attention_factor": 1.25,
    }  # fmt: skip
    model = tiny("phi3", rope_parameters=rope, original_max_position_embeddings=16)
    path = file(
        model,
        facts={"rope.scaling.original_context_length": 16, "rope.scaling.attn_factor": 1.25},
        extra={
            "rope_factors_short.weight": np.array(short, np.float32),
            "rope_factors_long.weight": np.array(long, np.float32),
        },
    )
    assert off(path, model, length) < 1e-5


def test_gemma_3_stretches_only_its_blocks_of_full_attention(file):
    rope = {
        "sliding_attention": {**BASE, "rope_theta": 700.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    }
    shape = {**GEMMA, "num_hidden_layers": 6}
    model = tiny("gemma3_text", rope_parameters=rope, **shape)
    facts = {
        "rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "rope.freq_base_swa": 700.0,
    }  # fmt: skip
    assert off(file(model, facts=facts), model) < 1e-5


def test_a_part_of_a_head_is_turned_or_the_file_is_refused(file):
    """The class of Llama turns whole heads, whatever its configuration says."""
    text = refused(file(facts={"rope.dimension_count": 4}))
    assert "rotates 4 dimensions of a head" in text
    assert DENSE in text


@pytest.mark.parametrize("factors", [[1.0, 2.0, 0.0, 4.0], [1.0, np.nan, 1.0, 1.0], [1.0, 2.0]])
def test_factors_that_cannot_be_are_damage(file, factors):
    extra = {"rope_freqs.weight": np.array(factors, np.float32)}
    assert "is damaged: rope_freqs.weight" in refused(file(extra=extra))


# What is refused by its key

UNKNOWN = {
    "expert_count": 8,
    "expert_used_count": 2,
    "logit_scale": 0.0625,
    "residual_scale": 0.25,
    "embedding_scale": 12.0,
    "attention.scale": 0.015625,
    "attention.causal": False,
    "attention.sliding_window": 8,
    "attention.max_alibi_bias": 8.0,
    "attention.clamp_kqv": 6.0,
    "attention.temperature_length": 8192,
    "attention.value_length": 4,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "rope.scaling.type": "su",
    "rope.scaling.attn_factor": 1.5,
    "interleave_moe_layer_step": 1,
    "something.of_next_year": 1.0,
}


@pytest.mark.reads(
    kind="GGUF",
    given="a file with a setting that the class of models in transformers does not have: expert "
    "counts, scales, soft caps, windows, unknown keys",
    outcome="refused",
    says="changes what the model computes",
)
@pytest.mark.parametrize("key", UNKNOWN)
def test_a_setting_that_has_no_place_is_refused_by_its_key(file, key, says):
    text = refused(file(facts={key: UNKNOWN[key], "rope.scaling.factor": 2.0}))
    assert f"llama.{key} = {UNKNOWN[key]}" in text
    assert says in text
    assert DENSE in text


@pytest.mark.parametrize("name", ["yarn_ext_factor", "yarn_attn_factor", "yarn_log_multiplier"])
def test_a_setting_of_yarn_that_has_no_place_is_refused(file, name):
    facts = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    path = file(facts=facts | {f"rope.scaling.{name}": 0.5})
    assert f"llama.rope.scaling.{name} = 0.5" in refused(path)


def test_a_setting_that_differs_from_block_to_block_is_named(file):
    text = refused(file(facts={"attention.head_count_kv": [2, 1]}))
    assert "llama.attention.head_count_kv = [2, 1]" in text
    assert DENSE in text


def test_keys_without_an_effect_are_no_reason_to_refuse(file):
    model = tiny("llama")
    facts = {
        "tensor_data_layout": "Meta AI original pth", "pooling_type": 3, "attention.causal": True,
        "rope.dimension_sections": [4, 4, 0, 0], "general.author": "somebody",
        "quantize.imatrix.file": "calibration.dat", "other.signed_by": "somebody else",
    }  # fmt: skip
    keys = {k: v for k, v in facts.items() if not k.startswith("quantize")}
    assert off(file(model, facts=keys), model) < 1e-5


def test_a_key_of_another_architecture_is_named(file, tmp_path):
    data = file().read_bytes().replace(b"llama.rope.freq_base", b"lmama.rope.freq_base")
    path = tmp_path / "flipped.gguf"
    path.write_bytes(data)
    assert "lmama.rope.freq_base is no key of the architecture llama" in refused(path)


def test_groups_of_falcon_whose_rows_nobody_puts_back_are_refused(file):
    model = tiny("falcon", ffn_hidden_size=48, num_key_value_heads=None)
    path = file(model, facts={"attention.head_count_kv": 2})
    assert "falcon.attention.head_count_kv = 2" in refused(path)


def test_every_key_that_a_configuration_lacks_is_refused_by_comparison():
    """No list of bad names: all keys of llama.cpp's own table are tried on a Llama."""
    config = LlamaConfig(vocab_size=TOKENS, hidden_size=32, num_attention_heads=4)
    kinds = [group for group in vars(gguf.Keys).values() if isinstance(group, type)]
    names = {
        text.removeprefix("{arch}.")
        for kind in kinds
        for text in vars(kind).values()
        if isinstance(text, str) and text.startswith("{arch}.") and text.count("{") == 1
    }
    carried = set()
    for name in names:
        told = told_of(lambda name=name: carry_over(read_like(name), copied(config)))
        if told is None:
            carried.add(name)
        else:
            assert name in told or "is no value of" in told
    assert len(names) > 70
    assert carried <= {
        "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length",
        "tensor_data_layout", "pooling_type", "attention.head_count", "attention.head_count_kv",
        "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.finetuned",
        "rope.scaling.factor", "rope.scaling.type", "rope.scaling.original_context_length",
        "rope.dimension_sections", "rope.dimension_count", "ssm.inner_size",
        "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_log_multiplier", "expert_gating_func",
    }  # fmt: skip


def copied(config):
    return type(config).from_dict(config.to_dict())


def understood(path):
    """Read a file of a Llama and take its settings over."""
    carry_over(read_gguf(path), LlamaConfig(vocab_size=TOKENS))


def told_of(call):
    """The message of a ValueError, or None where there is none."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def read_like(name):
    value = "none" if name == "rope.scaling.type" else 3.0 if name.endswith("epsilon") else 4
    return GgufFile(Path("x.gguf"), "llama", {f"llama.{name}": value}, ())


# Files that are no whole file of a model

V1, V9, BIG = (b"GGUF" + n + bytes(60) for n in (b"\1\0\0\0", b"\x09\0\0\0", b"\0\0\0\3"))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"", marks=pytest.mark.reads(
            kind="GGUF", given="an empty file", outcome="refused", says="is empty")),
        pytest.param(LFS, marks=pytest.mark.reads(
            kind="GGUF", given="a Git LFS pointer", outcome="refused", says="git lfs pull")),
        pytest.param(b"<!DOCTYPE html><html>Sign in</html>", marks=pytest.mark.reads(
            kind="GGUF", given="a web page", outcome="refused", says="is a web page")),
        pytest.param(b"tjgg\3\0\0\0" + bytes(60), marks=pytest.mark.reads(
            kind="GGUF", given="a file from before GGUF (ggml, ggjt)", outcome="refused",
            says="from before GGUF")),
        pytest.param(b"PK\3\4 and more", marks=pytest.mark.reads(
            kind="GGUF", given="another kind of file", outcome="refused",
            says="does not start with the bytes GGUF")),
        pytest.param(V1, marks=pytest.mark.reads(
            kind="GGUF", given="version 1 of the format", outcome="refused",
            says="version 1 of GGUF")),
        pytest.param(V9, marks=pytest.mark.reads(
            kind="GGUF", given="a version that the gguf package does not know",
            outcome="refused", says="pip install -U gguf")),
        pytest.param(BIG, marks=pytest.mark.reads(
            kind="GGUF", given="a big-endian file", outcome="refused",
            says="gguf-convert-endian FILE little")),
        pytest.param(b"GGUF\3\0\0\0\5", marks=pytest.mark.reads(
            kind="GGUF", given="the beginning of a file", outcome="refused",
            says="is damaged or incomplete")),
    ],
)  # fmt: skip
def test_what_is_no_gguf_file_is_told_by_what_it_is(tmp_path, start, says):
    path = tmp_path / "m.gguf"
    path.write_bytes(start)
    assert says in refused(path)


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({"split.count": 3, "split.no": 1}, marks=pytest.mark.reads(
            kind="GGUF", given="a part of a file split by llama-gguf-split", outcome="refused",
            says="is part 2 of 3 of a split file")),
        pytest.param({"general.type": "adapter"}, marks=pytest.mark.reads(
            kind="GGUF", given="a LoRA adapter", outcome="refused", says="a LoRA adapter")),
        pytest.param({"general.type": "mmproj"}, marks=pytest.mark.reads(
            kind="GGUF", given="the projector of a multimodal model", outcome="refused",
            says="the projector of a multimodal model")),
        pytest.param({"general.type": "imatrix"}, marks=pytest.mark.reads(
            kind="GGUF", given="an importance matrix", outcome="refused",
            says="an importance matrix")),
        pytest.param({"general.type": "dataset"}, marks=pytest.mark.reads(
            kind="GGUF", given="a file of another type", outcome="refused",
            says="holds no model")),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_whole_model_is_told_by_what_it_holds(file, facts, says):
    assert says in refused(file(facts=facts))


@pytest.mark.parametrize("name", ["m.gguf.part1of2", "m.gguf-split-aa", "m.gguf.part2of2"])
@pytest.mark.reads(
    kind="GGUF",
    given="a part of a file that was cut by size (part1of2, split-a)",
    outcome="refused",
    says="cat PARTS > m.gguf",
)
def test_parts_that_were_cut_by_size_are_to_be_put_together(file, tmp_path, name, says):
    data = file().read_bytes()
    half = len(data) // 2
    path = tmp_path / name
    path.write_bytes(data[half:] if "2of2" in name else data[:half])
    assert says in refused(path)
    with pytest.raises(ValueError, match="cat PARTS"):
        load(path)


def with_type(path, number):
    """The file with the type of its first tensor changed."""
    data = path.read_bytes()
    name = b"token_embd.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8
    assert struct.unpack_from("<I", data, at) == (0,)
    path.write_bytes(data[:at] + struct.pack("<I", number) + data[at + 4 :])
    return path


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(31, marks=pytest.mark.reads(
            kind="GGUF", given="tensors of a type that was removed from the format (Q4_0_4_4)",
            outcome="refused", says="convert the original model again")),
        pytest.param(200, marks=pytest.mark.reads(
            kind="GGUF", given="tensors of a type that the gguf package does not know",
            outcome="refused", says="pip install -U gguf")),
        pytest.param(70_000, marks=pytest.mark.reads(
            kind="GGUF", given="tensors of an impossible type", outcome="refused",
            says="is damaged")),
    ],
)  # fmt: skip
def test_an_unknown_type_of_tensor_is_named_with_what_helps(file, number, says):
    text = refused(with_type(file(), number))
    assert f"of type {number}" in text
    assert says in text


@pytest.mark.reads(
    kind="GGUF",
    given="tensors of a type that cannot be dequantised (Q8_K, I32)",
    outcome="refused",
    says="cannot convert to numbers",
)
def test_a_type_that_cannot_be_unpacked_names_a_tensor(file, says):
    extra = {"blk.0.steps.weight": np.arange(4, dtype=np.int32)}
    text = refused(file(extra=extra))
    assert "blk.0.steps.weight is stored as I32" in text
    assert says in text


def test_the_quantised_types_of_real_files_are_dequantised(file):
    kinds = gguf.GGMLQuantizationType
    wide = {"hidden_size": 64, "intermediate_size": 64}
    model = tiny("llama", **wide)
    types = {"blk.0.ffn_up.weight": kinds.Q4_0, "blk.1.ffn_down.weight": kinds.Q8_0,
             "blk.0.ffn_gate.weight": kinds.BF16, "output.weight": kinds.F16}  # fmt: skip
    loaded = read(file(model, quantised=types))
    places = {"blk.0.ffn_up": (0, "up_proj"), "blk.1.ffn_down": (1, "down_proj")}
    for name, (block, part) in places.items():
        kind = types[f"{name}.weight"]
        own = model.model.layers[block].mlp.get_submodule(part).weight
        packed = gguf.quants.quantize(own.detach().numpy(), kind)
        wanted = torch.from_numpy(gguf.quants.dequantize(packed, kind))
        found = loaded.model.model.layers[block].mlp.get_submodule(part).weight
        assert torch.equal(found, wanted)


# Damage


def test_a_file_that_was_cut_anywhere_is_incomplete(file, tmp_path):
    data = file().read_bytes()
    path = tmp_path / "cut.gguf"
    for share in (0.001, 0.01, 0.1, 0.3, 0.6, 0.9, 0.999):
        path.write_bytes(data[: int(share * len(data))])
        text = refused(path)
        assert "is damaged or incomplete" in text
        assert "fetch it again" in text
        assert f"{path.stat().st_size:,} bytes" in text


@pytest.mark.reads(
    kind="GGUF",
    given="a file with tensors that overlap, or leave a gap",
    outcome="refused",
    says="the tensors before it end at",
)
def test_tensors_that_do_not_follow_each_other_are_damage(file, says):
    path = file()
    data = path.read_bytes()
    first, second = b"blk.0.attn_norm.weight", b"blk.0.attn_q.weight"
    places = []
    for name, dims in ((first, 1), (second, 2)):
        at = data.index(name) + len(name) + 4 + 8 * dims + 4
        places.append((at, data[at : at + 8]))
    (one, a), (two, b) = places
    path.write_bytes(data[:one] + b + data[one + 8 :])
    assert says in refused(path)
    swapped = bytearray(data)
    swapped[one : one + 8], swapped[two : two + 8] = b, a
    path.write_bytes(bytes(swapped))
    assert says in refused(path)


@pytest.mark.parametrize("entry", [np.nan, np.inf, 1e38])
def test_weights_that_are_no_numbers_are_damage_and_no_lost_tensor(file, entry):
    model = tiny("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = entry
    model.model.layers[1].mlp.down_proj.weight.data[5, 3] = entry
    text = refused(file(model))
    assert "is damaged" in text
    assert "not finite" in text
    assert "sha256" in text
    if entry != 1e38:
        assert "layers.1.mlp.up_proj.weight" in text or "layers.1.mlp.down_proj.weight" in text


def test_a_flipped_bit_in_the_header_is_refused_or_changes_nothing(file, tmp_path):
    """Names, types, shapes and places; values and texts are the file's own and have no digest."""
    whole = file()
    before, data = read_gguf(whole), whole.read_bytes()
    table = data.index(b"token_embd.weight") - 8
    start = before.tensors[0].offset
    path, kept = tmp_path / "flipped.gguf", 0
    for place in [*range(8, 400, 13), *range(table, start, 17)]:
        for bit in (1, 64):
            flipped = bytearray(data)
            flipped[place] ^= bit
            path.write_bytes(bytes(flipped))
            told = told_of(lambda: understood(path))
            if told is not None:
                assert "flipped.gguf" in told
                continue
            kept += 1
            same = [(t.name, t.kind, t.shape) for t in before.tensors]
            now = [(t.name, t.kind, t.shape) for t in read_gguf(path).tensors]
            if place >= table:
                # A flipped name is found when the model is filled.
                assert now == same or [n[0] for n in now] != [n[0] for n in same]
    assert kept < 100


def test_a_tensor_under_a_flipped_name_is_missed(file):
    path = file()
    data = path.read_bytes()
    path.write_bytes(data.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_us.weight"))
    text = refused(path)
    assert "model.layers.1.mlp.up_proj.weight" in text
    assert "blk.1.ffn_us.weight" in text


# Tokens


def test_digits_are_cut_one_by_one_where_the_file_says_so(file):
    path = file(pre="smollm")
    loaded = read(path)
    both = loaded.tokenizer("12ab")["input_ids"]
    assert loaded.tokenizer.convert_ids_to_tokens(both) == ["1", "2", "ab"]
    assert not [note for note in loaded.notes if "tokenizer" in note]
    together = read(file(name="other.gguf")).tokenizer("12ab")["input_ids"]
    assert loaded.tokenizer.convert_ids_to_tokens(together) == ["12", "ab"]


@pytest.mark.reads(
    kind="GGUF",
    given="a file with an unknown way to split texts (tokenizer.ggml.pre)",
    outcome="note",
    says="is unknown and read as gpt-2",
)
def test_an_unknown_way_to_cut_texts_is_a_note(file, says):
    path = file(pre="my-own-bpe")
    notes = [note for note in read(path).notes if "my-own-bpe" in note]
    assert len(notes) == 1
    assert says in notes[0]
    assert read(path).notes[1] == notes[0]  # also of the folder that is there already


@pytest.mark.parametrize("begins", [True, False])
def test_a_text_begins_with_the_token_that_the_file_says_or_a_note_says_so(file, begins):
    loaded = read(file(facts={"tokenizer.ggml.add_bos_token": begins}))
    first = loaded.tokenizer("ab")["input_ids"][0]
    told = any("add_bos_token" in note for note in loaded.notes)
    assert ((first == 0) == begins) != told


@pytest.mark.parametrize(
    ("pre", "begins"), [("llama-bpe", True), ("tekken", True), ("gpt-2", False), ("qwen2", False)]
)
def test_a_text_begins_as_llama_cpp_begins_it_where_the_file_says_nothing(file, pre, begins):
    """The files of Llama 3 leave it out, and their texts begin with a token."""
    loaded = read(file(pre=pre))
    assert loaded.tokenizer("ab")["input_ids"][0] == (0 if begins else 97)
    assert not [note for note in loaded.notes if "tokenizer" in note]
    other = read(file(name="other.gguf", pre=pre, facts={"tokenizer.ggml.add_bos_token": False}))
    assert other.tokenizer("ab")["input_ids"][0] == 97


# Folders


def test_a_folder_of_the_users_own(file, tmp_path):
    model, out, said = tiny("llama"), tmp_path / "mine", []
    path = file(model)
    assert convert_gguf(path, out=out, say=said.append) == out
    assert torch.equal(logits(load(out, device="cpu").model), logits(model))
    assert not (tmp_path / "cache").exists()
    assert convert_gguf(path, out=out, say=said.append) == out
    assert len(said) == 1
    other = file(tiny("llama", seed=1), "other.gguf")
    for taken, says in ((out, "the conversion of another file"), (tmp_path, "did not write")):
        with pytest.raises(ValueError, match=says):
            convert_gguf(other, out=taken, say=said.append)
    assert torch.equal(logits(load(out, device="cpu").model), logits(model))


def test_a_conversion_shows_one_bar_and_no_bars_that_write_over_it(file, capfd):
    convert_gguf(file(tiny("llama")), say=lambda _: None)
    told = capfd.readouterr().err
    assert "de-quantizing" in told
    assert "Loading weights" not in told
    assert "Writing model" not in told


def test_a_conversion_of_an_earlier_version_is_made_again(file):
    model, said = stretched({"rope_type": "linear", "factor": 4.0}), []
    path = file(model, facts={"rope.scaling.factor": 4.0})
    folder = convert_gguf(path, say=said.append)
    record = {key: value for key, value in read_record(folder).items() if key != "conversion"}
    (folder / RECORD).unlink()
    seal_folder(folder, {k: v for k, v in record.items() if k not in ("format", "files", "sha256")})
    assert convert_gguf(path, say=said.append) == folder
    assert "made by an earlier version" in said[1]
    assert "converting tiny.gguf once" in said[2]
    assert off(path, model) < 1e-4
