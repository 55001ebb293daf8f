"""Compare certified runs side by side, on the same images and at the same cost.

    python -m scripts.compare runs/plain/test runs/smooth-mean/test --equal-budget --radii 0 0.5 1 --out runs/compare

Clean accuracy and abstentions are those of the certificates (a certificate abstains if it cannot bound the probability
of its class above one half), as in published logs and Smooth-Reduce.

The cost of an image is the number of forward passes of the base classifier: selection and estimation samples, times the
passes per copy (patches of Smooth-Reduce). Published logs do not state a cost; they are compared nevertheless.

With ``--printed``, runs of Smooth-Reduce with noise on patches are listed twice: as certified, and with the radii that
Algorithm 1 of its paper prints for the same votes, which are not certificates and are marked as such.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from certify.files import write_atomically
from certify.results import read_config, read_samples
from certify.threats import NOT_CERTIFIED
from scripts.parts import cli, recertified
from scripts.parts.curves import plot
from scripts.parts.tables import Run, aligned, percent, percent_above, radius_text, spread, what


@dataclass
class Args:
    """Compare runs side by side: prints a table, and writes compare.json and compare.png."""

    runs: list[Path] = cli.arg("result folders, or TSV files with the columns of Cohen et al.", positional=True)
    out: Path | None = cli.arg("folder for compare.json and the plot, by default the first run's", None)
    radii: list[float] | None = cli.arg("radii of the table, by default spread over the certified range", None)
    names: list[str] | None = cli.arg("a short name for each run", None)
    images: Literal["same", "common", "any"] = cli.arg(
        "same: raise an error if the images differ; common: compare on the images that all runs share; any: compare "
        "anyway",
        "same",
    )
    printed: bool = cli.arg("also list the radii of the paper's rule for noise on patches (not certified)", False)
    equal_budget: bool = cli.arg("raise an error if the runs differ in their number of forward passes", False)
    tolerance: float = cli.arg("relative difference up to which budgets count as equal", 0.01)


@dataclass(frozen=True)
class Entry:
    """A run and its cost.

    Attributes:
        run: its rows.
        path: its folder or file.
        data: checksum and split of its data set; None for a log.
        samples: number of copies of each image, by index; None for a log.
        inputs_per_copy: forward passes per copy.
    """

    run: Run
    path: Path
    data: tuple[str, str] | None = None
    samples: dict[int, int] | None = None
    inputs_per_copy: int = 1

    @property
    def indices(self) -> list[int]:
        return [int(i) for i in self.run.rows["idx"]]

    @property
    def passes(self) -> float | None:
        """Forward passes per image, on average."""
        if self.samples is None:
            return None
        return self.inputs_per_copy * sum(self.samples[i] for i in self.indices) / len(self.indices)

    @property
    def seconds(self) -> float | None:
        """Seconds per image, on average; None if unknown."""
        times = self.run.rows.get("time")
        return None if times is None or np.isnan(times).any() else float(times.mean())

    def only(self, chosen: set[int]) -> Entry:
        """The same run on some of its images."""
        keep = np.array([i in chosen for i in self.indices])
        return replace(self, run=replace(self.run, rows={name: v[keep] for name, v in self.run.rows.items()}))


def read_entries(path: Path, name: str | None, *, printed: bool) -> list[Entry]:
    """A run as stored and, if ``printed`` and there are any, with the radii that are not certificates."""
    stored = recertified.read_run(path)
    entries = [entry_of(stored, path, name)]
    if printed and "printed" in recertified.known_bounds(path) and stored.guaranteed:
        run = recertified.read_run(path, bound="printed")
        entries.append(entry_of(run, path, None if name is None else f"{name}, as printed"))
    return entries


def entry_of(run: Run, path: Path, name: str | None) -> Entry:
    """A run under its name, with its cost."""
    # clean accuracy and abstentions are those of the certificates, as logs have no others
    rows = {column: values for column, values in run.rows.items() if column != "clean"}
    run = replace(run, rows=rows, name=run.name if name is None else name)
    if not path.is_dir():
        return Entry(run if name is not None else replace(run, name=str(path)), path)
    config = read_config(path)
    data = (config["data_sha256"], config["split"])
    return Entry(run, path, data, read_samples(path), config.get("inputs_per_copy", 1))


def on_equal_images(entries: list[Entry], rule: str) -> list[Entry]:
    """The runs, restricted to the same images unless ``rule`` is ``"any"``; raises if that is impossible."""
    if rule == "any":
        return entries
    first = entries[0]
    if rule == "common":
        common = set.intersection(*(set(entry.indices) for entry in entries))
        if not common:
            raise ValueError("images: the runs have no image in common; certify the same ones, or use --images any")
        entries = [entry.only(common) for entry in entries]
    hint = "certify the same ones, or use --images common (those that all runs share) or --images any"
    for entry in entries[1:]:
        known = [e.data for e in (first, entry) if e.data is not None]
        if len(set(known)) > 1:
            raise ValueError(f"{entry.path}: has other data than {first.path}; compare runs on one data set and split")
        if entry.indices != entries[0].indices:
            count, expected = len(entry.indices), len(entries[0].indices)
            raise ValueError(f"{entry.path}: has other images ({count}) than {first.path} ({expected}); {hint}")
        if not np.array_equal(entry.run.rows["label"], entries[0].run.rows["label"]):
            raise ValueError(f"{entry.path}: has other labels than {first.path}; compare runs on the same images")
    return entries


def budget_remarks(entries: list[Entry], tolerance: float) -> list[str]:
    """Remarks on differing or unknown numbers of forward passes per image; empty if all are known and equal."""
    unknown = [entry.path for entry in entries if entry.passes is None]
    remarks = [f"{path}: has no stored votes, so its number of forward passes is unknown" for path in unknown]
    costs = [(passes, entry) for entry in entries if (passes := entry.passes) is not None]
    if len(costs) > 1:
        (low, cheap), (high, dear) = (extreme(costs, key=lambda cost: cost[0]) for extreme in (min, max))
        if high > low * (1 + tolerance):
            remarks.append(
                f"{dear.path}: took {high:,.0f} forward passes per image, {cheap.path} {low:,.0f}; "
                f"with {math.floor(low / dear.inputs_per_copy):,} samples (n0 + n), the former would cost the same"
            )
    return remarks


def summary_of(entry: Entry, radii: list[float]) -> dict[str, Any]:
    summary = entry.run.summary(radii, 0.001)
    kept = (
        "name",
        "threat",
        "alpha",
        "guaranteed",
        "images",
        "clean_accuracy",
        "abstained",
        "average_certified_radius",
        "radii",
    )
    cost = {"passes_per_image": entry.passes, "seconds_per_image": entry.seconds}
    return {name: summary[name] for name in kept} | {"certified_accuracy": summary["certified_accuracy"]} | cost


def table(summaries: list[dict[str, Any]]) -> str:
    """Plain text, two lines per run; everything is rounded conservatively, abstentions up and all else down."""
    head = ["images", "clean", "abstain", "ACR", *(f"r={radius_text(r)}" for r in summaries[0]["radii"])]
    head += ["passes", "s/image"]
    lines = []
    for s in summaries:
        clean, abstained = s["clean_accuracy"], s["abstained"]
        share = ["-" if clean is None else percent(clean), "-" if abstained is None else percent_above(abstained)]
        acr, passes, seconds = s["average_certified_radius"], s["passes_per_image"], s["seconds_per_image"]
        cells = [str(s["images"]), *share, "-" if acr is None else radius_text(acr)]
        cells += map(percent, s["certified_accuracy"])
        cells += ["-" if passes is None else f"{passes:,.0f}", "-" if seconds is None else f"{seconds:.3g}"]
        lines.append((s["name"] if s["guaranteed"] else f"{s['name']} [{NOT_CERTIFIED}]", cells))
    return aligned(head, lines)


def main(args: Args) -> None:
    if args.radii and not all(math.isfinite(r) and r >= 0 for r in args.radii):
        raise ValueError(f"radii: got {args.radii}, expected finite numbers, at least 0")
    if args.names is not None and len(args.names) != len(args.runs):
        raise ValueError(f"names: got {len(args.names)} for {len(args.runs)} runs, expected one for each")
    if not (math.isfinite(args.tolerance) and args.tolerance >= 0):
        raise ValueError(f"tolerance: got {args.tolerance}, expected a share, at least 0")
    names = args.names or [None] * len(args.runs)
    pairs = zip(args.runs, names, strict=True)
    entries = [entry for path, name in pairs for entry in read_entries(path, name, printed=args.printed)]
    if args.printed and len(entries) == len(args.runs):
        raise ValueError("printed: no run has noise on patches and a certificate; leave the option out")
    entries = on_equal_images(entries, args.images)
    remarks = budget_remarks(entries, args.tolerance)
    if args.equal_budget and remarks:
        raise ValueError(f"equal-budget: {remarks[0]}")
    radii = args.radii or spread([entry.run.rows["radius"] for entry in entries])
    summaries = [summary_of(entry, radii) for entry in entries]
    threats = list(dict.fromkeys(entry.run.threat for entry in entries if entry.path.is_dir()))
    if len(threats) > 1:
        remarks.append(f"radii of different threat models cannot be compared: {'; '.join(threats)}")
    kind = what(guaranteed=all(s["guaranteed"] for s in summaries))
    print(
        f"{kind} accuracy at radius r, {threats[0] if threats else 'radius'} (clean, abstain: of the certificates); "
        "forward passes of the base classifier and seconds per image"
    )
    print(table(summaries), *remarks, sep="\n")
    out = args.out or (args.runs[0] if args.runs[0].is_dir() else args.runs[0].parent)
    document = {"command": cli.command_line("scripts.compare", args), "remarks": remarks, "runs": summaries}
    write_atomically(out / "compare.json", json.dumps(document, indent=2).encode() + b"\n")
    groups: dict[str, list[Run]] = {}
    for entry in entries:
        # a log does not state its threat model, so it is drawn with the first run
        threat = entry.run.threat if entry.path.is_dir() or not threats else threats[0]
        groups.setdefault(threat, []).append(entry.run)
    plot(groups, out / "compare.png")
    print(f"wrote {out / 'compare.json'} and {out / 'compare.png'}")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.compare")
