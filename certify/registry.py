"""Registry of what is defined outside of this package: texts can name it once its module is imported."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from certify.sources import code_of


class OwnClasses(dict[str, dict[tuple[str, str], type]]):
    """Classes by name, then by module and qualified name. Texts may use unique names only (:mod:`certify.spec`)."""

    def add(self, kind: type) -> None:
        """Register a class, unless it belongs to this package."""
        if kind.__module__.split(".")[0] != __package__:
            self.setdefault(kind.__name__, {})[kind.__module__, kind.__qualname__] = kind

    def unique(self) -> dict[str, type]:
        """The classes whose name is unique."""
        return {name: next(iter(found.values())) for name, found in self.items() if len(found) == 1}

    def ambiguous(self, name: str) -> bool:
        """Whether several classes have this name."""
        return len(self.get(name, ())) > 1


def check_same_place(what: str, name: str, before: Callable[..., Any], now: Callable[..., Any]) -> None:
    """Raise ValueError if ``before``, which has this ``name``, is defined elsewhere than ``now``.

    Functions are compared by module and qualified name, since a module may be imported twice.

    Args:
        what: what kind of thing the name is for, as messages call it.
    """
    first, second = _place(what, before), _place(what, now)
    if first != second:
        raise ValueError(f"{what}: got {name!r} of {second[0]}, but {first[0]} has one of that name, too; rename it")


def _place(what: str, build: Callable[..., Any]) -> tuple[str, str, str]:
    """Where a function is defined, and which arguments a partial one fixes."""
    function: Any = build.func if isinstance(build, partial) else build
    name = getattr(function, "__qualname__", "")
    if not name or "<lambda>" in name:
        got = "a lambda, which has no name" if "<lambda>" in name else repr(build)
        raise ValueError(
            f"{what}: got {got}, expected a function (written with def), a class or a functools.partial of one"
        )
    fixed = code_of([build]) if isinstance(build, partial) else None
    return function.__module__, name, fixed or ""
