"""Classes that are defined outside of this package: texts name them where they are defined, or imported."""

from __future__ import annotations


class OwnClasses(dict[str, dict[tuple[str, str], type]]):
    """By name, and by module and place in it. A text may name those of which there is one (:mod:`certify.spec`)."""

    def add(self, kind: type) -> None:
        """Remember a class, unless it is one of this package."""
        if kind.__module__.split(".")[0] != __package__:
            self.setdefault(kind.__name__, {})[kind.__module__, kind.__qualname__] = kind

    def unique(self) -> dict[str, type]:
        """Those that are the only ones of their name."""
        return {name: next(iter(found.values())) for name, found in self.items() if len(found) == 1}

    def ambiguous(self, name: str) -> bool:
        """Whether several classes have this name."""
        return len(self.get(name, ())) > 1
