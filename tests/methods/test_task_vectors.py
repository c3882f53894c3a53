"""Task vectors: an adapter gives the same logits by every road, misfits are named."""

import json
import math
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from frenet.geometry.rng import generator
from frenet.measure.loss_line import loss_line
from frenet.measure.trajectory import Training, train_and_record
from frenet.methods.linear_range import radius
from frenet.methods.lora_from_delta import save_as_adapter
from frenet.methods.merge import save_merged
from frenet.methods.task_vectors import (
    TaskVector,
    combine,
    from_adapter,
    from_checkpoints,
    from_training,
    load_task_vector,
    save_task_vector,
)
from frenet.methods.vector_files import vectors_from_disk
from frenet.network.adapters import quiet_peft
from frenet.network.checkpoints.pairs import tensor_shapes
from frenet.network.space import ParamSpace
from measure.quadratic import RowsTask
from network.models import difference, tiny_gpt2, tiny_llama, tiny_qwen2

IDS = torch.tensor([[5, 9, 3, 7, 1, 2]])
TARGETS = {
    "gpt2": (tiny_gpt2, ["c_attn", "c_proj"]),
    "llama": (tiny_llama, ["q_proj", "down_proj", "embed_tokens"]),
    "qwen2": (tiny_qwen2, ["q_proj", "o_proj", "up_proj"]),
}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def adapted(family, *, name="default", seed=1, model=None, **settings):
    """A model with a trained-looking adapter: no half of it is zero."""
    make, targets = TARGETS[family]
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, fan_in_fan_out=family == "gpt2", **settings
    )
    with quiet_peft(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model is None:
            model = get_peft_model(make(), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    draw = generator(seed, "adapter")
    with torch.no_grad():
        for key, p in model.named_parameters():
            if f".{name}" in key and "lora_" in key:
                p.copy_(0.2 * torch.randn(p.shape, generator=draw))
    return model


def saved(model, tmp_path):
    with quiet_peft(), warnings.catch_warnings():
        # An adapter on the embedding makes PEFT save the embedding too.
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers`")
        model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {r"\d\.(self_)?attn\.\w+": 2},
        "alpha_pattern": {r"0\.(self_)?attn\.(c_attn|q_proj)": 7},
    },
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("family", TARGETS)
def test_adapter_merged_and_added_vector_give_the_same_logits(family, settings, tmp_path):
    model, base = adapted(family, **SETTINGS[settings]), TARGETS[family][0]()
    active = logits(model)
    assert float((active - logits(base)).abs().max()) > 0.01
    live = from_adapter(model)
    stored = from_adapter(saved(model, tmp_path), base=base)
    for vector in (live, stored):
        with vector.applied(base):
            torch.testing.assert_close(logits(base), active, atol=1e-5, rtol=1e-5)
    with quiet_peft():
        merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), active, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", TARGETS)
def test_state_of_the_wrapper_makes_no_difference_and_stays(family):
    model = adapted(family)
    expected = {name: from_adapter(model).read(name) for name in from_adapter(model).shapes}
    with model.disable_adapter():
        off = from_adapter(model)
        assert not any(m.merged for m in model.modules() if hasattr(m, "merged"))
    model.merge_adapter()
    before = {name: p.clone() for name, p in model.named_parameters()}
    merged = from_adapter(model)
    for name, change in expected.items():
        assert torch.equal(off.read(name), change)
        assert torch.equal(merged.read(name), change)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(m.merged for m in model.modules() if hasattr(m, "lora_A") and m.lora_A)


def test_several_adapters_are_a_sum_of_products():
    """Not the product of the sums, which has cross-terms as large as the signal."""
    model = adapted("gpt2", name="one")
    adapted("gpt2", name="two", seed=2, model=model)
    alone = [from_adapter(model, weights={name: 1.0}) for name in ("one", "two")]
    both = from_adapter(model, weights={"one": 1.0, "two": -0.5})
    for name in both.shapes:
        dense = alone[0].read(name).double() - 0.5 * alone[1].read(name).double()
        torch.testing.assert_close(both.read(name).double(), dense, atol=1e-7, rtol=1e-6)
    assert from_adapter(model).shapes == alone[0].shapes  # the active one


LINEAR = {
    "gpt2": ["c_attn", "c_proj"],
    "llama": ["q_proj", "down_proj"],
    "qwen2": ["q_proj", "o_proj"],
}


def fresh(family, *, name="default", model=None, seed=1, **settings):
    """A model with an untrained adapter, B = 0, and the space of its factors."""
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=LINEAR[family],
        fan_in_fan_out=family == "gpt2",
        **settings,
    )
    with quiet_peft(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model is None:
            model = get_peft_model(TARGETS[family][0](), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
            model.set_adapter(name)
    return model.eval(), ParamSpace.select(model, rf"lora_.*\.{name}\.")


def plainly(names):
    """Names of weights as the base has them."""
    return {n.removeprefix("base_model.model.").replace(".base_layer", ""): n for n in names}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("family", LINEAR)
def test_a_training_is_the_adapter_that_it_saves(family, settings, tmp_path):
    """The same vector, and the same radius, as of the folder read back."""
    model, space = fresh(family, **SETTINGS[settings])
    task, training = RowsTask(), Training("adamw:2e-2", 3, 12)
    with space.restored(model):
        path = train_and_record(model, task, training, space=space)
        folder = saved(model, tmp_path)
    before = space.read(model)
    made = from_training(model, path)
    assert torch.equal(space.read(model), before)
    base = TARGETS[family][0]()
    stored = from_adapter(folder, base=base)
    names = plainly(made.shapes)
    assert set(names) == set(stored.shapes)
    for plain, name in names.items():
        torch.testing.assert_close(made.read(name), stored.read(plain), atol=1e-7, rtol=1e-4)
    batch = next(task.batches("test", 3, 0))
    found = []
    for network, vector in ((model, made), (base.eval(), stored)):
        where = vector.space(network)
        with loss_line(network, task, batch, vector.flat(where), space=where) as line:
            size = vector.norm()
            found.append(
                radius(line, start=size / 16, limit=16 * size, generator=generator(0, "radius"))
            )
    assert found[0].radius == pytest.approx(found[1].radius, rel=1e-4)
    assert found[0].slope == pytest.approx(found[1].slope, rel=1e-4)
    # Points are interpolated from losses, so that rounding moves them more than the radius.
    assert [p.r for p in found[0].points] == pytest.approx([p.r for p in found[1].points], rel=1e-3)


@pytest.mark.parametrize("family", LINEAR)
def test_a_sum_of_two_trainings_is_what_peft_merges_of_both(family):
    """Both adapters added to the base by PEFT, not an adapter of the sums of their factors."""
    model, first = fresh(family, name="one")
    paths = [train_and_record(model, RowsTask(), Training("adamw:2e-2", 3, 8), space=first)]
    _, second = fresh(family, name="two", model=model, seed=2)
    other = RowsTask().shuffled(0)
    paths.append(train_and_record(model, other, Training("adamw:2e-2", 3, 8), space=second))
    total = from_training(model, paths[0]) + from_training(model, paths[1])
    base = TARGETS[family][0]().eval()
    named = plainly(total.shapes)
    plain = TaskVector(
        {name: total.shapes[named[name]] for name in named},
        lambda name: total.read(named[name]),
        "both",
    )
    with quiet_peft():
        merged = model.merge_and_unload(adapter_names=["one", "two"])
    with plain.applied(base):
        torch.testing.assert_close(logits(base), logits(merged), atol=2e-5, rtol=1e-4)


def test_a_training_that_goes_on_from_a_trained_adapter():
    """B is not zero at the start: the vector leads from there, not from the base."""
    model = adapted("qwen2")
    space = ParamSpace.select(model, "lora_")
    here = {name: from_adapter(model).read(name) for name in from_adapter(model).shapes}
    with space.restored(model):
        path = train_and_record(model, RowsTask(), Training("sgd:0.5", 3, 5), space=space)
        there, end = from_adapter(model), logits(model)
    made = from_training(model, path)
    for plain, name in plainly(made.shapes).items():
        change = there.read(plain).double() - here[plain].double()
        torch.testing.assert_close(made.read(name).double(), change, atol=1e-6, rtol=1e-3)
    with made.applied(model):
        torch.testing.assert_close(logits(model), end, atol=2e-5, rtol=1e-4)


def test_a_training_of_all_weights_is_its_displacement():
    model = tiny_llama().eval()
    space = ParamSpace.select(model)
    with space.restored(model):
        path = train_and_record(model, RowsTask(), Training("adam:1e-3", 3, 4), space=space)
    made = from_training(model, path, stop=2)
    assert made.space(model) == space
    assert torch.equal(made.flat(space), path.displacement(0, 2))


# By peft alone: training or settings that make an adapter do more than add B A to its base.
OTHER_KINDS = {
    "dora": ({"use_dora": True}, "lora_magnitude_vector"),
    "a head": ({"modules_to_save": ["lm_head"]}, "lm_head"),
    "tokens": ({"trainable_token_indices": {"embed_tokens": [3, 5]}}, "trainable_tokens_delta"),
    "activated": (
        {"alora_invocation_tokens": [9, 9], "task_type": "CAUSAL_LM"},
        "by peft and by the sum differ",
    ),
    "pissa": ({"init_lora_weights": "pissa"}, "by peft and by the sum differ"),
    "olora": ({"init_lora_weights": "olora"}, "by peft and by the sum differ"),
    "copied layers": ({"layer_replication": [[0, 2], [1, 2]]}, r"copies layers.*layers\.2\.\S+"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_what_is_no_sum_of_products_is_refused_and_its_remedy_works(tmp_path, kind):
    """Detected by applying it both ways; merged as the message says, it has a direction."""
    settings, why = OTHER_KINDS[kind]
    base, targets = tiny_llama(), ["q_proj", "down_proj"]
    base.save_pretrained(tmp_path / "base")
    model = trained(base, r=3, lora_alpha=5, target_modules=targets, **settings)
    folder = saved(model, tmp_path)
    with pytest.raises(ValueError, match=f"is no sum of products B A.*{why}.*merge it into") as no:
        from_adapter(folder, base=tiny_llama())
    assert "another base" not in str(no.value)
    if kind in ("copied layers", "activated"):
        return  # what peft merges of them is of another architecture, or not what it applies
    expected = logits(model)
    with quiet_peft():
        model.merge_and_unload().save_pretrained(tmp_path / "merged")
    vector = from_checkpoints(tmp_path / "base", tmp_path / "merged")
    with vector.applied(base := tiny_llama()):
        torch.testing.assert_close(logits(base), expected, atol=1e-4, rtol=1e-4)


def trained(base, *, seed=1, **settings):
    """An adapter with all parameters moved."""
    with quiet_peft(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = get_peft_model(base, LoraConfig(**settings))
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.1 * torch.randn_like(p))
    return model.eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal", "r": 4},
        {"init_lora_weights": "eva"},
        {"lora_dropout": 0.5},
        {"layers_to_transform": [1]},
        {"target_modules": "all-linear"},
        {"modules_to_save": ["lm_head"], "untouched": True},
        {"bias": "all", "untouched": True},
    ],
)
def test_what_is_a_sum_of_products_is_used(tmp_path, settings):
    """However it began; also modules that were to be saved and that training left alone."""
    settings = {"r": 2, "target_modules": ["q_proj", "down_proj"], **settings}
    untouched = settings.pop("untouched", False)
    model = trained(tiny_llama(), **settings)
    if untouched:
        with torch.no_grad():
            model.base_model.model.lm_head.weight.copy_(tiny_llama().lm_head.weight)
            head = getattr(model.base_model.model.lm_head, "modules_to_save", None)
            if head is not None:
                head["default"].weight.copy_(tiny_llama().lm_head.weight)
    vector = from_adapter(saved(model, tmp_path), base=tiny_llama())
    with vector.applied(base := tiny_llama()):
        torch.testing.assert_close(logits(base), logits(model), atol=1e-5, rtol=1e-4)


def test_adapters_in_memory_of_other_kinds_are_refused():
    with pytest.raises(
        ValueError, match=r"no factor of a product, such as .*lora_magnitude_vector"
    ):
        from_adapter(adapted("llama", use_dora=True))
    with pytest.raises(ValueError, match=r"no factor of a product, such as .*bias"):
        from_adapter(adapted("gpt2", bias="all"))
    head = trained(tiny_llama(), target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(ValueError, match=r"no factor of a product, such as .*lm_head"):
        from_adapter(head)
    with pytest.raises(ValueError, match="no adapter 'three'; the model has default"):
        from_adapter(adapted("llama"), weights={"three": 1.0})
    with pytest.raises(ValueError, match="has no adapter"):
        from_adapter(tiny_llama())


def test_half_of_a_tied_weight_is_no_direction(tmp_path):
    """GPT-2's embedding is its output head; an adapter on it changes the embedding alone."""
    config = LoraConfig(r=2, target_modules=["wte"], init_lora_weights=False)
    with quiet_peft(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(tiny_gpt2(), config)
        model.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    match = r"one use of a tied weight \(.*wte.*, .*lm_head"
    with pytest.raises(ValueError, match=match):
        from_adapter(model)
    with pytest.raises(ValueError, match=match):
        from_adapter(tmp_path / "a", base=tiny_gpt2())


def test_an_adapter_of_another_base_is_named(tmp_path):
    folder = saved(adapted("llama"), tmp_path)
    with pytest.raises(ValueError, match=r"it adapts .*q_proj.* and the model has .*c_attn"):
        from_adapter(folder, base=tiny_gpt2())
    with pytest.raises(ValueError, match="needs base="):
        from_adapter(folder)
    # The embedding that PEFT saved with its adapter is another one, too.
    with pytest.raises(ValueError, match=r"only the file has .*embed_tokens"):
        from_adapter(folder, base=tiny_llama(seed=7))
    file = folder / "adapter_model.safetensors"
    tensors = {name: t for name, t in load_file(file).items() if "base_layer" not in name}
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"shape \(16, 3\) in the file and \(32, 3\) on the model"):
        from_adapter(folder, base=tiny_llama(width=32))
    gone = next(name for name in tensors if "lora_B" in name)
    save_file({name: t for name, t in tensors.items() if name != gone}, file)
    with pytest.raises(
        ValueError, match=r"only the file has nothing; only the model has \S+lora_B"
    ):
        from_adapter(folder, base=tiny_llama())


def test_an_untrained_adapter_has_no_direction():
    with quiet_peft():
        model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="all zero: it is untrained"):
        from_adapter(model)


@pytest.mark.parametrize("family", TARGETS)
def test_adapter_to_delta_to_adapter(family, tmp_path):
    """Exact low rank comes back with its rank; the error stated is the error there is."""
    make, targets = TARGETS[family]
    linear = [target for target in targets if target != "embed_tokens"]
    config = LoraConfig(r=3, target_modules=linear, fan_in_fan_out=family == "gpt2")
    with quiet_peft():
        model = get_peft_model(make(), config)
    draw = generator(3, "halves")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=draw))
    vector, base = from_adapter(model), make()
    fit = save_as_adapter(vector, tmp_path / "back", base=base, tolerance=1e-3)
    assert set(fit.ranks.values()) == {3}
    again = from_adapter(tmp_path / "back", base=base)
    error = (again - vector).norm() / vector.norm()
    assert error < 1e-5
    assert fit.error < 1e-5
    cut = save_as_adapter(vector, tmp_path / "cut", base=base, max_rank=1)
    error = (from_adapter(tmp_path / "cut", base=base) - vector).norm() / vector.norm()
    assert cut.error == pytest.approx(error, rel=1e-4)
    assert error > 0.1


def test_ranks_follow_the_tolerance_weight_by_weight(tmp_path):
    """Singular values 1, 0.1, 0.01: rank 1, 2 or 3 by what may be lost."""
    base = tiny_llama()
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)]
    shape = tuple(base.get_parameter(names[0]).shape)
    diagonal = torch.zeros(shape)
    diagonal[0, 0], diagonal[1, 1], diagonal[2, 2] = 1.0, 0.1, 0.01
    deltas = {names[0]: diagonal, names[1]: diagonal.clamp(max=0.1)}
    vector = TaskVector(dict.fromkeys(names, shape), deltas.__getitem__, "by hand")
    for tolerance, ranks in ((0.2, [1, 2]), (0.02, [2, 3]), (0.002, [3, 3])):
        fit = save_as_adapter(vector, tmp_path / "a", base=base, tolerance=tolerance)
        assert list(fit.ranks.values()) == ranks
        lost = (from_adapter(tmp_path / "a", base=base) - vector).norm() / vector.norm()
        assert fit.error == pytest.approx(lost, rel=1e-3, abs=1e-6)
        assert fit.error <= tolerance


def test_without_a_tolerance_one_percent_of_the_norm_may_be_lost(tmp_path):
    base, name = tiny_llama(), "model.layers.0.self_attn.q_proj.weight"
    shape = tuple(base.get_parameter(name).shape)
    for second, rank in ((0.0099, 1), (0.0102, 2)):
        diagonal = torch.zeros(shape)
        diagonal[0, 0], diagonal[1, 1] = 1.0, second
        vector = TaskVector({name: shape}, {name: diagonal}.__getitem__, "by hand")
        assert save_as_adapter(vector, tmp_path / str(rank), base=base).ranks == {name: rank}


def test_a_weight_that_does_not_change_is_not_in_the_adapter(tmp_path):
    base = tiny_llama()
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)]
    shape = tuple(base.get_parameter(names[0]).shape)
    change = torch.zeros(shape)
    change[2, 3] = 1.0
    deltas = {names[0]: torch.zeros(shape), names[1]: change}
    vector = TaskVector(dict.fromkeys(names, shape), deltas.__getitem__, "by hand")
    assert save_as_adapter(vector, tmp_path / "a", base=base).ranks == {names[1]: 1}
    nothing = TaskVector({names[0]: shape}, deltas.__getitem__, "by hand")
    with pytest.raises(ValueError, match="is zero in all 1 weights"):
        save_as_adapter(nothing, tmp_path / "b", base=base)


def test_an_adapter_cannot_hold_a_norm(tmp_path):
    base, name = tiny_llama(), "model.norm.weight"
    shape = tuple(base.get_parameter(name).shape)
    vector = TaskVector({name: shape}, lambda _: torch.ones(shape), "by hand")
    with pytest.raises(
        ValueError, match=r"changes model\.norm\.weight .*does not fit into an adapter"
    ):
        save_as_adapter(vector, tmp_path / "a", base=base)
    with pytest.raises(ValueError, match=r"tolerance=0\.0 is not in \(0, 1\)"):
        save_as_adapter(vector, tmp_path / "a", base=base, tolerance=0.0)


@pytest.fixture
def checkpoints(tmp_path):
    """Two checkpoints of one model on disk, the second moved by a known amount."""
    base, tuned = tiny_llama(seed=0), tiny_llama(seed=0)
    draw = generator(0, "moved")
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=draw))
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    return base, tuned, tmp_path


def test_base_plus_vector_is_the_tuned_model(checkpoints):
    base, tuned, folder = checkpoints
    vector = from_checkpoints(folder / "base", folder / "tuned")
    before = ParamSpace.select(base).read(base)
    with vector.applied(base):
        torch.testing.assert_close(logits(base), logits(tuned), atol=1e-6, rtol=1e-5)
    assert torch.equal(ParamSpace.select(base).read(base), before)
    live = difference(base, tuned)
    assert live.base == vector.base
    assert vector.cosine(live) == pytest.approx(1, abs=1e-9)
    change = ParamSpace.select(tuned).read(tuned).double() - before.double()
    assert vector.norm() == pytest.approx(float(change.norm()), rel=1e-7)
    torch.testing.assert_close(vector.flat(vector.space(base)).double(), change, atol=1e-7, rtol=0)


def without(prefix, folder):
    """The checkpoint of a base model that was saved alone."""
    path = folder / "model.safetensors"
    save_file(
        {n.removeprefix(prefix): t for n, t in load_file(path).items()}, path, {"format": "pt"}
    )


@pytest.mark.parametrize("short", [("base",), ("tuned",), ("base", "tuned")])
def test_a_base_model_saved_alone_has_the_names_of_the_whole(tmp_path, short):
    """Like the published GPT-2: "h.0.attn..." for the model's "transformer.h.0.attn..."."""
    base, tuned = tiny_gpt2(seed=0), tiny_gpt2(seed=1)
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    want = from_checkpoints(tmp_path / "base", tmp_path / "tuned")
    for name in short:
        without("transformer.", tmp_path / name)
    found = from_checkpoints(tmp_path / "base", tmp_path / "tuned")
    if len(short) == 2:
        assert sorted(found.shapes) == sorted(n.removeprefix("transformer.") for n in want.shapes)
        return
    assert (found.shapes, found.base) == (want.shapes, want.base)
    with found.applied(base):
        torch.testing.assert_close(logits(base), logits(tuned))
    (from_disk,) = vectors_from_disk(base, [str(tmp_path / "tuned")])
    assert from_disk.norm() == pytest.approx(want.norm(), rel=1e-6)


def test_a_merge_keeps_the_names_of_a_base_model_saved_alone(tmp_path):
    base, tuned = tiny_gpt2(seed=0), tiny_gpt2(seed=1)
    base.save_pretrained(tmp_path / "base")
    without("transformer.", tmp_path / "base")
    vector = difference(base, tuned)
    part = TaskVector({n: vector.shapes[n] for n in list(vector.shapes)[2:6]}, vector.read, "part")
    for tau, folder in ((vector, tmp_path / "sum"), (part, tmp_path / "part")):
        assert save_merged(tmp_path / "base", tau, folder).rounding < 1e-6
        names = [load_file(f / "model.safetensors").keys() for f in (tmp_path / "base", folder)]
        assert names[0] == names[1]
        merged = type(base).from_pretrained(folder).eval()
        with tau.applied(base):
            torch.testing.assert_close(logits(merged), logits(base))


def test_a_second_copy_of_the_weights_is_left_alone(checkpoints):
    """Some folders also hold them in one file of their author's format."""
    _, _, folder = checkpoints
    want = from_checkpoints(folder / "base", folder / "tuned")
    tensors = load_file(folder / "base" / "model.safetensors")
    copied = {f"other.{name}": tensor for name, tensor in tensors.items()}
    save_file(copied, folder / "base" / "consolidated.safetensors")
    found = from_checkpoints(folder / "base", folder / "tuned")
    assert (found.shapes, found.base) == (want.shapes, want.base)
    assert tensor_shapes(folder / "base") == {n: tuple(t.shape) for n, t in tensors.items()}
    # The same in two files with an index, which names them.
    half = dict(list(tensors.items())[::2])
    parts = {
        "a.safetensors": half,
        "b.safetensors": {n: tensors[n] for n in tensors if n not in half},
    }
    (folder / "base" / "model.safetensors").unlink()
    for name, part in parts.items():
        save_file(part, folder / "base" / name)
    index = folder / "base" / "model.safetensors.index.json"
    places = {n: name for name, part in parts.items() for n in part}
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    again = from_checkpoints(folder / "base", folder / "tuned")
    assert (dict(sorted(again.shapes.items())), again.base) == (
        dict(sorted(want.shapes.items())),
        want.base,
    )
    index.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"index\.json is no index of files .*; fetch it again"):
        from_checkpoints(folder / "base", folder / "tuned")


def test_saved_and_loaded(checkpoints):
    _, _, folder = checkpoints
    vector = from_checkpoints(folder / "base", folder / "tuned")
    path = save_task_vector(0.5 * vector, folder / "v" / "vector.safetensors")
    again = load_task_vector(path)
    assert again.base == vector.base
    for name in vector.shapes:
        assert torch.equal(again.read(name), 0.5 * vector.read(name))
    assert load_file(path).keys() == vector.shapes.keys()
    with pytest.raises(ValueError, match="is not a task vector"):
        load_task_vector(folder / "base" / "model.safetensors")
    with pytest.raises(ValueError, match="starts from other weights"):
        again.space(tiny_llama(seed=5))
    assert list(path.parent.iterdir()) == [path]
    broken = TaskVector({"w": (1,)}, lambda _: torch.tensor([math.nan]), "nan")
    with pytest.raises(ValueError, match="w has an entry that is not finite"):
        save_task_vector(broken, folder / "v" / "other.safetensors")
    assert list(path.parent.iterdir()) == [path]


def test_different_checkpoints_name_the_first_tensor(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "a")
    tiny_llama(vocabulary=80).save_pretrained(tmp_path / "b")
    tiny_gpt2().save_pretrained(tmp_path / "c")
    with pytest.raises(
        ValueError, match=r"different sizes: \S+ has shape \(64, 16\) .* \(80, 16\)"
    ):
        from_checkpoints(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match=r"different architectures: .* is in .* and not in"):
        from_checkpoints(tmp_path / "a", tmp_path / "c")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        from_checkpoints(tmp_path / "a", tmp_path / "none")
    (tmp_path / "d").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.safetensors file"):
        from_checkpoints(tmp_path / "a", tmp_path / "d")


def test_buffers_of_integers_are_no_weights(tmp_path):
    """Older GPT-2 checkpoints have masks; a buffer of floats stays, and may be unchanged."""
    for name, w in (("a", 1.0), ("b", 3.0)):
        tensors = {"w": torch.full((2,), w), "mask": torch.ones(2, dtype=torch.uint8)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    vector = from_checkpoints(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert list(vector.shapes) == ["w"]
    assert vector.read("w").tolist() == [2.0, 2.0]


def test_tied_weights_move_together_and_stay_tied():
    base, tuned = tiny_gpt2(), tiny_gpt2()
    with torch.no_grad():
        tuned.transformer.wte.weight.add_(0.1)
    vector = difference(base, tuned)
    with vector.applied(base):
        torch.testing.assert_close(logits(base), logits(tuned), atol=1e-6, rtol=1e-5)
        assert base.lm_head.weight is base.transformer.wte.weight
    assert vector.norm() == pytest.approx(
        0.1 * base.transformer.wte.weight.numel() ** 0.5, rel=1e-5
    )


def test_arithmetic_is_that_of_vectors():
    draw = generator(0, "arithmetic")
    a, b = (
        TaskVector({"w": (3,), n: (2,)}, t.__getitem__, n)
        for n in ("x", "y")
        for t in [{"w": torch.randn(3, generator=draw), n: torch.randn(2, generator=draw)}]
    )
    sum_ = combine([(2.0, a), (-3.0, b)])
    torch.testing.assert_close(sum_.read("w"), 2 * a.read("w") - 3 * b.read("w"))
    torch.testing.assert_close(sum_.read("y"), -3 * b.read("y"))
    assert (a - a).norm() == 0
    assert a.cosine(-a) == pytest.approx(-1)
    assert (a - a).cosine(a) == 0
    assert a.dot(b) == pytest.approx(float(a.read("w") @ b.read("w")), rel=1e-6)
    assert (a + b).norm() ** 2 == pytest.approx(a.norm() ** 2 + b.norm() ** 2 + 2 * a.dot(b))
    other = TaskVector({"w": (4,)}, lambda _: torch.zeros(4), "z")
    with pytest.raises(ValueError, match=r"different models: w has shape \(3,\) in x and \(4,\)"):
        a + other
    with pytest.raises(ValueError, match="no task vector to combine"):
        combine([])
    bases = [TaskVector({"w": (3,)}, a.read, "a", base) for base in ("1", "2")]
    with pytest.raises(ValueError, match="start from different weights"):
        bases[0] + bases[1]


def test_sums_leave_their_terms_alone_and_are_read_as_often_as_asked():
    held = {"w": torch.tensor([1.0, 2.0])}
    a = TaskVector({"w": (2,)}, held.__getitem__, "a", "same")
    for sum_, factor in ((a + a, 2), (a - 2 * a, -1), (-a, -1), (3 * a + a, 4), (a + 2 * a, 3)):
        for _ in (0, 1):
            assert sum_.read("w").tolist() == [factor, 2 * factor]
        assert held["w"].tolist() == [1.0, 2.0]
        assert sum_.base == "same"


def test_a_sum_knows_its_base_where_all_terms_start_from_the_same_weights():
    """The digest covers the changed weights, so it holds only if all change the same ones."""
    one = TaskVector({"w": (1,)}, lambda _: torch.ones(1), "one", "1")
    unknown = TaskVector({"w": (1,)}, lambda _: torch.ones(1), "unknown")
    more = TaskVector({"w": (1,), "x": (1,)}, lambda _: torch.ones(1), "more", "1")
    assert (one + one).base == "1"
    assert (one + unknown).base == (unknown + one).base == ""
    assert (one + more).base == (more + one).base == ""


def test_the_cosine_of_short_vectors_is_that_of_long_ones():
    draw = generator(1, "cosine")
    a, b = (
        TaskVector({"w": (5,)}, {"w": torch.randn(5, generator=draw)}.__getitem__, n) for n in "ab"
    )
    assert (1e-3 * a).norm() < 0.1
    assert (1e-3 * a).cosine(1e-3 * b) == pytest.approx(a.cosine(b), rel=1e-6)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.rotary_emb.inv_freq"])
def test_what_cannot_be_moved_may_stand_still_and_not_change_in_one_entry(name):
    """A weight outside the chosen ones, and a buffer, which is no parameter."""
    base = tiny_llama()
    inside = "model.layers.0.self_attn.q_proj.weight"
    changes = {
        inside: torch.ones(base.get_parameter(inside).shape),
        name: torch.zeros(base.get_parameter(name).shape if "norm" in name else (4,)),
    }
    shapes = {n: tuple(change.shape) for n, change in changes.items()}
    vector = TaskVector(shapes, changes.__getitem__, "by hand")
    space = ParamSpace.select(base, "q_proj")
    vector.space(base)
    assert float(vector.flat(space).sum()) == changes[inside].numel()
    changes[name][1] = 1e-3
    with pytest.raises(ValueError, match="not among the selected parameters"):
        vector.flat(space)
    if "norm" not in name:
        with pytest.raises(ValueError, match="the model has no such parameter"):
            vector.space(base)


def test_an_adapter_that_is_trained_in_part_has_a_direction():
    """One of its weights still has B = 0, and does not change."""
    model = adapted("llama")
    with torch.no_grad():
        zero = next(p for n, p in model.named_parameters() if "lora_B" in n)
        zero.zero_()
    vector = from_adapter(model)
    moved = [bool(vector.read(name).any()) for name in vector.shapes]
    assert moved.count(False) == 1
    assert len(moved) > 1


def test_a_vector_outside_the_space_is_refused():
    base, tuned = tiny_llama(), tiny_llama(seed=1)
    vector = difference(base, tuned)
    with pytest.raises(ValueError, match="which is not among the selected parameters"):
        vector.flat(ParamSpace.select(base, "q_proj"))
    small = TaskVector({"w": (2,)}, lambda _: torch.ones(2), "by hand")
    with pytest.raises(ValueError, match=r"changes w of shape \(2,\), the model has no such"):
        small.space(base)
    wide = TaskVector({"lm_head.weight": (2,)}, lambda _: torch.ones(2), "by hand")
    with pytest.raises(ValueError, match=r"of shape \(2,\), the model has shape \(64, 16\)"):
        wide.space(base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_checkpoint_is_the_sum_and_says_what_rounding_costs(checkpoints, dtype):
    base, _, folder = checkpoints
    base.to(dtype).save_pretrained(folder / "low")
    (folder / "low" / "tokenizer.json").write_text("{}")
    tau = 0.01 * from_checkpoints(folder / "base", folder / "tuned")
    found = save_merged(folder / "low", tau, folder / "sum")
    assert (found.folder / "tokenizer.json").exists()
    again = type(base).from_pretrained(found.folder)
    assert next(again.parameters()).dtype == dtype
    lost = whole = unmoved = asked = 0
    for name, p in again.named_parameters():
        own = base.get_parameter(name).detach()
        change = tau.read(name)
        assert torch.equal(p.detach(), (own.float() + change).to(dtype))
        real = p.detach().double() - own.double()
        lost += float((real - change.double()).square().sum())
        whole += float(change.double().square().sum())
        unmoved += int((real == 0).sum())
        asked += change.numel()
    assert found.rounding == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert found.unmoved == pytest.approx(unmoved / asked)
    low = dtype == torch.bfloat16
    assert (found.rounding > 0.1) == low
    assert (found.unmoved > 0.05) == low


def test_a_merge_that_does_not_fit_writes_nothing(checkpoints):
    _, _, folder = checkpoints
    tau = from_checkpoints(folder / "base", folder / "tuned")
    with pytest.raises(ValueError, match="is the base itself"):
        save_merged(folder / "base", tau, folder / "base")
    with pytest.raises(ValueError, match="is zero: the result would be the base"):
        save_merged(folder / "base", 0 * tau, folder / "zero")
    other = TaskVector({"w": (2,)}, lambda _: torch.ones(2), "by hand")
    with pytest.raises(ValueError, match=r"changes w of shape \(2,\), the base has no such tensor"):
        save_merged(folder / "base", other, folder / "other")
    assert not (folder / "other").exists()
    with pytest.raises(ValueError, match="pass the folder of the model"):
        save_merged(folder / "base" / "model.safetensors", tau, folder / "x")
