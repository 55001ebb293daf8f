"""In what a budget of a run is other than the published setting, argument by argument."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from reproduction.catalogue import RUN_FOLDER, Run
from reproduction.running import Words, parsed

# Arguments that say where and how fast, not what.
_WITHOUT_EFFECT = {"device", "data_root", "resume", "tensorboard", "jobs", "workers", "at_once", "images_per_step"}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _name(words: Words) -> str:
    """``train``, or ``certify test`` where the command has a folder of its own below that of the run."""
    own = [word.removeprefix(f"{RUN_FOLDER}/") for word in words if word.startswith(f"{RUN_FOLDER}/")]
    return " ".join([words[0].removeprefix("scripts."), *own[:1]])


def differences(words: Words, published: Words) -> list[str]:
    """What is other in a command: ``epochs 100 (published 400)``."""
    own, full = parsed(words)[1], parsed(published)[1]
    pairs = {
        f.name: (getattr(own, f.name), getattr(full, f.name)) for f in fields(own) if f.name not in _WITHOUT_EFFECT
    }
    return [
        f"{name.replace('_', ' ')} {_text(here)} (published {_text(there)})"
        for name, (here, there) in pairs.items()
        if here != there
    ]


def reductions(run: Run, budget: str) -> list[str]:
    """One text for each command of a budget that is other than in the published setting; empty if that is not known."""
    if budget == "full" or "full" not in run.budgets:
        return []
    texts = []
    for words, published in zip(run.words(budget), run.words("full"), strict=True):
        found = differences(words, published)
        texts += [f"{_name(words)}: {', '.join(found)}"] if found else []
    return texts
