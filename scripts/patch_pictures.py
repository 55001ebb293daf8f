"""Pictures of certificates against patches, from the stored votes of runs.

    python -m scripts.patch_pictures runs/mnist-s2/test runs/mnist-block12/test --patch 5 --images 3 17

For each run, RUN/patch-5x5.png shows some images: where a patch does the most harm (the location with the smallest
margin), what each band or block votes for (at its first pixel; white: no class, stripes: several), and the margins of
all locations: the prediction is certified if none is negative. OUT/certified_by_size.png shows certified accuracy
against the size of a square patch, with the certificate per location and the published one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from certify import StoredRun
from certify.data import load
from certify.files import check_writable
from certify.images import Shape, to_float
from certify.patch import PatchBound, StructuredAblation, clip
from certify.places import margins
from certify.scheme import leader_and_gap
from certify.windows import WindowAblation
from scripts.parts import cli, figures, patches

STRIPES = 12  # pixels per position in a map of votes: one to four votes of a position get equal stripes
NAMED = 10  # classes that get a color of their own
OTHER = "0.6"  # gray, for the rest
PANEL = 2.7  # inches, the width of a panel


@dataclass
class Args:
    """Pictures of runs against patches: locations, votes and margins of some images, and certified accuracy by size."""

    runs: list[Path] = cli.arg("result folders of schemes against patches", positional=True)
    out: Path | None = cli.arg("folder for all files, by default each run's (for the curves, the first run's)", None)
    patch: str = cli.arg("size of the patch, such as 5 or 3x7", "5")
    images: list[int] | None = cli.arg("indices in the data set, by default the first three of each run", None)
    data_root: Path | None = cli.arg("folder of the data sets, by default $CERTIFY_DATA or ./data", None)


@dataclass(frozen=True)
class Picture:
    """What is shown of one image.

    Attributes:
        idx: in the data set.
        pixels: float32 ``[C, H, W]``.
        label, prediction: classes.
        votes: bool ``[positions, classes]``.
        margins: int64, per place of the patch, see :func:`certify.places.margins`.
    """

    idx: int
    pixels: Tensor
    label: int
    prediction: int
    votes: Tensor
    margins: Tensor

    def worst(self) -> tuple[int, int]:
        """Row and column of the upper left corner of a patch where the margin is smallest, the first of several."""
        row, column = divmod(int(self.margins.argmin()), self.margins.shape[1])
        return row, column


def pictures_of(run: Path, size: patches.Size, chosen: Sequence[int] | None, root: Path | None) -> list[Picture]:
    """The images of a run that are shown."""
    stored = StoredRun(run)
    config, (scheme, by_copy) = stored.config, stored.by_position()
    row_of = {idx: row for row, idx in enumerate(stored.idx.tolist())}
    indices = list(row_of)[:3] if chosen is None else list(chosen)
    for idx in indices:
        if idx not in row_of:
            raise ValueError(
                f"images: got {idx}, expected images of {run}, such as {', '.join(map(str, [*row_of][:5]))}"
            )
    data = load(config["data"], config["split"], root)
    if data.checksum() != config["data_sha256"]:
        raise ValueError(f"{run}: was made with another version of the data set {config['data']}")
    rows = torch.tensor([row_of[idx] for idx in indices])
    votes, pixels = by_copy[rows], to_float(data.batch(indices)[0])
    found = margins(scheme, votes, size, shape=stored.votes.shape)
    predictions = leader_and_gap(stored.votes.counts[rows])[0].tolist()
    return [
        Picture(idx, pixels[i], int(stored.label[rows[i]]), predictions[i], votes[i], found[i])
        for i, idx in enumerate(indices)
    ]


def class_colors(votes: Tensor) -> dict[int, Any]:
    """A color for the classes with most votes (bool ``[..., classes]``); for every class if there are few."""
    counts = votes.flatten(0, -2).sum(0)
    ranked = counts.argsort(descending=True, stable=True)[:NAMED].tolist()
    return {c: figures.CLASS_COLORS[i] for i, c in enumerate(sorted(ranked)) if counts[c] > 0 or len(counts) <= NAMED}


def vote_map(votes: Tensor, grid: tuple[int, int], colors: dict[int, Any]) -> np.ndarray:
    """What each position votes for: RGB ``[rows * STRIPES, columns * STRIPES, 3]``, one stripe per class."""
    from matplotlib.colors import to_rgb

    rows, columns = grid
    cells = np.ones((rows, STRIPES, columns, STRIPES, 3))
    for position, row in enumerate(votes.tolist()):
        classes = [c for c, voted in enumerate(row) if voted]
        for stripe in range(STRIPES if classes else 0):
            color = to_rgb(colors.get(classes[stripe * len(classes) // STRIPES], OTHER))
            cells[position // columns, stripe, position % columns] = color
    return cells.reshape(rows * STRIPES, columns * STRIPES, 3)


def _show_image(axis: Any, picture: Picture, size: patches.Size) -> None:
    from matplotlib.patches import Rectangle

    channels = len(picture.pixels)
    shown = picture.pixels.permute(1, 2, 0) if channels == 3 else picture.pixels.mean(0)
    axis.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1)
    row, column = picture.worst()
    height, width = size
    axis.add_patch(Rectangle((column - 0.5, row - 0.5), width, height, fill=False, edgecolor="tab:red", linewidth=2))
    title = f"image {picture.idx}: class {picture.label}, predicted {picture.prediction}"
    axis.set_title(f"{title}\nred: where a patch does most harm", fontsize=9)


def _show_votes(axis: Any, picture: Picture, scheme: StructuredAblation, shape: Shape, colors: dict[int, Any]) -> None:
    counts = picture.votes.sum(0)
    if isinstance(scheme, WindowAblation):
        rows, columns = scheme.axes(shape)
        grid = rows.positions, columns.positions
        extent = (-0.5, shape[2] - 0.5, shape[1] - 0.5, -0.5)
        axis.imshow(vote_map(picture.votes, grid, colors), extent=extent, aspect="equal", interpolation="nearest")
        for edge in (n * columns.stride - 0.5 for n in range(1, columns.positions)):
            axis.axvline(edge, color="0.8", linewidth=0.4)
        for edge in (n * rows.stride - 0.5 for n in range(1, rows.positions)):
            axis.axhline(edge, color="0.8", linewidth=0.4)
    else:  # combinations of bands or blocks have no place in the image
        axis.bar(range(len(counts)), counts.tolist(), color=[colors.get(c, OTHER) for c in range(len(counts))])
        axis.set(xlabel="class", ylabel="votes")
        axis.set_box_aspect(shape[1] / shape[2])
    axis.set_title(
        f"votes by position\n{int(counts[picture.prediction])} of {len(picture.votes)} for {picture.prediction}",
        fontsize=9,
    )


def _show_margins(axis: Any, picture: Picture, shape: Shape, size: patches.Size, limit: int) -> Any:
    rows, columns = picture.margins.shape
    top, left = (size[0] - 1) / 2 - 0.5, (size[1] - 1) / 2 - 0.5  # by the center of the patch
    extent = (left, left + columns, top + rows, top)
    shown = axis.imshow(picture.margins.numpy(), cmap="RdBu", vmin=-limit, vmax=limit, extent=extent)
    axis.set(xlim=(-0.5, shape[2] - 0.5), ylim=(shape[1] - 0.5, -0.5), facecolor="0.9")
    least = int(picture.margins.min())
    state = "certified" if least >= 0 else "not certified"
    axis.set_title(f"margin by center of the patch\n{state}, smallest {least}", fontsize=9)
    return shown


def draw_pictures(run: Path, pictures: list[Picture], size: patches.Size, path: Path) -> None:
    """Three panels per image: the worst place, the votes, the margins."""
    from matplotlib.patches import Patch as Swatch
    from matplotlib.ticker import MaxNLocator

    stored = StoredRun(run)
    config, (scheme, votes) = stored.config, stored.by_position()
    shape = stored.votes.shape
    colors = class_colors(torch.stack([p.votes for p in pictures]))
    limit = max(1, max(int(p.margins.abs().max()) for p in pictures))
    inches = (3.4 * PANEL, 1 + (0.6 + PANEL * shape[1] / shape[2]) * len(pictures))
    figure = figures.new_figure(*inches)
    axes = figure.subplots(len(pictures), 3, squeeze=False)
    shown: Any = None
    for row, picture in zip(axes, pictures, strict=True):
        _show_image(row[0], picture, size)
        _show_votes(row[1], picture, scheme, shape, colors)
        shown = _show_margins(row[2], picture, shape, size, limit)
    bar = figure.colorbar(shown, ax=axes[:, 2], shrink=0.8, label="votes ahead after the worst patch there")
    bar.locator = MaxNLocator(integer=True)
    bar.update_ticks()
    handles = [Swatch(color=color, label=str(c)) for c, color in colors.items()]
    if votes.shape[2] > len(colors):
        handles.append(Swatch(color=OTHER, label="other"))
    figure.legend(handles=handles, title="class", loc="outside lower center", ncols=len(handles), fontsize=8)
    figure.suptitle(
        f"{config['data']}, {config['scheme']}, {config['vote']}: one patch of {size[0]}x{size[1]}", fontsize=11
    )
    figures.save(figure, path)


def curves(run: Path) -> dict[PatchBound, np.ndarray]:
    """Certified accuracy against a square of side 0, 1, ... up to the longer side of the image, for both certificates;
    at 0 accuracy without a patch."""
    stored = StoredRun(run)
    longest = max(stored.config["shape"][1:])
    found: dict[PatchBound, np.ndarray] = {}
    for bound in get_args(PatchBound):
        result = stored.certify(bound=bound)
        right, radius = result.correct(stored.label).numpy(), result.radius.numpy()
        found[bound] = np.array([(right & (radius >= side)).mean() for side in range(longest + 1)])
    return found


def draw_curves(runs: Sequence[Path], path: Path) -> None:
    """One color per run, one style per certificate."""
    from matplotlib.ticker import MaxNLocator

    figure = figures.new_figure(6.4, 3.6 + 0.34 * len(runs))
    axis = figure.subplots()
    last = 1
    for i, run in enumerate(runs):
        config = StoredRun(run).config
        for bound, values in curves(run).items():
            style = {"location": "o-", "published": "x--"}[bound]
            last = max(last, int(np.flatnonzero(values).max(initial=0)) + 1)
            axis.plot(
                values,
                style,
                color=figures.color(i),
                markersize=4,
                label=f"{config['scheme']}, {config['vote']}, {bound} bound",
            )
    axis.set(xlabel="side of a square patch, in pixels (0: no patch)", ylabel="certified accuracy", ylim=(0, 1.02))
    axis.set(xlim=(-0.1, last + 0.1), title="certified accuracy against patch size")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), fontsize=7, loc="outside lower center")
    figures.save(figure, path)


def picture_path(args: Args, run: Path, size: tuple[int, int]) -> Path:
    """Where the pictures of a run go: into it, or to --out, where those of several runs are told apart."""
    name = f"patch-{size[0]}x{size[1]}.png"
    if args.out is None:
        return run / name
    return args.out / (name if len(args.runs) == 1 else f"{args.runs.index(run) + 1}-{name}")


def main(args: Args) -> None:
    size, written = patches.parse_size(args.patch), []
    shapes = [StoredRun(run).votes.shape for run in args.runs]
    if args.out is not None:
        check_writable(args.out)
    for run, shape in zip(args.runs, shapes, strict=True):
        clipped = clip(shape, size)
        pictures = pictures_of(run, clipped, args.images, args.data_root)
        path = picture_path(args, run, size)
        draw_pictures(run, pictures, clipped, path)
        written.append(path)
    path = (args.out or args.runs[0]) / "certified_by_size.png"
    draw_curves(args.runs, path)
    print("wrote " + ", ".join(map(str, [*written, path])))


if __name__ == "__main__":
    cli.run(main, Args, "scripts.patch_pictures")
