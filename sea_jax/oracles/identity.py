"""Names functions that a user passes as objects, and hashes what they compute.

A function of a notebook has no file whose content could be compared, and its source has comments, while that
of a lambda has the whole call around it. So the hash is of its bytecode.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_DIGITS = 12  # of the hash, in hexadecimal
_READS, _WRITES = ("LOAD_GLOBAL", "LOAD_NAME"), ("STORE_GLOBAL", "STORE_DEREF")


def name_of(call: Any) -> str:
    """Returns module and name of what is called; of an object without a name those of its class."""
    call = call.func if isinstance(call, functools.partial) else call
    named = call if hasattr(call, "__qualname__") else type(call)
    return f"{named.__module__}.{named.__qualname__}"


def file_of(call: Callable[..., Any]) -> str:
    """Returns the file of the code as tracebacks name it, '<stdin>' and the like included; '' if unknown."""
    code = getattr(_function(call), "__code__", None)
    return code.co_filename if code is not None else ""


def digest(call: Callable[..., Any]) -> str:
    """Hashes what a function computes, as far as that can be told.

    That is its bytecode, without comments and line numbers; the numbers and texts that it reads from outside,
    unless it writes them itself; and the same of the functions of its own module that it calls. What lists,
    dicts, objects and files hold is not told, so that a function may keep a record of its calls.

    Args:
        call: a function, a method, a partial or an object that can be called.

    Returns:
        12 hexadecimal digits; others on another minor version of Python.
    """
    found = repr([*_parts(call, set())])
    return hashlib.sha256(found.encode("utf-8", "replace")).hexdigest()[:_DIGITS]


def _function(call: Any) -> Any:
    """Returns the function behind a method, a partial, a wrapper or an object that can be called."""
    if isinstance(call, functools.partial):
        return _function(call.func)
    if not isinstance(call, FunctionType) and hasattr(call, "__wrapped__"):  # as jax.jit makes them
        return _function(call.__wrapped__)
    if isinstance(call, MethodType):
        return call.__func__
    return call if isinstance(call, FunctionType) else inspect.getattr_static(type(call), "__call__", None)


def _parts(call: Any, seen: set[int]) -> Iterator[Any]:
    """Yields texts and numbers that tell a function from others."""
    if isinstance(call, functools.partial):
        yield from _plain({str(i): value for i, value in enumerate(call.args)} | call.keywords)
    function = _function(call)
    if not isinstance(function, FunctionType) or id(function) in seen:
        return
    seen.add(id(function))
    code = function.__code__
    yield from _code(code)
    outside = dict(zip(code.co_freevars, _contents(function), strict=True))
    outside |= {name: function.__globals__.get(name) for name in _names(code, _READS)}
    outside |= dict(enumerate(function.__defaults__ or ())) | (function.__kwdefaults__ or {})
    written = _names(code, _WRITES)
    outside = {str(name): value for name, value in outside.items() if name not in written}
    yield from _plain(outside)
    for name, value in sorted(outside.items()):
        if isinstance(value, FunctionType) and value.__module__ == function.__module__:
            yield name
            yield from _parts(value, seen)


def _contents(function: FunctionType) -> Iterator[Any]:
    """Yields what the cells of a closure hold; None for one that is empty yet."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            yield None


def _code(code: CodeType) -> Iterator[Any]:
    yield from (code.co_code, code.co_names, code.co_varnames, code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant)
        else:
            yield _ordered(constant)


def _names(code: CodeType, operations: tuple[str, ...]) -> set[str]:
    """Returns the names that a code and those within it read or write from outside."""
    found = {step.argval for step in dis.get_instructions(code) if step.opname in operations}
    inner = (_names(constant, operations) for constant in code.co_consts if isinstance(constant, CodeType))
    return found.union(*inner)


def _plain(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields names and values that are numbers and texts, or tuples and frozen sets of them."""
    for name, value in sorted(values.items()):
        if _is_plain(value):
            yield name, _ordered(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _ordered(value: Any) -> str:
    """Writes a constant; a set in an order that does not change from process to process."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_ordered, value))})"
    return f"{{{', '.join(sorted(map(_ordered, value)))}}}" if isinstance(value, frozenset) else repr(value)
