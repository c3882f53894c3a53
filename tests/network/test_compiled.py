"""Compiled, captured and wrapped models: what is hooked or replaced runs, or that is an error."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from frenet.measure.activation_shift import activation_shift
from frenet.measure.activations import add, last_activations, record
from frenet.measure.gradients import example_gradients, gradient
from frenet.methods.steering_effect import Prompted, answer_differences
from frenet.network.adapters import attach_lora
from frenet.network.hooks.answer_logits import few_logits
from frenet.network.hooks.sites import Site
from frenet.network.measuring import patched
from frenet.network.space import ParamSpace
from measure.quadratic import RowsTask
from network.models import tiny_llama

IDS, ROWS = torch.tensor([[5, 9, 3, 7]]), [[5, 9, 3, 7], [5, 2], [8, 8, 1]]
PROMPTS = [Prompted([5, 9, 3], ([4], [9])), Prompted([2, 2], ([4, 7], [9]))]
V = 3 * torch.ones(16)
TASK = RowsTask()


class Small(nn.Module):
    """Two blocks without anything that the compiler leaves out."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.layers = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])

    def forward(self, input_ids):
        h = self.embed(input_ids)
        for layer in self.layers:
            h = layer(h)
        return h


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def compiled(model, how):
    if how == "wrapper":
        return torch.compile(model, backend="eager")
    parts = [model] if how == "in place" else (getattr(model, "model", model).layers)
    for part in parts:
        part.compile(backend="eager")
    return model


hows = pytest.mark.parametrize("how", ["wrapper", "in place", "blocks"])


@pytest.mark.filterwarnings("ignore")
@hows
@pytest.mark.parametrize("before", [False, True])
def test_hooks_run_in_compiled_models(how, before):
    """Whether the compiled code is older than the hooks or not."""
    sites, found = [Site(0, "all"), Site(1, "last")], []
    for compile_it in (False, True):
        model = seeded(Small)
        model = compiled(model, how) if compile_it else model
        with torch.no_grad():
            if before:
                model(input_ids=IDS)
            with add(model, {Site(0, "last"): V}), record(model, sites) as seen:
                output = model(input_ids=IDS)
        found.append([*seen.values(), getattr(output, "logits", output)])
    torch.testing.assert_close(*found)


def measured(model):
    """Streams, answers, a gradient, gradients of examples and a shift."""
    batch = next(TASK.batches("train", 3, 0))
    space = ParamSpace.select(model)
    step = torch.linspace(-1, 1, space.dim)
    return [
        last_activations(model, ROWS, [0, 1]),
        answer_differences(model, PROMPTS),
        gradient(model, TASK, batch, space=space),
        example_gradients(model, TASK, batch, space=space),
        activation_shift(model, ROWS, step, space=space, blocks=[0, 1]),
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("how", "lora"), [("wrapper", False), ("in place", True), ("blocks", True)]
)
def test_what_is_measured_of_a_compiled_model_is_that_of_the_model(how, lora):
    make = (lambda: attach_lora(tiny_llama(), rank=2, seed=0)) if lora else tiny_llama
    model = make()
    if how == "blocks":
        for block in (model.get_base_model() if lora else model).model.layers:
            block.compile(backend="eager")
    else:
        model = compiled(model, how)
    torch.testing.assert_close(measured(model), measured(make()), atol=1e-4, rtol=1e-4)


def test_wrappers_of_data_parallel_training_are_the_model():
    wrapped = nn.DataParallel(tiny_llama())
    torch.testing.assert_close(
        last_activations(wrapped, ROWS, [0, 1]), last_activations(tiny_llama(), ROWS, [0, 1])
    )


def test_a_captured_pass_is_an_error():
    """As a replayed CUDA graph, it runs no block of the model."""
    model, twin = tiny_llama(), tiny_llama()
    own = model.forward

    def replayed(input_ids=None, attention_mask=None):
        return twin(input_ids=input_ids, attention_mask=attention_mask)

    model.forward = replayed
    for context in (add(model, {Site(0, "all"): V}), record(model, [Site(0)])):
        message = "block 0 did not run in a forward pass of Llama"
        with pytest.raises(ValueError, match=message), context:
            model(input_ids=IDS)
    with pytest.raises(ValueError, match="block 0 did not run"):
        last_activations(model, ROWS, [0])
    model.forward = own
    del model.forward
    for block in model.model.layers:  # past the call of the block
        direct = {"__call__": lambda m, *args, **kwargs: m.forward(*args, **kwargs)}
        block.__class__ = type("Direct", (type(block),), direct)
    with pytest.raises(ValueError, match="block 1 did not run"), record(model, [Site(1)]):
        model(input_ids=IDS)


def test_layers_that_training_leaves_out_are_no_error():
    """At random, as with layerdrop: the other blocks run; in evaluation mode it is one."""

    class Dropping(Small):
        def forward(self, input_ids):
            return self.layers[0](self.embed(input_ids))

    model = Dropping().train()
    with record(model, [Site(1)]) as seen:
        model(input_ids=IDS)
    assert not seen
    model.eval()
    with pytest.raises(ValueError, match="block 1 did not run"), record(model, [Site(1)]):
        model(input_ids=IDS)


@pytest.mark.parametrize("lora", [False, True])
def test_a_head_whose_weight_is_read_past_it_gives_the_same_few_logits(lora):
    """As fused losses do; answers are those of all logits."""
    wanted = answer_differences(tiny_llama(), PROMPTS)
    model = attach_lora(tiny_llama(), rank=2, seed=0) if lora else tiny_llama()
    inner = model.get_base_model() if lora else model

    def forward(input_ids=None, attention_mask=None, position_ids=None, use_cache=None):
        output = inner.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids
        )
        output.logits = F.linear(output.last_hidden_state, inner.lm_head.weight)
        return output

    inner.forward = forward
    torch.testing.assert_close(answer_differences(model, PROMPTS), wanted, atol=1e-5, rtol=1e-4)
    with torch.no_grad(), few_logits(model, [9, 4]) as columns:
        few = model(input_ids=IDS).logits
    every = tiny_llama()(input_ids=IDS).logits
    assert columns == {4: 0, 9: 1}
    torch.testing.assert_close(few, every[..., [4, 9]], atol=1e-5, rtol=1e-4)


def test_calls_of_a_replaced_forward_are_counted():
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    with patched(layer, lambda x: 2 * x) as calls:
        assert calls.count == 0
        torch.testing.assert_close(layer(x), 2 * x)
        F.linear(x, layer.weight)
        assert calls.count == 1
    assert "forward" not in layer.__dict__
