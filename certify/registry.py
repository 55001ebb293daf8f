"""Registry of classes defined outside of this package: texts can name them once they are defined or imported."""

from __future__ import annotations


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
