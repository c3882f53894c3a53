"""On a CUDA device: the numbers of the CPU, the bits as found. Skipped where there is none."""

import pytest
import torch

from frenet.geometry.basis import random_basis, svd_basis
from frenet.geometry.linalg import principal_angles
from frenet.geometry.rng import generator, stream
from frenet.geometry.subspace import angles
from frenet.measure.activations import add
from frenet.methods.candidates import Candidates, Noise
from frenet.methods.local_model import Effort, survey
from frenet.methods.search import Selection, random_search
from frenet.methods.steering import caa, gradient_shift, shifted_prompts
from frenet.methods.steering_effect import Prompted, neutral_cost, steered_differences
from frenet.network.adapters import attach_lora
from frenet.network.hooks.sites import Site
from frenet.network.space import ParamSpace
from frenet.network.synthetic.model import SyntheticConfig, SyntheticTask, SyntheticTransformer
from measure.quadratic import RowsTask
from measure.test_no_trace import MEASUREMENTS, in_use, state
from methods.test_steering import STATEMENTS
from network.models import tiny_gpt2, tiny_llama, tiny_qwen2

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.usefixtures("unchecked"),
]
TASK = SyntheticTask("reverse")
SELECTION = Selection(select_size=8, test_size=16)


def close(a, b, *, within=1e-4):
    """Equal up to the order of float32 sums, by the norm of the difference."""
    a, b = (torch.as_tensor(x).detach().double().cpu().reshape(-1) for x in (a, b))
    assert a.shape == b.shape
    assert (a - b).norm() <= within * a.norm()


@pytest.mark.parametrize("name", ["gpt2", "qwen2-lora"])
@pytest.mark.parametrize("measurement", MEASUREMENTS)
def test_measurements_give_the_numbers_of_the_cpu(measurement, name):
    """Adam's first steps are signs of gradients, of which the smallest are rounding: 3% there."""
    found = []
    for device in ("cpu", "cuda"):
        model = in_use(name).to(device)
        space = ParamSpace.select(model, "attn|wte" if name == "gpt2" else "lora_")
        found.append(MEASUREMENTS[measurement](model, RowsTask(), space))
    trains = measurement in ("training", "drift", "recovery", "training in a basis")
    if measurement == "bases":
        # Directions have no sign.
        assert (found[0] * found[1]).sum(0).abs().min() > 0.999
    else:
        close(*found, within=3e-2 if trains else 1e-4)


@pytest.mark.parametrize("name", ["gpt2", "qwen2-lora"])
@pytest.mark.parametrize("measurement", MEASUREMENTS)
def test_everything_is_as_found_and_a_second_look_sees_the_same(measurement, name):
    model = in_use(name).to("cuda")
    space = ParamSpace.select(model, "attn|wte" if name == "gpt2" else "lora_")
    before, draws = state(model), torch.cuda.get_rng_state()
    first = MEASUREMENTS[measurement](model, RowsTask(), space)
    assert state(model) == before
    assert torch.equal(torch.cuda.get_rng_state(), draws)
    again = MEASUREMENTS[measurement](model, RowsTask(), space)
    # The gradient of an embedding is added up in no fixed order.
    close(first, again, within=1e-2)


@pytest.mark.parametrize("signs", [False, True])
def test_a_stream_has_the_bits_of_the_cpu_at_any_position(signs):
    one = stream(3, "search", 7, signs=signs)
    for start, n in ((0, 1), (3, 100_001), (2**40 + 1, 5000)):
        cpu, cuda = torch.empty(n), torch.empty(n, device="cuda")
        one.fill(cpu, start)
        one.fill(cuda, start)
        assert torch.equal(cpu, cuda.cpu())


@pytest.mark.parametrize("kind", [{}, {"relative": True}, {"tied": True}, {"kind": "signs"}])
def test_candidates_of_every_kind_are_put_as_on_the_cpu(kind):
    found = []
    for device in ("cpu", "cuda"):
        model = tiny_llama().to(device)
        with Candidates(model, ParamSpace.select(model), Noise(0.1, seed=3, **kind)) as candidates:
            candidates.put(5)
            found.append([p.detach().cpu().clone() for p in candidates.parameters])
    # The root mean square of a tensor is a sum, which a GPU adds up in another order.
    within = {"rtol": 1e-6, "atol": 1e-7} if "relative" in kind else {"rtol": 0, "atol": 0}
    for cpu, cuda in zip(*found, strict=True):
        torch.testing.assert_close(cpu, cuda, **within)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_candidates_are_those_of_the_cpu_and_leave_the_weights_bit_for_bit(dtype):
    displaced = []
    for device in ("cpu", "cuda"):
        model = tiny_llama().to(device, dtype)
        space = ParamSpace.select(model)
        before = [p.clone() for p in space.parameters(model)]
        with Candidates(model, space, Noise(0.1, seed=3)) as candidates:
            displaced.append(candidates.delta(5).cpu())
            candidates.put(5)
            changed = zip(space.parameters(model), before, strict=True)
            assert all(not torch.equal(p, q) for p, q in changed)
        restored = zip(space.parameters(model), before, strict=True)
        assert all(torch.equal(p, q) for p, q in restored)
    assert torch.equal(*displaced)


@pytest.mark.parametrize("score", ["loss", "accuracy", "exact"])
@pytest.mark.parametrize("where", ["all", "head", "basis"])
def test_a_search_gives_the_scores_of_the_cpu(score, where):
    scores = []
    for device in ("cpu", "cuda"):
        model = SyntheticTransformer(SyntheticConfig(width=16), seed=0).to(device)
        space = ParamSpace.select(model, None if where != "head" else "head")
        place = space
        if where == "basis":
            place = random_basis(space.dim, 5, generator(0, "b"), space=space)
        found = random_search(
            model, TASK, place, noise=Noise(0.3, seed=1), num_candidates=8,
            selection=Selection(score, select_size=8, test_size=16, top=2),
        )  # fmt: skip
        scores.append(found.scores)
    # One answer may flip where two logits are almost equal.
    close(*scores, within=1e-4 if score == "loss" else 0.02)


def test_a_survey_sees_what_the_cpu_sees():
    found = []
    for device in ("cpu", "cuda"):
        model = SyntheticTransformer(SyntheticConfig(width=16), seed=0).to(device)
        space = ParamSpace.select(model)
        change = survey(
            model, TASK, space, selection=SELECTION, effort=Effort(4), seed=0
        ).local.change(0.1)
        found.append([change.mean, change.std])
    close(*found, within=1e-3)


@pytest.mark.parametrize("family", [tiny_gpt2, tiny_llama, tiny_qwen2])
@pytest.mark.parametrize("lora", [False, True])
def test_steering_gives_the_vectors_of_the_cpu(family, lora):
    found = []
    for device in ("cpu", "cuda"):
        model = attach_lora(family(), rank=2, seed=0) if lora else family()
        space = ParamSpace.select(model.to(device), "lora_" if lora else None)
        prompts = shifted_prompts(STATEMENTS)
        found.append(
            [caa(model, STATEMENTS), gradient_shift(model, STATEMENTS, prompts, space=space)]
        )
    for cpu, cuda in zip(*found, strict=True):
        assert all(value > 0.9999 for value in cpu.cosine(cuda).values())


def test_effects_and_costs_are_those_of_the_cpu():
    prompts = [Prompted([5, 9, 3], ([20], [21])), Prompted([7, 2, 8, 4, 6, 1], ([20, 3], [21]))]
    texts = [([5, 9], [3, 4, 6]), ([7], [2, 8])]
    vectors = torch.randn(3, 16, generator=generator(0, "effect"))
    found = []
    for device in ("cpu", "cuda"):
        model = tiny_gpt2().to(device)
        differences = steered_differences(model, prompts, {1: vectors})
        (cost,) = neutral_cost(model, texts, [lambda m=model: add(m, {Site(1, "all"): vectors[0]})])
        found.append([*differences.flatten().tolist(), *cost])
    close(*found)


def test_bases_stay_on_the_device_and_compare_across():
    G = torch.randn(12, 5000, generator=generator(0, "G"))
    cpu, cuda = svd_basis(G, 4), svd_basis(G.to("cuda"), 4)
    assert cuda.U.device.type == "cuda"
    assert principal_angles(cpu.U, cuda.U.cpu()).max() < 1e-4
    assert angles(cpu, cuda).max() < 1e-4
