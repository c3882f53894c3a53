"""Candidates in shared forward passes: only if two of them have the logits of each alone."""

import pickle
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import (
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from frenet.methods import evaluation
from frenet.methods.candidates import Noise
from frenet.methods.evaluation import Evaluator
from frenet.methods.search import Selection, random_search
from frenet.network.adapters import attach_lora, quiet_peft
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, SyntheticTransformer
from frenet.network.tasks import collate, token_loss
from network.models import tiny_llama

ROWS = [([5, 9, 3], [4, 2]), ([7, 2], [6, 1, 3]), ([11], [2]), ([8, 1, 1, 4], [9])]
EVEN = [([5, 9, 3], [4, 2]), ([7, 2], [6, 1, 3]), ([11, 6, 1, 2], [2]), ([8, 1, 1, 4], [9])]
NOISE = Noise(0.1, seed=3)


class Block(nn.Module):
    """One layer after another norm, its weight read in the way that ``kind`` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.norm, self.proj = kind, nn.LayerNorm(16), nn.Linear(16, 16)
        if kind == "experts":
            self.router = nn.Linear(16, 2)
            self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x, table):
        h = self.norm(x)
        ways = {
            "layer": lambda: self.proj(h),
            "flat": lambda: self.proj(h.flatten(0, 1)).view(x.shape),
            "twice": lambda: self.proj(self.proj(h).tanh()),
            "table": lambda: self.proj(h) + table.sum(0),
            "past": lambda: F.linear(h, self.proj.weight),
            "also past": lambda: self.proj(h) + 0.1 * F.linear(h, self.proj.weight.flip(0)),
            "positions first": lambda: self.proj(h.transpose(0, 1)).transpose(0, 1),
            "mean of rows": lambda: self.proj(h - 0.5 * h.mean(0, keepdim=True)),
            "experts": lambda: self._routed(h.flatten(0, 1)).view(x.shape),
        }
        return x + ways[self.kind]()

    def _routed(self, tokens):
        chosen, out = self.router(tokens).argmax(-1), torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            out[chosen == i] = expert(tokens[chosen == i])
        return out


class Net(nn.Module):
    """Three blocks; with ``shared``, one block three times."""

    def __init__(self, kind: str, *, shared: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(64, 16), nn.Linear(16, 64)
        self.blocks = nn.ModuleList(Block(kind) for _ in range(1 if shared else 3))
        # As many rows as the batch has.
        self.register_buffer("table", torch.randn(len(ROWS), 16))

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for i in range(3):
            x = self.blocks[i % len(self.blocks)](x, table=self.table)
        return SimpleNamespace(logits=self.head(x))


def loss(model, batch):
    """The score "loss" as a user's function, which evaluates candidates one by one."""
    with torch.no_grad():
        return -float(token_loss(model, batch))


def compared(model, space, *, noise=NOISE, rows=ROWS, score="loss"):
    """The evaluator once decided, the scores by its way, those one by one, and what was said."""
    batch = collate(rows)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        evaluator = Evaluator(space, noise, score, batch).decide(model)
        found = evaluator(model, range(9))
    notes = [str(warning.message) for warning in said if warning.category is RuntimeWarning]
    return evaluator, found, Evaluator(space, noise, loss, batch)(model, range(9)), notes


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", ["layer", "flat", "twice", "table"])
def test_candidates_share_passes_where_that_is_right(kind, shared):
    """Also rows in one long column, layers and blocks used twice, tables as long as the batch."""
    model = Net(kind, shared=shared)
    space = ParamSpace.select(model, "norm|proj")
    evaluator, found, wanted, notes = compared(model, space)
    assert evaluator.layout is not None
    assert notes == []
    assert found == pytest.approx(wanted, abs=3e-6)
    assert max(wanted) - min(wanted) > 0.05


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("past", r"blocks\.0\.proj is never called"),
        ("also past", r"logits differ by .* for blocks\.0\.proj alone"),
        ("positions first", r"blocks\.0\.proj is called with the rows along dimension 1"),
        ("mean of rows", r"logits differ by .* for blocks\.0\.proj alone"),
        ("experts", r"experts\.\d is called with a tensor of shape"),
    ],
)
def test_where_it_is_not_candidates_go_one_by_one_and_one_note_says_so(kind, words):
    model = Net(kind)
    before = [(set(m.__dict__), len(m._forward_pre_hooks)) for m in model.modules()]
    saved = [p.detach().clone() for p in model.parameters()]
    names = "experts" if kind == "experts" else "proj"
    # Without padding, which a mean of rows would see.
    evaluator, found, wanted, notes = compared(model, ParamSpace.select(model, names), rows=EVEN)
    assert evaluator.layout is None
    assert len(notes) == 1
    assert re.search(f"one by one.*{words}", notes[0])
    assert found == wanted
    assert [(set(m.__dict__), len(m._forward_pre_hooks)) for m in model.modules()] == before
    assert all(torch.equal(a, b) for a, b in zip(saved, model.parameters(), strict=True))


def test_the_module_that_differs_is_found_among_those_that_do_not():
    model = Net("layer")
    model.blocks[1].kind = "also past"
    _, _, _, notes = compared(model, ParamSpace.select(model, "norm|proj"))
    assert "candidates for blocks.1.proj alone" in notes[0]


def test_a_weight_whose_norm_is_read_past_its_layer_is_noticed():
    """DoRA divides by the norm of the base weight and the product together."""
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, init_lora_weights=False)
    with quiet_peft():
        model = get_peft_model(tiny_llama(), config).eval()
    evaluator, found, wanted, notes = compared(model, ParamSpace.select(model, r"q_proj.*base"))
    assert evaluator.layout is None
    assert re.search(r"for \S*q_proj\.base_layer alone", notes[0])
    assert found == wanted


def test_candidates_that_send_tokens_elsewhere_go_one_by_one():
    """In the look at two candidates one expert gets every token; in the search not all do."""
    model = Net("experts")
    with torch.no_grad():
        for block in model.blocks:
            block.router.bias.copy_(torch.tensor([4.0, 0.0]))
            block.router.weight.div_(100)
    space = ParamSpace.select(model, r"experts\.0|router")
    evaluator, found, wanted, notes = compared(model, space, noise=Noise(3.0, seed=1))
    assert evaluator.layout is not None
    assert notes == []
    assert found == pytest.approx(wanted, rel=1e-6)
    # If all tokens of every candidate went to one expert, this test would show nothing.
    with (
        pytest.raises(evaluation.LayoutError),
        evaluation.Candidates(model, space, evaluator.noise) as candidates,
    ):
        evaluation.group_scores(
            candidates, list(range(9)), "loss", evaluator.batch, evaluator.layout
        )


def mpt(heads):
    config = MptConfig(
        vocab_size=64, d_model=16, n_heads=heads, n_layers=3, max_seq_len=32, expansion_ratio=2
    )
    return MptForCausalLM(config).eval()


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("where", ["ffn", r"blocks\.2\.ffn"])
def test_as_many_rows_as_heads_or_blocks_are_not_taken_for_them(rows, where):
    torch.manual_seed(0)
    model = mpt(heads=4 if rows == 4 else 2)
    space = ParamSpace.select(model, rf"{where}.*proj")
    evaluator, found, wanted, notes = compared(model, space, rows=ROWS[:rows])
    assert evaluator.layout is not None
    assert notes == []
    assert found == pytest.approx(wanted, abs=3e-6)


def test_models_that_cannot_share_passes_are_searched_one_by_one():
    """Mamba reads weights past its layers; GPT-BigCode gives its output the shape of its input."""
    torch.manual_seed(0)
    models = {
        "dt_proj|x_proj": MambaForCausalLM(
            MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=2)
        ),
        r"h\.1\.mlp": GPTBigCodeForCausalLM(
            GPTBigCodeConfig(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32)
        ),
    }
    for where, model in models.items():
        evaluator, found, wanted, notes = compared(model.eval(), ParamSpace.select(model, where))
        assert evaluator.layout is None
        assert len(notes) == 1
        assert found == wanted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rounding_of_the_dtype_is_no_difference(dtype):
    model = tiny_llama().to(dtype)
    evaluator, _, _, notes = compared(model, ParamSpace.select(model, "mlp|attn"))
    assert evaluator.layout is not None
    assert notes == []


def test_the_way_is_chosen_once_for_all_workers(monkeypatch):
    """Workers that get model and evaluator by pickle give the same bits, however chunks fall."""
    model, task = SyntheticTransformer(SyntheticConfig(width=16), seed=0), SyntheticTask("reverse")
    looks, look = [], evaluation.checked_layout
    monkeypatch.setattr(evaluation, "checked_layout", lambda *args: looks.append(1) or look(*args))

    def workers(model, evaluator, chunks):
        for chunk in reversed(chunks):
            worker, sent = pickle.loads(pickle.dumps((model, evaluator)))
            yield chunk, sent(worker, chunk)

    found = [
        random_search(
            model, task, ParamSpace.select(model), noise=Noise(0.1), num_candidates=70,
            selection=Selection(select_size=8, test_size=8), engine=engine,
        )
        for engine in (None, workers)
    ]  # fmt: skip
    assert len(looks) == 2
    assert torch.equal(found[0].scores, found[1].scores)


def sizes_of_groups(monkeypatch, limit=1000):
    """Record how many candidates share each pass; more than ``limit`` fail as torch does."""
    sizes, whole = [], evaluation.group_scores

    def scores(candidates, indices, *rest):
        sizes.append(len(indices))
        if len(indices) > limit:
            torch.empty(2**60)  # "DefaultCPUAllocator: can't allocate memory"
        return whole(candidates, indices, *rest)

    monkeypatch.setattr(evaluation, "group_scores", scores)
    return sizes


def test_with_little_memory_fewer_candidates_share_a_pass(monkeypatch):
    model = Net("layer")
    evaluator, found, _, _ = compared(model, ParamSpace.select(model, "proj"))
    sizes = sizes_of_groups(monkeypatch)
    # Half of the memory is for others.
    for free, wanted in ((8 * evaluator.needed, [4, 4, 1]), (2**12, [1] * 9)):
        monkeypatch.setattr(evaluation, "free_bytes", lambda _, free=free: free)
        sizes.clear()
        assert evaluator(model, range(9)) == pytest.approx(found, abs=3e-6)
        assert sizes == wanted


def test_a_group_that_does_not_fit_is_halved_and_one_note_says_so(monkeypatch):
    model = Net("layer")
    evaluator, found, _, _ = compared(model, ParamSpace.select(model, "proj"))
    sizes = sizes_of_groups(monkeypatch, limit=3)
    with pytest.warns(RuntimeWarning, match="no memory for 9 candidates.*at most 4") as said:
        assert evaluator(model, range(9)) == pytest.approx(found, abs=3e-6)
    assert len(said) == 1
    assert sizes == [9, 4, 2, 2, 2, 2, 1]
    sizes.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluator(model, range(5)) == pytest.approx(found[:5], abs=3e-6)
    assert sizes == [2, 2, 1]


def test_an_error_that_is_not_of_memory_is_not_caught(monkeypatch):
    model = Net("layer")
    evaluator = Evaluator(ParamSpace.select(model, "proj"), NOISE, "loss", collate(ROWS))
    evaluator = evaluator.decide(model)

    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(evaluation, "group_scores", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        evaluator(model, range(9))


def test_one_candidate_with_an_adapter_takes_the_fast_pass_too(monkeypatch):
    """A batch of so many tokens that a pass holds one candidate."""
    monkeypatch.setattr(evaluation, "TOKENS", 0)
    model = attach_lora(tiny_llama(), rank=2, seed=0)
    sizes = sizes_of_groups(monkeypatch)
    evaluator, found, wanted, notes = compared(model, ParamSpace.select(model))
    assert (evaluator.most, notes) == (1, [])
    assert sizes == [1] * 9
    assert found == pytest.approx(wanted, abs=3e-6)
    weights = Net("layer")
    assert compared(weights, ParamSpace.select(weights, "proj"))[0].layout is None
