"""A user's Python function as the oracle: it rewards single responses, or prefers one of two."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sea_jax.errors import InputError
from sea_jax.oracles import identity
from sea_jax.oracles.bradley_terry import BradleyTerryOracle
from sea_jax.oracles.protocol import Answers, BroadcastFn, compute_locally

# The two forms of a function, told apart by the names of its parameters.
FORMS = {"score": ("prompts", "responses"), "prefer": ("prompts", "first", "second")}
_SIGNATURES = "f(prompts, responses) or f(prompts, first, second)"
_VALUES = {"score": "a finite number (float32)", "prefer": "a number in [0, 1], or None for no answer"}
_NAME = re.compile(r"(?P<where>.+\.py|[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<attribute>[^\W\d]\w*)")
_LARGEST = float(np.finfo(np.float32).max)
_SHOWN = 40  # characters of a text or value in an error
_given: dict[str, UserFunction] = {}  # by name, those that were passed as objects


@dataclasses.dataclass(frozen=True)
class UserFunction:
    """A function of the user, and what is known of it.

    Attributes:
        name: as the config has it, 'my_rules.py:score' or 'package.module:score'.
        form: a key of FORMS.
        file: of its module, as tracebacks name it.
        call: the function itself.
        given: whether it was passed as an object, so that errors name the argument and no field.
    """

    name: str
    form: str
    file: str
    call: Callable[..., Any]
    given: bool = False

    @property
    def shown(self) -> str:
        """The function as the user gave it, for errors."""
        return f"{self.form}={self.name}" if self.given else _field(self.name)

    def ask(self, *texts: Sequence[str]) -> np.ndarray:
        """Calls the function once with all rows, and checks its answer.

        Args:
            *texts: a column of B texts for each parameter of its form.

        Returns:
            [B] float64: finite rewards, or probabilities in [0, 1] with NaN where there is no answer.

        Raises:
            InputError: the function raised, or did not return B valid values; the line names the row and,
                where it raised, file and line of the user's code.
        """
        columns = dict(zip(FORMS[self.form], texts, strict=True))
        size = len(columns["prompts"])
        if not size:
            return np.zeros(0)
        read = _Read()
        try:
            result = self.call(**{name: _Column(column, read) for name, column in columns.items()})
        except Exception as error:
            at = "" if read.row is None else f"; read last: {_row(read.row, columns)}"
            raise InputError(f"{self.shown}: {_place(error, self.file)}{at}") from error
        return np.array([self._value(i, row, columns) for i, row in enumerate(self._rows(result, size))])

    def _rows(self, result: Any, size: int) -> Sequence[Any]:
        """Returns the values of a list or of an array; raises InputError unless there are B."""
        if hasattr(result, "tolist"):  # arrays of NumPy, JAX and torch, on any device
            result = result.tolist()
        if not isinstance(result, Sequence) or isinstance(result, str | bytes):
            found, valid = _shown(result), f"a list or array of {size} values, one per prompt"
            raise InputError(f"{self.shown}: returned {found}; valid is {valid}")
        if len(result) != size:
            raise InputError(f"{self.shown}: returned {len(result)} values; valid is {size}, one per prompt")
        return result

    def _value(self, i: int, value: Any, columns: dict[str, Sequence[str]]) -> float:
        """Returns the number of a row, NaN for None; raises InputError if it is not valid."""
        if value is None and self.form == "prefer":
            return math.nan
        number = _number(value)
        valid = number is not None and (
            0.0 <= number <= 1.0 if self.form == "prefer" else abs(number) <= _LARGEST
        )
        if number is None or not valid:
            found = _shown(value) if number is None else f"{number}"
            texts = _row(i, columns).partition(": ")[2]
            raise InputError(f"{self.shown}: row {i}: {found}; valid is {_VALUES[self.form]}; {texts}")
        return number


class _Read:
    """The row that a function has read last: None before the first, and after a loop over all."""

    row: int | None = None


class _Column(list[str]):
    """Texts for a function, which note the row that it reads, so that its exception can name one."""

    def __init__(self, texts: Sequence[str], read: _Read):
        super().__init__(texts)
        self._read = read

    def __iter__(self) -> Iterator[str]:
        for i, text in enumerate(super().__iter__()):
            self._read.row = i
            yield text
        self._read.row = None

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        if isinstance(index, int):
            self._read.row = index % len(self)
        return found


class FunctionPreferences:
    """P(y ≻ y' | x) of a user's function that compares two responses; None leaves a comparison unanswered.

    Args:
        function: of form 'prefer'.
        broadcast: see `BroadcastFn`.

    Raises:
        InputError: by `answers`, see `UserFunction.ask`.
    """

    def __init__(self, function: UserFunction, broadcast: BroadcastFn = compute_locally):
        self._function, self._broadcast = function, broadcast

    def answers(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Answers:
        """Returns P(first ≻ second | x) where the function gave one."""
        ask = lambda: self._function.ask(prompts, first, second)  # noqa: E731
        probability = self._broadcast(ask, np.zeros(len(prompts)))
        return Answers(probability, ~np.isnan(probability))


def make_oracle(
    function: UserFunction, broadcast: BroadcastFn = compute_locally
) -> BradleyTerryOracle | FunctionPreferences:
    """Makes the oracle of a user's function.

    Args:
        function: its rewards make a Bradley-Terry oracle, its preferences a `PartialOracle`.
        broadcast: see `BroadcastFn`; the function is called on the main process only.
    """
    if function.form == "prefer":
        return FunctionPreferences(function, broadcast)

    def rewards(prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        return broadcast(lambda: function.ask(prompts, responses), np.zeros(len(prompts)))

    return BradleyTerryOracle(rewards)


@contextlib.contextmanager
def given(call: Callable[..., Any], form: str) -> Iterator[str]:
    """Lets config.oracle.function name a function that is passed as an object, while the context lasts.

    Args:
        call: of any kind that Python can call, importable or not.
        form: a key of FORMS.

    Returns:
        Its name: of its module and itself, and a hash of what it computes (`identity.digest`).

    Raises:
        InputError: its parameters are not those of the form.
    """
    if _form(call) != form:
        found = _signature(identity.name_of(call), call) if callable(call) else _shown(call)
        raise InputError(f"{form}: {found}; valid is a function f({', '.join(FORMS[form])})")
    name = f"{identity.name_of(call)}@{identity.digest(call)}"
    _given[name] = UserFunction(name, form, identity.file_of(call), call, given=True)
    try:
        yield name
    finally:
        del _given[name]


def load(name: str) -> UserFunction:
    """Returns the function that config.oracle.function names: imports it, or has it from `given`.

    It calls nothing.

    A file that has not changed is executed once, however often it is asked for.

    Args:
        name: '<file>.py:<function>' or '<package.module>:<function>'.

    Raises:
        InputError: there is no such file, module or function; its module raises; or its parameters are of
            neither form.
    """
    if name in _given:
        return _given[name]
    parts = _NAME.fullmatch(name)
    if parts is None:
        valid = "<file>.py:<function> or <package.module>:<function>"
        raise InputError(f"{_field(name)}: valid is {valid} with oracle.kind='function'")
    where, attribute = parts["where"], parts["attribute"]
    module = _import_file(name, Path(where)) if where.endswith(".py") else _import_module(name, where)
    if not hasattr(module, attribute):
        there = sorted(known for known, value in vars(module).items() if _form(value))
        valid = f"one of {there}" if there else f"a function {_SIGNATURES}"
        raise InputError(f"{_field(name)}: {where} has no {attribute!r}; valid is {valid}")
    call = getattr(module, attribute)
    if (form := _form(call)) is None:
        raise InputError(f"{_field(name)}: {_signature(attribute, call)}; valid is {_SIGNATURES}")
    return UserFunction(name, form, getattr(module, "__file__", None) or "", call)


def _import_file(name: str, path: Path) -> ModuleType:
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{_field(name)}: {path}: {error.strerror}; valid is a Python file") from None
    path = path.absolute()
    try:
        return _executed(path, (stat.st_mtime_ns, stat.st_size))
    except (Exception, SystemExit) as error:
        raise InputError(f"{_field(name)}: {_place(error, str(path))}") from error


@functools.lru_cache(maxsize=8)
def _executed(path: Path, stamp: tuple[int, int]) -> ModuleType:
    """Executes a file as a module; `stamp` tells its versions apart."""
    del stamp
    spec = importlib.util.spec_from_file_location(f"sea_jax_oracle_{path.stem}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    # Last, so that the file may import its neighbours and hides no installed module.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[spec.name] = module  # dataclasses and pickle look there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _import_module(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            valid = "a module that Python finds, or a file that ends in .py"
            raise InputError(f"{_field(name)}: no module {missing!r}; valid is {valid}") from None
        raise InputError(f"{_field(name)}: {_place(error, '')}") from error


def _form(value: Any) -> str | None:
    """Returns the form of a function that can be called with the parameters of FORMS by name, else None."""
    if not callable(value) or inspect.isclass(value) or inspect.iscoroutinefunction(value):
        return None
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # a function of C may have none
        return None
    for form, names in FORMS.items():
        if signature.parameters.keys() >= {*names}:
            try:
                signature.bind(**dict.fromkeys(names))
            except TypeError:  # another parameter has no default, or cannot be given by name
                continue
            return form
    return None


def _signature(name: str, value: Any) -> str:
    """Returns what a value is that is no function of the two forms."""
    if not callable(value):
        return f"{name} is {_shown(value)}, which cannot be called"
    kind = "async " if inspect.iscoroutinefunction(value) else "class " if inspect.isclass(value) else ""
    try:
        return f"{kind}{name}{inspect.signature(value)}"
    except (TypeError, ValueError):
        return f"{kind}{name} has no signature"


def _number(value: Any) -> float | None:
    """Returns a scalar as float, whatever library it is of; None if it is none."""
    if isinstance(value, str | bytes) or getattr(value, "ndim", 0) != 0:
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _place(error: BaseException, file: str) -> str:
    """Returns file and line of the user's code that an error came through, and the error, in one line."""
    if isinstance(error, SyntaxError) and error.filename:
        place, said = f"{error.filename}:{error.lineno}", error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == file]  # of a notebook, as '<stdin>', too
        last = (own or [frame for frame in frames if not frame.filename.startswith("<")])[-1]
        place, said = f"{last.filename}:{last.lineno}", " ".join(str(error).split())
    return f"{place}: {type(error).__name__}: {said}" if said else f"{place}: {type(error).__name__}"


def _row(i: int, columns: dict[str, Sequence[str]]) -> str:
    """Returns a row's number and the beginnings of its texts."""
    return f"row {i}: " + ", ".join(f"{name}[{i}]={_short(texts[i])!r}" for name, texts in columns.items())


def _field(name: str) -> str:
    return f"config.oracle.function={name!r}"


def _shown(value: Any) -> str:
    """Returns a value and its type, in one short line."""
    return (
        "None"
        if value is None
        else f"{_short(' '.join(repr(value).split()))}, of type {type(value).__name__}"
    )


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
