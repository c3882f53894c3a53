"""The checks of types and shapes notice what they are for, and nothing else."""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from frenet.geometry.rng import generator
from frenet.network.space import ParamSpace
from shape_checks import checked

SPACE = ParamSpace(("w",), ((2,),))


@checked
def dot(a: Float[Tensor, " d"], b: Float[Tensor, " d"], scale: float = 1.0) -> Float[Tensor, ""]:
    return scale * (a * b).sum() if scale else a.new_zeros(7)


@checked
def parts(a: Float[Tensor, " d"], size: float) -> Iterator[Float[Tensor, " k"]]:
    yield from a.split(int(size))


@checked
def later(size: "float") -> "float":
    return size


@checked
@dataclass(frozen=True)
class Pair:
    a: Float[Tensor, " d"]
    b: Float[Tensor, " d"]


@checked
def scaled(scale: float, *, times: int = 1) -> Any:
    """A function inside this one, whose checks are made once."""

    @checked
    def inner(a: Float[Tensor, " d"], b: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        return inner(scale * a, b) if a.abs().max() < 1 else (a + b).repeat(times)

    return inner


ONE, TWO = torch.ones(1), torch.ones(2)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (dot, (ONE, TWO)),
        (dot, (ONE.int(), ONE)),
        (dot, (ONE, ONE, 1)),
        (dot, (ONE, ONE, 0.0)),
        (parts, (TWO, 1)),
        (later, (1,)),
        (Pair, (ONE, TWO)),
        (scaled, (2,)),
        (scaled(2.0), (ONE, TWO)),
        (scaled(2.0, times=2), (ONE, ONE)),
        (generator, (0.5, "purpose")),
        (SPACE.locate, ("0",)),
    ],
)
def test_a_wrong_type_or_shape_is_noticed_until_the_checks_are_off(request, function, args):
    assert isinstance(error_of(function, args), TypeCheckError)
    request.getfixturevalue("unchecked")
    assert not isinstance(error_of(function, args), TypeCheckError)


def error_of(function, args):
    """The error that a call raises, if any."""
    try:
        function(*args)
    except (RuntimeError, TypeError, ValueError) as error:
        return error
    return None


def test_the_length_of_an_axis_is_that_of_one_call():
    assert dot(ONE, ONE) == 1
    assert dot(TWO, TWO, 3.0) == 6
    assert Pair(TWO, TWO).a is TWO
    assert len(list(parts(TWO, 1.0))) == 2


def test_functions_inside_another_stay_apart_and_nothing_of_them_is_kept():
    """Also if they call themselves; the checks are those of the first, the values their own."""
    double, triple = scaled(2.0), scaled(3.0, times=2)
    assert double(ONE / 4, ONE) == 2
    with pytest.raises(TypeCheckError):
        triple(ONE / 9, ONE)
    held = torch.nn.Linear(1, 1)
    gone = weakref.ref(held)

    def inside(held: torch.nn.Module) -> Any:
        @checked
        def inner() -> torch.nn.Module:
            return held

        return inner

    assert inside(held)() is held
    del held
    gc.collect()
    assert gone() is None


def test_a_type_may_be_a_name_inside_another():
    """A module that is imported only when it is needed is known by its name alone."""

    def made() -> tuple["nowhere.Thing", int]:
        return "thing", 1

    assert checked(made)() == ("thing", 1)
