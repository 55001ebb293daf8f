"""Empirical attacks: upper bounds on robustness, to compare with the lower bounds that certificates give.

An attack never proves robustness. Against a certificate that is exact or computed from exact probabilities, it cannot
succeed within the certified radius; the tests use this to check both. Against a sampled classifier it can: abstention
counts as success, and with too few samples a classifier may abstain where its class is certified not to change.
"""

from certify.attacks.attacked import Attacked
from certify.attacks.linf import linf_attack
from certify.attacks.patch import patch_attack
from certify.attacks.pointwise import pointwise_attack
from certify.attacks.wasserstein import Growth, wasserstein_attack

__all__ = ["Attacked", "Growth", "linf_attack", "patch_attack", "pointwise_attack", "wasserstein_attack"]
