"""Schemes and vote rules as text: ``RandomizedAblation(keep=45)``.

The text is what command lines take and what configurations and checkpoints store. It is parsed, never evaluated: a
known name, optionally one of its ``from_...`` constructors, and literal arguments.
"""

from __future__ import annotations

import ast
import dataclasses
from typing import Any


def known() -> dict[str, type]:
    """The classes that a text may name: every dataclass exported by :mod:`certify`."""
    import certify

    exported = {name: getattr(certify, name) for name in certify.__all__}
    return {
        name: value for name, value in exported.items() if isinstance(value, type) and dataclasses.is_dataclass(value)
    }


def parse(text: str) -> Any:
    """The object that ``text`` describes."""
    names = known()
    usage = f"expected e.g. RandomizedAblation(keep=45), with one of {', '.join(sorted(names))}"
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"got {text!r}, {usage}") from error
    if not isinstance(call, ast.Call):
        raise ValueError(f"got {text!r}, {usage}")
    function = call.func
    constructor = None
    if isinstance(function, ast.Attribute) and function.attr.startswith("from_"):
        constructor, function = function.attr, function.value
    if not isinstance(function, ast.Name) or function.id not in names:
        raise ValueError(f"got {text!r}, {usage}")
    build = names[function.id]
    if constructor is not None:
        if not hasattr(build, constructor):
            raise ValueError(f"got {text!r}: {function.id} has no {constructor}")
        build = getattr(build, constructor)
    try:
        args = [ast.literal_eval(value) for value in call.args]
        kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
        return build(*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"got {text!r}: {error}") from error


def to_text(value: Any) -> str:
    """The text from which :func:`parse` builds an equal object; defaults are left out."""
    fields = [
        f"{field.name}={getattr(value, field.name)!r}"
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default
    ]
    return f"{type(value).__name__}({', '.join(fields)})"
