"""Data sets as 8-bit images, clips or point clouds: ``load("mnist", "test")``.

``digits`` (scikit-learn), ``shapes`` (point clouds) and ``moving-shapes`` (clips) are built in; ``python -m
scripts.fetch`` brings MNIST, Fashion-MNIST and CIFAR-10; ImageNet, GTSRB, ModelNet40 and UCF-101 are read from their
usual folders. Your own: ``from_torch`` for any map-style data set of PyTorch, ``register_dataset`` to give one a name,
or by name ``npz(path='mine.npz')``, ``folder(path='mine', size=32)``.
"""

from certify.data.datasets import DATASETS, Dataset, both_parts, check_files, default_root, load, register_dataset
from certify.data.mapped import from_torch

__all__ = ["DATASETS", "Dataset", "both_parts", "check_files", "default_root", "from_torch", "load", "register_dataset"]
