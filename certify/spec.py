"""Schemes and vote rules as text: ``RandomizedAblation(keep=45)``.

Command lines take this text, and configurations and checkpoints store it. It is parsed, never evaluated: a known name,
optionally one of its ``from_...`` constructors, and literal arguments.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from certify.scheme import Scheme
from certify.votes import ThresholdVote, VoteRule, argmax_vote


def known() -> dict[str, type]:
    """The classes that a text may name: every dataclass exported by :mod:`certify`, and schemes defined elsewhere whose
    name is unique."""
    import certify

    own = Scheme.own.unique()
    exported = {name: getattr(certify, name) for name in certify.__all__}
    return {
        name: value
        for name, value in (own | exported).items()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and not inspect.isabstract(value)
    }


def parse(text: str, names: dict[str, type] | None = None, *, example: str = "RandomizedAblation(keep=45)") -> Any:
    """The object that ``text`` describes.

    Args:
        names: classes that it may name, by default :func:`known`.
        example: a valid text to show in error messages.
    """
    names = known() if names is None else names
    usage = f"expected e.g. {example}, with one of {', '.join(sorted(names))}"
    close = difflib.get_close_matches(text.split("(")[0].strip(), names, n=1)
    if close:
        usage = f"expected e.g. {example}; did you mean {close[0]}(...)?"
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"got {text[:200]!r}, which is not complete (brackets? quotes?); {usage}") from error
    if not isinstance(call, ast.Call):
        raise ValueError(f"got {text!r}, {usage}")
    function = call.func
    constructor = None
    if isinstance(function, ast.Attribute) and function.attr.startswith("from_"):
        constructor, function = function.attr, function.value
    if not isinstance(function, ast.Name) or function.id not in names:
        own = "" if close else "; to use a class of your own, import its module (--import MODULE)"
        raise ValueError(f"got {text!r}, {usage}{own}")
    build = names[function.id]
    if constructor is not None:
        if not hasattr(build, constructor):
            raise ValueError(f"got {text!r}: {function.id} has no {constructor}")
        build = getattr(build, constructor)
    keywords = [keyword.arg for keyword in call.keywords]
    if None in keywords or len(set(keywords)) < len(keywords):
        raise ValueError(f"got {text!r}, expected each keyword argument once, and no **")
    try:
        args = [_literal(value, text) for value in call.args]
        kwargs = {keyword.arg: _literal(keyword.value, text) for keyword in call.keywords if keyword.arg}
        return build(*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"got {text!r}: {error}; expected {function.id}{_parameters(build)}") from error


def _parameters(build: Callable[..., Any]) -> str:
    """The parameters of a function with their default values: ``(keep, *, unit='pixel')``."""
    signature = inspect.signature(build)
    plain = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def _literal(node: ast.expr, text: str) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, RecursionError) as error:
        own = ast.get_source_segment(text.strip(), node)  # ast.unparse would recurse as deeply as the text is nested
        raise ValueError(f"got {text!r}: {own} is not a number, a string or a tuple of these") from error


def _is_literal(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_literal, value))
    return value is None or isinstance(value, (bool, int, float, str))


def parse_scheme(text: str) -> Scheme:
    """The smoothing scheme that ``text`` describes."""
    # other known names are parsed, too, but not suggested
    schemes = {name: value for name, value in known().items() if issubclass(value, Scheme)}
    scheme = parse(text, schemes if text.split("(")[0].split(".")[0].strip() not in known() else None)
    if not isinstance(scheme, Scheme):
        raise ValueError(f"scheme: got {text!r}, expected a smoothing scheme such as RandomizedAblation(keep=45)")
    return scheme


def parse_vote(text: str) -> VoteRule:
    """The vote rule that ``text`` describes: ``argmax`` or e.g. ``ThresholdVote(theta=0.6)``."""
    rules = {"ThresholdVote": ThresholdVote} if text.split("(")[0].strip() not in known() else None
    vote = argmax_vote if text == "argmax" else parse(text, rules, example="ThresholdVote(theta=0.6)")
    if not isinstance(vote, ThresholdVote) and vote is not argmax_vote:
        raise ValueError(f"vote: got {text!r}, expected argmax or a vote rule such as ThresholdVote(theta=0.6)")
    return vote


def to_text(value: Any) -> str:
    """The text from which :func:`parse` builds an equal object; arguments equal to their defaults are omitted.

    Fields of schemes that are :data:`~certify.scheme.NOT_IN_TEXT` are omitted as well.

    Raises ``ValueError`` for an object that no text identifies uniquely, since its results and those of another object
    would go into one folder.
    """
    kind = type(value).__name__
    taken = isinstance(value, Scheme) and known().get(kind, type(value)) is not type(value)
    if taken or Scheme.own.ambiguous(kind):
        raise ValueError(f"got a {kind} of {type(value).__module__}, but {kind} is another scheme, too; rename it")
    if not dataclasses.is_dataclass(value):
        raise ValueError(f"got a {kind}, which has no text form, expected a frozen dataclass, whose fields identify it")
    arguments = []
    fields, is_scheme = dataclasses.fields(value), isinstance(value, Scheme)
    shown = [field for field in fields if field.metadata.get("in_text", True) or not is_scheme]
    for field in sorted(shown, key=lambda field: field.kw_only is True):  # positional arguments first
        argument = getattr(value, field.name)
        argument = argument.item() if isinstance(argument, np.generic) else argument
        if not _is_literal(argument):
            raise ValueError(
                f"got a {kind} whose {field.name} is a {type(argument).__name__}, which has no unique text form, "
                "expected numbers, strings and tuples of these, such as the seed from which it is made"
            )
        if argument != field.default:
            arguments.append(f"{field.name}={argument!r}")
    return f"{type(value).__name__}({', '.join(arguments)})"
