"""What a vector does to answers and to text: against whole passes, closed forms and no vector."""

import logging
import math
from contextlib import ExitStack
from functools import partial

import pytest
import torch
from torch import nn
from transformers import (
    CamembertConfig,
    CamembertForCausalLM,
    GenerationConfig,
    MptConfig,
    MptForCausalLM,
)
from transformers.cache_utils import DynamicLayer

from frenet.geometry.rng import generator
from frenet.measure.activations import add
from frenet.measure.forward_passes import run_blocks
from frenet.methods import steering_effect
from frenet.methods.steered_generation import generate_steered, stream_norm
from frenet.methods.steering_effect import (
    Prompted,
    answer_differences,
    answer_directions,
    neutral_cost,
    prefixes,
    prompted,
    steered_differences,
)
from frenet.network.adapters import attach_lora
from frenet.network.blocks import residual_blocks
from frenet.network.data.contrast import Item
from frenet.network.hooks.answer_logits import few_logits
from frenet.network.hooks.sites import Site
from frenet.network.measuring import measuring
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTransformer
from frenet.network.tasks import base_model, collate, forward_arguments
from network.models import OTHERS, tiny_gpt2, tiny_llama, tiny_qwen2

FAMILIES = {"gpt2": tiny_gpt2, "qwen2": tiny_qwen2, "llama": tiny_llama}
PROMPTS = [
    Prompted([5, 9, 3], ([20], [21])),
    Prompted([7, 2, 8, 4, 6, 1], ([20], [21])),
    Prompted([11], ([30], [12])),
]
# Several tokens in both answers, or in one.
SEVERAL = [
    Prompted([5, 9, 3], ([20, 7], [21, 4, 6])),
    Prompted([7, 2, 8, 4, 6, 1], ([20], [21, 4, 6])),
    Prompted([11], ([30, 12], [12, 12])),
]
# Variants that are compared with full passes.
COMPARED = (0, 4)
of_any_answers = pytest.mark.parametrize("prompts", [PROMPTS, SEVERAL], ids=["one", "several"])
VECTORS = torch.randn(5, 16, generator=generator(0, "effect"))


def by_hand(model, prompt, *added):
    """log p(positive) - log p(negative), one full pass for each token.

    ``added``: block, vector and position, which counts the tokens of an answer as new ones.
    """
    end, odds = len(prompt.context) - 1, 0.0
    for sign, answer in zip((1, -1), prompt.answers, strict=True):
        for k, token in enumerate(answer):
            ids = prompt.context + answer[:k]
            places = {"last": (end,), "all": "all", "generated": tuple(range(end, len(ids)))}
            with measuring(model), torch.no_grad(), ExitStack() as stack:
                for block, v, position in added:
                    stack.enter_context(add(model, {Site(block, places[position]): v}))
                logits = run_blocks(model, collate([(ids, [])])).logits[0, -1]
            odds += sign * float(logits.double().log_softmax(-1)[token])
    return odds


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first", [VECTORS, 0 * VECTORS, None])
@pytest.mark.parametrize(("prompts", "lora"), [(PROMPTS, False), (PROMPTS, True), (SEVERAL, True)])
def test_differences_are_those_of_whole_passes(family, first, prompts, lora):
    """Also for several blocks at once, and for a prompt of a single token.

    If no vector is added to the first block, it runs once for all variants.
    """
    model = FAMILIES[family]()
    if lora:
        model = attach_lora(model, rank=2, seed=0)
    plain = [by_hand(model, prompt) for prompt in prompts]
    assert answer_differences(model, prompts, tokens=6).tolist() == pytest.approx(plain, abs=1e-4)
    variants = {1: VECTORS.flip(0)} | ({} if first is None else {0: first})
    found = steered_differences(model, prompts, variants)
    for i, prompt in enumerate(prompts):
        for j in COMPARED:
            added = [(block, v[j], "last") for block, v in variants.items()]
            assert float(found[i, j]) == pytest.approx(by_hand(model, prompt, *added), abs=1e-4)


@pytest.mark.parametrize("family", OTHERS)
@of_any_answers
def test_differences_of_models_that_keep_other_things(family, prompts):
    """Biases by head, recurrent states, windows: a cache with more than keys is not used."""
    model = OTHERS[family]()
    found = steered_differences(model, prompts, {1: VECTORS})
    for i, prompt in enumerate(prompts):
        for j in COMPARED:
            wanted = by_hand(model, prompt, (1, VECTORS[j], "last"))
            assert float(found[i, j]) == pytest.approx(wanted, abs=1e-4)
    plain = [by_hand(model, prompt) for prompt in prompts]
    assert answer_differences(model, prompts).tolist() == pytest.approx(plain, abs=1e-4)


def test_differences_of_one_token_are_those_of_the_logits():
    """To the last bit, from one pass for each prompt and no other logits."""
    model = tiny_llama()
    found = answer_differences(model, PROMPTS, tokens=1)
    tokens = [token for prompt in PROMPTS for answer in prompt.answers for token in answer]
    with measuring(model), torch.no_grad(), few_logits(model, tokens) as column:
        for prompt, value in zip(PROMPTS, found, strict=True):
            logits = run_blocks(model, collate([(prompt.context, [])])).logits[0, -1]
            (first,), (second,) = prompt.answers
            assert float(value) == float(logits[column[first]] - logits[column[second]])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [1, 12, 1000])
def test_differences_depend_on_neither_batch_nor_order_nor_padding(family, tokens):
    model, prompts = FAMILIES[family](), PROMPTS + SEVERAL
    alone = [float(answer_differences(model, [prompt])) for prompt in prompts]
    for order in (list(range(len(prompts))), [4, 0, 2, 5, 3, 1]):
        found = answer_differences(model, [prompts[i] for i in order], tokens=tokens)
        assert found.tolist() == pytest.approx([alone[i] for i in order], abs=1e-4)


def test_the_log_odds_of_all_answers_sum_up_to_one_probability():
    """p(a b) over all b is p(a): log-odds of several tokens are those of probabilities."""
    model, context = tiny_llama(), [5, 9, 3]
    pairs = [Prompted(context, ([20, token], [21])) for token in range(64)]
    odds = answer_differences(model, pairs).double()
    (one,) = answer_differences(model, [Prompted(context, ([20], [21]))]).double()
    assert float(odds.logsumexp(0)) == pytest.approx(float(one), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_added_changes_nothing(family):
    model = FAMILIES[family]()
    found = steered_differences(model, PROMPTS, {1: torch.zeros(3, VECTORS.shape[1])})
    plain = [[by_hand(model, prompt)] * 3 for prompt in PROMPTS]
    torch.testing.assert_close(found, torch.tensor(plain), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("prompts", "position"),
    [(PROMPTS, "last"), (PROMPTS, "all"), (SEVERAL, "last"), (SEVERAL, "generated")],
)
def test_inside_another_vector_differences_are_those_of_whole_passes(family, prompts, position):
    """Also with beginnings cached outside of it, or cached inside and used outside."""
    model, v = FAMILIES[family](), 3 * VECTORS[0]
    outer = (0, v, position)
    wanted = [
        [by_hand(model, prompt, outer, (1, VECTORS[j], "last")) for j in COMPARED]
        for prompt in prompts
    ]
    steered = [by_hand(model, prompt, outer) for prompt in prompts]
    kept, plain = prefixes(model, prompts), steered_differences(model, prompts, {1: VECTORS})
    with add(model, {Site(0, position): v}):
        kept_inside = prefixes(model, prompts)
        for given in (None, kept):
            found = steered_differences(model, prompts, {1: VECTORS}, kept=given)
            compared = found[:, COMPARED]
            torch.testing.assert_close(compared, torch.tensor(wanted), atol=1e-4, rtol=1e-4)
        found = answer_differences(model, prompts, tokens=12)
    assert found.tolist() == pytest.approx(steered, abs=1e-4)
    outside = steered_differences(model, prompts, {1: VECTORS}, kept=kept_inside)
    torch.testing.assert_close(outside, plain, atol=1e-4, rtol=1e-4)


def seeing(module, look):
    """Each call of the module shown to ``look``; no hook, with which whole prompts would run."""
    forward = module.forward

    def shown(x, *args, **kwargs):
        look(x)
        return forward(x, *args, **kwargs)

    module.forward = shown


def test_blocks_before_the_first_vector_run_once():
    """The last token of 5 variants: one row through block 0, five through block 1."""
    model, rows = FAMILIES["llama"](), {}
    kept = prefixes(model, PROMPTS[:1])
    for i, block in enumerate(model.model.layers):
        seeing(block, lambda x, i=i: rows.setdefault(i, []).append(len(x)))
    steered_differences(model, PROMPTS[:1], {0: 0 * VECTORS, 1: VECTORS}, kept=kept)
    assert (rows[0], rows[1]) == ([1], [1])
    steered_differences(model, PROMPTS[:1], {0: VECTORS}, kept=kept)
    assert rows[1][1:] == [len(VECTORS)]


def test_passes_with_the_logits_of_several_tokens_hold_fewer_rows(monkeypatch):
    """A k-th: they have the logits of the whole vocabulary at k columns."""
    monkeypatch.setattr(steering_effect, "TOGETHER", 4)
    model, rows = tiny_llama(), []
    forward_arguments(model)  # asks the model once how it counts positions
    prompts = [Prompted([5, 9 + i, 3], ([20, 7], [21, 4])) for i in range(4)]
    seeing(model.model.layers[1], lambda x: rows.append(len(x)))
    answer_differences(model, prompts, tokens=16)
    assert rows == [2] * 4
    kept = prefixes(model, prompts[:1])
    rows.clear()
    steered_differences(model, prompts[:1], {0: VECTORS}, kept=kept)
    assert max(rows) == 2


@of_any_answers
def test_whole_prompts_run_where_going_on_from_what_is_kept_is_not_right(monkeypatch, prompts):
    model, update = tiny_llama(), DynamicLayer.update

    def forgetful(layer, *args, **kwargs):
        if layer.get_seq_length():
            layer.keys = layer.keys / 2
        return update(layer, *args, **kwargs)

    wanted = steered_differences(model, prompts, {1: VECTORS})
    monkeypatch.setattr(DynamicLayer, "update", forgetful)
    with pytest.warns(RuntimeWarning, match="wrong results with this model: the logits differ"):
        found = steered_differences(model, prompts, {1: VECTORS})
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    with pytest.warns(RuntimeWarning, match="wrong results with this model"):
        kept = prefixes(model, prompts)
    found = steered_differences(model, prompts, {1: VECTORS}, kept=kept)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("heads", [1, 2])
def test_biases_of_heads_are_no_rows_also_where_they_are_as_many(heads):
    """MPT passes its blocks a bias for each head, on the axis that is rows in other models."""
    config = MptConfig(
        vocab_size=64, d_model=16, n_heads=heads, n_layers=3, max_seq_len=32, expansion_ratio=2
    )
    torch.manual_seed(0)
    model = MptForCausalLM(config).eval()
    vectors = VECTORS[:2]
    found = steered_differences(model, PROMPTS, {0: vectors})
    for i, prompt in enumerate(PROMPTS):
        for j, v in enumerate(vectors):
            wanted = by_hand(model, prompt, (0, v, "last"))
            assert float(found[i, j]) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_comes_before_the_last_token_runs_once_and_can_be_kept(family, monkeypatch):
    """Also if the variants go through the network in several parts."""
    monkeypatch.setattr(steering_effect, "TOGETHER", 2)
    model, widths = FAMILIES[family](), []
    forward_arguments(model)  # asks the model once how it counts positions
    seeing(residual_blocks(model)[1][0], lambda x: widths.append(x.shape[1]))
    whole = steered_differences(model, PROMPTS[:2], {0: VECTORS})
    # After one look at how rows run, on the first prompt.
    assert widths == [2, 1, 1, 3, 1, 3, 2, 1, 1, 1, 5, 1, 1, 1]
    kept = prefixes(model, PROMPTS[:2])
    widths.clear()
    for _ in range(2):
        assert torch.equal(steered_differences(model, PROMPTS[:2], {0: VECTORS}, kept=kept), whole)
    assert set(widths) == {1}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_output_head_is_asked_about_the_answers_only(family):
    """Its forward is as it was afterwards, also after an error."""
    model, widths = FAMILIES[family](), []
    head = model.get_output_embeddings()
    model.register_forward_hook(lambda _, args, output: widths.append(output.logits.shape[-1]))
    answer_differences(model, PROMPTS)
    steered_differences(model, PROMPTS, {1: VECTORS})
    answers = {token for prompt in PROMPTS for answer in prompt.answers for token in answer}
    assert set(widths) == {len(answers)}
    with pytest.raises(RuntimeError, match="stop"), few_logits(model, [3]):
        raise RuntimeError("stop")
    assert "forward" not in head.__dict__


@pytest.mark.parametrize("bias", [False, True])
def test_few_logits_are_those_of_all(bias):
    head = nn.Linear(4, 11, bias=bias)
    model, x = nn.Module(), torch.randn(3, 4, generator=generator(0, "few"))
    model.head, model.get_output_embeddings = head, lambda: head
    every = head(x)
    with few_logits(model, [9, 2, 9]) as columns:
        few = head(x)
    assert columns == {2: 0, 9: 1}
    torch.testing.assert_close(few, every[:, [2, 9]])


def test_a_head_that_does_more_than_multiply_is_left_alone():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 3 * super().forward(x)

    model, x = nn.Module(), torch.ones(1, 4)
    model.head = Scaled(4, 11)
    model.get_output_embeddings = lambda: model.head
    every = model.head(x)
    with few_logits(model, [9, 2]) as columns:
        few = model.head(x)
    assert columns == {2: 2, 9: 9}
    assert torch.equal(few, every)


def test_a_model_without_a_cache():
    model = SyntheticTransformer(SyntheticConfig(width=16))
    prompts = [
        Prompted([11, 1, 2, 3, 4, 5, 6, 10], ([1], [0])),
        Prompted([12, 9, 9, 3, 1, 0, 6, 10], ([2, 7], [3, 1, 1])),
    ]
    found = steered_differences(model, prompts, {1: VECTORS})
    for i, prompt in enumerate(prompts):
        for j, v in enumerate(VECTORS):
            wanted = by_hand(model, prompt, (1, v, "last"))
            assert float(found[i, j]) == pytest.approx(wanted, abs=1e-4)


class Linear(nn.Module):
    """h = e, logits = W h: all values are known."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embed = nn.Embedding(12, 3)
            self.layers = nn.ModuleList([nn.Linear(3, 3, bias=False)])
            self.head = nn.Linear(3, 12, bias=False)
        with torch.no_grad():
            self.layers[0].weight.copy_(torch.eye(3))

    def forward(self, input_ids):
        from frenet.network.synthetic.model import Output

        return Output(self.head(self.layers[0](self.embed(input_ids))))


def test_the_effect_on_a_linear_model_is_the_closed_form():
    """(w_a - w_b).(h + v), whose derivative in v is w_a - w_b at every prompt."""
    model, prompts = Linear(), [Prompted([3, 1], ([4], [5])), Prompted([2, 7], ([4], [5]))]
    W = model.head.weight.detach()
    v = torch.randn(4, 3, generator=generator(0, "v"))
    found = steered_differences(model, prompts, {0: v})
    for i, prompt in enumerate(prompts):
        h = model.embed.weight[prompt.context[-1]].detach()
        torch.testing.assert_close(found[i], (h + v) @ (W[4] - W[5]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 8, 9, 50])
def test_the_direction_of_each_answer_is_the_row_of_the_head_of_its_first_token(count):
    """Also if either letter may be the positive one, as in choices."""
    model = Linear()
    both = ([4], [5, 9])
    prompts = [Prompted([3, i % 7], both if i % 2 else both[::-1]) for i in range(count)]
    W = model.head.weight.detach()
    torch.testing.assert_close(answer_directions(model, prompts), W[[4, 5]], atol=1e-6, rtol=1e-5)


def test_directions_are_looked_at_in_both_classes():
    """Statements come class by class: the second half must have its part."""
    model, seen = Linear(), []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    answer_directions(model, [Prompted([3, int(i > 4)], ([4], [5])) for i in range(10)])
    last = [int(kwargs["input_ids"][0, -1]) for kwargs in seen[1:]]
    assert sorted(set(last)) == [0, 1]


def test_the_cost_on_a_linear_model_is_the_closed_form():
    model = Linear()
    rows, v = [([3], [1, 8, 0]), ([2], [7])], torch.tensor([0.3, -0.2, 0.5])
    (cost, nothing) = neutral_cost(
        model, rows,
        [partial(add, model, {Site(0, "all"): x}) for x in (v, torch.zeros(3))], tokens=4,
    )  # fmt: skip
    W, e = model.head.weight.detach(), model.embed.weight.detach()
    kl = nats = before = 0.0
    steps = [(3, 1), (1, 8), (8, 0), (2, 7)]
    for given, target in steps:
        p, q = ((W @ (e[given] + x)).log_softmax(-1) for x in (torch.zeros(3), v))
        kl += float((p.exp() * (p - q)).sum()) / len(steps)
        nats -= float(q[target]) / len(steps)
        before -= float(p[target]) / len(steps)
    assert cost.kl == pytest.approx(kl, rel=1e-4)
    assert cost.perplexity == pytest.approx(math.exp(nats), rel=1e-4)
    assert cost.before == pytest.approx(math.exp(before), rel=1e-4)
    assert nothing.kl == pytest.approx(0, abs=1e-7)
    assert nothing.perplexity == pytest.approx(cost.before, rel=1e-6)


def test_no_loss_is_computed_for_the_cost():
    model, losses = tiny_llama(), []
    model.register_forward_hook(lambda _, args, output: losses.append(output.loss))
    neutral_cost(model, [([5, 9], [3, 7]), ([2], [8])], [lambda: add(model, {Site(1): VECTORS[0]})])
    assert losses == [None, None]


def test_items_without_answers_have_no_effect_to_measure():
    pair = Item("one of two", [], ([5], [6]), None, 3)
    with pytest.raises(ValueError, match=r"'one of two' \(line 3\) has no answers"):
        prompted([pair])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("position", ["last", "generated", "all"])
def test_steered_text_is_that_of_one_at_a_time(family, position):
    """In one batch as alone, and without a vector as transformers generates."""
    model, prompt = FAMILIES[family](), [5, 9, 3, 7]
    added = torch.stack([torch.zeros(16), 8 * VECTORS[0], -8 * VECTORS[0]])
    together = generate_steered(model, prompt, added, block=1, position=position, new_tokens=4)
    alone = [
        generate_steered(model, prompt, v[None], block=1, position=position, new_tokens=4)[0]
        for v in added
    ]
    assert together == alone
    ids = torch.tensor([prompt])
    plain = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4,
        pad_token_id=0,
    )[0, 4:].tolist()  # fmt: skip
    end = model.generation_config.eos_token_id
    assert together[0] == plain[: plain.index(end) if end in plain else None]
    assert len({tuple(text) for text in together}) > 1


@pytest.mark.parametrize("lora", [False, True])
def test_steered_text_is_greedy_whatever_the_models_settings_are(lora, caplog, monkeypatch):
    """By hand: the largest logit, token by token, and without a warning about the settings."""
    prompt, model = [5, 9, 3, 7], tiny_gpt2()
    ids, new = list(prompt), 8
    with measuring(model), torch.no_grad():
        for _ in range(new):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    greedy = ids[len(prompt) :]
    ask = partial(generate_steered, block=1, new_tokens=new)
    assert ask(model, prompt, torch.zeros(1, 16)) == [greedy]
    own = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.8, top_k=5, num_beams=3, repetition_penalty=9.0,
        no_repeat_ngram_size=1, suppress_tokens=greedy, min_new_tokens=3, length_penalty=2.0,
    )  # fmt: skip
    if lora:
        model = attach_lora(model, rank=2, seed=0)
    base_model(model).generation_config = own
    before = own.to_dict()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert ask(model, prompt, torch.zeros(1, 16)) == [greedy]
    assert caplog.messages == []
    with pytest.raises(ValueError, match="no block 7"):
        generate_steered(model, prompt, torch.zeros(1, 16), block=7, new_tokens=new)
    assert base_model(model).generation_config is own
    assert own.to_dict() == before
    own.eos_token_id = greedy[2]
    assert ask(model, prompt, torch.zeros(1, 16)) == [greedy[: greedy.index(greedy[2])]]


def whole_passes(model, prompt, v, new):
    """Greedy tokens by whole passes, with v added from the last token of the prompt on."""
    ids = list(prompt)
    for _ in range(new):
        place = torch.arange(len(ids))[None] >= len(prompt) - 1
        with measuring(model), torch.no_grad(), add(model, {Site(1, place): v}):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_text_is_generated_without_a_cache_that_changes_it(monkeypatch):
    """The fast way is compared with whole passes once, and then left alone."""
    update, prompt = DynamicLayer.update, [5, 9, 3, 7]

    def forgetful(layer, keys, values, *args, **kwargs):
        if layer.get_seq_length():
            layer.values = layer.values / 2
        return update(layer, keys, values, *args, **kwargs)

    monkeypatch.setattr(DynamicLayer, "update", forgetful)
    model = tiny_llama()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    v = 8 * VECTORS[0]
    with pytest.warns(RuntimeWarning, match="LlamaForCausalLM has other logits .* more slowly"):
        found = generate_steered(model, prompt, v[None], block=1, new_tokens=6)
    assert found == [whole_passes(model, prompt, v, 6)]
    assert generate_steered(model, prompt, v[None], block=1, new_tokens=6) == found


def test_text_is_refused_if_generate_has_other_logits_than_the_forward_pass():
    """generate counts positions from 0, and CamemBERT from behind its padding."""
    config = CamembertConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=40, pad_token_id=1, is_decoder=True,
        initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = CamembertForCausalLM(config).eval()
    with pytest.raises(ValueError, match="logits of CamembertForCausalLM in generate differ"):
        generate_steered(model, [5, 9, 3, 7], VECTORS[:1], block=0, new_tokens=3)


def test_prompts_that_cannot_be_gone_on_with():
    model = tiny_gpt2()
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        generate_steered(model, [], VECTORS[:1], block=0)
    with pytest.raises(ValueError, match="the prompt has 32 tokens, the model reads 32"):
        generate_steered(model, [5] * 32, VECTORS[:1], block=0)
    with pytest.warns(RuntimeWarning, match="30 of the 32 tokens .* at most 2 new tokens .* not 9"):
        found = generate_steered(model, [5] * 30, VECTORS[:1], block=0, new_tokens=9)
    assert len(found[0]) <= 2
    assert len(generate_steered(model, [5] * 30, VECTORS[:1], block=0, new_tokens=2)[0]) <= 2
    for longer in ([[5], [5] * 33], [[5] * 33, [*[5] * 32, 4], [*[5] * 32, 3]]):
        with pytest.raises(ValueError, match="a text of 33 tokens is longer than the 32"):
            stream_norm(model, longer, 0)
    prompts = [Prompted([5] * 33, ([1], [2]))]
    with pytest.raises(ValueError, match="a text of 33 tokens is longer than the 32"):
        answer_differences(model, prompts)
    # The last token alone, after 32 cached ones.
    with pytest.raises(ValueError, match="a text of 33 tokens is longer than the 32"):
        steered_differences(model, prompts, {0: VECTORS})


def test_the_stream_norm_is_the_root_mean_square():
    model = Linear()
    e = model.embed.weight.detach()
    wanted = float((e[[1, 7]].square().sum(1).mean()).sqrt())
    assert stream_norm(model, [[3, 1], [2, 7]], 0) == pytest.approx(wanted, rel=1e-5)
