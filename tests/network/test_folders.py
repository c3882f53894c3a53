"""What people's folders hold: weights, adapters, both, leftovers of tools, damage."""

import json
import shutil
import warnings

import huggingface_hub
import pytest
import torch
from models import tiny_gpt2, tiny_llama, tiny_qwen2, tiny_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file, save_file

from frenet.methods.task_vectors import from_adapter, from_checkpoints
from frenet.methods.vector_files import check_sources, vectors_from_disk
from frenet.network.adapters import quiet_peft
from frenet.network.checkpoints.folders import held
from frenet.network.checkpoints.load import load
from frenet.network.checkpoints.tensor_files import TensorFiles

IDS = torch.tensor([[5, 9, 3, 7]])
WEIGHTS = "adapter_model.safetensors"
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def read(folder, **more):
    return load(folder, device="cpu", say=lambda _: None, **more)


def save(model, folder):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def trained(base, *, seed=1, **settings):
    """An adapter whose parameters have all moved."""
    with quiet_peft(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(base, LoraConfig(**{**LORA, **settings}))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def save_adapter(model, folder, base=""):
    model.peft_config["default"].base_model_name_or_path = str(base) or None
    with quiet_peft(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder


@pytest.fixture
def places(tmp_path):
    """A base, an adapter on it, and the model of both."""
    base = save(tiny_llama(), tmp_path / "base")
    model = trained(tiny_llama())
    return base, save_adapter(model, tmp_path / "adapter", base), model


@pytest.fixture
def merged(places, tmp_path):
    """The adapter's folder, into which the merged weights were saved."""
    _, adapter, _ = places
    folder = tmp_path / "merged"
    shutil.copytree(adapter, folder)
    with quiet_peft():
        whole = PeftModel.from_pretrained(tiny_llama(), adapter).merge_and_unload()
    return save(whole, folder)


def edited(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def rewrite(folder, change, name=WEIGHTS):
    tensors = load_file(folder / name)
    save_file(change(tensors), folder / name, {"format": "pt"})
    return folder


def renamed(folder, change):
    return rewrite(folder, lambda found: {change(name): t for name, t in found.items()})


# Folders


@pytest.mark.reads(
    kind="folders",
    given="merged weights, and the adapter that was merged into them",
    outcome="used: the weights",
    says="holds weights and an adapter",
)
def test_merged_weights_are_used_as_they_are(places, merged, says):
    _, _, model = places
    loaded = read(merged)
    torch.testing.assert_close(logits(loaded.model), logits(model), atol=1e-5, rtol=1e-5)
    assert loaded.adapter is None
    assert not hasattr(loaded.model, "peft_config")
    assert any(says in note for note in loaded.notes)


@pytest.mark.reads(
    kind="folders",
    given="merged weights and their adapter, passed as model and as adapter",
    outcome="refused",
    says="already merged into",
)
def test_an_adapter_is_not_put_twice_on_the_weights(places, merged, says):
    base, adapter, _ = places
    for once_more in (merged, adapter):
        with pytest.raises(ValueError, match=says) as no:
            read(merged, adapter=once_more)
        assert str(base) in str(no.value)
    with pytest.raises(ValueError, match=says):
        from_adapter(adapter, base=read(merged).model)
    edited(merged, base_model_name_or_path="someone/gone")
    with pytest.raises(
        ValueError, match="in the same folder, and the adapter may already be merged"
    ):
        read(merged, adapter=merged)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_in_half_precision_is_seen_too(places, tmp_path, dtype):
    _, adapter, _ = places
    with quiet_peft():
        whole = PeftModel.from_pretrained(tiny_llama(), adapter).merge_and_unload()
    half = save(whole.to(dtype), tmp_path / "half")
    with pytest.raises(ValueError, match="already merged into the latter"):
        read(half, adapter=adapter)


@pytest.mark.reads(
    kind="folders",
    given="an adapter in the folder of the base's config.json",
    outcome="used: the adapter on its base",
)
def test_a_configuration_beside_an_adapter_is_no_model(places):
    _, adapter, model = places
    tiny_llama().config.save_pretrained(adapter)
    loaded = read(adapter)
    assert loaded.adapter == str(adapter)
    assert torch.equal(logits(loaded.model), logits(model))


@pytest.mark.reads(
    kind="folders",
    given="a base, and an adapter that was saved into its folder",
    outcome="used: the base; as adapter=, the adapter on it",
    says="without the adapter",
)
def test_an_adapter_that_was_saved_into_its_bases_folder(places, tmp_path, says):
    base, adapter, model = places
    for file in adapter.glob("adapter_*"):
        shutil.copy(file, base)
    assert any(says in note for note in read(base).notes)
    assert torch.equal(logits(read(base).model), logits(tiny_llama()))
    assert torch.equal(logits(read(base, adapter=base).model), logits(model))
    (vector,) = vectors_from_disk(read(base).model, [str(base)])
    with vector.applied(plain := tiny_llama()):
        torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=1e-4)


@pytest.mark.reads(
    kind="folders",
    given="merged weights and their adapter, as a direction",
    outcome="used: weights minus the base's",
    says="holds weights and an adapter",
)
def test_a_merged_folder_as_a_direction_is_its_weights(places, merged, says):
    base, _, _ = places
    rewrite(merged, lambda t: t | {"lm_head.weight": t["lm_head.weight"] + 1}, "model.safetensors")
    (vector,) = vectors_from_disk(tiny_llama(), [str(merged)])
    assert vector.norm() == pytest.approx(from_checkpoints(base, merged).norm(), rel=1e-6)
    torch.testing.assert_close(vector.read("lm_head.weight"), torch.ones(64, 16))
    assert any(says in note for note in vector.notes)


@pytest.mark.reads(
    kind="folders",
    given="an adapter's weights without its configuration",
    outcome="refused",
    says="and no adapter_config.json",
)
def test_an_adapter_without_configuration(places, says):
    base, adapter, _ = places
    (adapter / "adapter_config.json").unlink()
    tiny_llama().config.save_pretrained(adapter)
    for call in (
        lambda: read(adapter),
        lambda: list(vectors_from_disk(tiny_llama(), [str(adapter)])),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    with pytest.raises(ValueError, match=r"is no PEFT adapter: it has no adapter_config\.json"):
        read(base, adapter=adapter)


@pytest.mark.reads(
    kind="folders",
    given="an adapter in a folder with pickled weights",
    outcome="refused",
    says="whether the adapter is merged into them",
)
def test_an_adapter_beside_pickled_weights(places, says):
    _, adapter, _ = places
    (adapter / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=says):
        read(adapter)
    (adapter / "pytorch_model.bin").unlink()
    (adapter / "optimizer.pt").touch()  # of a Trainer's checkpoint
    assert held(adapter).is_adapter


@pytest.mark.reads(
    kind="folders",
    given="one file of weights and an index of others",
    outcome="used: model.safetensors",
    says="model.safetensors is read, and not",
)
def test_a_second_set_of_weights_is_named(places, says):
    base, _, _ = places
    save_file({"x": torch.ones(2)}, base / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = read(base)
    assert torch.equal(logits(loaded.model), logits(tiny_llama()))
    said = f"{says} model-00001-of-00001.safetensors"
    assert any(said in note for note in loaded.notes)


@pytest.mark.reads(
    kind="folders",
    given="a model in a subfolder",
    outcome="refused",
    says="checkpoint-5 inside it",
)
def test_a_folder_around_models_says_where_they_are(places, tmp_path, says):
    base, _, _ = places
    shutil.copytree(base, tmp_path / "run" / "checkpoint-5")
    with pytest.raises(ValueError, match=says):
        read(tmp_path / "run")


def test_an_adapter_is_no_checkpoint(places):
    base, adapter, _ = places
    with pytest.raises(ValueError, match="holds an adapter and no weights of a model"):
        from_checkpoints(base, adapter)


@pytest.mark.reads(
    kind="adapters",
    given="an adapter without its base",
    outcome="refused",
    says="names the base",
)
def test_a_base_that_is_gone_is_named_with_its_adapter(places, says):
    base, adapter, model = places
    base = base.rename(base.with_name("moved"))
    with pytest.raises(FileNotFoundError, match=f"{says} .*pass the base as source"):
        read(adapter)
    loaded = read(base, adapter=adapter)
    assert torch.equal(logits(loaded.model), logits(model))
    assert any("was trained on the base" in note for note in loaded.notes)
    edited(adapter, base_model_name_or_path="someone/gone")
    with pytest.raises(ConnectionError, match=f"{says} someone/gone"):
        read(adapter)
    edited(adapter, base_model_name_or_path=str(adapter))
    with pytest.raises(ValueError, match=f"{says} .* holds an adapter and no weights"):
        read(adapter)


# Bases


@pytest.mark.reads(
    kind="adapters",
    given="an adapter of another base",
    outcome="note",
    says="was trained on the base someone/else",
)
def test_another_base_is_noted_by_both_names(places, says):
    base, adapter, _ = places
    edited(adapter, base_model_name_or_path="someone/else")
    (note,) = [note for note in read(base, adapter=adapter).notes if "trained" in note]
    assert says in note
    assert f"is loaded onto {base}" in note
    vector = from_adapter(adapter, base=read(base).model)
    assert any(says in note for note in vector.notes)


def test_bases_are_compared_by_their_weights_where_both_are_here(places, tmp_path):
    base, adapter, model = places
    copied = shutil.copytree(base, tmp_path / "copied")
    half = save(tiny_llama().to(torch.bfloat16), tmp_path / "half")
    for same in (copied, half, f"{base}/"):
        assert not [note for note in read(same, adapter=adapter).notes if "trained" in note]
    other = save(tiny_llama(seed=3), tmp_path / "other")
    (note,) = [note for note in read(other, adapter=adapter).notes if "trained" in note]
    weights = [
        m.model.layers[0].self_attn.q_proj.weight for m in (tiny_llama(), tiny_llama(seed=3))
    ]
    assert float(
        (weights[1] - weights[0]).detach().norm() / weights[0].detach().norm()
    ) == pytest.approx(1.4, abs=0.2)
    assert "weights differ by 1.4 of" in note or "by 1.3" in note
    assert torch.equal(logits(read(copied, adapter=adapter).model), logits(model))


@pytest.mark.reads(
    kind="adapters",
    given="an adapter for a wider base",
    outcome="refused",
    says="lora_A.weight has shape (2, 16) in the file and (2, 32)",
)
def test_another_width_has_both_shapes(places, tmp_path, says):
    _, adapter, _ = places
    wide = save(tiny_llama(width=32), tmp_path / "wide")
    with pytest.raises(ValueError, match="belongs to another base") as no:
        read(wide, adapter=adapter)
    assert says in str(no.value)


@pytest.mark.parametrize(
    ("other", "target", "says"),
    [
        (
            lambda: tiny_llama(width=32),
            "q_proj",
            r"lora_A.weight has shape \(2, 32\) in the file and \(2, 16\) on the model \(4 such",
        ),
        (tiny_qwen2, "q_proj", r"only the file has base_model.model.model.layers.2.self_attn"),
        (tiny_gpt2, "c_attn", r"it adapts \['c_attn'\] and the model has q_proj, k_proj"),
    ],
)
def test_an_adapter_of_another_base_is_refused_before_that_is_loaded(
    places, tmp_path, monkeypatch, other, target, says
):
    """By the names and shapes that the folder of the base promises; its own adapter passes."""
    base, own, _ = places
    monkeypatch.setattr(type(tiny_llama()), "from_pretrained", None)
    model = trained(other(), target_modules=[target])
    adapter = save_adapter(model, tmp_path / "other", "someone/else")
    check_sources([str(own)], base=str(base))
    with pytest.raises(ValueError, match=f"{says}.*the base someone/else: pass that as the model"):
        check_sources([str(adapter)], base=str(base))
    check_sources([str(adapter)], base="someone/else")
    check_sources([str(adapter)])


def test_what_only_the_weights_of_a_base_decide_is_left_to_the_loader(places):
    """A stored copy of a weight, and values at the start that are made from the base's."""
    base, adapter, _ = places
    copy = {
        "base_model.model.lm_head.weight": load_file(base / "model.safetensors")["lm_head.weight"]
    }
    rewrite(adapter, lambda found: found | copy)
    for start in (True, "pissa", "olora", "gaussian"):
        check_sources([str(edited(adapter, init_lora_weights=start))], base=str(base))


@pytest.mark.reads(
    kind="adapters",
    given="an adapter of a base with added tokens",
    outcome="refused",
    says="was trained on a base with resized embeddings",
)
def test_resized_embeddings_have_both_shapes_and_a_remedy_that_works(places, tmp_path, says):
    base, _, _ = places

    def resized():
        model = tiny_llama()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.resize_token_embeddings(66, mean_resizing=False)
        return model

    model = trained(resized())
    with quiet_peft(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path / "added", save_embedding_layers=True)
    for call in (
        lambda: read(base, adapter=tmp_path / "added"),
        lambda: from_adapter(tmp_path / "added", base=tiny_llama()),
    ):
        with pytest.raises(ValueError, match=says) as no:
            call()
        assert r"(66, 16) in the file and (64, 16)" in str(no.value)
    with quiet_peft():
        whole = PeftModel.from_pretrained(resized(), tmp_path / "added").merge_and_unload()
    loaded = read(save(whole, tmp_path / "whole"))
    torch.testing.assert_close(logits(loaded.model), logits(model), atol=1e-5, rtol=1e-5)


# What adapters take out of their base


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.reads(
    kind="adapters",
    given="an adapter with an initialisation that changes its base (PiSSA, OLoRA)",
    outcome="used: on the changed base; as a direction refused",
    says="the initialisation of the adapter changes its base",
)
def test_what_an_adapter_takes_out_of_its_base_is_taken_out(places, tmp_path, start, says):
    base, _, _ = places
    model = trained(tiny_llama(), init_lora_weights=start)
    adapter = save_adapter(model, tmp_path / start, base)
    loaded = read(base, adapter=adapter)
    torch.testing.assert_close(logits(loaded.model), logits(model), atol=1e-4, rtol=1e-4)
    assert any(says in note for note in loaded.notes)
    plain = tiny_llama()
    before = {name: p.clone() for name, p in plain.named_parameters()}
    with pytest.raises(ValueError, match="no sum of products"):
        from_adapter(adapter, base=plain)
    assert all(torch.equal(before[name], p) for name, p in plain.named_parameters())
    assert all(p.requires_grad for p in plain.parameters())


@pytest.mark.reads(
    kind="adapters",
    given="an adapter with a random initialisation of this kind (PiSSA with niter)",
    outcome="refused",
    says="subtracts something random",
)
def test_a_start_that_cannot_be_made_again_is_refused(places, tmp_path, says):
    base, _, _ = places
    model = trained(tiny_llama(), init_lora_weights="pissa_niter_1")
    with pytest.raises(ValueError, match=says):
        read(base, adapter=save_adapter(model, tmp_path / "niter", base))


# Files of other tools


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: f"module.{name}",
        lambda name: name.replace("base_model.model.", "_orig_mod.base_model.model."),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("base_model.model.model.", "base_model.model."),
        lambda name: name.replace("self_attn", "_fsdp_wrapped_module.self_attn"),
    ],
)
@pytest.mark.reads(
    kind="adapters",
    given="tensors under the names of a wrapper (DDP, FSDP, torch.compile), of the "
    "adapter, or of the model without its head",
    outcome="used",
    says="are stored under other names",
)
def test_names_of_other_tools_are_read(places, change, says):
    base, adapter, model = places
    renamed(adapter, change)
    loaded = read(base, adapter=adapter)
    assert torch.equal(logits(loaded.model), logits(model))
    assert any(says in note for note in loaded.notes)
    with from_adapter(adapter, base=tiny_llama()).applied(plain := tiny_llama()):
        torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=1e-4)


@pytest.mark.reads(
    kind="adapters",
    given="empty tensors (DeepSpeed ZeRO-3)",
    outcome="refused",
    says="ZeRO-3 saves them so",
)
def test_empty_tensors(places, says):
    base, adapter, _ = places
    rewrite(adapter, lambda found: dict.fromkeys(found, torch.zeros(0)))
    for call in (
        lambda: read(base, adapter=adapter),
        lambda: from_adapter(adapter, base=tiny_llama()),
        lambda: list(vectors_from_disk(tiny_llama(), [str(adapter)])),
    ):
        with pytest.raises(ValueError, match=says) as no:
            call()
        assert "another base" not in str(no.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.reads(
    kind="adapters",
    given="an entry that is not finite",
    outcome="refused",
    says="entries that are not finite",
)
def test_an_entry_that_is_not_finite(places, value, says):
    base, adapter, _ = places
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"

    def broken(found):
        found[name][1, 3] = value
        return found

    rewrite(adapter, broken)
    for call in (
        lambda: read(base, adapter=adapter),
        lambda: from_adapter(adapter, base=tiny_llama()),
    ):
        with pytest.raises(ValueError, match=says) as no:
            call()
        assert name in str(no.value)


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2])
@pytest.mark.reads(
    kind="adapters",
    given="modules_to_save that training did not change, also a tied head",
    outcome="used",
)
def test_untouched_modules_to_save(tmp_path, make):
    base = save(make(), tmp_path / "base")
    model = trained(make())
    folder = edited(save_adapter(model, tmp_path / "a", base), modules_to_save=["lm_head"])
    head = make().lm_head.weight.detach().clone()
    rewrite(folder, lambda found: found | {"base_model.model.lm_head.weight": head})
    if make is tiny_qwen2:  # a copy of the tied weight, which nothing but peft's saving put there
        edited(folder, modules_to_save=None)
    assert torch.equal(logits(read(base, adapter=folder).model), logits(model))
    with from_adapter(folder, base=make()).applied(plain := make()):
        torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=1e-4)


@pytest.mark.reads(
    kind="adapters",
    given="a setting that this version of peft does not know",
    outcome="refused",
    says="settings that this version of peft does not know",
)
def test_settings_of_a_newer_peft(places, says):
    base, adapter, model = places
    edited(adapter, use_something_new=None)
    assert torch.equal(logits(read(base, adapter=adapter).model), logits(model))
    edited(adapter, use_something_new=True)
    for call in (
        lambda: read(base, adapter=adapter),
        lambda: from_adapter(adapter, base=tiny_llama()),
    ):
        with pytest.raises(ValueError, match=says):
            call()


@pytest.mark.reads(
    kind="adapters",
    given="an adapter of mlx-lm",
    outcome="refused",
    says="and no adapter_model.safetensors",
)
def test_an_adapter_of_mlx(places, tmp_path, says):
    base, _, _ = places
    folder = tmp_path / "mlx"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"fine_tune_type": "lora", "num_layers": 2}')
    save_file({"x.lora_a": torch.zeros(16, 2)}, folder / "adapters.safetensors")
    with pytest.raises(ValueError, match=says) as no:
        read(base, adapter=folder)
    assert "adapters.safetensors" in str(no.value)
    (folder / "adapters.safetensors").rename(folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"no adapter of peft \(fine_tune_type, num_layers\)"):
        read(base, adapter=folder)


@pytest.mark.reads(
    kind="adapters",
    given="a model of transformers with add_adapter, in memory",
    outcome="used",
)
def test_adapters_that_transformers_added(tmp_path):
    """By the function of peft that add_adapter calls; add_adapter itself asks for peft 0.22."""
    from frenet.methods.candidates import Noise
    from frenet.methods.search import Selection, random_search
    from frenet.methods.search_result_files import load_winner, save_winner
    from frenet.network.space import ParamSpace
    from measure.quadratic import RowsTask

    model = tiny_llama()
    with quiet_peft(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = inject_adapter_in_model(LoraConfig(**LORA, init_lora_weights=False), model).eval()
    vector = from_adapter(model)
    with vector.applied(plain := tiny_llama()):
        torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=1e-4)
    space, task = (
        ParamSpace.select(model, "lora_"),
        RowsTask(rows=(([5, 1], [3]), ([2, 7], [4])) * 4),
    )
    found = random_search(
        model, task, space, noise=Noise(0.05, seed=0), num_candidates=2,
        selection=Selection(select_size=2, test_size=2),
    )  # fmt: skip
    folder = save_winner(model, space, found, tmp_path / "winner")
    space.write(model, space.read(model) + load_winner(model, space, folder))
    with from_adapter(folder, base=tiny_llama()).applied(plain := tiny_llama()):
        torch.testing.assert_close(logits(plain), logits(model), atol=1e-5, rtol=1e-4)


# Weights that say more than the configuration


@pytest.mark.reads(
    kind="folders",
    given="weights in float8 with scales, and no quantization_config",
    outcome="refused",
    says="stored tensors belong to layers of the model and would not be used",
)
def test_scales_are_not_left_out(places, says):
    base, _, _ = places

    def scaled(found):
        for name in [name for name in found if "proj" in name]:
            scale = found[name].abs().max() / 448
            found[name] = (found[name] / scale).to(torch.float8_e4m3fn)
            found[f"{name}_scale"] = scale.reshape(1)
        return found

    rewrite(base, scaled, "model.safetensors")
    with pytest.raises(ValueError, match=rf"14 {says}.*weight_scale"):
        read(base)


@pytest.mark.reads(
    kind="folders",
    given="biases that config.json switches off",
    outcome="refused",
    says="stored tensors belong to layers of the model and would not be used",
)
def test_biases_are_not_left_out(places, says):
    base, _, _ = places
    name = "model.layers.0.self_attn.q_proj.bias"
    rewrite(base, lambda found: found | {name: torch.ones(16)}, "model.safetensors")
    with pytest.raises(ValueError, match=rf"1 {says}.*q_proj\.bias"):
        read(base)
    rewrite(base, lambda found: found | {name: torch.zeros(16)}, "model.safetensors")
    assert any("not part of the model" in note for note in read(base).notes)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_qwen2])
@pytest.mark.reads(
    kind="folders",
    given="a separate head although config.json ties it to the embedding",
    outcome="used: the stored head",
    says="the stored one is used, untied",
)
def test_an_untied_head_under_a_tied_configuration(tmp_path, make, says):
    base = save(make(), tmp_path / "base")
    embedding = make().get_input_embeddings().weight.detach()
    changed = {"lm_head.weight": embedding + torch.eye(*embedding.shape)}
    rewrite(base, lambda found: found | changed, "model.safetensors")
    loaded = read(base)
    assert any(says in note for note in loaded.notes)
    model = make()
    model.lm_head.weight = torch.nn.Parameter(changed["lm_head.weight"])
    assert torch.equal(logits(loaded.model), logits(model))
    moved = shutil.copytree(base, tmp_path / "moved")
    more = {"lm_head.weight": changed["lm_head.weight"] + 1}
    rewrite(moved, lambda found: found | more, "model.safetensors")
    (vector,) = vectors_from_disk(loaded.model, [str(moved)])
    assert vector.read("lm_head.weight") == pytest.approx(torch.ones(64, 16), abs=1e-6)
    assert list(vector.shapes) == ["lm_head.weight"]


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_qwen2])
@pytest.mark.reads(
    kind="folders",
    given="a copy of the tied embedding, stored as the head",
    outcome="used: as one weight",
)
def test_a_copy_of_a_tied_weight_is_the_same_weight(tmp_path, make):
    from frenet.methods.merge import save_merged

    base = save(make(), tmp_path / "base")
    tuned = save(make(1), tmp_path / "tuned")
    expected = from_checkpoints(base, tuned)
    table = {tiny_gpt2: "transformer.wte.weight", tiny_qwen2: "model.embed_tokens.weight"}[make]

    def copied(folder):
        copy = lambda found: found | {"lm_head.weight": found[table].clone()}  # noqa: E731
        return rewrite(folder, copy, "model.safetensors")

    for folders in ((copied(base), tuned), (base, copied(tuned))):
        vector = from_checkpoints(*folders)
        assert vector.shapes == expected.shapes
        assert vector.norm() == pytest.approx(expected.norm(), rel=1e-6)
    (from_file,) = vectors_from_disk(make(), [str(tuned)])
    assert from_file.norm() == pytest.approx(expected.norm(), rel=1e-6)
    made = save_merged(base, expected, tmp_path / "made").folder
    stored = TensorFiles(made)
    assert torch.equal(stored.read("lm_head.weight"), stored.read(table))
    torch.testing.assert_close(logits(read(made).model), logits(make(1)), atol=1e-5, rtol=1e-5)


# Nesting


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
    ],
)
@pytest.mark.reads(
    kind="folders",
    given="JSON nested 100,000 deep",
    outcome="refused",
)
def test_nested_json_is_an_error_of_one_line(places, name):
    base, _, _ = places
    if "index" in name:
        (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
    (base / name).write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match=str(base)) as no:
        read(base)
    assert "\n" not in str(no.value)
    assert len(str(no.value)) < 1000


# The hub's cache


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """A function that puts a folder into a cache of the hub, as downloading it would."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))

    def put(folder, name):
        place = cache / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        shutil.copytree(folder, place / "snapshots" / ("0" * 40))
        return place / "snapshots" / ("0" * 40)

    return put


@pytest.mark.reads(
    kind="folders",
    given="a hub id",
    outcome="used: what its folder in the cache holds",
    says="hub revision 0000",
)
def test_a_hub_id_is_read_as_a_folder_is(places, merged, cached, says):
    base, adapter, model = places
    cached(merged, "some/merged")
    loaded = read("some/merged")
    torch.testing.assert_close(logits(loaded.model), logits(model), atol=1e-5, rtol=1e-5)
    assert loaded.kind == "hub"
    assert loaded.notes[0].startswith("some/merged: llama")
    assert any(note.startswith(says) for note in loaded.notes)
    cached(base, "some/base")
    edited(adapter, base_model_name_or_path="some/base")
    cached(adapter, "some/adapter")
    for loaded in (read("some/adapter"), read("some/base", adapter="some/adapter")):
        assert torch.equal(logits(loaded.model), logits(model))
        assert not [note for note in loaded.notes if "trained on" in note]
    loaded = read(base, adapter=adapter)
    assert not [note for note in loaded.notes if "trained on" in note]


def test_a_hub_id_promises_no_more_than_it_stores(places, cached):
    base, _, _ = places
    config = base / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 10**7}))
    cached(base, "some/layers")
    with pytest.raises(ValueError, match="promises 10,000,000 layers"):
        read("some/layers")


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_vl", "paligemma", "idefics3"])
@pytest.mark.reads(
    kind="folders",
    given="a model that also reads images",
    outcome="used: the part that a text reaches",
    says="no text reaches",
)
def test_a_model_that_reads_images_too(tmp_path, family, says):
    """Its towers are no coordinates; the context length is that of the text."""
    from test_text_reach import built

    from frenet.network.space import ParamSpace

    model = built(family)
    loaded = read(save(model, tmp_path / "images"))
    assert type(loaded.model) is type(model)
    assert torch.equal(logits(loaded.model), logits(model))
    assert loaded.context_length == 77
    assert any(says in note for note in loaded.notes)
    assert not [name for name in ParamSpace.select(loaded.model).names if "vis" in name]


@pytest.mark.reads(
    kind="folders",
    given="a model that reads a text in both directions, such as PaliGemma and BERT",
    outcome="refused",
    says="reads a text in both directions",
)
@pytest.mark.parametrize("family", ["paligemma", "bert"])
def test_a_model_that_has_seen_what_it_is_to_predict(tmp_path, family, says):
    """The message names the switch of the configuration that helps."""
    from test_text_reach import paligemma
    from transformers import BertConfig, BertLMHeadModel

    shape = {
        "vocab_size": 99, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip
    for ahead in (True, False):
        if family == "bert":
            model = BertLMHeadModel(BertConfig(**shape, is_decoder=not ahead)).eval()
        else:
            model = paligemma(use_bidirectional_attention=ahead).eval()
        folder = save(model, tmp_path / f"{family}-{ahead}")
        if ahead:
            with pytest.raises(ValueError, match=says) as told:
                read(folder)
            config = (folder / "config.json").read_text()
            assert any(word in config and word in str(told.value) for word in (
                '"is_decoder"', '"use_bidirectional_attention"',
            ))  # fmt: skip
        else:
            assert torch.equal(logits(read(folder).model), logits(model))
