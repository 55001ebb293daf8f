"""Learn features from the images of a training set, without labels, for SS-DPA.

    python -m scripts.train_features runs/rotnet --data mnist --method "RotNet('small_cnn', epochs=5)"
    python -m scripts.poisoning all runs/ss-dpa --data mnist --partition "SortedIndex(50)" --features runs/rotnet \\
        --learner "Network('linear', steps=100)"

The published settings on MNIST and CIFAR-10, with the classifiers on top, for a GPU (set
CUBLAS_WORKSPACE_CONFIG=:4096:8):

    python -m scripts.train_features runs/rotnet --data mnist --method "RotNet()" --device cuda
    python -m scripts.poisoning all runs/mnist-ss-dpa --data mnist --partition "SortedIndex(1200)" --device cuda \\
        --features runs/rotnet --learner "Network('nin_block', steps=200, batch_size=64, crop=1)" --at-once 100
    python -m scripts.train_features runs/simclr --data cifar10 --method "SimCLR()" --device cuda
    python -m scripts.poisoning all runs/cifar-ss-dpa --data cifar10 --partition "SortedIndex(50)" --device cuda \\
        --features runs/simclr --learner "Network('linear', steps=200, batch_size=512, lr=1.0, weight_decay=0)"

For GTSRB, use ``SimCLR(batch_size=256, flip=False)``. Two clusters as features, and one label per model (Appendix F.2):

    python -m scripts.train_features runs/clusters --data "mnist(only=(1, 7))" --method "KMeans(2)"
    python -m scripts.poisoning all runs/one-label --data "mnist(only=(1, 7))" --partition "SortedIndex(13007)" \\
        --features runs/clusters --learner "ClusterLabels()" --at-once 1000

Models are trained on features of exactly their own training images. On the same machine with the same number of
threads, a command always yields bit-identical features; an interrupted run continues with ``--resume`` from its last
epoch, to the identical result.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from certify.data import Dataset, load
from certify.poisoning.feature_method import FeatureMethod
from certify.poisoning.features import FILE, Pretraining, load_features, read_method
from certify.poisoning.pretext import SimCLR
from scripts.parts import cli, poisoning_inputs


@dataclass
class Args:
    """Learn features from images without labels; the result is OUT/features.safetensors."""

    out: Path = cli.arg("folder of the features", positional=True)
    data: str = cli.arg(
        "digits, mnist, fashion-mnist, cifar10, also as 'mnist(only=(1, 7))', gtsrb or 'gtsrb(whole=True)'", "digits"
    )
    method: str = cli.arg(
        "RotNet('small_cnn', epochs=5), also with network_in_network, SimCLR('resnet18', epochs=100), also with other "
        "models, or KMeans(clusters=2)",
        "RotNet('small_cnn', epochs=10)",
    )
    device: str = cli.arg("cpu, cuda, ...", "cpu")
    data_root: Path | None = cli.arg("folder of the data sets, by default $CERTIFY_DATA or ./data", None)
    resume: bool = cli.arg("continue what is in OUT", False)


def check(method: FeatureMethod, data: Dataset) -> None:
    """Raise unless the method suits the data set."""
    if data.kind != "picture":
        raise ValueError(f"data: got {data.name}, expected images")
    if isinstance(method, SimCLR) and method.flip and not data.mirrored:
        raise ValueError(f"method: flips images, but flipping changes some classes of {data.name}; add flip=False")


def main(args: Args) -> None:
    cli.check_device(args.device)
    method = read_method(args.method)
    data = load(args.data, "train", args.data_root)
    check(method, data)
    images = poisoning_inputs.images_of(poisoning_inputs.in_memory(data))
    learning = Pretraining(images, method, args.out, device=args.device)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    command = cli.command_line("scripts.train_features", args)
    provenance = {"command": command, "commit": cli.commit(), "started": started, "data": data.name}
    learning.start(resume=args.resume, provenance=provenance)
    with cli.progress() as bar:
        total = method.epochs * learning.steps_per_epoch
        task = bar.add_task("learning", total=total, completed=len(learning.losses) * learning.steps_per_epoch)
        learning.run(
            on_step=lambda: bar.advance(task),
            on_epoch=lambda epoch, loss: bar.console.print(f"epoch {epoch}: loss {loss:.4f}"),
        )
        bar.update(task, completed=total)  # it may have converged before the last epoch
    features = load_features(args.out)
    seen = poisoning_inputs.learned_features(features, images, args.out / "train.safetensors", args.device)
    print(f"wrote {args.out / FILE}: {' x '.join(map(str, seen.shape[1:]))} features of {len(images)} images")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.train_features")
