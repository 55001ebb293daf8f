"""A checksum of user-defined code, so that results of two versions of it never go into one folder."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_KNOWN_PACKAGES = frozenset({"builtins", "abc", "typing", "enum", "torch", __package__})  # their code is not the user's
_PLAIN_TYPES = (type(None), bool, int, float, complex, str, bytes)
_MAX_DEFINITIONS = 200  # functions and classes in one checksum, at most


def code_of(things: Iterable[Any]) -> str | None:
    """The first digits of a checksum of classes, and of functions, that are neither of this package nor of torch.

    The checksum covers their source without comments and docstrings, their base classes, and whatever of their module
    they refer to, and that in turn: functions, classes, plain values, and the statements that make other values, such
    as lists and arrays. These count as they are written rather than as they are, since a cache may fill up; so do names
    that a function declares ``global``. For code without a source (from standard input, say), the bytecode of the
    methods counts, and all values as they are. Arguments of a ``functools.partial`` count, too. Another Python version
    may give another checksum. What other modules define does not count.

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
    elif inspect.isfunction(thing) and (thing.__module__ or "").split(".")[0] not in _KNOWN_PACKAGES:
        yield thing


def _add_text(thing: Any, texts: dict[Any, str]) -> None:
    """Add the text of a class or function and of what it refers to; other modules may define the same names."""
    if not isinstance(thing, (type, FunctionType)):
        texts["arguments"] = f"arguments {_stable_text(thing)}"
        return
    if thing in texts or len(texts) >= _MAX_DEFINITIONS:
        return
    name, tree = thing.__qualname__, _tree_of(thing)
    if tree is None:
        texts[thing] = f"{name} {_instructions(thing)!r}"
        names = _names_in(_instructions(thing))
    else:
        texts[thing] = f"{name} {ast.dump(tree)}"
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    _add_values(thing.__module__, names, texts)


def _tree_of(thing: type | FunctionType) -> ast.Module | None:
    """The syntax of a class or function, without docstrings; None where the source is not to be had."""
    if thing.__qualname__.endswith("<lambda>"):  # its source is the whole line around it
        return None
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    except (OSError, TypeError, SyntaxError):  # no source, or only a part of a line
        return None
    _drop_docstrings(tree)
    return tree


def _add_values(module: str | None, names: set[str], texts: dict[Any, str]) -> None:
    """Add the texts of what a module calls by these names."""
    around = vars(sys.modules[module]) if module in sys.modules else {}
    source = _source_of(module)
    for name in sorted(names & around.keys()):
        value = getattr(around[name], "__wrapped__", around[name])  # of a decorator such as lru_cache
        if isinstance(value, (type, FunctionType)):
            if value.__module__ == module:
                _add_text(value, texts)
        elif (module, name) in texts or isinstance(value, ModuleType):
            continue
        elif source is None or (_is_plain(value) and name not in _statements(source).declared_global):
            texts[module, name] = f"{name} = {_stable_text(value)}"
        elif name in (written := _statements(source)).text:
            texts[module, name] = f"{name}: {written.text[name]}"
            _add_values(module, written.names[name], texts)
        elif isinstance(value, tuple):
            texts[module, name] = f"{name} = {_stable_text(value)}"


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, _PLAIN_TYPES)


def _stable_text(value: Any) -> str:
    """A plain value as text; for others, whose text may contain an address, the class."""
    if isinstance(value, _PLAIN_TYPES):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_stable_text, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_stable_text(key)}: {_stable_text(each)}' for key, each in value.items())}}}"
    if isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_meta or value.is_quantized):
        value = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    return type(value).__qualname__


@dataclass
class _Statements:
    """What the statements of a module, outside its functions and classes, do to its names.

    Attributes:
        text: those that assign to a name, to its entries or attributes, or call its methods, as text.
        names: what these refer to.
        declared_global: names that a function may change.
    """

    text: dict[str, str] = field(default_factory=dict)
    names: dict[str, set[str]] = field(default_factory=dict)
    declared_global: set[str] = field(default_factory=set)


def _source_of(module: str | None) -> str | None:
    try:
        return inspect.getsource(sys.modules[module]) if module in sys.modules else None
    except (OSError, TypeError):
        return None


@lru_cache(maxsize=8)
def _statements(source: str) -> _Statements:
    found, tree = _Statements(), ast.parse(source)
    found.declared_global = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    for statement in tree.body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        read = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        for name in {changed for node in ast.walk(statement) if (changed := _changed_name(node)) is not None}:
            found.text[name] = found.text.get(name, "") + ast.dump(statement)
            found.names[name] = found.names.get(name, set()) | read
    return found


def _changed_name(node: ast.AST) -> str | None:
    """What a part of a statement may change: ``x`` for ``x = ...``, ``x[0] = ...``, ``x.y = ...`` and ``x.f()``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        node = node.func.value
    elif not (isinstance(node, (ast.Name, ast.Subscript, ast.Attribute)) and not isinstance(node.ctx, ast.Load)):
        return None
    while isinstance(node, (ast.Subscript, ast.Attribute)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


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


def _names_in(instructions: Any) -> set[str]:
    """All strings in such a list, which contain the names that the code refers to."""
    if isinstance(instructions, str):
        return {instructions}
    return {name for part in instructions for name in _names_in(part)}
