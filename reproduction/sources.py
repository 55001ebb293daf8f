"""Result folders as the quantities see them, read with the same functions as the reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from certify import L1, Lp
from rl.logs import Method, read_config, read_method
from scripts.parts import patches, recertified
from scripts.parts.attacks import number
from scripts.parts.tables import Run
from scripts.parts.under_attack import AttackRun, read_attack

Options = Mapping[str, Any]


class Source:
    """A result folder; whatever is read from it is cached, since many cells read the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache: dict[Any, Any] = {}

    def _cached(self, key: Any, read: Callable[[], Any]) -> Any:
        if key not in self._cache:
            self._cache[key] = read()
        return self._cache[key]

    def certificates(self, options: Options) -> Run:
        """Rows of certificates: as stored, or recertified from the votes if ``bound``, ``top_k`` or ``alpha`` is given;
        with ``p`` or ``pixels``, radii are restated in lp or in pixels."""
        chosen = {name: options.get(name) for name in ("bound", "top_k", "alpha", "p", "pixels")}
        return self._cached(tuple(chosen.values()), lambda: self._certificates(**chosen))

    def _certificates(
        self, bound: str | None, top_k: int | None, alpha: float | None, p: float | str | None, pixels: bool | None
    ) -> Run:
        again = recertified.Again(alpha=alpha)
        if top_k is not None:
            (run,) = recertified.top_k_runs(self.path, [top_k], alpha)
        elif bound is not None:
            run = recertified.read_run(self.path, again, bound)
        else:
            run = recertified.read_run(self.path, again)
        if p is not None:
            run = self._in_lp(run, number(str(p)))
        return recertified.in_pixels(run) if pixels else run

    def _in_lp(self, run: Run, p: float) -> Run:
        if run.threat == str(L1()):
            return recertified.through_norms(run, p)
        if run.threat != str(Lp(p)):
            raise ValueError(f"{self.path}: got {run.threat}, which cannot be restated in lp with p = {p}")
        return run

    def attack(self) -> AttackRun:
        return self._cached("attack", lambda: read_attack(self.path))

    def method(self, metric: Literal["success", "return"]) -> Method:
        return self._cached(("method", metric), lambda: read_method(self.path, metric))

    def patch(self, size: str, bound: patches.PatchBound) -> patches.PatchAccuracy:
        sizes = [patches.parse_size(size)]
        return self._cached(("patch", size, bound), lambda: patches.patch_accuracy(self.path, sizes, [bound])[0])

    def efficiency(self) -> list[dict[str, Any]]:
        """The fitted power laws that scripts.learning_efficiency wrote."""
        path = self.path / "efficiency.json"
        if not path.exists():
            raise FileNotFoundError(f"{path}: not found; scripts.learning_efficiency writes it")
        return json.loads(path.read_text())["curves"]

    def setting(self, dotted: str) -> Any:
        """A value from the configuration of an agent's first seed, such as ``"arguments.policy_kwargs.net_arch.0"``."""
        folders = sorted(self.path.glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-")))
        if not folders:
            raise FileNotFoundError(f"{self.path}: got no seed folders in it, expected seed-0, seed-1, ...")
        value: Any = read_config(folders[0])
        for key in dotted.split("."):
            try:
                value = value[int(key) if isinstance(value, list) else key]
            except (LookupError, TypeError, ValueError) as error:
                raise ValueError(f"{folders[0]}: its configuration has no {dotted}") from error
        return value
