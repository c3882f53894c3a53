"""What trains is not always what trained at the start, and its gradients are not always there."""

import itertools
import logging
import re

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from frenet.integrations import trained
from frenet.integrations.trained import LeftOutError, Trained, trained_space
from frenet.integrations.trainer import read_trajectory
from frenet.network.space import ParamSpace
from frenet.runs import read_run
from integrations.test_resume import CHECKPOINTS
from integrations.watching import STEPS, Crash, model_of, probes, train, weights


@pytest.fixture
def watch(tmp_path):
    return {"probes": [], "out": tmp_path / "out", "every": 3, "k": 2, "n": 4}


def notes(out):
    return [row["note"] for row in read_run(out).rows if row["table"] == "notes"]


def last_path(out):
    return [row for row in read_run(out).rows if row["table"] == "path"][-1]


class At(TrainerCallback):
    """Does something to the model before some steps, counted from 0."""

    def __init__(self, *steps, do):
        self.steps, self.do = steps, do

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        if state.global_step in self.steps:
            self.do(model, optimizer, state.global_step)


class Turns(TrainerCallback):
    """The blocks are trained one after the other, as in LISA, all else always."""

    def choose(self, model, step):
        blocks = model.transformer.h
        for i, block in enumerate(blocks):
            block.requires_grad_(i == step // 2 % len(blocks))

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.choose(model, state.global_step)

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.choose(model, state.global_step)


def frozen_but(pattern):
    """At the start all but a part of the model is frozen, behind the optimiser's back."""

    class Freezes(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(pattern in name)

    return Freezes()


def unfreeze(model, optimizer, step):
    model.requires_grad_(True)


def freeze_half(model, optimizer, step):
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(
    "callbacks",
    [
        [Turns()],
        [frozen_but("wte"), At(3, do=unfreeze)],
        [At(2, 5, do=freeze_half)],
    ],
    ids=["blocks in turn", "unfrozen later", "frozen later"],
)
def test_the_path_is_that_of_all_that_trains_at_any_time(tmp_path, watch, callbacks, gradients):
    model = model_of("gpt2")
    before = weights(model)
    watch |= {"gradients": gradients, "probes": probes()}
    train(model, tmp_path / "t", watch=watch, callbacks=callbacks)
    path = read_trajectory(watch["out"])
    assert path.space.dim == sum(p.numel() for p in model.parameters())
    moved = path.space.flatten(weights(model)) - path.space.flatten(before)
    torch.testing.assert_close(path.displacement(), moved, rtol=0, atol=1e-6)
    row = last_path(watch["out"])
    assert row["displacement"] == pytest.approx(float(moved.double().norm()), rel=1e-5)
    assert row["unseen"] > 0.03
    # A frozen coordinate stays where it is and has no gradient, not one of zero.
    assert row["unmoved"] == pytest.approx(row["zeros"] + row["unseen"], abs=0.02)
    assert sum("gradients that were not seen" in note for note in notes(watch["out"])) == 1
    if gradients:
        missing = path.gradients.isnan()
        assert float(missing.double().mean()) == pytest.approx(row["unseen"])
        assert not path.steps[missing].any()


def test_turns_that_are_broken_off_go_on_to_the_same_rows(tmp_path, watch):
    watch |= {"probes": probes()}
    whole = {**watch, "out": tmp_path / "whole"}
    train(model_of("gpt2"), tmp_path / "a", watch=whole, callbacks=[Turns()], **CHECKPOINTS)
    with pytest.raises(KeyboardInterrupt):
        train(
            model_of("gpt2"), tmp_path / "b", watch=watch, callbacks=[Turns(), Crash(7)],
            **CHECKPOINTS,
        )  # fmt: skip
    train(
        model_of("gpt2"), tmp_path / "b", watch=watch, callbacks=[Turns()], resume=True,
        **CHECKPOINTS,
    )  # fmt: skip
    rows = [(folder / "rows.jsonl").read_bytes() for folder in (watch["out"], whole["out"])]
    assert rows[0] == rows[1]


# What cannot be followed


def add_group(model, optimizer, step):
    """Weights that neither trained nor were in the optimiser, as by hand-made unfreezing."""
    late = [p for n, p in model.named_parameters() if "wpe" in n]
    for parameter in late:
        parameter.requires_grad_(True)
    optimizer.param_groups[0]["params"] += late


def add_adapter(model, optimizer, step):
    from peft import LoraConfig

    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])


def merge_for_good(model, optimizer, step):
    model.merge_and_unload()
    # Something that the rest of this training can go on with.
    model.base_model.model.lm_head.weight.requires_grad_(True)


def grow(model, optimizer, step):
    model.resize_token_embeddings(model.config.vocab_size + 8)


def merge_and_begin_again(model, optimizer, step):
    """ReLoRA: what the adapter has learned goes into the frozen weights."""
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "lora_A"):
                delta = module.get_delta_weight("default")
                module.base_layer.weight.data += delta + 1e-3
                module.lora_B["default"].weight.zero_()


@pytest.mark.parametrize(
    ("kind", "do", "kept", "words"),
    [
        ("wte", add_group, 4, r"step 5 .* transformer\.wpe\.weight trains now"),
        ("lora", add_adapter, 4, r"step 5 .*lora_A\.second\.weight trains now"),
        ("lora", merge_for_good, 4, r"step 5 .*lora_A.* is no longer in the model"),
        ("gpt2", grow, 4, r"step 5 .*wte\.weight, recorded with shape .* has shape"),
        ("lora", merge_and_begin_again, 3, r"between steps 3 and 6 .* have changed"),
    ],
)
def test_what_is_left_out_ends_the_recording_and_is_named(
    tmp_path, watch, caplog, kind, do, kept, words
):
    model = model_of("gpt2" if kind == "wte" else kind)
    if kind == "wte":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("wte" in name)
    watch["probes"] = probes()
    with caplog.at_level(logging.ERROR, logger="frenet"):
        trainer = train(model, tmp_path / "t", watch=watch, callbacks=[At(4, do=do)], optim="sgd")
    assert trainer.state.global_step == STEPS
    run = read_run(watch["out"])
    (failure,) = run.failures
    assert failure["type"] == "LeftOutError"

    assert re.search(words, failure["error"]), failure["error"]
    assert f"the {kept} earlier steps are in" in failure["error"]
    assert "recording stopped" in caplog.text
    assert len(read_trajectory(watch["out"])) == kept
    assert max(row["step"] for row in run.rows if row["table"] == "path") == 3


def test_a_tensor_that_takes_the_place_of_another_is_followed(tmp_path, watch, caplog):
    """As by casting or wrapping: its moves go on, and the jump is a step of the model's weights."""

    def replace(model, optimizer, step):
        old = model.transformer.wpe.weight
        model.transformer.wpe.weight = nn.Parameter(old.detach() + 1.0)

    model = model_of("gpt2")
    before = weights(model)
    with caplog.at_level(logging.WARNING, logger="frenet"):
        train(model, tmp_path / "t", watch=watch, callbacks=[At(4, do=replace)])
    path = read_trajectory(watch["out"])
    assert len(path) == STEPS
    moved = path.space.flatten(weights(model)) - path.space.flatten(before)
    torch.testing.assert_close(path.displacement(), moved, rtol=0, atol=1e-6)
    assert path.space.unflatten(path.steps[4])["transformer.wpe.weight"].min() > 0.9
    assert "at step 5 transformer.wpe.weight is another tensor" in caplog.text


def test_what_a_selection_leaves_out_may_train(tmp_path, watch):
    """With where= the recording ignores the rest of the model."""
    watch["where"] = "wte"
    train(model_of("gpt2"), tmp_path / "t", watch=watch, callbacks=[At(4, do=freeze_half)])
    assert len(read_trajectory(watch["out"])) == STEPS
    assert read_run(watch["out"]).failures == []


def test_what_the_optimiser_has_is_recorded_though_it_is_frozen():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = torch.optim.SGD([*model[0].parameters(), *model[1].parameters()], lr=0.1)
    model.requires_grad_(False)
    model[1].bias.requires_grad_(True)
    assert trained_space(model, None, optimizer).names == (
        "0.weight", "0.bias", "1.weight", "1.bias"
    )  # fmt: skip
    assert trained_space(model, None).names == ("1.bias",)
    assert trained_space(model, "^0", optimizer).names == ("0.weight", "0.bias")
    with pytest.raises(ValueError, match=r"not trained \(the first is 0\.weight\)"):
        trained_space(model, "^0")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
def test_a_change_of_any_bit_of_a_weight_that_is_not_recorded_is_seen(dtype):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(40, 30))
    model[1].weight = nn.Parameter((100 * torch.rand(30, 40)).to(dtype), requires_grad=False)
    watched = Trained(model, ParamSpace.select(model, "0"), None)
    watched.check_outside()
    with torch.no_grad():
        model[0].weight += 1
    watched.check_outside()
    whole = model[1].weight.detach().view(trained._WHOLE[dtype.itemsize])
    whole[17, 3] ^= 1
    with pytest.raises(LeftOutError, match=r"1 weights .* \(the first is 1\.weight\)"):
        watched.check_outside()


# Gradients that are gone


class Inside(TrainerCallback):
    """Steps of plain SGD inside the backward pass, by hooks on the parameters that are chosen."""

    def __init__(self, *, leave, chosen=lambda name: True, late=0, way="hook"):
        self.leave, self.chosen, self.late, self.way = leave, chosen, late, way

    def step(self, parameter, gradient):
        with torch.no_grad():
            parameter -= 1e-2 * gradient
        parameter.grad = None if self.leave == "none" else torch.zeros_like(parameter)

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step != self.late:
            return
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and self.chosen(name):
                parameter.register_post_accumulate_grad_hook(lambda p: self.step(p, p.grad))


class AllAtOnce(Inside):
    """Like LOMO: steps at the last gradient, and then removes all gradients."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        for parameter in model.parameters():
            if parameter.grad is not None:
                self.step(parameter, parameter.grad)

    def on_step_begin(self, args, state, control, **kwargs):
        pass


@pytest.mark.parametrize(
    ("kind", "leave", "parts"),
    [(Inside, "none", 2), (Inside, "zeros", 1), (AllAtOnce, "none", 1), (AllAtOnce, "zeros", 2)],
)
def test_gradients_that_are_used_up_are_not_seen_and_not_zero(
    tmp_path, watch, caplog, kind, leave, parts
):
    model = model_of("gpt2")
    before = weights(model)
    watch["gradients"] = True
    settings = {"optim": "sgd", "gradient_accumulation_steps": parts}
    with caplog.at_level(logging.WARNING, logger="frenet"):
        train(model, tmp_path / "t", watch=watch, callbacks=[kind(leave=leave)], **settings)
    path, row = read_trajectory(watch["out"]), last_path(watch["out"])
    moved = path.space.flatten(weights(model)) - path.space.flatten(before)
    assert float(moved.norm()) > 0.03
    torch.testing.assert_close(path.displacement(), moved, rtol=0, atol=1e-6)
    assert (row["unseen"], row["zeros"]) == (1.0, None)
    assert path.gradients.isnan().all()
    assert "steps inside the backward pass" in caplog.text
    (note,) = (n for n in notes(watch["out"]) if "gradients that were not seen: 100%" in n)
    assert "recorded as NaN" in note


@pytest.mark.parametrize("leave", ["none", "zeros"])
def test_of_a_part_that_steps_by_itself_only_that_part_is_unseen(tmp_path, watch, leave):
    model = model_of("gpt2")
    watch["gradients"] = True
    inside = Inside(leave=leave, chosen=lambda name: "wte" in name)
    train(model, tmp_path / "t", watch=watch, callbacks=[inside], optim="sgd")
    path, row = read_trajectory(watch["out"]), last_path(watch["out"])
    embedding = path.space.unflatten(path.gradients)["transformer.wte.weight"]
    assert embedding.isnan().all()
    size = embedding[0].numel()
    assert int(path.gradients.isnan().sum()) == STEPS * size
    assert row["unseen"] == pytest.approx(size / path.space.dim)
    rest = path.gradients[~path.gradients.isnan()]
    zeros = float((rest == 0).sum()) / path.gradients.numel()
    assert row["zeros"] == pytest.approx(zeros)


def test_hooks_that_come_later_are_seen_from_the_step_on_at_which_they_act(tmp_path, watch):
    watch["gradients"] = True
    inside = Inside(leave="none", late=4)
    train(model_of("gpt2"), tmp_path / "t", watch=watch, callbacks=[inside], optim="sgd")
    missing = read_trajectory(watch["out"]).gradients.isnan()
    assert missing.all(1).tolist() == [False] * 4 + [True] * 4
    assert not missing[:4].any()


def test_gradients_of_zero_are_zero_though_weight_decay_moves_their_weights(tmp_path, watch):
    """With B = 0 the gradient of A is zero in the first step: it is seen, and it is zero."""
    watch["gradients"] = True
    train(model_of("lora"), tmp_path / "t", watch=watch, weight_decay=0.5)
    path = read_trajectory(watch["out"])
    half = path.space.unflatten(path.gradients[0])
    moved = path.space.unflatten(path.steps[0])
    for name in path.space.names:
        if "lora_A" in name:
            assert not half[name].any()
            assert moved[name].any()
    assert not path.gradients.isnan().any()
    row = last_path(watch["out"])
    assert row["unseen"] == 0.0
    assert row["zeros"] == pytest.approx(float((path.gradients == 0).double().mean()))
    assert not any("not seen" in note for note in notes(watch["out"]))


def test_no_hook_stays_behind(tmp_path, watch):
    for given in (watch, {**watch, "out": tmp_path / "diverged"}):
        rate = 1e-2 if given is watch else float("inf")
        model = train(model_of("gpt2"), tmp_path / "t", watch=given, learning_rate=rate).model
        assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_looking_at_what_trains_costs_little_of_a_step():
    """A model of many modules: the check of all of them takes less than reading their weights."""
    model = nn.ModuleList([nn.Sequential(*[nn.Linear(8, 8) for _ in range(8)]) for _ in range(40)])
    watched = Trained(model, ParamSpace.select(model), None)
    assert watched.follow() == []
    steps = itertools.cycle([True, False])
    for parameter in model.parameters():
        parameter.requires_grad_(next(steps))
    assert watched.follow() == []
    assert watched.frozen == 320
