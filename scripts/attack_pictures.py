"""Pictures of the results of an attack: the image, the adversarial image, their difference, and the flow of mass.

    python -m scripts.attack_pictures runs/w/attack --certified runs/w/test --images 0 20

writes RUN/attacked.png, one row per image. For Wasserstein attacks, the last column shows a minimum-cost flow for the
l1 distance between pixels, computed exactly by a linear program: one arrow for each edge that carries mass, coloured by
its amount. The distances shown are exact, too; the attack itself only knows an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from certify.attacks.wasserstein import in_steps
from certify.data import load
from certify.images import to_float
from certify.stored import read_config, read_rows, read_texts
from certify.threats import Threat, Wasserstein, normalized
from certify.transport import edges, shortest_flow
from scripts.attack import changed
from scripts.parts import attacks, cli, figures
from scripts.parts.tables import radius_text

FAINT = 0.01  # flows below this share of the largest one are not drawn
CHANNELS = ("#D55E00", "#009E73", "#0072B2")  # red, green and blue that the color-blind can tell apart
PANEL = 2.6  # inches, the width of a panel


@dataclass
class Args:
    """Pictures of attacked images, of what the attack changed, and for Wasserstein attacks of the flow of mass."""

    run: Path = cli.arg("result folder of scripts.attack", positional=True)
    images: list[int] | None = cli.arg("indices in the data set, by default the first three that were broken", None)
    certified: Path | None = cli.arg("result folder of scripts.certify, to show certified radii, too", None)
    out: Path | None = cli.arg("file of the picture, by default RUN/attacked.png", None)
    data_root: Path | None = cli.arg("folder of the data sets, by default $CERTIFY_DATA or ./data", None)


@dataclass(frozen=True)
class Picture:
    """What is shown of one image.

    Attributes:
        idx: in the data set.
        image, adversarial: float32 ``[C, H, W]`` in [0, 1].
        label: true class.
        predictions: for the image and for the adversarial one, -1 for an abstention.
        distance: between the two, in the unit of the threat model.
        certified: the certified radius, None if it is not known.
    """

    idx: int
    image: Tensor
    adversarial: Tensor
    label: int
    predictions: tuple[int, int]
    distance: float
    certified: float | None


def broken_images(rows: dict[str, np.ndarray], chosen: Sequence[int] | None, run: Path) -> list[int]:
    """The numbers of the rows that are shown."""
    magnitude, idx = rows["magnitude"], rows["idx"].astype(int).tolist()
    broken = [i for i in range(len(idx)) if 0 < magnitude[i] < np.inf]
    if not broken:
        raise ValueError(f"{run}: no image was broken by the attack, there is nothing to show")
    if chosen is None:
        return broken[:3]
    row_of = {idx[i]: i for i in broken}
    for number in chosen:
        if number not in row_of:
            some = ", ".join(map(str, [*row_of][:5]))
            raise ValueError(f"images: got {number}, expected images that the attack of {run} broke, such as {some}")
    return [row_of[number] for number in chosen]


def certified_radii(path: Path, config: dict[str, Any]) -> dict[int, float]:
    """The radius of each image of a run of certificates, by index; -1 where it is not certified for its label."""
    if read_config(path)["data_sha256"] != config["data_sha256"]:
        raise ValueError(f"certified: got {path}, which is of another data set than the attack")
    rows = read_rows(path)
    radii = np.where(rows["correct"] > 0, rows["radius"], -1.0)
    return dict(zip(rows["idx"].astype(int).tolist(), radii.tolist(), strict=True))


def pictures_of(args: Args, config: dict[str, Any], threat: Threat) -> list[Picture]:
    rows, texts = read_rows(args.run), read_texts(args.run, "changes")
    shown = broken_images(rows, args.images, args.run)
    data = load(config["data"], config["split"], args.data_root)
    if data.checksum() != config["data_sha256"]:
        raise ValueError(f"{args.run}: was made with another version of the data set {config['data']}")
    radii = {} if args.certified is None else certified_radii(args.certified, config)
    floats = config["attack"]["name"] != "pointwise"
    pictures = []
    for i in shown:
        idx = int(rows["idx"][i])
        image = data.batch([idx])[0][0]
        first = in_steps(image) if isinstance(threat, Wasserstein) else image
        pair = [to_float(x)[None] for x in (first, changed(image, texts[idx], floats=floats))]
        predictions = (int(rows["clean"][i]), int(rows["predict"][i]))
        distance = float(threat.distance(*pair)[0])
        pictures.append(
            Picture(idx, pair[0][0], pair[1][0], int(rows["label"][i]), predictions, distance, radii.get(idx))
        )
    return pictures


def _class(prediction: int) -> str:
    return "abstains" if prediction == -1 else f"predicted {prediction}"


def _show_image(axis: Any, image: Tensor, title: str) -> None:
    shown = image.permute(1, 2, 0) if len(image) == 3 else image.mean(0)
    axis.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=9)


def _show_difference(axis: Any, picture: Picture) -> Any:
    """Summed over channels; each image has its own scale, as small changes would not be seen beside large ones."""
    difference = (picture.adversarial - picture.image).sum(0)
    limit = float(difference.abs().max())
    shown = axis.imshow(difference.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
    features = int((picture.adversarial != picture.image).sum())
    axis.set_title(f"difference, in {features}\nof {picture.image.numel()} features", fontsize=9)
    return shown


def _around(places: np.ndarray, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Top, bottom, left and right of a window of the shape of the image (height, width) around places ``[..., 2]``."""
    low, high = places.reshape(-1, 2).min(0) - 1.0, places.reshape(-1, 2).max(0) + 1.0
    sides = min(1.0, float(((high - low) / size).max())) * np.array(size)
    first = np.clip((low + high - sides) / 2, -0.5, np.array(size) - 0.5 - sides)
    return first[0], first[0] + sides[0], first[1], first[1] + sides[1]


def _show_flow(axis: Any, picture: Picture) -> Any:
    """Arrows from pixel to pixel, in percent of the mass of the image; one color per channel if there are several."""
    from matplotlib.colors import LogNorm

    pair = (normalized(x[None])[0].numpy() for x in (picture.image, picture.adversarial))
    flows = 100 * shortest_flow(*pair)
    channels, height, width = picture.image.shape
    places = np.stack(np.divmod(edges(height, width), width), axis=-1)  # [edges, 2 ends, row and column]
    kept = np.abs(flows) > FAINT * np.abs(flows).max()
    top, bottom, left, right = _around(places[kept.any(0)], (height, width))
    axis.imshow(1 - picture.image.mean(0).numpy(), cmap="gray", vmin=-0.6, vmax=1)
    axis.set(xlim=(left, right), ylim=(bottom, top))
    norm, drawn = LogNorm(FAINT * np.abs(flows).max(), np.abs(flows).max()), None
    for channel in range(channels):
        flow, ends = flows[channel, kept[channel]], places[kept[channel]]
        tail = np.where(flow[:, None] > 0, ends[:, 0], ends[:, 1])
        step = np.where(flow[:, None] > 0, 1, -1) * (ends[:, 1] - ends[:, 0])
        tail = tail + 0.15 * (channel - (channels - 1) / 2)  # side by side
        style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": min(0.01, 0.12 / (right - left))}
        arrows = (tail[:, 1], tail[:, 0], step[:, 1], step[:, 0])
        if channels == 1:
            drawn = axis.quiver(*arrows, np.abs(flow), cmap="plasma_r", norm=norm, **style)
        else:
            axis.quiver(*arrows, color=CHANNELS[channel % 3], **style)
    axis.set_title(f"flow along edges\nof l1 norm {np.abs(flows).sum() / 100:.4g}", fontsize=9)
    return drawn


def draw(pictures: Sequence[Picture], threat: Threat, title: str, path: Path) -> None:
    """A row per image."""
    flows = isinstance(threat, Wasserstein)
    columns = 4 if flows else 3
    _, height, width = pictures[0].image.shape
    inches = (PANEL * columns + 1.4, 0.6 + (0.6 + PANEL * height / width) * len(pictures))
    figure = figures.new_figure(*inches)
    axes = figure.subplots(len(pictures), columns, squeeze=False)
    for row, picture in zip(axes, pictures, strict=True):
        before, after = picture.predictions
        known = picture.certified
        radius = "" if known is None else "\nnot certified" if known < 0 else f"\ncertified to {radius_text(known)}"
        _show_image(row[0], picture.image, f"image {picture.idx}: class {picture.label}, {_class(before)}{radius}")
        _show_image(row[1], picture.adversarial, f"attacked: {_class(after)}\nat distance {picture.distance:.4g}")
        figure.colorbar(_show_difference(row[2], picture), ax=row[2], shrink=0.8, label="change, pixels in [0, 1]")
        arrows = _show_flow(row[3], picture) if flows else None
        if arrows is not None:
            figure.colorbar(arrows, ax=row[3], shrink=0.8, label="% of the mass")
        for axis in row:
            axis.set(xticks=[], yticks=[])
    figure.suptitle(title, fontsize=11)
    figures.save(figure, path)


def main(args: Args) -> None:
    config = read_config(args.run)
    if "attack" not in config:
        raise ValueError(f"{args.run}: holds certificates, expected an attack of scripts.attack")
    threat, _ = attacks.measured_in(config)
    pictures = pictures_of(args, config, threat)
    path = args.out or args.run / "attacked.png"
    title = f"{config['data']}, {config['scheme']}, {config['attack']['name']} attack; distance: {threat}"
    draw(pictures, threat, title, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.attack_pictures")
