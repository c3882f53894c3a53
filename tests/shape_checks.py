"""jaxtyping's checks of types and shapes at a fraction of their time.

jaxtyping binds the arguments of every call to the signature, checks them once more with the result,
and makes the checks of a function inside another anew whenever the outer one runs. One call of
beartype in a scope of jaxtyping's shapes finds the same faults.
"""

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import is_dataclass
from types import CellType, CodeType, FunctionType
from typing import Any, ForwardRef, Literal, get_args, get_origin

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import TypeCheckError, config, install_import_hook

_jaxtyped = jaxtyping.jaxtyped
_SCOPE = _jaxtyped("context")
_checks = beartype(conf=BeartypeConf(violation_type=TypeCheckError))
# The function inside another that is called, and the checks of all such functions by their code.
_called: ContextVar[Callable[..., Any]] = ContextVar("called")
_inside: dict[CodeType, Callable[..., Any]] = {}


def install() -> None:
    """Check the functions and dataclasses of frenet, of which nothing may be imported yet."""
    jaxtyping.jaxtyped = lambda *, typechecker: checked
    install_import_hook("frenet", "beartype.beartype")


def checked(made: Any) -> Any:
    """A function whose arguments and result are checked, or a dataclass whose fields are."""
    if inspect.isclass(made):
        if is_dataclass(made) and "__init__" in vars(made):
            made.__init__ = checked(made.__init__)
        return made
    hints = inspect.get_annotations(made).values()
    # A generator runs after its call, so in another scope; beartype reads names more strictly.
    if inspect.isgeneratorfunction(made) or any(map(_is_name, hints)):
        return _jaxtyped(made, typechecker=beartype)
    inner = "<locals>" in made.__qualname__
    return _in_a_scope(made, _inner_checks(made) if inner else _checks(made))


def _is_name(hint: Any) -> bool:
    """Whether a type, or one inside it, is written as a string."""
    if isinstance(hint, str | ForwardRef):
        return True
    inside = () if get_origin(hint) is Literal else get_args(hint)
    return any(map(_is_name, hint if isinstance(hint, list) else inside))


def _in_a_scope(function: Callable[..., Any], checks: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the checks, in which a name of an axis means one length per call."""

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        if config.jaxtyping_disable:
            return function(*args, **named)
        token = _called.set(function)
        try:
            with _SCOPE:
                return checks(*args, **named)
        finally:
            _called.reset(token)

    return call


def _inner_checks(function: FunctionType) -> Callable[..., Any]:
    """The checks of a function inside another, made once, before the function that is called."""
    code = function.__code__
    if code not in _inside:
        # With empty cells, so that nothing is kept alive.
        like = FunctionType(code, {}, closure=tuple(CellType() for _ in code.co_freevars))
        like.__annotations__ = function.__annotations__
        like.__qualname__, like.__module__ = function.__qualname__, function.__module__

        @functools.wraps(like)
        def inner(*args: Any, **named: Any) -> Any:
            return _called.get()(*args, **named)

        _inside[code] = _checks(inner)
    return _inside[code]
