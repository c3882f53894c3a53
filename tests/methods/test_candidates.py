"""Candidates: independent noise of the right size, the same for the same seed, exactly undone."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from frenet.geometry.basis import random_basis
from frenet.geometry.rng import BLOCK, generator
from frenet.methods.candidates import Candidates, Noise
from frenet.network.space import ParamSpace
from network.models import tiny_gpt2


def deltas(model, where, noise, indices):
    with Candidates(model, where, noise) as candidates:
        return torch.stack([candidates.delta(i) for i in indices])


def parts(space, vector):
    return {name: part.flatten() for name, part in space.unflatten(vector).items()}


def correlation(a, b):
    return float(np.corrcoef(a.numpy(), b.numpy())[0, 1])


def test_case_s2a_equal_shaped_tensors_get_independent_noise_of_the_right_size():
    model = tiny_gpt2()
    space = ParamSpace.select(model)
    assert space.dim == 11_408
    seven, again = (deltas(model, space, Noise(0.01, seed=7), [0])[0] for _ in range(2))
    assert torch.equal(seven, again)
    own = parts(space, seven)
    for left, right in itertools.combinations(own, 2):
        n = len(own[left])
        if n >= 256 and len(own[right]) == n:
            assert abs(correlation(own[left], own[right])) < 5 / n**0.5
    assert float(seven.std()) == pytest.approx(0.01, rel=0.02)
    for other in (
        deltas(model, space, Noise(0.01, seed=8), [0])[0],
        deltas(model, space, Noise(0.01, seed=7), [1])[0],
    ):
        assert abs(correlation(seven, other)) < 0.05


def test_the_noise_of_a_block_is_another_one_where_only_that_block_moves():
    model = tiny_gpt2()
    whole, block = ParamSpace.select(model), ParamSpace.select(model, r"h\.1\.")
    noise = Noise(0.01, seed=7)
    all_parts = parts(whole, deltas(model, whole, noise, [3])[0])
    for name, part in parts(block, deltas(model, block, noise, [3])[0]).items():
        if len(part) >= 256:
            assert abs(correlation(part, all_parts[name])) < 5 / len(part) ** 0.5


@pytest.mark.parametrize("relative", [False, True])
def test_all_at_once_or_tensor_by_tensor_the_draw_is_the_same(relative):
    model = tiny_gpt2()
    space = ParamSpace.select(model)
    with Candidates(model, space, Noise(0.3, relative=relative, antithetic=True)) as candidates:
        for index in (2, 3):
            theta = candidates.thetas([index])[0]
            candidates.put(index)
            assert torch.equal(space.read(model), theta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_case_s2b_the_bytes_come_back(dtype):
    model = tiny_gpt2().to(dtype)
    space = ParamSpace.select(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for error in (None, ValueError, KeyboardInterrupt):
        try:
            with Candidates(model, space, Noise(1.0)) as candidates:
                for index in range(20):
                    candidates.put(index)
                    assert not torch.equal(
                        model.transformer.wte.weight, before["transformer.wte.weight"]
                    )
                    if error is not None and index == 3:
                        raise error("stop")
        except (ValueError, KeyboardInterrupt):
            pass
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name])
    assert model.lm_head.weight is model.transformer.wte.weight


def test_case_s2c_weights_that_bf16_does_not_move_are_counted():
    layer = nn.Linear(100, 100, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        layer.weight.copy_(0.02 * torch.randn(100, 100, generator=generator(0, "weights")))
    with Candidates(layer, ParamSpace.select(layer), Noise(1e-4)) as candidates:
        share = candidates.unmoved(0)
        before = layer.weight.detach().clone()
        candidates.put(0)
        assert share == pytest.approx(float((layer.weight == before).float().mean()))
    assert share == pytest.approx(0.32, abs=0.02)
    exact = layer.float()
    with Candidates(exact, ParamSpace.select(exact), Noise(1e-4)) as candidates:
        assert candidates.unmoved(0) < 1e-3


def test_what_is_put_is_the_displacement_rounded_once():
    model = tiny_gpt2().to(torch.bfloat16)
    space = ParamSpace.select(model, "mlp")
    start = space.read(model)
    with Candidates(model, space, Noise(0.3, seed=2)) as candidates:
        delta = candidates.delta(5)
        candidates.put(4)
        candidates.put(5)
        assert torch.equal(space.read(model), (start + delta).bfloat16().float())
        assert torch.equal(candidates.thetas([4, 5])[1], start + delta)


def test_signs_are_those_of_the_normal_numbers_and_of_length_sigma():
    model = tiny_gpt2()
    space = ParamSpace.select(model)
    signs, normal = (
        deltas(model, space, Noise(0.25, seed=7, kind=kind), range(2))
        for kind in ("signs", "normal")
    )
    assert torch.equal(signs, 0.25 * normal.sign())
    assert abs(float(signs.mean())) < 5 * 0.25 / signs.numel() ** 0.5


@pytest.mark.usefixtures("unchecked")
def test_a_kind_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="pass normal or signs"):
        Noise(0.1, kind="uniform")


def test_any_index_is_a_candidate_of_its_own():
    model = tiny_gpt2()
    space = ParamSpace.select(model, "mlp")
    found = deltas(model, space, Noise(0.1), [0, 2**63 - 1, 2**63, 2**64, 2**64 + 1, 10**30])
    assert np.abs(np.corrcoef(found.numpy()) - np.eye(6)).max() < 5 / space.dim**0.5


@pytest.mark.parametrize("kind", [{}, {"relative": True}, {"tied": True}, {"kind": "signs"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_lie_in_memory_in_another_order_get_the_same_candidate(kind, dtype):
    plain = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 30)).to(dtype)
    turned = copy.deepcopy(plain)
    turned[0].weight.data = plain[0].weight.detach().T.contiguous().T
    assert not turned[0].weight.is_contiguous()
    space = ParamSpace.select(plain)
    for model in (plain, turned):
        with Candidates(model, space, Noise(0.3, seed=1, **kind)) as candidates:
            candidates.put(2)
            candidates.put(5)
            moved = space.read(model)
            assert torch.equal(moved, candidates.thetas([5])[0].to(dtype).float())
        if model is plain:
            first = moved
    assert torch.equal(first, moved)
    assert torch.equal(space.read(plain), space.read(turned))


def test_a_tensor_of_several_blocks_is_put_as_it_is_drawn():
    model = nn.Linear(1024, 600)
    space = ParamSpace.select(model)
    assert space.dim > 2 * BLOCK
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        with Candidates(model, space, Noise(0.1, seed=1)) as candidates:
            candidates.put(3)
            found.append(space.read(model))
            assert torch.equal(found[-1], candidates.thetas([3])[0])
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_antithetic_candidates_are_pairs():
    model = tiny_gpt2()
    space = ParamSpace.select(model, "mlp")
    found = deltas(model, space, Noise(0.1, antithetic=True), range(4))
    plain = deltas(model, space, Noise(0.1), range(2))
    assert torch.equal(found[0], -found[1])
    assert torch.equal(found[2], -found[3])
    assert torch.equal(found[::2], plain)


def test_relative_noise_has_the_size_of_its_tensor():
    model = tiny_gpt2()
    space = ParamSpace.select(model, r"h\.0\.mlp.*weight")
    delta = deltas(model, space, Noise(0.1, relative=True), [0])[0]
    for name, part in parts(space, delta).items():
        share = part.norm() / model.get_parameter(name).detach().norm()
        assert float(share) == pytest.approx(0.1, rel=0.1)
    biases = ParamSpace.select(model, r"mlp.*bias")
    with pytest.raises(ValueError, match="every selected tensor is zero"):
        Candidates(model, biases, Noise(0.1, relative=True))


def test_tied_noise_is_shared_by_equal_shapes_and_only_on_request():
    model = tiny_gpt2()
    space = ParamSpace.select(model, r"mlp\.c_fc\.weight")
    tied, free = (
        list(parts(space, deltas(model, space, Noise(1.0, tied=flag), [0])[0]).values())
        for flag in (True, False)
    )
    assert torch.equal(tied[0], tied[1])
    assert torch.equal(tied[0], tied[2])
    assert not torch.equal(free[0], free[1])


def test_inside_a_basis_the_noise_is_on_its_coordinates():
    model = tiny_gpt2()
    space = ParamSpace.select(model, "mlp")
    basis = random_basis(space.dim, 50, generator(0, "basis"), space=space)
    found = deltas(model, basis, Noise(0.1), range(40))
    assert torch.allclose(basis.captured_fraction(found).float(), torch.ones(40), atol=1e-5)
    coordinates = basis.coordinates(found)
    n = coordinates.numel()
    assert abs(float(coordinates.square().mean()) / 0.01 - 1) < 4 * (2 / n) ** 0.5


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_a_sigma_that_is_no_standard_deviation_is_refused(sigma):
    with pytest.raises(ValueError, match="pass a finite number above 0"):
        Noise(sigma)


def test_a_basis_has_to_know_its_parameters_and_has_no_tensors():
    model = tiny_gpt2()
    space = ParamSpace.select(model, "mlp")
    with pytest.raises(ValueError, match="does not name its parameters"):
        Candidates(model, random_basis(space.dim, 2, generator(0, "b")), Noise(0.1))
    basis = random_basis(space.dim, 2, generator(0, "b"), space=space)
    for kind in ("relative", "tied"):
        with pytest.raises(ValueError, match=f"{kind} noise is defined by tensors"):
            Candidates(model, basis, Noise(0.1, **{kind: True}))
