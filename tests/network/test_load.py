"""Models from folders, GGUF files, adapters and the hub; everything that is none of these."""

import json
import os
import shutil
import types
import warnings
from pathlib import Path

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from models import VOCABULARY, tiny_gpt2, tiny_llama, tiny_qwen2, tiny_tokenizer
from safetensors.torch import load_file, save_file

from frenet.network.adapters import attach_lora
from frenet.network.checkpoints import gguf as gguf_module
from frenet.network.checkpoints.cache import cache_dir
from frenet.network.checkpoints.gguf import supported_architectures
from frenet.network.checkpoints.load import convert_gguf, load
from frenet.network.checkpoints.made_folder import whole_folder
from frenet.network.checkpoints.pairs import fingerprint
from frenet.network.memory import free_bytes, require_memory
from frenet.network.space import ParamSpace
from frenet.runs.worker import is_user_mistake

IDS = torch.tensor([[5, 9, 3, 7]])
MODELS = {"gpt2": tiny_gpt2, "qwen2": tiny_qwen2, "llama": tiny_llama}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """A cache of its own, and no network: a hub id fails at once."""
    monkeypatch.setenv("FRENET_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def saved(tmp_path):
    """A function that saves a model with its tokenizer and returns the folder."""

    def save(model=None, name="model"):
        folder = tmp_path / name
        (model or tiny_llama()).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    return save


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def read(folder):
    return load(folder, device="cpu", say=lambda _: None)


# Folders


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_gives_the_model_its_tokenizer_and_says_what_it_is(saved, name):
    model = MODELS[name]()
    loaded = read(saved(model))
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.tokenizer("ab")["input_ids"] == tiny_tokenizer()("ab")["input_ids"]
    assert (loaded.kind, loaded.dtype, loaded.adapter) == ("folder", torch.float32, None)
    assert not loaded.model.training
    assert loaded.context_length == (32 if name == "gpt2" else 64)
    assert f"{name}, stored in torch.float32, measured in torch.float32, sdpa" in loaded.notes[0]
    assert loaded.notes[-1].endswith("parameters on cpu")


@pytest.mark.parametrize(
    "how",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4, "group_size": 32},
    ],
)
def test_quantised_weights_without_their_package_are_the_users_to_change(saved, how):
    folder = saved()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": how}))
    with pytest.raises(
        ValueError, match=r"needs a package .*: .*requires.*; load an unquantised copy"
    ) as found:
        read(folder)
    assert is_user_mistake(found.value)


def test_loading_leaves_the_global_random_state_alone(saved):
    folder = saved()
    state = torch.get_rng_state()
    read(folder)
    assert torch.equal(state, torch.get_rng_state())


def test_a_half_precision_checkpoint_is_measured_in_float32_and_says_so(saved):
    folder = saved(tiny_llama().to(torch.bfloat16))
    loaded = read(folder)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert "stored in torch.bfloat16, measured in torch.float32" in loaded.notes[0]
    half = load(folder, dtype=torch.bfloat16, device="cpu")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert half.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"dtype=torch\.int8 has no gradients"):
        load(folder, dtype=torch.int8)


def test_the_fingerprint_sees_one_changed_entry_and_nothing_else(saved):
    model = tiny_llama()
    before = fingerprint(model)
    assert fingerprint(tiny_llama()) == before == read(saved(model)).fingerprint
    model.lm_head.weight.data[3, 4] += 1e-6
    assert fingerprint(model) != before


def test_the_fingerprint_samples_large_tensors_evenly():
    layer = torch.nn.Linear(1 << 17, 2, bias=False)
    before = fingerprint(layer)
    layer.weight.data[1, 4] += 1
    assert fingerprint(layer) != before


def test_pickled_weights_are_refused_with_the_way_out(saved):
    folder = saved()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"only in pickled files \(pytorch_model\.bin\).*safetensors"
    ):
        read(folder)
    with pytest.raises(ValueError, match="any code when opened"):
        read(folder / "pytorch_model.bin")


def test_pickled_files_beside_safetensors_are_not_opened(saved):
    folder = saved()
    (folder / "training_args.bin").write_bytes(b"not a pickle")
    read(folder)


def test_a_folder_without_weights_has_none_though_a_trainer_left_its_files(saved):
    folder = saved()
    (folder / "model.safetensors").unlink()
    (folder / "optimizer.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has a config\.json and no weights"):
        read(folder)


def test_what_is_no_model_is_an_error(tmp_path, saved):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        ValueError, match=r"empty is not a model: it has no config\.json \(found: no"
    ):
        read(empty)
    (empty / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"notes\.txt is not a model; pass the folder"):
        read(empty / "notes.txt")
    folder = saved()
    with pytest.raises(ValueError, match=r"model\.safetensors is not a model; pass the folder"):
        read(folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(ValueError, match="cannot be loaded as a causal language model"):
        read(folder)


def test_a_broken_weight_file_is_an_error(saved):
    folder = saved()
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"damaged, incomplete or a Git LFS pointer"):
        read(folder)


def test_code_of_the_checkpoint_is_never_run(saved, tmp_path):
    folder = saved()
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(
        ValueError, match="needs code of its own to load, which frenet does not run"
    ):
        read(folder)
    assert not (tmp_path / "ran").exists()


def test_missing_weights_are_an_error_and_not_random(saved):
    folder = saved()
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"1 parameters have no stored value, .*layers\.1\.mlp\.up_"
    ):
        read(folder)


def test_weights_of_another_shape_name_the_tensor_and_both_shapes(saved):
    folder = saved()
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros(70, 16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lm_head\.weight is stored with shape \(70, 16\).*\(64, 1"
    ):
        read(folder)


def test_tensors_without_a_place_are_in_the_notes(saved):
    folder = saved()
    tensors = load_file(folder / "model.safetensors") | {"left_over": torch.zeros(2)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert any("1 stored tensors are not part of the model: left_over" in n for n in
               read(folder).notes)  # fmt: skip


def test_a_folder_without_tokenizer_is_an_error_that_names_the_remedy(saved):
    folder, other = saved(), saved(name="other")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer \(tokenizer\.json.*pass --tokenizer "):
        read(folder)
    assert len(load(folder, tokenizer=other, device="cpu").tokenizer) == VOCABULARY


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_an_error(saved):
    folder = saved()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zz"] = VOCABULARY + 5
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="embedding 64 rows, none for 'zz'"):
        read(folder)


def test_a_model_too_large_for_the_memory_is_refused_with_both_figures(saved, monkeypatch):
    folder = saved()
    monkeypatch.setattr("frenet.network.memory.free_bytes", lambda _: 1 << 10)
    with pytest.raises(MemoryError, match=r"needs 0\.00 GiB and 0\.00 GiB are free on cpu; use a"):
        read(folder)


def test_free_memory_is_a_number_of_bytes():
    cpu = torch.device("cpu")
    assert 1 << 20 < free_bytes(cpu) < 1 << 60
    require_memory(1 << 20, "nothing", device=cpu, remedy="")
    with pytest.raises(MemoryError, match=r"all of it needs 1073741824\.00 GiB"):
        require_memory(1 << 60, "all of it", device=cpu, remedy="pass less")


# The hub


@pytest.mark.parametrize("name", ["no-such-model", "someone/no-such-model"])
def test_a_hub_id_that_cannot_be_had_is_an_error_that_names_both_meanings(name):
    with pytest.raises(ConnectionError, match=f"'{name}' is no path here, and no model of that"):
        load(name)


@pytest.mark.parametrize(
    "name", ["./absent", "a/b/c", "absent.gguf", "/absent/model", "absent/model.bin", "~/absent"]
)
def test_a_missing_path_never_asks_the_hub(monkeypatch, name):
    def asked(*_, **__):
        raise AssertionError("asked the hub")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", asked)
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        load(name)


def test_a_missing_folder_inside_one_that_exists_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file or folder models/absent"):
        load("models/absent")


# GGUF


def to_gguf(model, path, *, architecture="llama", leave_out=(), extra=(), quantised=False):
    """A Llama model as a GGUF file, its matrices in float32 or quantised to Q8_0."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    add_tokenizer(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name in leave_out:
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        array = tensor.numpy()
        for part, count in heads.items():
            if part in name:
                array = interleaved(array, count)
        own_name = names.get_name(name, try_suffixes=(".weight",))
        if quantised and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(own_name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(own_name, array)
    for name in extra:
        writer.add_tensor(name, np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer):
    """A byte-level BPE with all 64 tokens: two merges, the rest single characters."""
    letters = [chr(i) for i in range(33, 33 + VOCABULARY - 5)]
    pieces = ["<unk>", "<s>", "</s>", *letters, "AB", "CD"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(pieces)
    kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (VOCABULARY - 3)
    writer.add_token_types(kinds)
    writer.add_token_merges(["A B", "C D"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def interleaved(array, heads):
    """Rows of each head in the order that GGUF keeps for rotary positions."""
    rows, columns = array.shape
    return (
        array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def test_a_gguf_file_gives_the_logits_of_the_model_it_was_made_from(tmp_path):
    model = tiny_llama()
    path = to_gguf(model, tmp_path / "tiny.gguf")
    said = []
    loaded = load(path, device="cpu", say=said.append)
    assert torch.allclose(logits(loaded.model), logits(model), atol=1e-5)
    assert (loaded.kind, loaded.source) == ("gguf", str(path))
    assert loaded.tokenizer("ABCD")["input_ids"][-2:] == [62, 63]
    assert loaded.notes[0] == (
        "tiny.gguf: stored as F32 (21 tensors), dequantised, measured in torch.float32; results "
        "refer to the dequantised weights"
    )
    (line,) = said
    for part in ("converting tiny.gguf once: llama, F32 (21 tensors)", "GiB of memory"):
        assert part in line


def test_a_quantised_gguf_file_gives_the_logits_of_its_dequantised_weights(tmp_path):
    model = tiny_llama(width=32)
    path = to_gguf(model, tmp_path / "q8.gguf", quantised=True)
    loaded = load(path, device="cpu", say=lambda _: None)
    assert "stored as Q8_0 (16 tensors) + F32 (5 tensors), dequantised" in loaded.notes[0]
    before = logits(model)
    kind = gguf.GGMLQuantizationType.Q8_0
    for parameter in model.parameters():
        if parameter.ndim == 2:
            packed = gguf.quants.quantize(parameter.detach().numpy(), kind)
            parameter.data = torch.from_numpy(gguf.quants.dequantize(packed, kind).copy())
    assert torch.allclose(logits(loaded.model), logits(model), atol=1e-5)
    error = (logits(loaded.model) - before).abs().max()
    assert 1e-4 < error < 0.05 * before.abs().max()


def test_a_gguf_file_is_converted_once_and_by_content(tmp_path, monkeypatch):
    path = to_gguf(tiny_llama(), tmp_path / "tiny.gguf")
    state = torch.get_rng_state()
    folder = convert_gguf(path, say=lambda _: None)
    assert torch.equal(state, torch.get_rng_state())
    assert folder.parent == cache_dir() / "gguf"
    assert [p for p in folder.parent.iterdir() if p != folder] == []
    assert (folder / "model.safetensors").exists()

    def again(*_, **__):
        raise AssertionError("converted twice")

    monkeypatch.setattr(gguf_module, "_write_converted", again)
    (tmp_path / "elsewhere").mkdir()
    assert convert_gguf(shutil.copy(path, tmp_path / "elsewhere")) == folder
    os.utime(path, (0, 0))
    assert convert_gguf(path) == folder
    to_gguf(tiny_llama(seed=1), path)
    with pytest.raises(AssertionError, match="converted twice"):
        convert_gguf(path, say=lambda _: None)


def test_an_interrupted_conversion_leaves_nothing_behind(tmp_path, monkeypatch):
    path = to_gguf(tiny_llama(), tmp_path / "tiny.gguf")

    def half(_path, _header, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_module, "_write_converted", half)
    with pytest.raises(KeyboardInterrupt):
        convert_gguf(path, say=lambda _: None)
    assert list((cache_dir() / "gguf").iterdir()) == []


def test_a_folder_that_another_process_wrote_meanwhile_is_whole_afterwards(tmp_path, monkeypatch):
    path = to_gguf(tiny_llama(), tmp_path / "tiny.gguf")
    write = gguf_module._write_converted

    def slow(path, header, folder):
        write(path, header, folder)
        (folder.parent / "config.json").write_text("{}")
        (folder.parent / gguf_module.RECORD).write_text("{}")

    monkeypatch.setattr(gguf_module, "_write_converted", slow)
    folder = convert_gguf(path, say=lambda _: None)
    assert whole_folder(folder, {"file": "tiny.gguf"})
    assert list(folder.parent.iterdir()) == [folder]
    assert not [path for path in folder.iterdir() if path.is_dir()]


def test_an_unsupported_architecture_is_one_line_with_the_supported_ones(tmp_path):
    path = to_gguf(tiny_llama(), tmp_path / "odd.gguf", architecture="oddity")
    with pytest.raises(
        ValueError, match=r"GGUF architecture 'oddity' is not supported; .*llama"
    ) as e:
        load(path)
    assert "\n" not in str(e.value)
    assert {"llama", "qwen2", "gpt2"} <= set(supported_architectures())
    assert not {"general", "tokenizer"} & set(supported_architectures())


def test_gguf_tensors_that_do_not_fill_the_model_are_an_error(tmp_path):
    lacking = to_gguf(
        tiny_llama(), tmp_path / "a.gguf", leave_out=["model.layers.1.mlp.up_proj.weight"]
    )
    with pytest.raises(
        ValueError, match=r"parameters without a tensor: model\.layers\.1\.mlp\.up_"
    ):
        convert_gguf(lacking, say=lambda _: None)
    unplaced = to_gguf(tiny_llama(), tmp_path / "b.gguf", extra=["blk.0.attn_sinks.weight"])
    with pytest.raises(
        ValueError, match=r"tensors without a parameter: blk\.0\.attn_sinks\.weight"
    ):
        convert_gguf(unplaced, say=lambda _: None)
    assert list((cache_dir() / "gguf").iterdir()) == []


def test_a_gguf_model_that_says_the_same_of_every_token_is_an_error(tmp_path):
    model = tiny_llama()
    model.lm_head.weight.data.zero_()
    path = to_gguf(model, tmp_path / "flat.gguf")
    with pytest.raises(ValueError, match="gives the same logit to every token"):
        convert_gguf(path, say=lambda _: None)


def test_what_is_no_whole_gguf_file_is_an_error(tmp_path):
    path = tmp_path / "m.gguf"
    with pytest.raises(FileNotFoundError, match=r"there is no file .*m\.gguf"):
        convert_gguf(path)
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(ValueError, match=r"m\.gguf is not a GGUF file"):
        convert_gguf(path)
    whole = to_gguf(tiny_llama(), tmp_path / "whole.gguf").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"m\.gguf is damaged or incomplete"):
        convert_gguf(path)


def test_a_conversion_that_would_not_fit_is_refused_before_it_starts(tmp_path, monkeypatch):
    path = to_gguf(tiny_llama(), tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf_module.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=0))
    with pytest.raises(OSError, match=r"0\.00 GiB are free; set FRENET_CACHE to a larger disk"):
        convert_gguf(path, say=lambda _: None)
    monkeypatch.setattr("frenet.network.memory.free_bytes", lambda _: 0)
    with pytest.raises(MemoryError, match=r"converting tiny\.gguf needs"):
        convert_gguf(path, say=lambda _: None)


def test_a_damaged_conversion_is_named_and_made_again(tmp_path):
    path = to_gguf(tiny_llama(), tmp_path / "tiny.gguf")
    folder = convert_gguf(path, say=lambda _: None)
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "frenet.json"} <= set(whole)
    for name, data in whole.items():
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        for content in (flipped, data[:middle], b"", None):
            said = []
            if content is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(content)
            assert convert_gguf(path, say=said.append) == folder
            assert {f.name: f.read_bytes() for f in folder.iterdir()} == whole
            if (name, content) != ("frenet.json", None):
                assert name in said[0]
            assert "converting tiny.gguf once" in said[-1]
    said = []
    convert_gguf(path, say=said.append)
    assert said == []


def test_the_folder_of_another_conversion_is_not_taken(tmp_path):
    one = convert_gguf(to_gguf(tiny_llama(0), tmp_path / "one.gguf"), say=lambda _: None)
    two = convert_gguf(to_gguf(tiny_llama(1), tmp_path / "two.gguf"), say=lambda _: None)
    want = (one / "model.safetensors").read_bytes()
    shutil.rmtree(one)
    shutil.copytree(two, one)
    said = []
    convert_gguf(tmp_path / "one.gguf", say=said.append)
    assert "is that of another folder" in said[0]
    assert (one / "model.safetensors").read_bytes() == want


def test_a_disk_that_fills_up_during_a_conversion_is_named_and_leaves_nothing(
    tmp_path, monkeypatch
):
    path = to_gguf(tiny_llama(), tmp_path / "tiny.gguf")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("FRENET_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"disk full: .* with FRENET_CACHE"):
            convert_gguf(path, say=lambda _: None)
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []
    convert_gguf(path, say=lambda _: None)


@pytest.mark.slow
def test_a_real_gguf_file():
    source = os.environ.get("FRENET_TEST_GGUF")
    if not source:
        pytest.skip("FRENET_TEST_GGUF names no GGUF file")
    loaded = load(source, device="cpu")
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = loaded.model(input_ids=ids).logits[0, -1].argmax()
    assert loaded.tokenizer.decode([int(best)]).strip() == "Paris"


# Adapters


@pytest.fixture
def adapted(saved, tmp_path):
    """Base folder, adapter folder, and the model that they came from."""

    def save(base=None, **options):
        folder = saved(base or tiny_llama(), "base")
        wrapped = attach_lora(read(folder).model, rank=2, **options)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.data.fill_(0.3)
        with warnings.catch_warnings():
            # An adapter on embedding or head makes PEFT save the weight under it, too.
            warnings.filterwarnings("ignore", "Setting `save_embedding_layers`")
            wrapped.save_pretrained(tmp_path / "adapter")
        return folder, tmp_path / "adapter", wrapped

    return save


def rewrite(adapter, change):
    path = adapter / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_is_loaded_on_its_base_trainable_and_gives_its_logits(adapted, name):
    base, adapter, wrapped = adapted(MODELS[name]())
    state = torch.get_rng_state()
    loaded = load(base, adapter=adapter, device="cpu")
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(logits(loaded.model), logits(wrapped))
    assert not torch.equal(logits(loaded.model), logits(read(base).model))
    space = ParamSpace.select(loaded.model)
    assert space == ParamSpace.select(wrapped)
    assert all(p.requires_grad for p in space.parameters(loaded.model))
    assert loaded.adapter == str(adapter)
    assert any(f"adapter {adapter}: rank 2" in note for note in loaded.notes)
    assert loaded.fingerprint != read(base).fingerprint


def test_an_adapter_folder_alone_finds_its_base(adapted):
    base, adapter, wrapped = adapted()
    loaded = load(adapter, device="cpu")
    assert torch.equal(logits(loaded.model), logits(wrapped))
    assert loaded.source == str(adapter)
    with pytest.raises(ValueError, match="is an adapter itself; pass its base as source"):
        load(adapter, adapter=adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": None})
    )
    with pytest.raises(ValueError, match="does not say which base it belongs to"):
        load(adapter)
    assert torch.equal(logits(load(base, adapter=adapter, device="cpu").model), logits(wrapped))


def test_an_adapter_whose_names_match_nothing_lists_both_sets(adapted):
    base, adapter, _ = adapted()
    rewrite(adapter, lambda found: {k.replace("model.layers", "h"): v for k, v in found.items()})
    both = r"only the file has .*model\.h\..*; only the model has .*model\.model\.layers.*in part"
    with pytest.raises(ValueError, match=both):
        load(base, adapter=adapter, device="cpu")


@pytest.mark.parametrize("missing", ["file", "model"])
def test_an_adapter_that_matches_in_part_is_an_error(adapted, missing):
    base, adapter, _ = adapted()

    def change(found):
        name = sorted(found)[0]
        if missing == "model":
            return found | {name.replace("q_proj", "o_proj"): found[name].clone()}
        return {k: v for k, v in found.items() if k != name}

    rewrite(adapter, change)
    nothing = "file" if missing == "file" else "model"
    with pytest.raises(ValueError, match=rf"only the {nothing} has nothing"):
        load(base, adapter=adapter, device="cpu")


def test_an_adapter_of_another_family_names_what_it_wants_and_what_there_is(adapted, saved):
    _, adapter, _ = adapted()
    other = saved(tiny_gpt2(), "gpt2")
    with pytest.raises(
        ValueError, match=r"another base: it adapts \[.*q_proj.*the model has c_attn"
    ):
        load(other, adapter=adapter, device="cpu")


def test_an_adapter_of_another_width_names_the_tensor_and_both_shapes(adapted):
    base, adapter, _ = adapted()

    def wider(found):
        name = next(n for n in sorted(found) if "lora_A" in n)
        return found | {name: torch.zeros(2, 24)}

    rewrite(adapter, wider)
    with pytest.raises(
        ValueError, match=r"lora_A\.weight has shape \(2, 24\) in the file and \(2, 16"
    ):
        load(base, adapter=adapter, device="cpu")


def test_the_weights_under_an_adapter_on_head_and_embedding_are_the_bases_own(adapted):
    base, adapter, wrapped = adapted(targets=["q_proj", "lm_head", "embed_tokens"])
    under = {
        name for name in load_file(adapter / "adapter_model.safetensors") if "lora_" not in name
    }
    assert len(under) == 2
    loaded = load(base, adapter=adapter, device="cpu")
    assert torch.equal(logits(loaded.model), logits(wrapped))
    half = load(base, adapter=adapter, device="cpu", dtype=torch.bfloat16)
    assert half.model.get_output_embeddings().weight.dtype == torch.bfloat16
    stored = load_file(adapter / "adapter_model.safetensors")
    for name in under:
        rewrite(adapter, lambda _, name=name: stored | {name: stored[name] + 1})
        with pytest.raises(ValueError, match=f"only the file has {name}; only the model has noth"):
            load(base, adapter=adapter, device="cpu")


def test_an_untrained_adapter_is_noted(adapted):
    base, adapter, _ = adapted()
    rewrite(adapter, lambda f: {k: 0 * v if "lora_B" in k else v for k, v in f.items()})
    notes = load(base, adapter=adapter, device="cpu").notes
    assert any("every lora_B is zero: this adapter is untrained" in note for note in notes)


def test_pickled_and_absent_adapters_are_errors(adapted, tmp_path):
    base, adapter, _ = adapted()
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"only in pickled files \(adapter_model\.bin\)"):
        load(base, adapter=adapter, device="cpu")
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(ValueError, match=r"and no adapter_model\.safetensors"):
        load(base, adapter=adapter, device="cpu")
    with pytest.raises(ValueError, match=r"is no PEFT adapter: it has no adapter_config\.json"):
        load(base, adapter=base, device="cpu")
    with pytest.raises(FileNotFoundError, match="there is no adapter folder"):
        load(base, adapter=tmp_path / "absent", device="cpu")
    with pytest.raises(ConnectionError, match="'some/adapter' is no folder here"):
        load(base, adapter="some/adapter", device="cpu")


def test_adapters_of_other_kinds_are_refused(adapted):
    base, adapter, _ = adapted()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(ValueError, match="is of kind IA3; pass a LORA adapter"):
        load(base, adapter=adapter, device="cpu")
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config\.json is not JSON"):
        load(base, adapter=adapter, device="cpu")


# The real small model, and the cache


def test_stories_load_as_they_are(shared):
    loaded = load(shared / "models" / "stories260K", device="cpu")
    assert sum(p.numel() for p in loaded.model.parameters()) == 260_032
    assert ParamSpace.select(loaded.model).dim == 260_032
    assert loaded.context_length == 512
    space = ParamSpace.select(attach_lora(loaded.model))
    assert space.dim == 5 * 4 * (64 + 64 + 64 + 32)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("FRENET_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("FRENET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "frenet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "frenet"
