"""Telling base classifiers apart, so that results of different ones never go into one folder."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import Enum
from functools import partial
from itertools import chain
from types import CodeType, EllipsisType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from certify.inference import BaseClassifier
from certify.modules import referred_modules
from certify.sources import code_of

# parameters, hooks, and whatever else torch keeps in every module or adds when it compiles one
_MODULE_ATTRIBUTES = frozenset({*vars(nn.Module()), "_is_torch_compile"})
_PRINTABLE = (
    type(None),
    EllipsisType,
    range,
    slice,
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    Enum,
    torch.dtype,
    torch.device,
    torch.Size,
)


def name_of(base_classifier: BaseClassifier) -> str:
    """The class of a module, and the first digits of a checksum of its layers, parameters, buffers and settings.

    Code counts as in :func:`~certify.sources.code_of`: that of the module's class and functions, not of other modules.

    Raises ``ValueError`` if a classifier refers to something that cannot be told from others of its kind.
    """
    if not isinstance(base_classifier, nn.Module):
        raise ValueError(
            f"model: got none for {base_classifier!r}, which has no parameters to tell it from others; give it a name, "
            "a new one for each version"
        )
    module = getattr(base_classifier, "_orig_mod", base_classifier)  # of torch.compile
    digest = hashlib.sha256()
    try:
        for piece in _module_pieces(module, set()):
            digest.update(piece)
    except _NotIdentifiableError as error:
        raise ValueError(
            f"model: got a {type(base_classifier).__name__} whose {error}, which cannot be told from others of its "
            "kind; give the model a name, a new one for each version: model=..."
        ) from None
    return f"{type(module).__name__} {digest.hexdigest()[:16]}"


def parameters_of(base_classifier: BaseClassifier) -> str | None:
    """The first digits of a checksum of the parameters of the modules that are found in a classifier, and of the
    statistics by which they normalize.

    Other than other buffers and attributes, they do not change when the classifier runs. None if there are none.
    """
    states = []
    for module in referred_modules(base_classifier):
        statistics = [part.named_buffers() for part in module.modules() if isinstance(part, _NormBase)]
        states.append([*module.named_parameters(), *chain.from_iterable(statistics)])
    pieces = [f"{name} ".encode() + _array_bytes(value) for state in states for name, value in state]
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()[:16] if pieces else None


def _module_pieces(module: nn.Module, above: set[int]) -> Iterator[bytes]:
    """The layers of a module, with their parameters, buffers, settings and code."""
    yield str(module).encode()
    # including buffers that a state dictionary leaves out
    for name, value in sorted({**module.state_dict(), **dict(module.named_buffers())}.items()):
        yield from _named_pieces(name, value, above)
    own_kinds = {type(part) for part in module.modules() if not type(part).__module__.startswith("torch.")}
    # all methods, and what they refer to in their module
    codes = {kind: code_of([kind]) for kind in own_kinds}
    for path, part in module.named_modules():
        kind = type(part)
        if isinstance(part, torch.jit.ScriptModule):
            raise _NotIdentifiableError(f"{path or 'code'} is compiled by TorchScript")
        yield f"{path} {kind.__module__} {kind.__qualname__} ".encode()
        settings = {name: value for name, value in vars(part).items() if name not in _MODULE_ATTRIBUTES}
        hooks = [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]
        if kind in codes:
            settings |= {"forward": kind.forward} | ({} if codes[kind] is None else {"code": codes[kind]})
        for name, value in sorted((settings | ({"hooks": hooks} if hooks else {})).items()):
            if not isinstance(value, nn.Module):
                try:
                    yield from _named_pieces(f"{path}.{name}", value, above)
                except _NotIdentifiableError:
                    if kind in codes or name == "hooks":  # torch's own settings are plain
                        raise


def _named_pieces(name: str, value: object, above: set[int]) -> Iterator[bytes]:
    try:
        for piece in _value_pieces(value, above):
            yield f"{name} ".encode() + piece
    except _NotIdentifiableError as error:
        text = str(error)
        raise _NotIdentifiableError(text if " is " in text else f"{name.lstrip('.')} is {text}") from None


class _NotIdentifiableError(Exception):
    """A value of a kind that cannot be told from others of its kind; the message says what it is."""


def _value_pieces(value: object, above: set[int]) -> Iterator[bytes]:
    """A value as bytes that are the same in every process.

    Args:
        above: ids of the values that contain this one, which may refer back to them.
    """
    if isinstance(value, (Tensor, np.ndarray)):
        yield _array_bytes(value)
    elif isinstance(value, (np.generic, *_PRINTABLE)):
        yield f"{type(value).__name__} {value!r} ".encode()
    elif isinstance(value, (type, ModuleType)):
        yield f"{getattr(value, '__module__', '')} {getattr(value, '__qualname__', value.__name__)} ".encode()
    elif id(value) in above:
        yield b"above "
    elif isinstance(value, nn.Module):
        yield from _module_pieces(value, above | {id(value)})
    else:
        above = above | {id(value)}
        yield f"{type(value).__module__} {type(value).__qualname__} ".encode()
        for part in _components(value):
            yield from _value_pieces(part, above)


def _array_bytes(value: Tensor | np.ndarray) -> bytes:
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
        if value.dtype.hasobject:
            raise _NotIdentifiableError(f"an array of {value.dtype}")
        return f"{value.dtype} {value.shape} ".encode() + value.tobytes()
    dense = value.detach().cpu().to_dense().contiguous() if isinstance(value, Tensor) else torch.tensor(value)
    return f"{dense.dtype} {tuple(dense.shape)} ".encode() + dense.view(-1).view(torch.uint8).numpy().tobytes()


def _components(value: Any) -> list[Any]:
    """What a value consists of, in a fixed order; raises ``_NotIdentifiableError`` if that is unknown."""
    if isinstance(value, Mapping):
        return sorted(value.items(), key=lambda item: repr(item[0]))
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if isinstance(value, (list, tuple)):
        return list(value)
    if inspect.ismethod(value):
        return [value.__func__, value.__self__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if inspect.isfunction(value):
        cells = []
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # a name without a value yet
                cells.append(cell.cell_contents)
        return [
            value.__module__,
            value.__qualname__,
            _code_components(value.__code__),
            *filter(None, [code_of([value])]),  # what it refers to in its module
            value.__defaults__,
            value.__kwdefaults__,
            cells,
        ]
    if inspect.isbuiltin(value):
        return [value.__module__, value.__qualname__]
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if hasattr(value, "__dict__") and all(map(_is_written_in_python, type(value).__mro__[:-1])):
        return sorted(vars(value).items())
    raise _NotIdentifiableError(f"a {type(value).__name__}")


def _code_components(code: CodeType) -> list[Any]:
    inner = [_code_components(each) if isinstance(each, CodeType) else each for each in code.co_consts]
    return [code.co_code, code.co_names, inner]


def _is_written_in_python(kind: type) -> bool:
    """Whether a class is defined in Python, so that its objects have no state beyond their attributes."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    return kind.__module__ not in sys.builtin_module_names and not file.endswith((".so", ".pyd"))
