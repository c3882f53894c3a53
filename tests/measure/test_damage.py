"""Damage protocols on a small network that has learned to copy."""

import dataclasses
import itertools
from dataclasses import dataclass

import pytest
import torch

from frenet.measure import damage as damages
from frenet.measure.damage import PROTOCOLS, Damage, Mixture, Negated, fixed_loss
from frenet.measure.trajectory import Training
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticTask
from frenet.network.tasks import Task
from measure.conftest import build, lora
from measure.quadratic import ROWS, RowsTask
from network.models import tiny_gpt2, tiny_qwen2

COPY = SyntheticTask("copy")
WANTED = 1.0


def damage_of(model, *, where=None, task=COPY, loss=WANTED, seed=0):
    others = (SyntheticTask("reverse"), SyntheticTask("descending"))
    training = Training("adam:3e-3", batch_size=32, steps=100)
    space = ParamSpace.select(model, where)
    return Damage(task, others, space, loss, training, seed)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_reaches_the_wanted_loss_and_is_undone_bit_for_bit(learned, protocol):
    damage = damage_of(learned)
    before = {name: p.detach().clone() for name, p in learned.named_parameters()}
    healthy = damage.probe(learned)
    assert healthy < 0.01
    with damage.space.restored(learned):
        PROTOCOLS[protocol](learned, damage)
        reached = damage.probe(learned)
    if protocol.startswith("zeroed"):
        # A network that learned one task has spare heads and an MLP to spare.
        assert reached > healthy
    else:
        # Noise is bisected; training stops at the first step beyond.
        assert WANTED <= reached < (1.02 if "noise" in protocol else 1.8) * WANTED
    for name, parameter in learned.named_parameters():
        assert torch.equal(parameter, before[name]), name


@dataclass(frozen=True)
class Interrupted:
    """To copy, but the second look at the loss ends in an error."""

    error: type[BaseException]
    looks: itertools.count
    name: str = "interrupted"

    def loss(self, model, batch):
        if next(self.looks) == 1:
            raise self.error("stop here")
        return COPY.loss(model, batch)

    def batches(self, split, batch_size, seed):
        return COPY.batches(split, batch_size, seed)

    def score(self, model, split):
        return COPY.score(model, split)

    def shuffled(self, seed):
        return COPY.shuffled(seed)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_that_is_interrupted_is_undone_too(learned, protocol, error):
    damage = damage_of(learned, task=Interrupted(error, itertools.count()))
    before = damage.space.read(learned)
    with damage.space.restored(learned):
        with pytest.raises(error, match="stop here"):
            PROTOCOLS[protocol](learned, damage)
        if not protocol.startswith("zeroed"):
            assert not torch.equal(damage.space.read(learned), before)
    assert torch.equal(damage.space.read(learned), before)


def test_absolute_noise_has_one_standard_deviation_and_is_independent_between_tensors(learned):
    damage = damage_of(learned)
    before = damage.space.read(learned)
    with damage.space.restored(learned):
        damages.absolute_noise(learned, damage)
        noise = damage.space.unflatten(damage.space.read(learned) - before)
    sigma = torch.cat([part.flatten() for part in noise.values()]).std()
    for name, part in noise.items():
        assert float(part.std() / sigma) == pytest.approx(1, abs=4 / (2 * part.numel()) ** 0.5), (
            name
        )
    for a, b in itertools.combinations([n for n in noise if "proj.weight" in n], 2):
        if noise[a].shape == noise[b].shape:
            together = torch.corrcoef(torch.stack([noise[a].flatten(), noise[b].flatten()]))[0, 1]
            assert abs(float(together)) < 5 / noise[a].numel() ** 0.5, (a, b)


def test_relative_noise_goes_with_the_size_of_each_tensor(learned):
    learned.ln_f.bias.data.zero_()
    damage = damage_of(learned)
    before = damage.space.read(learned)
    with damage.space.restored(learned):
        damages.relative_noise(learned, damage)
        noise = damage.space.unflatten(damage.space.read(learned) - before)
    assert not noise["ln_f.bias"].any()
    own = damage.space.unflatten(before)
    ratios = {
        name: float(part.square().mean().sqrt() / own[name].square().mean().sqrt())
        for name, part in noise.items()
        if part.numel() >= 512
    }
    middle = sorted(ratios.values())[len(ratios) // 2]
    for name, ratio in ratios.items():
        size = own[name].numel()
        assert ratio / middle == pytest.approx(1, abs=8 / (2 * size) ** 0.5), name


@pytest.mark.parametrize("protocol", ["absolute-noise", "wrong-answers", "forgetting"])
def test_the_seed_fixes_the_damage(learned, protocol):
    def damaged(seed):
        damage = damage_of(learned, seed=seed)
        with damage.space.restored(learned):
            PROTOCOLS[protocol](learned, damage)
            return damage.space.read(learned)

    assert torch.equal(damaged(1), damaged(1))
    assert not torch.equal(damaged(1), damaged(2))


def test_a_loss_that_noise_cannot_reach_ends(learned):
    damage = damage_of(learned, loss=float("inf"))
    with damage.space.restored(learned):
        damages.absolute_noise(learned, damage)
    assert damage.probe(learned) < 0.01


def head_costs(model, damage, *, weights, heads, width, transposed):
    """Loss with each head zeroed, by brute force, in the order of layers and heads."""
    costs = {}
    for weight in weights:
        for head in range(heads):
            own = dict(model.named_parameters())[weight]
            saved = own.detach().clone()
            with torch.no_grad():
                part = slice(head * width, (head + 1) * width)
                own[(part,) if transposed else (slice(None), part)] = 0
            costs[weight, head] = damage.probe(model)
            with torch.no_grad():
                own.copy_(saved)
    return costs


def test_exactly_the_worst_head_is_zeroed(learned):
    damage = damage_of(learned)
    weights = [f"blocks.{i}.o_proj.weight" for i in (0, 1)]
    costs = head_costs(learned, damage, weights=weights, heads=4, width=8, transposed=False)
    assert len(set(costs.values())) == 8
    weight, head = max(costs, key=costs.get)
    before = {name: p.detach().clone() for name, p in learned.named_parameters()}
    damages.zeroed_head(learned, damage)
    assert damage.probe(learned) == max(costs.values())
    for name, parameter in learned.named_parameters():
        changed = parameter != before[name]
        if name == weight:
            assert changed[:, head * 8 : head * 8 + 8].all()
            assert int(changed.sum()) == 32 * 8
            assert not parameter[:, head * 8 : head * 8 + 8].any()
        else:
            assert not changed.any(), name


@pytest.mark.parametrize(
    ("make", "weights", "transposed"),
    [
        (tiny_gpt2, [f"transformer.h.{i}.attn.c_proj.weight" for i in range(3)], True),
        (tiny_qwen2, [f"model.layers.{i}.self_attn.o_proj.weight" for i in range(3)], False),
    ],
)
def test_heads_of_language_models_are_found_on_the_right_axis(make, weights, transposed):
    """A zeroed head changes the layer's output exactly as zero values in that head do."""
    model, task = make(), RowsTask()
    damage = damage_of(model, task=task)
    costs = head_costs(model, damage, weights=weights, heads=2, width=8, transposed=transposed)
    damages.zeroed_head(model, damage)
    assert damage.probe(model) == max(costs.values())
    weight, head = max(costs, key=costs.get)
    layer = model.get_submodule(weight.removesuffix(".weight"))
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    silent = x.clone()
    silent[:, head * 8 : head * 8 + 8] = 0
    assert torch.equal(layer(x), layer(silent))
    assert not torch.equal(layer(x), layer(torch.zeros_like(x)))


@pytest.mark.parametrize(
    ("make", "attention", "mlp"),
    [(tiny_gpt2, "attn.c_proj", "mlp.c_proj"), (tiny_qwen2, "o_proj", "down_proj")],
)
def test_a_factor_of_an_adapter_is_no_output_projection(make, attention, mlp):
    """Its columns or rows are no heads; the weights beneath it are."""
    model = lora(make(), [attention, mlp])
    adapter = damage_of(model, task=RowsTask())
    for protocol in ("zeroed-head", "zeroed-mlp"):
        with pytest.raises(ValueError, match="no attention or MLP output projection to zero"):
            PROTOCOLS[protocol](model, adapter)
    space = ParamSpace.select(model, "base_layer|lora_")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    damages.zeroed_head(model, dataclasses.replace(adapter, space=space))
    changed = {n: p != before[n] for n, p in model.named_parameters() if (p != before[n]).any()}
    (name,) = changed
    assert name.endswith(f"{attention}.base_layer.weight")
    assert int(changed[name].sum()) == 8 * 16


def test_exactly_the_worst_mlp_is_zeroed(learned):
    damage = damage_of(learned)
    costs = []
    for i in (0, 1):
        with damage.space.restored(learned):
            learned.blocks[i].down_proj.weight.data.zero_()
            costs.append(damage.probe(learned))
    worst = costs.index(max(costs))
    damages.zeroed_mlp(learned, damage)
    assert not learned.blocks[worst].down_proj.weight.any()
    assert learned.blocks[1 - worst].down_proj.weight.all()


@pytest.mark.parametrize("protocol", ["zeroed-head", "zeroed-mlp"])
def test_nothing_to_zero_in_the_space_is_refused(protocol):
    model = lora(tiny_qwen2(), ["q_proj", "v_proj"])
    damage = damage_of(model, task=RowsTask())
    with pytest.raises(ValueError, match="no attention or MLP output projection to zero; damage"):
        PROTOCOLS[protocol](model, damage)


def test_forgetting_is_learning_the_other_tasks(learned):
    damage = damage_of(learned)

    def others():
        return [fixed_loss(learned, task, size=64) for task in damage.others]

    with damage.space.restored(learned):
        before = others()
        damages.forgetting(learned, damage)
        assert all(b < 0.8 * a for a, b in zip(before, others(), strict=True))


def test_forgetting_needs_another_task(learned):
    damage = Damage(COPY, (), ParamSpace.select(learned), 1.0, Training("adam:1e-3", 8, 2))
    with pytest.raises(ValueError, match="forgetting copy needs at least one other task"):
        damages.forgetting(learned, damage)


def test_damage_stays_inside_its_space(learned):
    for protocol in ("absolute-noise", "ascent", "wrong-answers"):
        damage = damage_of(learned, where="up_proj|down_proj")
        before = {name: p.detach().clone() for name, p in learned.named_parameters()}
        with damage.space.restored(learned):
            PROTOCOLS[protocol](learned, damage)
            moved = {n for n, p in learned.named_parameters() if not torch.equal(p, before[n])}
        assert moved == set(damage.space.names)


def test_the_fixed_loss_is_on_one_batch_of_its_split(learned):
    first = next(COPY.batches("test", 16, 0))
    assert fixed_loss(learned, COPY, split="test", size=16) == float(
        COPY.loss(learned, first).detach()
    )
    assert fixed_loss(learned, COPY, size=16) == fixed_loss(learned, COPY, size=16)
    assert fixed_loss(learned, COPY, size=16) != fixed_loss(learned, COPY, split="test", size=16)


def test_a_mixture_takes_its_tasks_in_turn(learned):
    tasks = (COPY, SyntheticTask("reverse"))
    mixture = Mixture(tasks)
    assert isinstance(mixture, Task)
    assert mixture.name == "copy+reverse"
    stream, own = mixture.batches("train", 4, 0), [t.batches("train", 4, 0) for t in tasks]
    for i in range(6):
        expected = next(own[i % 2])
        assert torch.equal(next(stream)["input_ids"], expected["input_ids"])
    assert mixture.loss(learned, expected) == tasks[1].loss(learned, expected)
    scores = [task.score(learned, "test")["token_accuracy"] for task in tasks]
    assert mixture.score(learned, "test")["token_accuracy"] == pytest.approx(sum(scores) / 2)
    assert mixture.shuffled(3).tasks == tuple(task.shuffled(3) for task in tasks)


def test_descending_the_negated_task_is_ascending_the_task():
    model, task = build("synthetic"), SyntheticTask("copy")
    negated = Negated(task)
    assert isinstance(negated, Task)
    assert negated.name == "-copy"
    batch = next(negated.batches("train", 4, 0))
    assert torch.equal(batch["input_ids"], next(task.batches("train", 4, 0))["input_ids"])
    assert negated.loss(model, batch) == -task.loss(model, batch)
    assert negated.score(model, "test") == task.score(model, "test")
    assert negated.shuffled(1).task == task.shuffled(1)


def test_the_rows_task_is_what_these_tests_take_it_for():
    shuffled = RowsTask().shuffled(0)
    assert [context for context, _ in shuffled.rows] == [context for context, _ in ROWS]
    assert shuffled.rows != tuple(ROWS)
