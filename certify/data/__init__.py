"""Data sets as 8-bit images, clips or point clouds: ``load("mnist", "test")``.

``digits`` (scikit-learn), ``shapes`` (point clouds) and ``moving-shapes`` (clips) are built in; ``python -m
scripts.fetch`` downloads MNIST, Fashion-MNIST and CIFAR-10; ImageNet, GTSRB, ModelNet40 and UCF-101 are read from their
usual folders. For your own data, use ``from_torch`` (any map-style PyTorch data set), ``register_dataset`` (to give
it a name), or the names ``npz(path='mine.npz')`` and ``folder(path='mine', size=32)``.
"""

from certify.data.datasets import DATASETS, Dataset, both_parts, check_files, default_root, load, register_dataset
from certify.data.mapped import from_torch

__all__ = ["DATASETS", "Dataset", "both_parts", "check_files", "default_root", "from_torch", "load", "register_dataset"]
