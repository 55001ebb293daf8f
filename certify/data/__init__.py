"""Data sets as 8-bit images: ``load("mnist", "test")``.

``digits`` is embedded (scikit-learn); ``python -m scripts.fetch`` brings MNIST, Fashion-MNIST and CIFAR-10;
ImageNet and GTSRB are read from their usual folders.
"""

from certify.data.datasets import DATASETS, Dataset, default_root, load

__all__ = ["DATASETS", "Dataset", "default_root", "load"]
