"""Steering vectors: by hand, planted, added up, on disk."""

import dataclasses
import math

import pytest
import torch

from frenet.geometry.alignment import Contrasted, cosine
from frenet.geometry.rng import generator
from frenet.measure.activation_shift import activation_shift
from frenet.measure.activations import add
from frenet.measure.forward_passes import run_blocks
from frenet.methods.steering import (
    caa,
    contrast_streams,
    gradient_shift,
    group_shifts,
    principal_difference,
    push_gradient,
    push_items,
    shifted_prompts,
)
from frenet.methods.steering_vector import (
    Advised,
    SteeringVector,
    load_vector,
    save_control_vector,
    save_vector,
)
from frenet.methods.vector_reliability import known
from frenet.network.adapters import attach_lora
from frenet.network.data.contrast import Contrast, Item
from frenet.network.hooks.sites import Site
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.tasks import collate
from network.models import tiny_gpt2, tiny_llama, tiny_qwen2

FAMILIES = {"gpt2": tiny_gpt2, "qwen2": tiny_qwen2, "llama": tiny_llama}
YES, NO = 20, 21


def item(context, label, *, line=1):
    sides = [*context, YES], [*context, NO]
    return Item("text", context, sides, label, line)


STATEMENTS = Contrast(
    "told", "statements", ("yes", "no"),
    tuple(item([5 + i, 9, 3, *range(i)], i % 2 == 0) for i in range(8)),
)  # fmt: skip
CHOICES = dataclasses.replace(
    STATEMENTS, kind="choices", items=tuple(i._replace(label=None) for i in STATEMENTS.items)
)
PAIRS = Contrast(
    "texts", "pairs", (),
    tuple(Item("t", [], ([5, 9, i], [7, 2, 8, i]), None, i) for i in range(4, 8)),
)  # fmt: skip


def by_hand(model, rows, block):
    """Mean of the stream at the last token, one row at a time, from transformers."""
    with torch.no_grad():
        states = [
            model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
            for ids in rows
        ]
    return torch.stack([s[block + 1][0, -1] for s in states]).mean(0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [1, 1000])
def test_caa_is_the_mean_difference_by_hand(family, tokens):
    model = FAMILIES[family]()
    for contrast, form, sides in (
        (STATEMENTS, "class", [[i.context for i in STATEMENTS.of_class(c)] for c in (True, False)]),
        (STATEMENTS, "answer", [[i.sides[s] for i in STATEMENTS.items] for s in (0, 1)]),
        (CHOICES, None, [[i.sides[s] for i in CHOICES.items] for s in (0, 1)]),
        (PAIRS, None, [[i.sides[s] for i in PAIRS.items] for s in (0, 1)]),
    ):
        wanted = by_hand(model, sides[0], 0) - by_hand(model, sides[1], 0)
        found = contrast_streams(model, contrast, [0], form=form, tokens=tokens).at(0)
        torch.testing.assert_close(found.difference().float(), wanted, atol=1e-5, rtol=1e-4)
        vector = caa(model, contrast, blocks=[0], form=form)
        torch.testing.assert_close(vector.at(0), wanted, atol=1e-5, rtol=1e-4)


def test_the_contrast_of_case_s1():
    """Pairs (a, c), (b, a) whatever the number of rows in a batch."""
    a, b, c = [5, 9, 3], [7, 2, 8, 4, 6, 1], [11]
    pairs = Contrast("s1", "pairs", (), tuple(Item("", [], s, None, 1) for s in ((a, c), (b, a))))
    for make in (tiny_gpt2, tiny_qwen2):
        model = make()
        wanted = (by_hand(model, [a, b], 1) - by_hand(model, [c, a], 1)).double()
        for tokens in (1, 6, 12, 100):
            found = contrast_streams(model, pairs, [1], tokens=tokens).at(0).difference()
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_forms_that_do_not_apply():
    with pytest.raises(ValueError, match=r"have no class \(they are pairs\); pass form"):
        contrast_streams(tiny_gpt2(), PAIRS, [0], form="class")
    with pytest.raises(ValueError, match="pairs of contrast 'texts' have no answer to push tow"):
        push_items(PAIRS)
    with pytest.raises(ValueError, match="questions of contrast 'told' have no class to flip"):
        push_items(CHOICES, flipped=True)


def test_a_direction_that_is_zero_after_every_block_is_refused():
    contrast = Contrast("c", "statements", ("y", "n"), (item([1, 2], True), item([3, 2], False)))
    zero = torch.zeros_like
    with pytest.raises(ValueError, match="'c' have the same mean stream after every block"):
        caa(tiny_llama(), contrast, aggregate=lambda found: zero(found.difference()))


def test_the_principal_component_of_paired_differences():
    """Differences c_i v with random c_i: v up to sign, which is that of the mean."""
    v = torch.randn(7, generator=generator(0, "v")).double()
    c = torch.tensor([2.0, -1, 3, 0.5]).double()
    base = torch.randn(4, 7, generator=generator(0, "b")).double()
    found = principal_difference(Contrasted(base + c[:, None] * v, base, True))
    torch.testing.assert_close(found, v * c.mean(), atol=1e-9, rtol=1e-9)
    with pytest.raises(ValueError, match="4 positive and 3 negative streams make no pairs"):
        principal_difference(Contrasted(base, base[:3]))


def test_prompts_that_are_pushed_and_shifted():
    positive = [i.context for i in STATEMENTS.of_class(True)]
    negative = [i.context for i in STATEMENTS.of_class(False)]
    assert push_items(STATEMENTS) == [(c, [YES]) for c in positive]
    assert push_items(STATEMENTS, towards=False) == [(c, [NO]) for c in negative]
    assert push_items(STATEMENTS, flipped=True) == [(c, [YES]) for c in negative]
    assert push_items(STATEMENTS, towards=False, flipped=True) == [(c, [NO]) for c in positive]
    assert push_items(CHOICES, towards=False) == [(i.context, [NO]) for i in CHOICES.items]
    assert shifted_prompts(STATEMENTS) == negative
    assert shifted_prompts(CHOICES) == [i.context for i in CHOICES.items]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("answers", [[[YES]], [[YES, 3, 30], [NO, 4]]])
def test_the_gradient_is_that_of_the_mean_loss(family, answers):
    """The gradient of the sum over single tokens, for any batches; .grad stays empty."""
    model = FAMILIES[family]()
    space = ParamSpace.select(model)
    contexts = [context for context, _ in push_items(STATEMENTS)]
    prompts = [(context, answers[i % len(answers)]) for i, context in enumerate(contexts)]
    found = push_gradient(model, prompts, space=space, tokens=9)
    total = torch.zeros(space.dim)
    for context, answer in prompts:
        for k, token in enumerate(answer):
            with measuring(model, space), torch.enable_grad():
                ids = torch.tensor([context + answer[:k]])
                logits = model(input_ids=ids).logits[0, -1]
                (-logits.log_softmax(-1)[token] / len(prompts)).backward()
                total += space.flatten(
                    {n: p.grad for n, p in zip(space.names, space.parameters(model), strict=True)}
                )
    torch.testing.assert_close(found, total, atol=1e-5, rtol=1e-3)
    assert all(p.grad is None for p in model.parameters())


def test_shifts_by_groups_add_up_to_that_of_the_whole_step():
    """8 prompts in groups of 3, 3 and 2; with more groups than prompts each is one."""
    model = tiny_llama()
    space = ParamSpace.select(model, lambda _, p: p.is_floating_point())
    prompts, rows = push_items(CHOICES), shifted_prompts(STATEMENTS)
    whole = activation_shift(
        model, rows, -push_gradient(model, prompts, space=space), space=space, blocks=[0, 1]
    )
    for groups, counts in ((3, [3.0, 3.0, 2.0]), (20, [1.0] * 8)):
        each, sizes = group_shifts(model, prompts, rows, space=space, blocks=[0, 1], groups=groups)
        assert sizes.tolist() == counts
        mean = torch.einsum("g,gmlh->mlh", sizes / 8, each)
        torch.testing.assert_close(mean, whole, rtol=1e-3, atol=1e-5)


def test_the_shift_of_an_adapter_moves_its_zero_half_only():
    """At B = 0 the gradient of A is zero, and the shift is that of B's step."""
    model = attach_lora(tiny_gpt2(), rank=2, seed=0)
    space = ParamSpace.select(model)
    g = push_gradient(model, push_items(STATEMENTS), space=space)
    parts = space.unflatten(g)
    assert not any(part.any() for name, part in parts.items() if "lora_A" in name)
    assert any(part.any() for name, part in parts.items() if "lora_B" in name)
    rows = shifted_prompts(STATEMENTS)
    found = gradient_shift(model, STATEMENTS, rows, space=space, blocks=[2])
    wanted = activation_shift(model, rows, -g, space=space, blocks=[2]).mean(0)[0]
    torch.testing.assert_close(found.at(2), wanted)


def test_a_step_towards_an_answer_makes_it_likelier():
    model = tiny_llama()
    space = ParamSpace.select(model)
    prompts = push_items(STATEMENTS)
    g = push_gradient(model, prompts, space=space)

    def loss():
        with measuring(model), torch.no_grad():
            return [
                float(-run_blocks(model, collate([(c, [])])).logits[0, -1].log_softmax(-1)[a[0]])
                for c, a in prompts
            ]

    before = sum(loss()) / len(prompts)
    size = 1e-4
    with space.displaced(model, -size * g):
        after = sum(loss()) / len(prompts)
    assert before - after == pytest.approx(size * float(g @ g), rel=0.05)


def test_a_planted_direction_is_recovered():
    """Embeddings of the positive class are moved by v; the stream after block 0 follows."""
    model = tiny_llama()
    v = torch.randn(16, generator=generator(0, "planted"))
    with torch.no_grad():
        for block in model.model.layers:  # blocks that do not change the stream
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight[30:40] += 40 * v
    rows = [item([5, 9, token], token >= 30) for token in (*range(30, 40), *range(40, 50))]
    planted = Contrast("planted", "statements", ("yes", "no"), tuple(
        i._replace(label=j < 10) for j, i in enumerate(rows)
    ))  # fmt: skip
    assert cosine(caa(model, planted, blocks=[1]).at(1), v) > 0.99


def vector(seed=0, blocks=(1, 2), **changes):
    directions = {b: torch.randn(5, generator=generator(seed, "v", str(b))) for b in blocks}
    return SteeringVector(directions, "by hand", "model", "data", **changes)


def test_arithmetic():
    a, b = vector(0), vector(1, blocks=(2, 3))
    torch.testing.assert_close((a + b).at(2), a.at(2) + b.at(2))
    torch.testing.assert_close((2 * a - b).at(2), 2 * a.at(2) - b.at(2))
    torch.testing.assert_close((-a * 3).at(1), -3 * a.at(1))
    assert (a + b).blocks == (2,)
    assert a.cosine(-2 * a) == pytest.approx({1: -1, 2: -1})
    assert a.cosine(b)[2] == pytest.approx(cosine(a.at(2), b.at(2)))
    with pytest.raises(ValueError, match=r"share no block: one has \(1, 2\), the other \(7,\)"):
        a + vector(blocks=(7,))
    wide = SteeringVector({1: torch.zeros(9)}, "by hand")
    with pytest.raises(ValueError, match="different models: 5 entries of model, 9 of an unknown"):
        a.cosine(wide)
    other = dataclasses.replace(a, model="another")
    with pytest.raises(ValueError, match=r"different weights: model and another; .* same --dtype"):
        a - other
    with pytest.raises(ValueError, match="no direction for block 5; it has 1, 2"):
        a.at(5)


def test_a_vector_comes_back_from_disk(tmp_path):
    a = vector()
    again = load_vector(save_vector(a, tmp_path / "deep" / "v.safetensors"))
    assert (again.origin, again.model, again.data) == (a.origin, a.model, a.data)
    assert again.blocks == a.blocks
    assert all(torch.equal(again.at(b), a.at(b)) for b in a.blocks)


def test_norms_and_advice_come_back_from_disk_and_leave_with_arithmetic(tmp_path):
    a = vector(norms={1: 2.5, 2: 3.0}, advised=Advised(2, 0.3))
    for path in (
        save_vector(a, tmp_path / "v.safetensors"),
        save_control_vector(a, tmp_path / "v.gguf", architecture="llama"),
    ):
        again = load_vector(path)
        assert (again.norms, again.advised) == (a.norms, a.advised)
    for other in (2 * a, -a, a + a, a - 0.5 * a):
        assert (other.norms, other.advised) == (a.norms, None)
    assert a.use() == a.advised
    assert a.use(1, -0.5) == (1, -0.5)
    with pytest.raises(ValueError, match="no advised dose for block 1; pass one"):
        a.use(1)
    with pytest.raises(ValueError, match=r"several blocks \(1, 2\); pass one as block"):
        (2 * a).use(dose=0.3)
    with pytest.raises(ValueError, match="dose inf is not finite"):
        a.use(dose=math.inf)


def test_norms_are_those_of_the_streams_that_were_read():
    model = tiny_llama()
    for made in (
        caa(model, STATEMENTS),
        gradient_shift(
            model, STATEMENTS, [i.context for i in STATEMENTS.items], space=ParamSpace.select(model)
        ),
    ):
        # Transformers shows the last block's stream behind the final norm.
        norms = torch.stack([by_hand(model, [i.context], 0) for i in STATEMENTS.items]).norm(dim=1)
        assert made.norms[0] == pytest.approx(float(norms.square().mean().sqrt()), rel=1e-5)
        assert set(made.norms) == {0, 1}


@pytest.mark.parametrize("dose", [0.5, -0.25])
def test_an_applied_vector_adds_its_dose_of_the_streams_norm(dose):
    """At every token of a pass: the stream moves by dose x norm along the direction."""
    model = tiny_llama()
    direction = torch.randn(16, generator=generator(0, "applied"))
    a = SteeringVector({1: direction}, "by hand", norms={1: 4.0})
    ids = torch.tensor([[5, 9, 3, 7]])

    def stream():
        with torch.no_grad():
            return model(input_ids=ids, output_hidden_states=True).logits

    before = stream()
    with a.applied(model, dose=dose, position="all"):
        inside = stream()
    moved = dose * 4.0 * direction / direction.norm()
    with torch.no_grad(), add(model, {Site(1, "all"): moved}):
        expected = model(input_ids=ids).logits
    torch.testing.assert_close(inside, expected)
    assert not torch.allclose(inside, before)
    assert torch.equal(stream(), before)
    with a.applied(model, dose=dose):
        # Only the last token of a prompt is a site of new tokens.
        torch.testing.assert_close(stream()[0, :-1], before[0, :-1])


def test_a_vector_that_has_no_dose_is_not_applied():
    model = tiny_llama()
    for bad, words in (
        (SteeringVector({1: torch.ones(16)}, "x"), "the norm of the stream after block 1 is not"),
        (SteeringVector({1: torch.zeros(16)}, "x", norms={1: 1.0}), "block 1 is zero"),
        (SteeringVector({1: torch.ones(9)}, "x", norms={1: 1.0}), "belongs to another model"),
    ):
        with pytest.raises(ValueError, match=words), bad.applied(model, dose=0.3):
            model(input_ids=torch.tensor([[5, 9]]))


def test_a_control_vector_comes_back_from_gguf(tmp_path):
    """Read with the gguf package as llama.cpp reads it: direction.l, float32, no layer 0."""
    gguf = pytest.importorskip("gguf")
    a = vector(blocks=(0, 1, 4))
    path = save_control_vector(a, tmp_path / "v.gguf", architecture="qwen2")
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "qwen2"
    assert {t.name: tuple(t.shape) for t in reader.tensors} == {
        "direction.1": (5,),
        "direction.4": (5,),
    }
    again = load_vector(path)
    assert again.blocks == (1, 4)
    assert all(torch.equal(again.at(b), a.at(b)) for b in again.blocks)
    assert again.origin == a.origin


def test_what_is_no_vector(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_vector(tmp_path / "none.safetensors")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="does not start with the bytes GGUF"):
        load_vector(bad)
    text = tmp_path / "v.txt"
    text.write_text("1 2 3")
    with pytest.raises(ValueError, match="is no steering vector; pass a"):
        load_vector(text)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"12")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_vector(broken)
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match="is not a steering vector from frenet"):
        load_vector(other)
    with pytest.raises(ValueError, match="a direction for block 0 only"):
        save_control_vector(vector(blocks=(0,)), tmp_path / "v.gguf", architecture="llama")
    bad_vector = SteeringVector({1: torch.tensor([1.0, math.nan])}, "x")
    with pytest.raises(ValueError, match="direction for block 1 is not finite"):
        save_vector(bad_vector, tmp_path / "nan.safetensors")


def test_a_vector_of_another_model_is_refused():
    model = tiny_llama()
    vector(blocks=(1,)).require_fits(model, "model")
    with pytest.raises(ValueError, match="was made for the model model, this one is other"):
        vector().require_fits(model, "other")
    with pytest.raises(ValueError, match="direction for block 2; this model has blocks 0 to 1"):
        vector().require_fits(model, "model")


def test_a_mean_difference_beside_its_nulls():
    """A planted difference is longer than shuffled ones; without labels it is not."""
    model = tiny_qwen2()
    contrast = Contrast("c", "statements", ("yes", "no"), tuple(
        item([5, 9, token], token < 18) for token in range(4, 32)
    ))  # fmt: skip
    streams = contrast_streams(model, contrast, [1])
    found = caa(model, contrast, blocks=[1])
    (quality,) = known(found, streams, [1])
    assert quality.cosine == pytest.approx(1, abs=1e-5)
    assert quality.null < 1
    moved = streams._replace(positive=streams.positive + 5)
    (planted,) = known(found, moved, [1])
    assert planted.difference > planted.shuffled
    assert planted.halves > quality.halves


def test_vectors_are_those_of_steering_vectors():
    """Of the package of that name, on the same pairs."""
    steering = pytest.importorskip("steering_vectors")
    from network.models import tiny_tokenizer

    tokenizer, model = tiny_tokenizer(), tiny_llama()
    tokenizer.pad_token = tokenizer.eos_token
    texts = [("i agree with it", "no"), ("yes", "i do not"), ("it is so", "it is 9")]
    theirs = steering.train_steering_vector(
        model, tokenizer, texts, read_token_index=-1, show_progress=False
    )
    pairs = Contrast("texts", "pairs", (), tuple(
        Item(a, [], (tokenizer(a)["input_ids"], tokenizer(b)["input_ids"]), None, 1)
        for a, b in texts
    ))  # fmt: skip
    ours = caa(model, pairs)
    for block in ours.blocks:
        assert cosine(ours.at(block), theirs.layer_activations[block]) > 0.9999
