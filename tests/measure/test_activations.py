"""The stream at a site is transformers' own, whatever the padding, the cache or the adapter."""

import itertools

import pytest
import torch
from torch import nn
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

from frenet.geometry.rng import generator
from frenet.measure import activations
from frenet.measure.activation_shift import activation_shift
from frenet.measure.activations import add, last_activations, record
from frenet.measure.forward_passes import ending_after, run_blocks
from frenet.network.adapters import attach_lora
from frenet.network.blocks import residual_blocks
from frenet.network.hooks.sites import Site
from frenet.network.measuring import measuring
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTransformer
from frenet.network.tasks import collate
from network.models import EOS, OTHERS, tiny_gpt2, tiny_llama, tiny_qwen2
from oracles import finite_shift

FAMILIES = {"gpt2": tiny_gpt2, "qwen2": tiny_qwen2, "llama": tiny_llama}
ROWS = [[5, 9, 3], [7, 2, 8, 4, 6, 1], [11], [3, EOS, 5, EOS]]
families = pytest.mark.parametrize("family", FAMILIES)


def decoder(model):
    return model.model if hasattr(model, "model") else model.transformer


def blocks_of(model):
    inner = decoder(model)
    return inner.layers if hasattr(inner, "layers") else inner.h


def own_hidden_states(model, ids):
    """Of transformers, after each block; the last ones are after the final norm."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[1:]


def final_norm(model):
    inner = decoder(model)
    return inner.norm if hasattr(inner, "norm") else inner.ln_f


@families
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tokens", [1, 12, 1000])
def test_streams_are_those_of_transformers(family, side, tokens):
    """Case S1: alone, in batches of any size, padded on either side, in any order; EOS is text."""
    model = FAMILIES[family]()
    count = len(blocks_of(model))
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        rows = [ROWS[i] for i in order]
        found = last_activations(model, rows, range(count), padding_side=side, tokens=tokens)
        for values, ids in zip(found, rows, strict=True):
            own = own_hidden_states(model, ids)
            for block in range(count - 1):
                torch.testing.assert_close(values[block], own[block][0, -1], atol=1e-5, rtol=1e-5)
            last = final_norm(model)(values[-1])
            torch.testing.assert_close(last, own[-1][0, -1], atol=1e-5, rtol=1e-5)


@families
def test_a_manual_path_finds_the_same_blocks(family):
    model = FAMILIES[family]()
    path = next(n for n, m in model.named_modules() if m is blocks_of(model))
    here = last_activations(model, ROWS, [0])
    assert torch.equal(last_activations(model, ROWS, [0], path=path), here)
    with pytest.raises(ValueError, match=rf"no module list 'x'.*its module lists are: {path}"):
        last_activations(model, ROWS, [0], path="x")


@families
@pytest.mark.parametrize("lora", [False, True])
def test_nothing_behind_the_last_asked_block_runs(family, lora):
    """Streams and their derivatives alike; hooks go, and what others raise comes through."""
    model = FAMILIES[family]()
    if lora:
        model = attach_lora(model, rank=2, seed=0)
    ran, blocks = [], residual_blocks(model)[1]
    handle = blocks[1].register_forward_hook(lambda *_: ran.append(1))
    space = ParamSpace.select(model)
    step = torch.randn(space.dim, generator=generator(0, "step"))
    one = last_activations(model, ROWS, [0])
    shift = activation_shift(model, ROWS, step, space=space, blocks=[0])
    assert not ran
    handle.remove()
    both = last_activations(model, ROWS, [0, 1])
    torch.testing.assert_close(one[:, 0], both[:, 0])
    shifts = activation_shift(model, ROWS, step, space=space, blocks=[1, 0])
    torch.testing.assert_close(shift[:, 0], shifts[:, 1])
    assert not any(block._forward_hooks for block in blocks)
    with pytest.raises(RuntimeError, match="ours"), ending_after(model, [0]):
        raise RuntimeError("ours")


PAIRED = [[5, 9, 3], [7, 2], [5, 9, 4], [11], [7, 8], [6, 6, 6, 6], [5, 9, 3], [11], [7, 2, 1]]


@families
@pytest.mark.parametrize("tokens", [1, 12, 1000])
@pytest.mark.parametrize("lora", [False, True])
def test_what_several_rows_begin_with_runs_once(family, tokens, lora, monkeypatch):
    """[5, 9] before its three ends, [7] before two; the streams are those of single rows."""
    model = FAMILIES[family]()
    if lora:
        model = attach_lora(model, rank=2, seed=0)
    alone = torch.cat([last_activations(model, [row], [0, 1]) for row in PAIRED])
    ran = []

    def counted(model, batch, **cache):
        ran.append(int(batch["attention_mask"][:, -batch["input_ids"].shape[1] :].sum()))
        return run_blocks(model, batch, **cache)

    monkeypatch.setattr(activations, "run_blocks", counted)
    found = last_activations(model, PAIRED, [0, 1], tokens=tokens)
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
    assert sum(ran) == sum(map(len, PAIRED)) - 2 * 2 - 1
    first = last_activations(model, PAIRED, [0], tokens=tokens)
    torch.testing.assert_close(first, alone[:, :1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("tokens", [12, 1000])
def test_what_rows_share_in_models_that_keep_other_things(family, tokens):
    model = OTHERS[family]()
    alone = torch.cat([last_activations(model, [row], [0, 1]) for row in PAIRED])
    found = last_activations(model, PAIRED, [0, 1], tokens=tokens)
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)


@families
def test_rows_run_whole_where_something_is_added_to_them(family):
    model, v = FAMILIES[family](), UNIT * 3
    with add(model, {Site(0): v}):
        alone = torch.cat([last_activations(model, [row], [0, 1]) for row in PAIRED])
        found = last_activations(model, PAIRED, [0, 1])
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, last_activations(model, PAIRED, [0, 1]), atol=1e-2)


def test_positions():
    """Counted over the real tokens, from either end; padding is never part of a site."""
    model, batch = tiny_gpt2(), collate([(ROWS[0], []), (ROWS[1], [])])
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 4], mask[1, 1] = True, True
    wanted = {
        "last": [(0, 2), (1, 5)],
        "all": [(0, 0), (0, 1), (0, 2), *((1, i) for i in range(6))],
        (0, -2): [(0, 0), (0, 1), (1, 0), (1, 4)],
        mask: [(0, 1), (1, 1)],
    }
    sites = {Site(1, position): where for position, where in wanted.items()}
    alone = [own_hidden_states(model, ids)[1][0] for ids in ROWS[:2]]
    with measuring(model), torch.no_grad(), record(model, list(sites)) as seen:
        run_blocks(model, batch)
    for site, where in sites.items():
        own = torch.stack([alone[row][column] for row, column in where])
        torch.testing.assert_close(seen[site], own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("position", "match"),
    [
        ((3,), "row 0 has 3 tokens, so there is no position 3"),
        ((-4,), "row 0 has 3 tokens, so there is no position -4"),
        (torch.ones(1, 2).bool(), r"mask of a site has shape \(1, 2\), the prompts \(2, 6\)"),
    ],
)
def test_positions_that_are_not_there(position, match):
    model, batch = tiny_gpt2(), collate([(ROWS[0], []), (ROWS[1], [])])
    with pytest.raises(ValueError, match=match), record(model, [Site(1, position)]):
        run_blocks(model, batch)


def test_a_mask_that_hides_the_padding_is_refused():
    model = tiny_gpt2()
    additive = torch.zeros(1, 1, 3, 3)
    with (
        pytest.raises(ValueError, match=r"is no \(batch, tokens\) mask"),
        record(model, [Site(0)]),
    ):
        model(input_ids=torch.tensor([ROWS[0]]), attention_mask=additive)


UNIT = torch.eye(16)[0]


def test_adding_at_one_position_of_one_block():
    """Case S4 (a): earlier blocks and other positions of the same block are as they were."""
    model, ids = tiny_gpt2(), torch.tensor([[5, 9, 3, 7]])
    sites = [Site(block, "all") for block in range(3)]
    with torch.no_grad():
        with record(model, sites) as before:
            plain = model(input_ids=ids).logits
        with add(model, {Site(1, (2,)): UNIT}), record(model, sites) as after:
            steered = model(input_ids=ids).logits
    assert torch.equal(before[sites[0]], after[sites[0]])
    moved = after[sites[1]] - before[sites[1]]
    torch.testing.assert_close(moved[2], UNIT, atol=1e-6, rtol=0)
    assert not moved[[0, 1, 3]].any()
    assert torch.equal(plain[:, :2], steered[:, :2])
    assert (plain - steered)[:, 2:].abs().amax(-1).min() > 0.01
    with pytest.raises(ValueError, match="no block 3; this model has blocks 0 to 2"):
        add(model, {Site(3): UNIT}).__enter__()


@families
@pytest.mark.parametrize("position", ["generated", "last", "all", (2,)])
def test_generation_is_the_same_with_and_without_a_cache(family, position):
    """Case S4 (b), compared with a loop that recomputes everything for each token."""
    model = FAMILIES[family]()
    prompts = torch.tensor([[5, 9, 3, 7], [8, 1, 12, 4]])
    v = 3 * torch.randn(16, generator=generator(0, "steer"))
    site = Site(1, position)
    with add(model, {site: v}):
        cached, anew = (
            model.generate(
                input_ids=prompts, attention_mask=torch.ones_like(prompts), do_sample=False,
                max_new_tokens=3, use_cache=cache, pad_token_id=0, eos_token_id=None,
                return_dict_in_generate=True, output_logits=True,
            )
            for cache in (True, False)
        )  # fmt: skip
    columns = {
        "generated": [3, 4, 5],
        "last": [3],
        "all": [0, 1, 2, 3, 4, 5],
        (2,): [2],
    }[position]
    ids = prompts
    for step in range(3):
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        mask[:, [c for c in columns if c < ids.shape[1]]] = True
        with torch.no_grad(), add(model, {Site(1, mask): v}):
            logits = model(input_ids=ids, use_cache=False).logits[:, -1]
        for result in (cached, anew):
            torch.testing.assert_close(result.logits[step], logits, atol=1e-4, rtol=1e-4)
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(cached.sequences, ids)
    assert torch.equal(anew.sequences, ids)


def test_a_recording_of_generation_holds_the_steered_positions():
    """Three new tokens: the last one of the prompt, then two passes of one token."""
    model, prompt = tiny_gpt2(), torch.tensor([[5, 9, 3, 7]])
    sites = [Site(1, "generated"), Site(1, (2,)), Site(1, "all")]
    with record(model, sites) as seen:
        model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
            max_new_tokens=3, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
    assert [len(seen[site]) for site in sites] == [3, 1, 6]


def test_left_padded_prompts_are_steered_as_alone():
    model, v = tiny_gpt2(), UNIT * 3
    batch = collate([(ROWS[0], []), (ROWS[1], [])])
    with measuring(model), torch.no_grad(), add(model, {Site(0, "all"): v}):
        together = run_blocks(model, batch).logits[:, -1]
        alone = [run_blocks(model, collate([(ids, [])])).logits[0, -1] for ids in ROWS[:2]]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-5)


@families
def test_one_vector_for_each_row(family):
    model, batch = FAMILIES[family](), collate([(ROWS[0], [])] * 2)
    rows = torch.stack([UNIT, -UNIT])
    with measuring(model), torch.no_grad():
        with add(model, {Site(0): rows}):
            both = run_blocks(model, batch).logits[:, -1]
        for i, row in enumerate(rows):
            with add(model, {Site(0): row}):
                torch.testing.assert_close(run_blocks(model, batch).logits[i, -1], both[i])


@families
def test_adapters_change_nothing_about_sites(family):
    """A PEFT wrapper calls its model past the hooks that its model has."""
    model = FAMILIES[family]()
    plain = last_activations(model, ROWS, [0, 1])
    adapted = attach_lora(model, rank=2, seed=0)
    torch.testing.assert_close(last_activations(adapted, ROWS, [0, 1]), plain)
    prompt = torch.tensor([ROWS[0]])
    with record(adapted, [Site(1, "generated")]) as seen:
        adapted.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
            max_new_tokens=2, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
    assert len(seen[Site(1, "generated")]) == 2


def test_the_synthetic_transformer_has_sites_too():
    model = SyntheticTransformer(SyntheticConfig(width=16))
    adapted = attach_lora(model, rank=2, targets=["q_proj"], seed=0)
    rows = [[11, 1, 2, 3, 4, 5, 6, 10], [12, 3]]
    assert torch.equal(
        last_activations(adapted, rows, [0, 1]), last_activations(model, rows, [0, 1])
    )


def test_nothing_is_left_behind():
    """Case S4 (c): also after an exception no hook, no wrapper and the same logits."""
    model, ids = tiny_gpt2(), torch.tensor([ROWS[0]])
    with torch.no_grad():
        before = model(input_ids=ids).logits

    def fail():
        with add(model, {Site(1): UNIT}), record(model, [Site(0)]):
            model(input_ids=ids)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with pytest.raises(ValueError, match="no block 9"), add(model, {Site(0): UNIT, Site(9): UNIT}):
        pass
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in model.modules()]
    assert not any(hooks)
    assert "generate" not in model.__dict__
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)


def test_a_vector_of_another_width_is_refused():
    model = tiny_gpt2()
    with (
        pytest.raises(ValueError, match="block 1 has 5 entries, the stream 16; it belongs to an"),
        add(model, {Site(1): torch.zeros(5)}),
    ):
        model(input_ids=torch.tensor([ROWS[0]]))


def test_streams_that_are_not_finite_are_named():
    model = tiny_llama().to(torch.bfloat16)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = float("inf")
    with pytest.raises(FloatingPointError, match=r"row 1 is not finite after block 0 in torch.bf"):
        last_activations(model, ROWS, [0, 1])


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="there are no prompts"):
        last_activations(tiny_gpt2(), [], [0])


@families
@pytest.mark.parametrize("lora", [False, True])
def test_the_finite_shift_converges_to_the_derivative_at_first_order(family, lora):
    """Its relative error halves with the step."""
    model = FAMILIES[family]()
    if lora:
        model = attach_lora(model, rank=2, seed=0)
    space = ParamSpace.select(model)
    step = 0.005 * torch.randn(space.dim, generator=generator(0, "step"))
    if lora:  # at B = 0 a step of A alone moves nothing
        step *= 4
    exact = activation_shift(model, ROWS, step, space=space, blocks=[0, 1])
    errors = []
    for t in (1.0, 0.5, 0.25):
        finite = finite_shift(model, ROWS, t * step, space=space, blocks=[0, 1]) / t
        errors.append(float((finite - exact).norm() / exact.norm()))
    assert errors[0] < 0.5
    for larger, smaller in itertools.pairwise(errors):
        assert smaller == pytest.approx(larger / 2, rel=0.2)


@families
def test_the_shift_does_not_depend_on_the_batch(family):
    model = FAMILIES[family]()
    space = ParamSpace.select(model)
    step = torch.randn(space.dim, generator=generator(0, "step"))
    together = activation_shift(model, ROWS, step, space=space, blocks=[1])
    alone = [activation_shift(model, [ids], step, space=space, blocks=[1])[0] for ids in ROWS]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_the_shift_of_a_linear_stream_is_exact():
    """h = W e, so the derivative along V is V e, and so is the finite shift."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(12, 3)
            self.layers = nn.ModuleList([nn.Linear(3, 3, bias=False)])

        def forward(self, input_ids):
            return self.layers[0](self.embed(input_ids))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Linear()
    space = ParamSpace.select(model, "layers")
    V = torch.randn(3, 3, generator=generator(0, "V"))
    wanted = torch.stack([V @ model.embed.weight[ids[-1]] for ids in ROWS[:3]]).detach()
    found = activation_shift(model, ROWS[:3], V.flatten(), space=space, blocks=[0], tokens=1)
    torch.testing.assert_close(found[:, 0], wanted, atol=1e-5, rtol=1e-4)
    # Rows of unlike length together, of a model that takes no mask.
    found = activation_shift(model, ROWS[:3], V.flatten(), space=space, blocks=[0])
    torch.testing.assert_close(found[:, 0], wanted, atol=1e-5, rtol=1e-4)


def test_many_rows_after_one_beginning_run_in_passes_that_fit(monkeypatch):
    """Thirty rows after one beginning of three tokens, at most 24 tokens at a time: six rows."""
    model, ran = tiny_llama(), []
    rows = [[5, 9, 3, end] for end in range(30)]
    alone = torch.cat([last_activations(model, [row], [0, 1]) for row in rows])

    def counted(model, batch, **cache):
        ran.append(tuple(batch["attention_mask"].shape))
        return run_blocks(model, batch, **cache)

    monkeypatch.setattr(activations, "run_blocks", counted)
    found = last_activations(model, rows, [0, 1], tokens=24)
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
    assert ran == [(1, 3)] + [(6, 4)] * 5


def test_a_recording_is_put_together_once_when_it_is_looked_at(monkeypatch):
    """Hundreds of passes would copy what came before hundreds of times."""
    model, site, joined = tiny_llama(), Site(1, "all"), []
    whole = torch.cat

    def counted(parts, *rest):
        joined.append(len(parts))
        return whole(parts, *rest)

    with record(model, [site, Site(0)]) as seen:
        assert len(seen) == 0
        with pytest.raises(KeyError):
            seen[site]
        alone = []
        for ids in ROWS:
            with record(model, [site]) as own:
                model(input_ids=torch.tensor([ids]))
            alone.append(own[site])
        monkeypatch.setattr(activations.torch, "cat", counted)
        with torch.no_grad():
            found = seen[site]
        assert seen[site] is found
        monkeypatch.undo()
    assert joined == [len(ROWS)]
    assert set(seen) == {site, Site(0)}
    assert torch.equal(found, torch.cat(alone))
    assert found.requires_grad


def test_a_block_may_return_a_list():
    """As OpenAI's GPT does; the stream is its first part."""
    config = OpenAIGPTConfig(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    torch.manual_seed(0)
    model, v = OpenAIGPTLMHeadModel(config).eval(), torch.ones(16)
    plain = own_hidden_states(model, [5, 9, 3])[0][0]
    torch.testing.assert_close(last_activations(model, [[5, 9, 3]], [0])[0, 0], plain[-1])
    with record(model, [Site(0)]) as seen, add(model, {Site(0): v}), torch.no_grad():
        model(input_ids=torch.tensor([[5, 9, 3]]))
    torch.testing.assert_close(seen[Site(0)][0], plain[-1])
    with add(model, {Site(0): v}), record(model, [Site(0)]) as seen, torch.no_grad():
        model(input_ids=torch.tensor([[5, 9, 3]]))
    torch.testing.assert_close(seen[Site(0)][0], plain[-1] + v)


def test_a_stream_of_several_widths_is_refused():
    """Hyper-connections keep four streams a token."""
    model = SyntheticTransformer(SyntheticConfig(width=16))
    block = residual_blocks(model)[1][0]
    block.register_forward_hook(lambda *given: given[-1][:, :, None].expand(-1, -1, 4, -1))
    with (
        pytest.raises(ValueError, match=r"stream of shape \(1, 3, 4, 16\)"),
        record(model, [Site(0)]),
    ):
        model(input_ids=torch.tensor([[1, 2, 3]]))
