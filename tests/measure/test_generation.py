"""Positions are those of the prompts that generate was called with, however it runs them."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, T5Config, T5ForConditionalGeneration

from frenet.geometry.rng import generator
from frenet.measure.activations import add, record
from frenet.network.adapters import attach_lora
from frenet.network.hooks.sites import Site
from network.models import tiny_bloom, tiny_gemma2, tiny_gpt2, tiny_lfm2, tiny_llama, tiny_mamba

FAMILIES = {
    "llama": tiny_llama, "gpt2": tiny_gpt2, "gemma2": tiny_gemma2, "lfm2": tiny_lfm2,
    "bloom": tiny_bloom,
}  # fmt: skip
PROMPT = [5, 9, 3, 7, 12, 8, 9, 3, 7, 12]
TWO = [[5, 9, 3], [7, 2, 8, 4, 6, 1, 9]]
KEPT, NEW = 4, 5
V = 4 * torch.randn(16, generator=generator(0, "generation"))
POSITIONS = ["last", "generated", "all", (-3,), (7,)]


def by_hand(model, ids, position, v=V, new=NEW):
    """Each token from a pass over all of the text, with its columns as a mask; also the streams."""
    p, text = len(ids), list(ids)
    for _ in range(new):
        named = {"last": [p - 1], "all": range(len(text)), "generated": range(p - 1, len(text))}
        where = named[position] if isinstance(position, str) else [position[0] % p]
        mask = torch.zeros(1, len(text), dtype=torch.bool)
        mask[0, list(where)] = True
        site = Site(1, mask)
        with torch.no_grad(), add(model, {site: v}), record(model, [site]) as seen:
            logits = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
        text.append(int(logits.argmax()))
    return text[p:], seen[site]


def steered(model, prompts, position, v=V, new=NEW, **more):
    """New tokens of left-padded prompts, and the streams at the site."""
    width, site = max(map(len, prompts)), Site(1, position)
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    given = {"input_ids": ids, "attention_mask": mask, **more}
    with add(model, {site: v}), record(model, [site]) as seen:
        text = model.generate(
            **{k: v for k, v in given.items() if v is not None},
            max_new_tokens=new, pad_token_id=0, eos_token_id=None,
            **({} if "do_sample" in more else {"do_sample": False}),
        )  # fmt: skip
    return text[:, -new:].tolist(), seen[site]


def cache_of(model, ids):
    """What the model keeps of a beginning."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
    return cache


def ways(family, model):
    """Ways of running a prompt, as arguments of generate."""
    found = {
        "whole": {},
        "without cache": {"use_cache": False},
        "assistant": {"assistant_model": FAMILIES[family](seed=5)},
        "looked up": {"prompt_lookup_num_tokens": 3},
        "in chunks": {"prefill_chunk_size": 4},
        "static": {"cache_implementation": "static"},
        "static without mask": {"cache_implementation": "static", "attention_mask": None},
        "static in chunks": {"cache_implementation": "static", "prefill_chunk_size": 4},
    }
    if family == "llama":
        # The model with only its first block is its assistant.
        found["early exit"] = {"assistant_early_exit": 1}
        embeds = model.get_input_embeddings()(torch.tensor([PROMPT])).detach()
        found["embeddings"] = {"inputs_embeds": embeds, "input_ids": None}
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_of_generating_has_the_positions_of_the_prompt(family, position):
    model = FAMILIES[family]()
    tokens, streams = by_hand(model, PROMPT, position)
    for way, more in ways(family, model).items():
        found, seen = steered(model, [PROMPT], position, **more)
        assert found == [tokens], way
        torch.testing.assert_close(seen, streams, atol=1e-3, rtol=1e-3, msg=way)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("family", ["llama", "lfm2", "bloom"])
def test_a_prompt_goes_on_from_a_cache_or_its_position_is_refused(family, position):
    model = FAMILIES[family]()
    cache = cache_of(model, PROMPT[:KEPT])
    variants = [{}, {"attention_mask": None}, {"input_ids": torch.tensor([PROMPT[KEPT:]])}]
    variants += [{"prefill_chunk_size": 4}]
    if position != "all":
        tokens, streams = by_hand(model, PROMPT, position)
    for more in variants:
        more = {"past_key_values": copy.deepcopy(cache), **more}
        if position == "all":
            with pytest.raises(ValueError, match=r"first 4 tokens .* computed before"):
                steered(model, [PROMPT], position, **more)
            continue
        found, seen = steered(model, [PROMPT], position, **more)
        assert found == [tokens]
        torch.testing.assert_close(seen, streams, atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_positions_computed_before_are_refused():
    """As an index, from the end, or in a mask; in generate and in a single pass."""
    model = tiny_llama()
    cache = cache_of(model, PROMPT[:KEPT])
    mask = torch.zeros(1, len(PROMPT), dtype=torch.bool)
    mask[0, 1] = True
    rest, whole = torch.tensor([PROMPT[KEPT:]]), torch.ones(1, len(PROMPT))
    for position in ((3,), (-8,), mask):
        kept = copy.deepcopy(cache)
        with pytest.raises(ValueError, match="row 0 is among the first 4 tokens"):
            steered(model, [PROMPT], position, past_key_values=kept)
        kept = copy.deepcopy(cache)
        with pytest.raises(ValueError, match="first 4 tokens"), record(model, [Site(1, position)]):
            model(input_ids=rest, attention_mask=whole, past_key_values=kept)
    message = r"6 columns, and the 4 .* 6 new ones make 10"
    with pytest.raises(ValueError, match=message), record(model, [Site(1)]):
        model(input_ids=rest, attention_mask=whole[:, KEPT:], past_key_values=cache)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("position", ["last", "generated", (-3,), (7,)])
def test_a_single_pass_goes_on_from_a_cache(position):
    model, site = tiny_llama(), Site(1, position)
    cache = cache_of(model, PROMPT[:KEPT])
    found = []
    for given in (
        {"input_ids": torch.tensor([PROMPT])},
        {
            "input_ids": torch.tensor([PROMPT[KEPT:]]),
            "attention_mask": torch.ones(1, len(PROMPT)),
            "past_key_values": cache,
        },
    ):
        with torch.no_grad(), add(model, {site: V}), record(model, [site]) as seen:
            found.append((model(**given).logits[0, -1], seen[site]))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("position", ["last", "generated", "all"])
@pytest.mark.parametrize("family", [tiny_llama, tiny_mamba, tiny_lfm2])
def test_a_loop_by_hand_has_the_positions_of_its_prompt(family, position):
    """Tokens after the cache of a pass in the same context are new, also of a model of states."""
    model, site = family(), Site(1, position)
    tokens, streams = by_hand(model, PROMPT, position)
    ids, cache, found = torch.tensor([PROMPT]), {}, []
    with torch.no_grad(), add(model, {site: V}), record(model, [site]) as seen:
        for _ in range(NEW):
            output = model(input_ids=ids, use_cache=True, **cache)
            name = next(n for n in ("cache", "past_key_values", "cache_params") if n in output)
            cache, ids = {name: output[name]}, output.logits[:, -1:].argmax(-1)
            found.append(int(ids))
    assert found == tokens
    torch.testing.assert_close(seen[site], streams, atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("position", ["last", "generated", "all", (-3,)])
def test_padded_prompts_are_steered_as_alone(position):
    model = tiny_llama()
    alone = [by_hand(model, ids, position) for ids in TWO]
    plain = {"static": {"cache_implementation": "static"}, "chunks": {"prefill_chunk_size": 3}}
    plain |= {"whole": {}, "without cache": {"use_cache": False}, "inferred": {}}
    seen = {}
    for way, more in plain.items():
        # Without a mask generate finds the padding by its id.
        more = {"attention_mask": None} if way == "inferred" else more
        found, seen[way] = steered(model, TWO, position, **more)
        assert found == [tokens for tokens, _ in alone], way
    for streams in seen.values():  # in one order, whatever the passes are
        torch.testing.assert_close(streams, seen["whole"], atol=1e-3, rtol=1e-3)
    assert len(seen["whole"]) == sum(len(streams) for _, streams in alone)
    if position == "last":
        torch.testing.assert_close(seen["whole"], torch.cat([s for _, s in alone]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("more", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}])
@pytest.mark.parametrize("position", ["last", "generated", (-3,)])
def test_copies_of_a_prompt_have_its_vector(more, position):
    """A vector a prompt; beams and samples are the same with a cache and without."""
    model, found = tiny_llama(), []
    for cache in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found.append(
                steered(model, TWO, position, torch.stack([V, -V]), use_cache=cache, **more)
            )
    assert found[0][0] == found[1][0]
    with pytest.raises(ValueError, match=r"3 vectors for block 1, and the batch has 2 rows"):
        steered(model, TWO, position, torch.stack([V, V, V]), **more)


@pytest.mark.filterwarnings("ignore")
def test_a_mask_of_prompts_holds_for_all_their_copies():
    model = tiny_llama()
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, 5], mask[1, 2] = True, True
    for more in ({}, {"prefill_chunk_size": 3}, {"num_return_sequences": 2, "do_sample": True}):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _, seen = steered(model, TWO, mask, V * 0, **more)
        rows = torch.stack([by_hand(model, TWO[0], (1,), V * 0)[1][0],
                            by_hand(model, TWO[1], (2,), V * 0)[1][0]])  # fmt: skip
        rows = rows.repeat_interleave(more.get("num_return_sequences", 1), 0)
        torch.testing.assert_close(seen, rows, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("position", ["last", "generated", "all"])
def test_a_second_turn_goes_on_from_the_first(position):
    """In one context, a new prompt starts from the beginning and has its own last token."""
    model, site = tiny_llama(), Site(1, position)
    more = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": 0, "eos_token_id": None}
    with add(model, {site: V}):
        first = model.generate(torch.tensor([TWO[0]]), return_dict_in_generate=True, **more)
        ids = torch.cat([first.sequences, torch.tensor([[7, 8]])], 1)
        kept = next(first[n] for n in ("cache", "past_key_values") if n in first)
        second = model.generate(ids, past_key_values=kept, **more)[0]
    text = ids[0].tolist()
    for _ in range(NEW):
        mask = torch.zeros(1, len(text), dtype=torch.bool)
        for start, end in ((3, 3 + NEW), (ids.shape[1], ids.shape[1] + NEW)):
            named = {"last": {start - 1}, "generated": set(range(start - 1, end - 1))}
            where = named.get(position, set(range(len(text))))
            mask[0, [c for c in where if c < len(text)]] = True
        with torch.no_grad(), add(model, {Site(1, mask): V}):
            text.append(int(model(input_ids=torch.tensor([text])).logits[0, -1].argmax()))
    assert second.tolist() == text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("position", ["last", "generated"])
def test_an_adapter_changes_nothing_about_positions(position):
    model = attach_lora(tiny_llama(), rank=2, seed=0)
    tokens, _ = by_hand(tiny_llama(), PROMPT, position)
    for more in ({"assistant_model": tiny_llama(seed=5)}, {"prefill_chunk_size": 4}):
        assert steered(model, [PROMPT], position, **more)[0] == [tokens]


@pytest.mark.filterwarnings("ignore")
def test_an_assistant_of_the_same_blocks_is_left_alone():
    """Its passes are not those of the model, though the hooked blocks run in them."""
    model, assistant = tiny_llama(), tiny_llama(seed=5)
    assistant.model.layers = model.model.layers
    for position in ("last", "generated", "all"):
        tokens, streams = by_hand(model, PROMPT, position)
        found, seen = steered(model, [PROMPT], position, assistant_model=assistant)
        assert found == [tokens]
        torch.testing.assert_close(seen, streams, atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_ways_of_generating_that_do_not_tell_their_positions_are_refused():
    model = tiny_llama()
    kept = cache_of(model, PROMPT[:KEPT])
    refused = [
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"token_healing": True}, "token_healing"),
        ({"cache_implementation": "paged"}, "continuous batching"),
        # transformers runs the cached tokens again, and gets another text.
        ({"past_key_values": kept, "prompt_lookup_num_tokens": 3}, "whole prompt"),
    ]
    for more, match in refused:
        with pytest.raises(ValueError, match=match):
            steered(model, [PROMPT], "last", **more)
    with pytest.raises(ValueError, match="call generate on the model"), add(model, {Site(1): V}):
        type(model).generate(model, torch.tensor([PROMPT]), max_new_tokens=2)
    states = tiny_mamba()
    with torch.no_grad():
        output = states(input_ids=torch.tensor([PROMPT[:KEPT]]), use_cache=True)
    name = next(n for n in ("cache", "cache_params") if n in output)
    with pytest.raises(ValueError, match="does not say how many tokens"):
        steered(states, [PROMPT], "last", **{name: output[name]})
    config = T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    two = T5ForConditionalGeneration(config)
    with pytest.raises(ValueError, match="an encoder and a decoder"), record(two, [Site(0)]):
        pass


def test_a_mask_that_is_no_keyword_is_read():
    model, site = tiny_llama(), Site(1, (0,))
    ids, mask = torch.tensor([[0, 0, 5, 9], [5, 9, 3, 7]]), torch.tensor([[0, 0, 1, 1], [1] * 4])
    found = []
    for args, kwargs in (((ids, mask), {}), ((), {"input_ids": ids, "attention_mask": mask})):
        with record(model, [site]) as seen:
            model(*args, **kwargs)
        found.append(seen[site])
    assert torch.equal(*found)
    with record(model, [Site(1, "all")]) as seen:
        model(ids, mask)
    assert torch.equal(found[0], seen[Site(1, "all")][[0, 2]])


class Checkpointed(nn.Module):
    """Two linear blocks, which a backward pass runs again."""

    def __init__(self, again):
        super().__init__()
        self.embed, self.again = nn.Embedding(20, 16), again
        self.layers = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])

    def forward(self, input_ids):
        h = self.embed(input_ids)
        for layer in self.layers:
            run = lambda x, layer=layer: layer(x).tanh()  # noqa: E731
            h = checkpoint(run, h, use_reentrant=False) if self.again else run(h)
        return h


def test_checkpointed_blocks_run_again_as_they_ran():
    """The gradient is that without checkpointing; no row is recorded twice."""
    ids, found = torch.tensor([PROMPT]), []
    for again in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Checkpointed(again)
        with add(model, {Site(0, "last"): V}), record(model, [Site(1, "all")]) as seen:
            model(ids).square().sum().backward()
        assert len(seen[Site(1, "all")]) == len(PROMPT)
        found.append(model.layers[0].weight.grad)
    torch.testing.assert_close(*found)
    with add(model, {Site(0, "last"): V}):
        total = sum(model(part).sum() for part in (ids, ids.flip(1)))
        with pytest.raises(ValueError, match="several forward passes"):
            total.backward()


def test_vectors_that_no_pass_saw_are_an_error():
    model = tiny_llama()
    message = "no forward pass of LlamaForCausalLM ran"
    with pytest.raises(ValueError, match=message), add(model, {Site(1): V}):
        tiny_llama()(input_ids=torch.tensor([PROMPT]))
