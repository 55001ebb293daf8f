"""The modules that a base classifier consists of, also where it is a function, or hides them from torch."""

from __future__ import annotations

import dis
import inspect
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache, partial
from types import CodeType, FunctionType, ModuleType

from torch import Tensor, nn

_MOST_VALUES = 1_000  # values searched for modules
_PLAIN = (int, float, str, bytes, type(None), Tensor, type, ModuleType)  # these hold none
_OWN_ATTRIBUTES = frozenset(vars(nn.Module()))  # of every module: its parameters, submodules, hooks and so on


def referred_modules(callable_: object) -> Iterator[nn.Module]:
    """The modules that a callable is or refers to, directly or through other values, nearest first.

    Modules that are parts of others are not repeated. Found are those in closures, globals, defaults, attributes, lists
    and the like, among the nearest 1,000 values; not those behind weak references or attributes of Python modules.
    """
    values, seen, parts = deque([callable_]), set[int](), set[int]()
    while values and len(seen) < _MOST_VALUES:
        value = values.popleft()
        if isinstance(value, nn.Module):
            value = getattr(value, "_orig_mod", value)  # of torch.compile
        if id(value) in seen or id(value) in parts:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            yield value
            parts.update(map(id, value.modules()))
            for part in value.modules():
                if not type(part).__module__.startswith("torch."):
                    values.append(type(part).forward)
                    own = (held for name, held in vars(part).items() if name not in _OWN_ATTRIBUTES)
                    values.extend(held for held in own if _may_hold_modules(held))
        else:
            values.extend(held for held in _held(value) if not isinstance(held, _PLAIN))


def _may_hold_modules(value: object) -> bool:
    """Whether an attribute of a module is worth a search: not numbers, such as a stride, but functions and lists."""
    if isinstance(value, (list, tuple, dict)):
        parts = value.values() if isinstance(value, dict) else value
        return not all(isinstance(part, _PLAIN) for part in parts)
    return callable(value) and not isinstance(value, (type, nn.Module))


def _held(value: object) -> Iterable[object]:
    """The values that a value refers to: in its closure, globals and attributes, or as items."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values())
    if inspect.ismethod(value):
        return (value.__self__, value.__func__)
    if isinstance(value, FunctionType):
        return () if (value.__module__ or "").split(".")[0] == "torch" else _of_function(value)
    slots = [getattr(kind, "__slots__", ()) for kind in type(value).__mro__]
    names = [name for own in slots for name in ((own,) if isinstance(own, str) else own)]
    found = [getattr(type(value), "__call__", None)]  # noqa: B004 - what it refers to
    found += [getattr(value, name, None) for name in names]
    return [*found, *vars(value).values()] if hasattr(value, "__dict__") else found


def _of_function(function: FunctionType) -> list[object]:
    found: list[object] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a name that has no value yet
            found.append(cell.cell_contents)
    own = function.__globals__
    return [*found, *(own[name] for name in _global_names(function.__code__) if name in own)]


@lru_cache(maxsize=256)
def _global_names(code: CodeType) -> tuple[str, ...]:
    """The globals that a function uses, also in functions and comprehensions within it."""
    names = [each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _global_names(part)]
    return tuple(dict.fromkeys((*names, *inner)))
