"""Certified accuracy against patches of given sizes, from the stored votes of runs; part of ``scripts.report``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certify import L0, Patch, SampledScheme, StoredRun
from certify.patch import PatchBound, StructuredAblation
from scripts.parts.tables import Run, aligned, percent

Size = tuple[int, int]


def parse_size(text: str) -> Size:
    """``"5"`` (a square) or ``"3x7"`` (height x width) in pixels."""
    sides = text.split("x")
    if len(sides) in (1, 2) and all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides):
        return int(sides[0]), int(sides[-1])
    raise ValueError(f"patch: got {text!r}, expected a side in pixels such as 5, or height x width such as 3x7")


@dataclass(frozen=True)
class PatchAccuracy:
    """What one run certifies against patches.

    Attributes:
        name: of the run.
        bound: which certificate.
        images: number of images.
        clean: share of correct predictions.
        sizes: the patch sizes, as text.
        certified: share of images that are correct and certified, per patch size.
        folder: of the run.
    """

    name: str
    bound: str
    images: int
    clean: float
    sizes: tuple[str, ...]
    certified: tuple[float, ...]
    folder: str | None = None

    def summary(self) -> dict[str, Any]:
        return {
            "kind": "patches",
            "name": self.name,
            "folder": self.folder,
            "threat": "patch",
            "bound": self.bound,
            "images": self.images,
            "clean_accuracy": self.clean,
            "patches": list(self.sizes),
            "certified_accuracy": list(self.certified),
        }


def patch_accuracy(
    path: Path, sizes: Sequence[Size], bounds: Sequence[PatchBound], run: Run | None = None
) -> list[PatchAccuracy]:
    """One entry per bound; a single one for runs whose rows decide, the baselines of Section 6.2.1 and Appendix E.5.

    A patch of h x w pixels is an l0 perturbation of h w pixels, so an l0 radius of at least h w certifies it; it also
    lies within a square whose side is the longer of the two.

    Args:
        path: folder of the run.
        run: the recertified run, for those whose rows decide; by default the run as stored.
    """
    stored = StoredRun(path)
    config, scheme, labels = stored.config, stored.scheme, tuple(f"{h}x{w}" for h, w in sizes)
    name = f"{config['data']}, {config['scheme']}, {config['vote']}"
    sparse = scheme.threat == L0("pixel")
    if sparse or (scheme.threat == Patch() and not isinstance(scheme, StructuredAblation)):
        rows, (_, height, width) = stored.rows if run is None else run.rows, config["shape"]
        right = rows["correct"] > 0
        inside = [(min(h, height), min(w, width)) for h, w in sizes]
        held = [right & (rows["radius"] >= (h * w if sparse else max(h, w))) for h, w in inside]
        if config["sampling"]:
            name += f", alpha={config['sampling']['alpha'] if run is None else run.alpha}"
        shares = tuple(float(h.mean()) for h in held)
        bound = "l0" if sparse else "sampled" if isinstance(scheme, SampledScheme) else "masks"
        return [
            PatchAccuracy(
                name, bound, len(right), float((rows["clean"] == rows["label"]).mean()), labels, shares, str(path)
            )
        ]
    if not isinstance(scheme, StructuredAblation):
        raise ValueError(
            f"{path}: got {config['scheme']}, expected a scheme that certifies patches or numbers of pixels; leave out "
            "--patch"
        )
    right = stored.predict() == stored.label
    lines = []
    for bound in bounds:
        held = [stored.certify_patch(size, bound=bound).certified for size in sizes]
        shares = tuple(float((right & h).double().mean()) for h in held)
        lines.append(PatchAccuracy(name, bound, len(right), float(right.double().mean()), labels, shares, str(path)))
    return lines


def best(lines: Sequence[PatchAccuracy], size: int) -> PatchAccuracy:
    """The run with the highest certified accuracy at patch size number ``size``; ties go to the higher clean accuracy,
    then to the first.

    This is how s and theta are chosen: on validation images, never on those that are reported.
    """
    return max(lines, key=lambda line: (line.certified[size], line.clean))


def table(lines: Sequence[PatchAccuracy]) -> str:
    """Plain text, rounded down."""
    head = ["bound", "images", "clean", *lines[0].sizes]
    names = [line.name if i == 0 or line.name != lines[i - 1].name else "" for i, line in enumerate(lines)]
    cells = [[line.bound, str(line.images), percent(line.clean), *map(percent, line.certified)] for line in lines]
    rows = list(zip(names, cells, strict=True))
    text = ["certified accuracy against one patch of height x width pixels, at any location", aligned(head, rows)]
    if len({line.name for line in lines}) > 1:
        text += [f"best at {size}: {best(lines, i).name}" for i, size in enumerate(lines[0].sizes)]
    return "\n".join(text)
