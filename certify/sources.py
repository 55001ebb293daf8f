"""A checksum of user-defined code, so that results of two versions of it never go into one folder."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from types import CodeType, FunctionType
from typing import Any

_KNOWN_PACKAGES = frozenset({"builtins", "abc", "typing", "enum", "torch", __package__})  # their code is not the user's
_PLAIN_TYPES = (type(None), bool, int, float, complex, str, bytes)
_MAX_DEFINITIONS = 200  # functions and classes in one checksum, at most


def code_of(things: Iterable[Any]) -> str | None:
    """The first digits of a checksum of classes, and of functions, that are neither of this package nor of torch.

    The checksum covers their source without comments and docstrings, their base classes, and the functions, classes and
    plain values of their module that they refer to. Other values, such as lists and arrays, count as they are written
    in the module, not as they are: a cache may fill up. For code without a source (from standard input, say), the
    bytecode of the methods counts. Arguments of a ``functools.partial`` count, too. Another Python version may give
    another checksum.

    Returns:
        None if there is no such code.
    """
    texts: dict[Any, str] = {}
    for thing in things:
        for each in _definitions(thing):
            _add_text(each, texts)
    if not texts:
        return None
    return hashlib.sha256("\n".join(sorted(texts.values())).encode()).hexdigest()[:16]


def _definitions(thing: Any) -> Iterator[Any]:
    """The classes and functions that a class, a function or a partial one consists of."""
    if isinstance(thing, partial):
        yield from _definitions(thing.func)
        yield (thing.args, sorted(thing.keywords.items()))
    elif isinstance(thing, type):
        yield from (base for base in thing.__mro__ if base.__module__.split(".")[0] not in _KNOWN_PACKAGES)
    elif inspect.isfunction(thing) and thing.__module__.split(".")[0] not in _KNOWN_PACKAGES:
        yield thing


def _add_text(thing: Any, texts: dict[Any, str]) -> None:
    """Add the text of a class or function and of what it refers to; other modules may define the same names."""
    if not isinstance(thing, (type, FunctionType)):
        texts["arguments"] = f"arguments {_stable_text(thing)}"
        return
    if thing in texts or len(texts) >= _MAX_DEFINITIONS:
        return
    name = thing.__qualname__
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    except (OSError, TypeError, SyntaxError):  # no source, or only a part of a line
        texts[thing] = f"{name} {_instructions(thing)!r}"
        return
    _drop_docstrings(tree)
    texts[thing] = f"{name} {ast.dump(tree)}"
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    around = vars(sys.modules[thing.__module__]) if thing.__module__ in sys.modules else {}
    for name in sorted(names & around.keys()):
        value = getattr(around[name], "__wrapped__", around[name])  # of a decorator such as lru_cache
        if isinstance(value, (type, FunctionType)):
            if value.__module__ == thing.__module__:
                _add_text(value, texts)
        elif isinstance(value, (*_PLAIN_TYPES, tuple)):
            texts[thing.__module__, name] = f"{name} = {_stable_text(value)}"
        elif name in (written := _as_written(thing.__module__)):
            texts[thing.__module__, name] = f"{name} = {written[name]}"


def _stable_text(value: Any) -> str:
    """A plain value as text; for others, whose text may contain an address, the class."""
    if isinstance(value, _PLAIN_TYPES):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_stable_text, value))})"
    return type(value).__qualname__


def _as_written(module: str) -> dict[str, str]:
    """What a module assigns to its names; nothing without a source."""
    try:
        return _assignments(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, SyntaxError):
        return {}


@lru_cache(maxsize=8)
def _assignments(source: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    found[node.id] = found.get(node.id, "") + ast.dump(statement)
    return found


def _drop_docstrings(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body[:1] = []


def _instructions(thing: type | FunctionType) -> list[Any]:
    """The bytecode of a function, or of the methods that a class defines itself."""
    if isinstance(thing, FunctionType):
        return _code_text(thing.__code__)
    found = {name: getattr(value, "__func__", value) for name, value in vars(thing).items()}
    found |= {name: value.fget for name, value in found.items() if isinstance(value, property)}
    own = {name: value for name, value in found.items() if inspect.isfunction(value)}
    return [(name, _code_text(value.__code__)) for name, value in sorted(own.items())]


def _code_text(code: CodeType) -> list[Any]:
    inner = [_code_text(each) if isinstance(each, CodeType) else each for each in code.co_consts]
    inner = [sorted(map(repr, each)) if isinstance(each, frozenset) else repr(each) for each in inner]
    return [code.co_code.hex(), code.co_names, inner]
