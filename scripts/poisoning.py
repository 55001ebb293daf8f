"""Certify against poisoned training data: train one model per partition, collect their votes, certify, report.

    python -m scripts.poisoning train runs/dpa --data digits --partition "ContentHash(50)" \\
        --learner "Network('small_cnn', steps=100, batch_size=32)"
    python -m scripts.poisoning vote runs/dpa
    python -m scripts.poisoning certify runs/dpa
    python -m scripts.poisoning report runs/dpa

``all`` runs these four steps. Training and voting consist of many small tasks, each with its own file: after an
interruption, the same command with ``--resume`` continues, and ``--shard 0/4`` ... ``--shard 3/4`` share the work. From
the stored votes, ``--method run-off`` certifies the run-off election, and ``--threat labels`` certifies against flipped
labels. Certificates against inserted and deleted samples need a partition by hash; ``SortedIndex`` is for flipped
labels only. For finite aggregation, use ``--spread 4``, for example.

The steps ``train`` and ``vote`` distribute their tasks over processes with ``--workers 4``, or over a Ray cluster with
``--ray auto``; groups should then be small (``--at-once``). Workers that die are replaced, without effect on results.

SS-DPA: features learned without labels, and a linear classifier for each partition:

    python -m scripts.train_features runs/rotnet --data mnist --method "RotNet('small_cnn', epochs=5)"
    python -m scripts.poisoning all runs/ss-dpa --data mnist --partition "SortedIndex(50)" --features runs/rotnet \\
        --learner "Network('linear', steps=100)"

The published partition and network on MNIST, for a GPU (set CUBLAS_WORKSPACE_CONFIG=:4096:8):

    python -m scripts.poisoning all runs/mnist-dpa --data mnist --partition "PixelSum(1200)" --device cuda \\
        --at-once 100 --learner "Network('network_in_network', steps=200, batch_size=64, crop=4)"

GTSRB, partitioned by the original pixels; for equalized histograms (Appendix F.8), use
``--data "gtsrb(whole=True, equalize=True)"``:

    python -m scripts.poisoning all runs/gtsrb-dpa --data "gtsrb(whole=True)" --partition "PixelSum(50)" \\
        --device cuda --at-once 10 --learner "Network('network_in_network', steps=2000, batch_size=64, crop=4)"
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from certify.data import Dataset, both_parts, load
from certify.files import write_atomically
from certify.poisoning import Ensemble, TrainingLabels, TrainingSamples, count_votes
from certify.poisoning.features import FILE, load_features
from certify.poisoning.job import Job, ensemble_config, environment_of, read_ensemble, read_job
from certify.results import ResultFolder, read_rows, result_of
from certify.stored import read_texts
from certify.threats import PoisoningThreat
from certify.votes import Votes
from scripts import report
from scripts.parts import classifier_runs, cli, poisoning_inputs
from scripts.parts.tables import percent

Step = Literal["train", "vote", "certify", "report", "all"]
STEPS: tuple[Step, ...] = get_args(Step)
THREATS: dict[str | None, PoisoningThreat | None] = {
    "samples": TrainingSamples(),
    "labels": TrainingLabels(),
    None: None,
}


@dataclass
class Args:
    """Train an ensemble on partitions of a training set, and certify its predictions against poisoning."""

    step: Step = cli.arg("step to run; all runs the four others", positional=True)
    out: Path = cli.arg("folder of the ensemble", positional=True)
    data: str = cli.arg(
        "training set: digits, mnist, fashion-mnist, cifar10, also as 'mnist(only=(1, 7))', gtsrb or "
        "'gtsrb(whole=True, equalize=True)' (train)",
        "digits",
    )
    partition: str = cli.arg("PixelSum(k), ContentHash(k) or SortedIndex(k), for k models (train)", "ContentHash(50)")
    learner: str = cli.arg(
        "e.g. \"Network('network_in_network', steps=200, batch_size=64)\", also with small_cnn, linear or "
        "nin_block, NearestNeighbors(1), or ClusterLabels() on features of KMeans (train)",
        "Network('small_cnn')",
    )
    features: Path | None = cli.arg(
        "folder of scripts.train_features: models are trained on these features of the images, and certificates are "
        "against flipped labels only (train)",
        None,
    )
    spread: int = cli.arg("models that each bucket feeds; more than 1 is finite aggregation (train)", 1)
    seeds: Literal["distinct", "shared"] = cli.arg("one for each model, or one for all (train)", "distinct")
    mode: Literal["stacked", "sequential"] = cli.arg("models of a group at once, or one by one (train)", "stacked")
    at_once: int = cli.arg("models in a group, which share a file and, if stacked, their training (train)", 32)
    shard: str = cli.arg("i/n: do part i (from 0) of n; the parts may run anywhere and share OUT (train, vote)", "0/1")
    workers: int = cli.arg("number of worker processes (train, vote)", 1)
    ray: str | None = cli.arg(
        "address of a Ray cluster, or auto, or local for a cluster here of --workers processors (train, vote)", None
    )
    split: Literal["test", "train"] = cli.arg("split of the images to predict (vote, certify)", "test")
    skip: int = cli.arg("take every N-th image (vote)", 1)
    max: int | None = cli.arg("stop after this many images (vote)", None)
    method: Literal["plurality", "run-off"] = cli.arg("how votes are combined into a prediction (certify)", "plurality")
    threat: Literal["samples", "labels"] | None = cli.arg(
        "samples inserted or deleted, or labels flipped; by default what the partition is made for (certify)", None
    )
    radii: list[float] | None = cli.arg("radii of the table, by default spread over the certified range (report)", None)
    device: str = cli.arg("cpu, cuda, ... (train, vote)", "cpu")
    data_root: Path | None = cli.arg("folder of the data sets, by default $CERTIFY_DATA or ./data", None)
    resume: bool = cli.arg("continue what is in OUT", False)


def ensemble_of(args: Args, num_classes: int) -> Ensemble:
    """The ensemble that the arguments describe."""
    return read_ensemble(
        {
            "partition": args.partition,
            "learner": args.learner,
            "num_classes": num_classes,
            "spread": args.spread,
            "seeds": args.seeds,
            "learned": args.features is not None,
        }
    )


def train(args: Args) -> None:
    cli.check_device(args.device)
    executor = poisoning_inputs.executor_of(args.workers, args.ray, args.device)
    features = None if args.features is None else load_features(args.features)
    # for all steps, check at once that the test set fits
    read = both_parts(args.data, args.data_root)[0] if args.step == "all" else load(args.data, "train", args.data_root)
    ensemble = ensemble_of(args, poisoning_inputs.classes_of(read))
    if args.step == "all":  # fail before training if the result could not be certified
        ensemble.check_certificate(args.method, THREATS[args.threat])
    data = poisoning_inputs.in_memory(read)
    images, seen = poisoning_inputs.images_of(data), None
    identity = {"name": data.name, "split": data.split, "sha256": data.checksum(), "shape": list(data.shape)}
    if features is not None and args.features is not None:
        features.check_learned_from(images)
        seen = poisoning_inputs.learned_features(features, images, args.features / "train.safetensors", args.device)
        identity |= {"features": poisoning_inputs.features_identity(features, seen)}
    job = Job(args.out, ensemble, identity, args.at_once, args.mode, environment_of(args.device))
    if (groups := len(job.groups)) < args.workers:
        what = f"{groups} {'group' if groups == 1 else 'groups'} of models"
        print(f"note: {what} for {args.workers} workers; use a smaller --at-once for more")
    originals = poisoning_inputs.originals_of(read)
    parts = ensemble.parts((images, data.labels), features=seen, originals=originals)
    shard = classifier_runs.parse_shard(args.shard)
    job.start(resume=args.resume, shard=shard, provenance=provenance(args))
    if args.features is not None:
        write_atomically(args.out / FILE, (args.features / FILE).read_bytes())
    sizes = torch.tensor([len(part.labels) for part in parts])
    least, most = int(sizes.min()), int(sizes.max())
    each = f"{least}" if least == most else f"{least} to {most}"
    print(f"{ensemble.size} models, {each} {'sample' if most == 1 else 'samples'} each ({len(data)} in all)")
    with cli.progress() as bar:
        task = bar.add_task("training", total=sum(map(len, job.groups[shard[0] :: shard[1]])))
        job.train(parts, shard=shard, executor=executor, on_group=lambda count: bar.advance(task, count))


def vote(args: Args) -> None:
    cli.check_device(args.device)
    executor = poisoning_inputs.executor_of(args.workers, args.ray, args.device)
    job = read_job(args.out)
    data = test_set(job, args.split, args.data_root)
    shard = classifier_runs.parse_shard(args.shard)
    index = classifier_runs.chosen(len(data), args.skip, args.max)
    inputs = {"data": data.name, "sha256": data.checksum(), "split": data.split, "skip": args.skip, "max": args.max}
    images = data.batch(index)[0]
    x = poisoning_inputs.seen_by(job, images, args.out / args.split / "inputs.safetensors", args.device)
    with cli.progress() as bar:
        task = bar.add_task("voting", total=sum(map(len, job.groups[shard[0] :: shard[1]])))
        on_group = lambda count: bar.advance(task, count)  # noqa: E731
        options: dict[str, Any] = {"device": args.device, "shard": shard, "executor": executor, "on_group": on_group}
        job.vote(args.split, x, inputs, **options)


def test_set(job: Job, split: Literal["test", "train"], root: Path | None) -> Dataset:
    """The images to predict, from the data set that the ensemble was trained on."""
    return load(job.data["name"], split, root)


def certify(args: Args) -> Path:
    """Rows and votes of the images that were voted on; returns their folder."""
    job = read_job(args.out)
    voted = job.voted(args.split)
    data = test_set(job, args.split, args.data_root)
    poisoning_inputs.classes_of(data)
    if data.checksum() != voted["sha256"]:
        raise ValueError(f"{data.name}, {args.split}: is not the data that was voted on; run the step vote again")
    index = classifier_runs.chosen(len(data), voted["skip"], voted["max"])
    rankings, labels = job.rankings(args.split), data.labels[index]
    started = time.perf_counter()
    result = job.ensemble.certify(rankings, method=args.method, threat=THREATS[args.threat])
    seconds = (time.perf_counter() - started) / len(index)
    counts = count_votes(rankings[..., 0].T, job.ensemble.num_classes)
    kind = "samples" if isinstance(result.threat, TrainingSamples) else "labels"
    config = {
        "scheme": describe(job, args.method),
        "threat": str(result.threat),
        "sampling": None,
        "data": data.name,
        "data_sha256": voted["sha256"],
        "split": args.split,
        "shape": list(data.shape),
        "num_classes": data.num_classes,
        "ensemble": ensemble_config(job.ensemble),
        "identity": job.identity,
        "method": args.method,
        "provenance": provenance(args),
    }
    folder = ResultFolder(args.out / args.split / f"{args.method}-{kind}")
    with folder:
        folder.start(config, resume=True)
        kept = {idx: float(text) for idx, text in read_texts(folder.folder, "radius").items()}
        for i, (idx, label) in enumerate(zip(index, labels.tolist(), strict=True)):
            votes = Votes(counts[i : i + 1], None, data.shape, int(counts[i].sum()))
            row, line = result_of(idx, label, result, i, int(result.prediction[i]), votes, 0, seconds)
            if idx not in kept:
                folder.append(row, line)
            elif kept[idx] != row.radius:
                raise ValueError(
                    f"{folder.folder}: got a stored radius of {kept[idx]:g} for image {idx}, but it is {row.radius:g} "
                    "by this version of the certificate; remove the folder and certify again"
                )
    return folder.folder


def describe(job: Job, method: str) -> str:
    """An ensemble in one line of a report."""
    config = ensemble_config(job.ensemble)
    spread = f", spread {job.ensemble.spread}" if job.ensemble.spread > 1 else ""
    seeds = "" if job.ensemble.seeds == "distinct" else ", shared seeds"
    features = f" on {job.data['features']['method']}" if job.ensemble.learned else ""
    return f"{method} of {config['partition']}{spread}, {config['learner']}{features}{seeds}"


def show(args: Args) -> None:
    """Table and plot of everything that was certified."""
    runs = sorted(path.parent for path in args.out.glob("*/*/rows.tsv"))
    if not runs:
        raise FileNotFoundError(f"{args.out}: nothing is certified yet; run the step certify first")
    report.main(report.Args(runs, out=args.out, radii=args.radii))
    base = {percent(float(read_rows(run)["label_share"].mean())) for run in runs}
    print(f"average accuracy of a single model: {', '.join(sorted(base))}")


def provenance(args: Args) -> dict[str, Any]:
    """How the results were made; only informative."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"command": cli.command_line("scripts.poisoning", args), "commit": cli.commit(), "started": started}


def check(args: Args) -> None:
    """Raise for options that a step would refuse only after earlier ones have run."""
    cli.check_used(args, args.step)
    classifier_runs.parse_shard(args.shard)
    classifier_runs.chosen(0, args.skip, args.max)
    report.check_radii(args.radii)


def main(args: Args) -> None:
    check(args)
    steps = STEPS[:-1] if args.step == "all" else (args.step,)
    for step in steps:
        if step == "certify":
            print(f"wrote {certify(args)}")
        else:
            {"train": train, "vote": vote, "report": show}[step](args)


if __name__ == "__main__":
    cli.run(main, Args, "scripts.poisoning")
