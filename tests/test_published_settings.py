"""Defaults that are the papers' settings: whoever changes one changes what a run without options reproduces."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import beta, norm

import rl
from certify import BandAblation, GaussianNoise, Smoothed, Votes
from certify.attacks import Growth
from certify.poisoning import ContentHash, Ensemble, NearestNeighbors
from envs import ContinuousSeek, NoisySeek
from rl.normalization import NormalizedExtractor
from scripts import certify as certify_script
from scripts import train_hand


def defaults(function) -> dict[str, object]:
    return {name: each.default for name, each in inspect.signature(function).parameters.items()}


def test_samples_of_certificates():
    args = certify_script.Args(out=Path("out"), checkpoint=Path("checkpoint"))
    assert (args.n0, args.n, args.bounds, args.interval) == (1_000, 10_000, "one-sided", "clopper-pearson")
    assert {name: defaults(Smoothed)[name] for name in ("n0", "n", "alpha")} == {
        "n0": 1_000,
        "n": 10_000,
        "alpha": 0.05,
    }


def test_environments():
    seek = ContinuousSeek()
    assert (seek.d, seek.bound, seek.eps, seek.steps) == (20, 5.0, 0.1, 10)
    noisy = NoisySeek()
    assert (noisy.cluster_probability, noisy.center_std, noisy.goal_std, noisy.noise_std) == (0.15, 10.0, 2.0, 1.0)
    assert (noisy.max_goals, noisy.max_speed, noisy.steps) == (200, 1.0, 40)


def test_targets_of_dqn():
    """Softened in the goal-gradient term alone, with temperature 1/2 (Appendix G.2, Figure G.1)."""
    assert (rl.DQN.temperature, defaults(rl.DQN)["soft_target"]) == (0.5, "gradient")


def test_inputs_of_the_hands_are_clipped():
    assert {name: defaults(NormalizedExtractor)[name] for name in ("clip", "clip_raw", "epsilon")} == {
        "clip": 5.0,
        "clip_raw": 200.0,
        "epsilon": 0.01,
    }


def test_recipe_of_the_hands():
    """Plappert et al. (2018): one update of the targets per 40 of the networks, with averaging at 0.95."""
    pytest.importorskip("gymnasium_robotics")
    run = train_hand.configuration(train_hand.Args(out=None))  # type: ignore[arg-type]
    got = {name: run.arguments[name] for name in ("tau", "target_update_interval", "action_l2", "random_action")}
    assert got == {"tau": 0.05, "target_update_interval": 40, "action_l2": 1.0, "random_action": 0.3}
    assert run.arguments["gradient_steps"] == 40
    assert run.arguments["learning_rate"] == 0.001
    assert run.arguments["policy_kwargs"]["net_arch"] == [256, 256, 256]
    assert run.arguments["gamma"] == pytest.approx(0.98)
    assert run.arguments["target_range"] == pytest.approx([-50.0, 0.0])
    assert run.noise == 0.2
    assert (run.num_envs, run.arguments["train_freq"], run.arguments["batch_size"]) == (38, 50, 4_864)
    assert run.plan["steps"] == 50 * 50 * 1_900


def test_wasserstein_attack():
    assert Growth() == Growth(steps=200, step_size=0.1, start=0.01, factor=1.3, every=10, samples=128)


def test_patches_are_certified_place_by_place():
    """The bound that counts votes at each place is the default.

    Of 16 bands, a patch of 3 x 3 pixels meets 4 in a row, of which 3 at most vote for class 0: it keeps 8 of 11 votes,
    and class 1 has 4 of its 5 and the 4 others.
    """
    by_copy = torch.zeros(1, 16, 2, dtype=torch.bool)
    by_copy[0, :, 0], by_copy[0, 1:14:3, 1] = True, True
    by_copy[0, 1:14:3, 0] = False
    votes = Votes(by_copy.sum(1), None, (1, 16, 16), 16, by_copy=by_copy)
    smoothed = Smoothed(torch.nn.Flatten(), BandAblation(2), 2)
    assert smoothed.certificate(votes).radius == 3
    assert BandAblation(2).certify_copies(by_copy, shape=(1, 16, 16), bound="published").radius == 2
    assert BandAblation(2).certify_votes(by_copy, 3).certified


def test_models_have_seeds_of_their_own_and_samples_in_canonical_order():
    """By content, then by label: the order of the training set decides nothing."""
    samples, labels = torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.tensor([2, 0, 1, 0, 2, 1])
    ensemble = Ensemble(ContentHash(2), NearestNeighbors(), 3)
    parts = [
        ensemble.parts((samples, labels[order])) for order in (torch.arange(6), torch.tensor(np.arange(5, -1, -1)))
    ]
    for part, other in zip(*parts, strict=True):
        assert torch.equal(part.labels, other.labels)
        assert torch.equal(part.labels, part.labels.sort().values)
    assert [part.seed for part in parts[0]] == [0, 1]


def test_one_sided_bounds_have_the_whole_of_alpha():
    """Clopper-Pearson at level alpha, not alpha / 2 (CERTIFY of Cohen et al., 2019)."""
    counts, scheme = torch.tensor([[9_000, 1_000]]), GaussianNoise(0.5)
    result = scheme.certify_counts(torch.tensor([[80, 20]]), counts, 0.01, n=10_000, shape=(1, 8, 8))
    assert result.p_lower is not None
    assert result.p_lower.item() == pytest.approx(beta.ppf(0.01, 9_000, 1_001), abs=1e-9)
    assert result.radius.item() == pytest.approx(0.5 * norm.ppf(beta.ppf(0.01, 9_000, 1_001)), abs=1e-6)
