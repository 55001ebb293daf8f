"""Certified robustness against poisoned training data.

An :class:`Ensemble` trains one model on each partition of the training set; a change of the training set then affects
few models, and :func:`certify_counts` returns how many changes each prediction withstands.

* partitions: :class:`PixelSum`, :class:`ContentHash` (against inserted and deleted samples, and flipped labels);
  :class:`SortedIndex` (against flipped labels)
* base learners: :class:`Network`, :class:`NearestNeighbors`, :class:`ClusterLabels`
* features learned once, without labels, for SS-DPA: :class:`RotNet`, :class:`SimCLR`, :class:`KMeans`,
  in :mod:`certify.poisoning.features`
* certificates from votes: :func:`certify_counts` (DPA, SS-DPA), :func:`certify_finite`, :func:`certify_run_off`
"""

from certify.poisoning.certificates import certify_counts, certify_finite, certify_run_off, count_votes
from certify.poisoning.clusters import ClusterLabels, KMeans
from certify.poisoning.ensemble import Ensemble
from certify.poisoning.learner import Learner, Part, State, rank_classes
from certify.poisoning.neighbors import NearestNeighbors
from certify.poisoning.network import Network
from certify.poisoning.partition import ContentHash, Partitioner, PixelSum, SortedIndex
from certify.poisoning.pretext import RotNet, SimCLR
from certify.threats import TrainingLabels, TrainingSamples

__all__ = [
    "ClusterLabels",
    "ContentHash",
    "Ensemble",
    "KMeans",
    "Learner",
    "NearestNeighbors",
    "Network",
    "Part",
    "Partitioner",
    "PixelSum",
    "RotNet",
    "SimCLR",
    "SortedIndex",
    "State",
    "TrainingLabels",
    "TrainingSamples",
    "certify_counts",
    "certify_finite",
    "certify_run_off",
    "count_votes",
    "rank_classes",
]
