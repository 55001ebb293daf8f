"""In what a budget of a run is other than the published setting, argument by argument."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from typing import Any

from reproduction.catalogue import RUN_FOLDER, Run
from reproduction.running import Words, parsed

_LAST = ("certify", "attack")  # scripts whose results no other command reads
# Arguments that say where and how fast, not what.
_WITHOUT_EFFECT = {
    "device",
    "cuda_graphs",
    "data_root",
    "resume",
    "tensorboard",
    "jobs",
    "workers",
    "at_once",
    "images_per_step",
}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        in_a_row = len(value) > 2 and value == list(range(value[0], value[0] + len(value)))
        return f"{value[0]} to {value[-1]}" if in_a_row else " ".join(map(str, value))
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _own_folder(words: Words) -> str:
    """The folder below that of the run that a command writes to, if it is not that of the run itself."""
    return next((word.removeprefix(f"{RUN_FOLDER}/") for word in words if word.startswith(f"{RUN_FOLDER}/")), "")


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


def reductions(run: Run, budget: str, used: Collection[str]) -> list[str]:
    """One text for each command of a budget that is other than in the published setting; empty if that is not known.

    Args:
        used: the result folders that are read; commands that only make others are left out.
    """
    if budget == "full" or "full" not in run.budgets:
        return []
    texts = []
    for words, published in zip(run.words(budget), run.words("full"), strict=True):
        script, own = words[0].removeprefix("scripts."), _own_folder(words)
        if script in _LAST and own not in used:
            continue
        found = differences(words, published)
        name = f"{script} {own}" if own else script
        texts += [f"{name}: {', '.join(found)}"] if found else []
    return texts
