"""How a budget of a run deviates from the published setting, argument by argument."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from typing import Any

from reproduction.catalogue import RUN_FOLDER, Run
from reproduction.running import Words, parsed

_LEAF_SCRIPTS = ("certify", "attack")  # scripts whose results no other command reads
# Arguments that determine where and how fast a command runs, but not its results.
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
    return "the default" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _output_folder(words: Words) -> str:
    """The subfolder of the run's folder that a command writes to; empty if it writes to the run's folder itself."""
    return next((word.removeprefix(f"{RUN_FOLDER}/") for word in words if word.startswith(f"{RUN_FOLDER}/")), "")


def differences(words: Words, published: Words) -> list[str]:
    """The arguments in which a command deviates from the published one: ``epochs 100 instead of 400``."""
    own, full = parsed(words)[1], parsed(published)[1]
    pairs = {
        f.name: (getattr(own, f.name), getattr(full, f.name)) for f in fields(own) if f.name not in _WITHOUT_EFFECT
    }
    return [
        f"{name.replace('_', ' ')} {_text(here)} instead of {_text(there)}"
        for name, (here, there) in pairs.items()
        if here != there
    ]


def reductions(run: Run, budget: str, used: Collection[str]) -> list[str]:
    """One text per command that deviates from the published setting; empty if the run has no budget ``full``.

    Args:
        used: the result folders that are read; commands that only produce others are left out.
    """
    if budget == "full" or "full" not in run.budgets:
        return []
    texts = []
    for words, published in zip(run.words(budget), run.words("full"), strict=True):
        script, own = words[0].removeprefix("scripts."), _output_folder(words)
        if script in _LEAF_SCRIPTS and own not in used:
            continue
        found = differences(words, published)
        name = f"{script} {own}" if own else script
        texts += [f"{name}: {', '.join(found)}"] if found else []
    return texts
