"""Empirical attacks: upper bounds on robustness, to set beside the lower bounds that certificates give.

An attack never proves robustness. Against an exact certificate, or one from exact probabilities, it never succeeds
within the certified radius, which is how the tests of this package check both. Against samples it may: abstention
counts as success, and a classifier may abstain, for want of samples, where its class is certified to be the same.
"""

from certify.attacks.attacked import Attacked
from certify.attacks.linf import linf_attack
from certify.attacks.patch import patch_attack
from certify.attacks.pointwise import pointwise_attack
from certify.attacks.wasserstein import Growth, wasserstein_attack

__all__ = ["Attacked", "Growth", "linf_attack", "patch_attack", "pointwise_attack", "wasserstein_attack"]
