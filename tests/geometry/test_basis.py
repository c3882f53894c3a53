import dataclasses
import re

import pytest
import torch
from torch import nn

import oracles
from frenet.geometry.basis import (
    Basis,
    Space,
    angles,
    krylov_basis,
    overlap,
    prefix_basis,
    random_basis,
    span_basis,
    svd_basis,
)
from frenet.geometry.rng import generator
from frenet.network.space import ParamSpace

D = 31
SPACE = ParamSpace(("embed", "head.weight", "head.bias"), ((4, 5), (3, 3), (2,)))
NAN = float("nan")


def normal(*shape, key=0):
    return torch.randn(*shape, generator=generator(key, "basis"))


def off_orthonormal(basis):
    U = basis.U.double()
    return float((U.T @ U - torch.eye(basis.k).double()).abs().max())


def largest_angle(U, V):
    return float(oracles.principal_angles(U, V).max())


def given(U, **changes):
    fields = {"S": None, "space": None, "origin": "test", "rank": U.shape[-1]} | changes
    return Basis(U, **fields)


@pytest.fixture
def basis():
    return span_basis(normal(4, D), space=SPACE, origin="test")


def test_a_parameter_space_is_a_space():
    assert isinstance(ParamSpace.select(nn.Linear(2, 3)), Space)


def test_coordinates_expand_and_project_are_those_of_the_projection(basis):
    x = normal(D, key=1)
    torch.testing.assert_close(basis.coordinates(x), basis.U.T @ x)
    inside = (oracles.projector(basis.U) @ x.double()).float()
    torch.testing.assert_close(basis.project(x), inside, rtol=0, atol=1e-5)
    torch.testing.assert_close(basis.project(inside), inside, rtol=0, atol=1e-5)
    c = normal(4, key=2)
    torch.testing.assert_close(basis.coordinates(basis.expand(c)), c, rtol=0, atol=1e-5)


def test_captured_fraction_is_that_of_the_explicit_projection(basis):
    x = normal(3, 2, D, key=1) * torch.logspace(-20, 15, 6).reshape(3, 2, 1)
    found = basis.captured_fraction(x)
    assert (found.shape, found.dtype) == ((3, 2), torch.float64)
    for i in range(3):
        for j in range(2):
            expected = oracles.captured_fraction(basis.U, x[i, j])
            assert float(found[i, j]) == pytest.approx(expected, rel=1e-6)


def test_captured_fraction_of_what_is_inside_and_outside(basis):
    x = normal(D, key=1).double()
    inside = oracles.projector(basis.U) @ x
    assert float(basis.captured_fraction(inside)) == pytest.approx(1, abs=1e-6)
    assert float(basis.captured_fraction(x - inside)) < 1e-12
    assert float(basis.captured_fraction(-7 * x)) == pytest.approx(
        float(basis.captured_fraction(x)), rel=1e-9
    )


def test_everything_but_coordinates_is_the_same_after_a_rotation_of_the_basis(basis):
    x = normal(5, D, key=1)
    turned = given((basis.U.double() @ oracles.random_rotation(4, generator(7))).float())
    torch.testing.assert_close(turned.project(x), basis.project(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        turned.captured_fraction(x), basis.captured_fraction(x), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(turned.coordinates(x).norm(dim=1), basis.coordinates(x).norm(dim=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_vectors_of_any_float_dtype_are_taken(basis, dtype):
    x = normal(D, key=1).to(dtype)
    assert basis.project(x).dtype == torch.float32
    expected = oracles.captured_fraction(basis.U, x)
    assert float(basis.captured_fraction(x)) == pytest.approx(expected, rel=1e-6)


def test_expand_carries_gradients_to_the_coordinates(basis):
    c, x = torch.zeros(4, requires_grad=True), normal(D, key=1)
    (basis.expand(c) @ x).backward()
    torch.testing.assert_close(c.grad, basis.coordinates(x))


def test_a_zero_vector_has_no_captured_fraction(basis):
    x = normal(3, D, key=1)
    x[1] = 0
    with pytest.raises(ValueError, match="vector 1 of 3 is zero, so no share of it is defined"):
        basis.captured_fraction(x)


def test_the_empty_basis_captures_nothing():
    empty = span_basis(torch.zeros(3, D))
    assert (empty.k, empty.rank) == (0, 0)
    assert not empty.project(normal(D)).any()
    assert float(empty.captured_fraction(normal(D))) == 0


def test_truncate_keeps_the_first_directions():
    basis = svd_basis(normal(9, D), 6, space=SPACE)
    first = basis.truncate(2)
    assert torch.equal(first.U, basis.U[:, :2])
    assert torch.equal(first.S, basis.S[:2])
    assert (first.k, first.rank, first.space, first.origin) == (2, 9, SPACE, "gradients")
    assert first.U.untyped_storage().data_ptr() == basis.U.untyped_storage().data_ptr()
    assert basis.truncate(0).k == 0
    with pytest.raises(ValueError, match="k=7 exceeds the 6 directions of the gradients basis"):
        basis.truncate(7)


def test_a_basis_cannot_be_changed_but_moved(basis):
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'rank'"):
        basis.rank = 3
    moved = basis.to("cpu")
    assert torch.equal(moved.U, basis.U)
    assert moved.space is SPACE


@pytest.mark.parametrize(
    ("U", "changes", "message"),
    [
        (torch.eye(D)[:, 0], {}, r"must be a float32 matrix \(d, k\), got torch.float32 \(31,\)"),
        (torch.eye(D).double()[:, :2], {}, r"float32 matrix \(d, k\), got torch.float64"),
        (torch.eye(D)[:, :2], {"S": torch.ones(3)}, r"\(3,\) singular values for 2 directions"),
        (torch.eye(D)[:, :2], {"rank": 1}, "2 directions cannot come from vectors of rank 1"),
        (torch.eye(5)[:, :2], {"space": SPACE}, "U has 5 rows, its space 31 coordinates"),
        (
            torch.ones(D, 2),
            {"origin": "PCA"},
            r"the PCA basis is orthonormal to 3.1e\+01, the limit is 1e-05; span_basis",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_not_a_basis_is_refused(U, changes, message):
    with pytest.raises(ValueError, match=message):
        given(U, **changes)


def test_a_matrix_of_ones_own_is_a_basis():
    """Nothing but its columns is needed."""
    U = torch.linalg.qr(normal(D, 3))[0]
    own = Basis(U)
    assert (own.k, own.rank, own.S, own.space, own.origin) == (3, 3, None, None, "given")
    x = normal(1, D)[0]
    share = float((U.double().T @ x.double()).square().sum() / x.double().square().sum())
    assert float(own.captured_fraction(x)) == pytest.approx(share, abs=1e-6)
    assert own.truncate(1).rank == 3
    assert Basis(torch.zeros(D, 0)).rank == 0


@pytest.mark.parametrize(("error", "refused"), [(0.9e-5, False), (1.1e-5, True)])
def test_the_limit_of_orthonormality(error, refused):
    U = torch.eye(D)[:, :2]
    U[0, 1] = error
    if refused:
        with pytest.raises(ValueError, match=r"is orthonormal to 1\.1e-05"):
            given(U)
    else:
        assert given(U).k == 2


def test_a_bad_direction_is_named():
    U = torch.eye(D)[:, :2].clone()
    U[22, 1] = NAN
    with pytest.raises(
        FloatingPointError,
        match=r"of the test basis, direction 1 is nan in parameter head.weight \(coordinate 22\)",
    ):
        given(U, space=SPACE)


@pytest.mark.usefixtures("unchecked")
def test_vectors_of_another_length_are_refused(basis):
    for routine in (basis.coordinates, basis.project, basis.captured_fraction):
        with pytest.raises(ValueError, match="has 5 coordinates, the basis has d = 31"):
            routine(normal(5))
    with pytest.raises(ValueError, match="has 5 entries, the number of directions is 4"):
        basis.expand(normal(5))


def test_overlap_and_angles_are_those_of_the_subspaces(basis):
    other = svd_basis(normal(9, D, key=3), 3, space=SPACE)
    assert overlap(basis, other) == pytest.approx(oracles.overlap(basis.U, other.U), abs=1e-6)
    expected = oracles.principal_angles(basis.U, other.U)
    torch.testing.assert_close(angles(basis, other), expected, rtol=0, atol=1e-6)
    assert overlap(basis, basis) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("names", "shapes", "message"),
    [
        (
            ("embed", "head.w", "head.bias"),
            SPACE.shapes,
            "differ first at entry 1: head.weight (3, 3) against head.w (3, 3)",
        ),
        (
            SPACE.names,
            ((4, 5), (9,), (2,)),
            "differ first at entry 1: head.weight (3, 3) against head.weight (9,)",
        ),
        (
            (*SPACE.names, "norm"),
            (*SPACE.shapes, (0,)),
            "differ first at entry 3: nothing () against norm (0,)",
        ),
        (
            ("embed", "head.weight"),
            ((4, 5), (11,)),
            "differ first at entry 1: head.weight (3, 3) against head.weight (11,)",
        ),
    ],
)
@pytest.mark.parametrize("compare", [overlap, angles])
def test_bases_of_different_spaces_are_not_compared(basis, compare, names, shapes, message):
    other = span_basis(normal(2, D, key=3), space=ParamSpace(names, shapes))
    with pytest.raises(ValueError, match=re.escape(message)):
        compare(basis, other)


def test_bases_of_different_dimension_are_not_compared(basis):
    with pytest.raises(ValueError, match="the test basis has d = 31, the span basis d = 9"):
        overlap(basis, span_basis(normal(2, 9)))


def test_a_basis_without_a_space_is_compared_by_dimension(basis):
    assert overlap(basis, given(basis.U)) == pytest.approx(1, abs=1e-6)


def test_svd_basis_is_the_leading_subspace_of_the_unit_rows():
    G = normal(10, D) * torch.logspace(-3, 3, 10)[:, None]
    scaled = G.double() / G.double().norm(dim=1, keepdim=True)
    basis = svd_basis(G, 4, space=SPACE)
    assert largest_angle(basis.U, oracles.top_basis(scaled, 4)) < 1e-6
    assert largest_angle(svd_basis(G, 4, unit_rows=False).U, oracles.top_basis(G, 4)) < 1e-6
    torch.testing.assert_close(basis.S, oracles.svd(scaled)[1][:4], rtol=1e-9, atol=0)
    assert (basis.k, basis.d, basis.rank, basis.origin) == (4, D, 10, "gradients")
    assert basis.space is SPACE


def test_svd_basis_refuses_a_k_above_the_rank_and_gives_the_rank():
    G = normal(16, 9) @ normal(9, D, key=1)
    message = "k=12 exceeds the rank 9 of the 16 gradients; pass k <= 9 or more gradients"
    with pytest.raises(ValueError, match=f"^{message}$"):
        svd_basis(G, 12)
    assert svd_basis(G, 9).k == 9


def test_svd_basis_of_zeros_and_of_no_directions_is_refused():
    with pytest.raises(ValueError, match="the 4 updates are all zero, so there is no direction"):
        svd_basis(torch.zeros(4, D), 1, origin="updates")
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        svd_basis(normal(4, D), 0)


@pytest.mark.parametrize("bad", [NAN, float("inf")])
@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda G: svd_basis(G, 2, space=SPACE), "of the gradients, vector 2"),
        (lambda G: prefix_basis(G, 4, space=SPACE), "of the prefix, step 2"),
        (lambda G: span_basis(G, space=SPACE, origin="task vectors"), "task vectors, vector 2"),
    ],
)
def test_a_bad_entry_is_named_by_vector_and_parameter(build, words, bad):
    G = normal(5, D)
    G[2, 30] = bad
    message = rf"{words} is {bad} in parameter head.bias \(coordinate 30\); measure in float32"
    with pytest.raises(FloatingPointError, match=message):
        build(G)


def test_a_bad_entry_without_a_space_is_named_by_coordinate():
    G = normal(5, D)
    G[2, 30] = NAN
    with pytest.raises(FloatingPointError, match="vector 2 is nan in coordinate 30"):
        svd_basis(G, 2)


def test_prefix_basis_is_gram_schmidt_of_the_first_steps_in_order():
    steps = normal(8, D) * torch.logspace(0, -3, 8)[:, None]
    basis = prefix_basis(steps, 5, space=SPACE)
    expected = oracles.gram_schmidt(steps[:5])
    torch.testing.assert_close(basis.U.double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(prefix_basis(steps, 3).U, basis.truncate(3).U, rtol=0, atol=1e-6)
    # Later steps take no part.
    steps[5:] = NAN
    assert torch.equal(prefix_basis(steps, 5).U, basis.U)


def test_prefix_basis_reports_the_rank_of_steps_that_repeat():
    a, b = normal(2, D)
    basis = prefix_basis(torch.stack([a, a / 2, b, a - b]), 4)
    assert (basis.k, basis.rank) == (2, 2)
    assert largest_angle(basis.U, torch.stack([a, b]).T) < 1e-6


@pytest.mark.parametrize("k", [0, 6])
def test_prefix_basis_refuses_more_steps_than_there_are(k):
    with pytest.raises(ValueError, match=f"k={k} must be between 1 and the 5 steps of the path"):
        prefix_basis(normal(5, D), k)


@pytest.fixture
def quadratic():
    """H (symmetric, with a negative eigenvalue), b and a start of L = x^T H x / 2 - b^T x."""
    rotation = oracles.random_rotation(D, generator(11))
    eigenvalues = torch.linspace(-0.2, 1.0, D).double()
    H = rotation @ torch.diag(eigenvalues) @ rotation.T
    return (H + H.T) / 2, normal(D, key=12).double(), normal(D, key=13).double()


@pytest.mark.parametrize("k", [1, 2, 4, 6])
@pytest.mark.parametrize("rate", [0.5, 1.5])
def test_the_prefix_of_gradient_descent_on_a_quadratic_is_the_krylov_space(quadratic, k, rate):
    H, b, start = quadratic
    steps = oracles.gradient_descent_steps(lambda x: H @ x - b, start, rate=rate, steps=12)
    prefix = prefix_basis(steps, k)
    krylov = oracles.krylov(H, H @ start - b, k)
    assert largest_angle(prefix.U, krylov) < 1e-5
    own = krylov_basis(lambda v: H @ v, H @ start - b, k)
    assert float(angles(prefix, own).max()) < 1e-5
    # Stored in float32, as recorded steps are: rounding of 6e-8, amplified by nearly equal steps.
    assert largest_angle(prefix_basis(steps.float(), k).U, krylov) < 1e-2


@pytest.mark.parametrize("k", [1, 3, 8, 14])
def test_krylov_basis_is_the_dense_krylov_space(quadratic, k):
    H, g, _ = quadratic
    basis = krylov_basis(lambda v: H @ v, g, k, space=SPACE)
    assert (basis.k, basis.rank, basis.space) == (k, k, SPACE)
    assert off_orthonormal(basis) <= 1e-6
    assert largest_angle(basis.U, oracles.krylov(H, g, k)) < 1e-5


def test_krylov_basis_in_float32_and_for_a_scaled_problem(quadratic):
    H, g, _ = quadratic
    expected = oracles.krylov(H, g, 8)
    for scale in (1.0, 1e-12, 1e12):
        single = (scale * H).float()
        basis = krylov_basis(lambda v, single=single: single @ v, (g / scale).float(), 8)
        assert basis.k == 8
        assert largest_angle(basis.U, expected) < 1e-3


def test_krylov_basis_keeps_directions_that_the_raw_stack_loses():
    H = torch.diag(torch.logspace(0, -6, D).double())
    g, k = torch.ones(D), 10
    powers = [g]
    while len(powers) < k:
        powers.append(H.float() @ powers[-1])
    assert span_basis(torch.stack(powers)).k < k
    basis = krylov_basis(lambda v: H @ v.double(), g.double(), k)
    assert basis.k == k
    assert off_orthonormal(basis) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_krylov_basis_stops_at_an_invariant_subspace(quadratic, dtype):
    H, _, _ = quadratic
    vectors = torch.linalg.eigh(H).eigenvectors[:, [0, 7, 20]]
    g, calls, H = vectors.sum(1).to(dtype), [], H.to(dtype)

    def product(v):
        calls.append(v)
        return H @ v

    basis = krylov_basis(product, g, 9)
    assert (basis.k, basis.rank) == (3, 3)
    assert len(calls) == 3
    assert all(v.dtype == dtype and float(v.norm()) == pytest.approx(1, abs=1e-6) for v in calls)
    assert largest_angle(basis.U, vectors) < 1e-4


@pytest.mark.parametrize(("units", "k"), [(99.0, 1), (100.0, 1), (100.5, 2), (150.0, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_krylov_basis_goes_on_where_a_product_adds_more_than_100_units_of_rounding(dtype, units, k):
    added = units * torch.finfo(dtype).eps

    def product(v):
        return v + added * v.roll(1)

    basis = krylov_basis(product, torch.eye(4, dtype=dtype)[0], 2)
    assert basis.k == k


def test_krylov_basis_asks_for_no_product_that_it_does_not_need():
    calls = []

    def product(v):
        calls.append(v)
        return torch.arange(D).float() * v

    krylov_basis(product, torch.ones(D), 5)
    assert len(calls) == 4
    assert krylov_basis(product, torch.ones(D), 1).k == 1
    assert len(calls) == 4


def test_krylov_basis_ends_with_the_whole_space_or_a_zero_product():
    values = torch.arange(1.0, 4.0).double()
    whole = krylov_basis(lambda v: values * v, torch.ones(3).double(), 10)
    assert (whole.k, off_orthonormal(whole) < 1e-6) == (3, True)
    assert krylov_basis(torch.zeros_like, torch.ones(3), 2).k == 1


def test_krylov_basis_takes_half_precision_in_float32():
    dtypes = []

    def product(v):
        dtypes.append(v.dtype)
        return torch.arange(D).float() * v

    basis = krylov_basis(product, normal(D).to(torch.bfloat16), 3)
    assert (set(dtypes), basis.k) == ({torch.float32}, 3)


@pytest.mark.parametrize(
    ("product", "g", "k", "kind", "message"),
    [
        (lambda v: v, torch.zeros(D), 2, ValueError, "start of the krylov basis is zero"),
        (lambda v: v, torch.ones(D), 0, ValueError, "k=0 must be at least 1"),
        (lambda v: v[:-1], torch.ones(D), 2, ValueError, r"product has shape \(30,\), the vector"),
        (
            lambda v: v * torch.arange(D).float().log(),
            torch.ones(D),
            3,
            FloatingPointError,
            r"of Hessian product 1, vector 0 is -inf in parameter embed \(coordinate 0\)",
        ),
        (
            lambda v: v,
            torch.full((D,), NAN),
            3,
            FloatingPointError,
            "of the start of the krylov basis, vector 0 is nan in parameter embed",
        ),
    ],
)
def test_krylov_basis_refuses(product, g, k, kind, message):
    with pytest.raises(kind, match=message):
        krylov_basis(product, g, k, space=SPACE)


def test_span_basis_counts_only_what_is_independent():
    a, b = normal(2, D)
    basis = span_basis(torch.stack([a, b, a + b, torch.zeros(D)]), space=SPACE, origin="vectors")
    assert (basis.k, basis.rank, basis.origin, basis.S) == (2, 2, "vectors", None)
    assert largest_angle(basis.U, torch.stack([a, b]).T) < 1e-6


def test_random_basis_is_orthonormal_and_follows_the_generator():
    basis = random_basis(D, 7, generator(0), space=SPACE)
    assert (basis.d, basis.k, basis.space, basis.origin) == (D, 7, SPACE, "random")
    assert off_orthonormal(basis) <= 1e-6
    assert torch.equal(basis.U, random_basis(D, 7, generator(0)).U)
    assert not torch.equal(basis.U, random_basis(D, 7, generator(1)).U)
    assert random_basis(5, 5, generator(0)).k == 5


@pytest.mark.parametrize("k", [0, D + 1])
def test_random_basis_refuses_more_directions_than_there_are(k):
    with pytest.raises(ValueError, match=f"k={k} must be between 1 and the dimension d=31"):
        random_basis(D, k, generator(0))
