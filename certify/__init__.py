"""Certified robustness for any PyTorch classifier.

``Smoothed(base_classifier, scheme, num_classes).certify(images)`` returns predictions with a radius inside which no
perturbation of the scheme's threat model can change them. :func:`certify_dataset` certifies a data set and writes one
line per image to disk; :class:`StoredRun` reads these results, or certifies them again without the model. Schemes:

* :class:`RandomizedAblation`, :class:`BernoulliAblation`, :class:`DiscreteNoise` - l0, randomized;
  :class:`DeterministicAblation` - l0, exact
* :class:`VariableLambda` - lp for p <= 1, exact; :class:`ConcaveSmoothing` - other elementwise-concave metrics, exact;
  :class:`RandomizedVariableLambda` - lp, randomized
* :class:`SplittingNoise`, :class:`UniformNoise` - l1, randomized; :class:`DeterministicSplittingNoise` - l1, exact
* :class:`BandAblation`, :class:`BlockAblation`, :class:`MultiBandAblation`, :class:`MultiBlockAblation` - adversarial
  patches, exact; :class:`DoubleMasking` - patches, exact, for classifiers trained as usual;
  :class:`RandomizedBandAblation`, :class:`RandomizedBlockAblation` - patches, randomized
* :class:`GaussianNoise` - l2, randomized; :class:`SmoothReduce`, :class:`SmoothReduceVideo` - l2, randomized, from
  patches of an image or parts of a video
* :class:`WassersteinNoise` - Wasserstein distance of images as distributions of mass, randomized
* :class:`Undefended` - the base classifier itself, as a baseline
"""

from certify import metrics, poisoning, topk, topk_l2
from certify.ablation import DeterministicAblation, RandomizedAblation
from certify.bernoulli_ablation import BernoulliAblation
from certify.discrete import DiscreteNoise
from certify.double_masking import DoubleMasking
from certify.evaluation import certify_dataset
from certify.gaussian import GaussianNoise
from certify.multi_windows import MultiBandAblation, MultiBlockAblation
from certify.patch import PatchCertified
from certify.randomized_variable_lambda import RandomizedVariableLambda
from certify.randomized_windows import RandomizedBandAblation, RandomizedBlockAblation
from certify.runs import StoredRun
from certify.scheme import Certified, EnumeratedScheme, SampledScheme, Scheme, TopKCertified
from certify.sequential import CertifiedAt, RadiusWithin, SequentialCertified
from certify.smooth import Smoothed
from certify.smooth_reduce import SmoothReduce, SmoothReduceVideo
from certify.splitting import DeterministicSplittingNoise, SplittingNoise
from certify.threats import L0, L1, L2, ElementwiseConcave, LInf, Lp, Patch, Unproven, Wasserstein
from certify.undefended import Undefended
from certify.uniform import UniformNoise
from certify.variable_lambda import ConcaveSmoothing, VariableLambda
from certify.votes import ThresholdVote, Votes, argmax_vote
from certify.wasserstein import WassersteinNoise
from certify.windows import BandAblation, BlockAblation

__all__ = [
    "L0",
    "L1",
    "L2",
    "BandAblation",
    "BernoulliAblation",
    "BlockAblation",
    "Certified",
    "CertifiedAt",
    "ConcaveSmoothing",
    "DeterministicAblation",
    "DeterministicSplittingNoise",
    "DiscreteNoise",
    "DoubleMasking",
    "ElementwiseConcave",
    "EnumeratedScheme",
    "GaussianNoise",
    "LInf",
    "Lp",
    "MultiBandAblation",
    "MultiBlockAblation",
    "Patch",
    "PatchCertified",
    "RadiusWithin",
    "RandomizedAblation",
    "RandomizedBandAblation",
    "RandomizedBlockAblation",
    "RandomizedVariableLambda",
    "SampledScheme",
    "Scheme",
    "SequentialCertified",
    "SmoothReduce",
    "SmoothReduceVideo",
    "Smoothed",
    "SplittingNoise",
    "StoredRun",
    "ThresholdVote",
    "TopKCertified",
    "Undefended",
    "UniformNoise",
    "Unproven",
    "VariableLambda",
    "Votes",
    "Wasserstein",
    "WassersteinNoise",
    "argmax_vote",
    "certify_dataset",
    "metrics",
    "poisoning",
    "topk",
    "topk_l2",
]
