"""The type checker behind jaxtyping's import hook: beartype, where an int may stand for a float.

jaxtyping also binds the axes of arrays at every call, and makes inner functions anew at every call
of the outer one: a quarter of the suite's time. Functions whose signature has no arrays have no
axes, and get beartype alone (`lighten`).
"""

import functools
import types
import typing

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))
_jaxtyped = jaxtyping.jaxtyped


def lighten():
    """Makes the hook leave functions without arrays to beartype; to be called before imports."""
    jaxtyping.jaxtyped = _checked


def _checked(function=None, *, typechecker):
    if function is None:
        return functools.partial(_checked, typechecker=typechecker)
    if isinstance(function, types.FunctionType) and not any(
        map(_has_axes, function.__annotations__.values())
    ):
        return typechecker(function)
    return _jaxtyped(function, typechecker=typechecker)


def _has_axes(annotation):
    """Whether jaxtyping's types are in it, or may be: a name in quotes is not looked up."""
    if isinstance(annotation, str) or type(annotation).__module__.startswith("jaxtyping"):
        return True
    return any(map(_has_axes, typing.get_args(annotation)))
