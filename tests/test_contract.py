"""Names and signatures that code outside this project relies on: every call here is written as it may stand there."""

import gymnasium
import numpy as np
import pytest
import torch

import certify
import certify.poisoning
import certify.topk
import envs  # noqa: F401 (registers the environments)
import rl
from certify import (
    BandAblation,
    BlockAblation,
    DeterministicAblation,
    DeterministicSplittingNoise,
    GaussianNoise,
    RandomizedAblation,
    Smoothed,
    SmoothReduce,
    SplittingNoise,
    UniformNoise,
    VariableLambda,
    WassersteinNoise,
)

SELECTION, COUNTS = torch.tensor([[90, 10], [20, 80]]), torch.tensor([[900, 100], [200, 800]])


@pytest.mark.parametrize(
    ("scheme", "radii"),
    [
        (DeterministicAblation(alpha=1_000, unit="pixel", seed=0), [400, 299]),
        (DeterministicAblation(1_000, unit="feature", seed=1), [400, 299]),
        (DeterministicSplittingNoise(lam=0.5, q=255, seed=0), [400 / 255, 299 / 255]),
        (VariableLambda(p=0.5, alpha=1, q=255, budget=1_000, seed=0), None),
    ],
)
def test_deterministic_schemes_certify_counts(scheme, radii):
    result = scheme.certify_counts(COUNTS)
    assert result.prediction.dtype == torch.int64
    assert result.prediction.tolist() == [0, 1]
    assert result.radius.shape == (2,)
    if radii is None:  # (flips / B)^2, and up to a touched vote more
        radii = result.radius.tolist()
        assert all(
            (r / 1_000) ** 2 <= radius < ((r + 1) / 1_000) ** 2 for r, radius in zip([400, 299], radii, strict=True)
        )
    assert result.radius.tolist() == pytest.approx(radii)


@pytest.mark.parametrize(
    "scheme",
    [
        RandomizedAblation(keep=45),
        SplittingNoise(lam=0.5),
        UniformNoise(lam=0.5),
        GaussianNoise(sigma=0.5),
        WassersteinNoise(sigma=0.01),
        SmoothReduce(0.25, 6, resize=8, stride=2),
    ],
)
def test_sampled_schemes_certify_counts(scheme):
    result = scheme.certify_counts(SELECTION, COUNTS, 0.001, shape=(1, 8, 8))
    assert result.prediction.tolist() == [0, 1]
    assert result.radius[0] >= result.radius[1] >= 0
    assert result.radius.dtype == torch.float64


def test_the_shape_is_needed_only_where_the_radius_depends_on_it():
    for scheme in (SplittingNoise(0.5), UniformNoise(0.5), GaussianNoise(0.5)):
        assert scheme.certify_counts(SELECTION, COUNTS, 0.001).prediction.tolist() == [0, 1]
    with pytest.raises(ValueError, match="shape: got None"):
        RandomizedAblation(45).certify_counts(SELECTION, COUNTS, 0.001)


@pytest.mark.parametrize("bound", ["location", "published"])
def test_patches_certify_votes(bound):
    votes = torch.zeros(2, 8, 3, dtype=torch.bool)  # [B, positions, C]
    votes[0, :, 1] = True
    votes[1, :5, 2] = votes[1, 5:, 0] = True
    result = BandAblation(width=1, axis="column").certify_votes(votes, 2, bound=bound)
    assert result.prediction.tolist() == [1, 2]
    assert result.certified.tolist() == [True, False]
    squares = torch.zeros(1, 64, 3, dtype=torch.bool)
    squares[:, :, 1] = True
    result = BlockAblation(size=3).certify_votes(squares, patch_size=2, shape=(1, 8, 8), bound=bound)
    assert result.certified.tolist() == [True]


def test_top_k_and_poisoning_certify_counts():
    result = certify.topk.certify_counts(torch.tensor([[700, 200, 100]]), 2, 64, 5, 0.001)
    assert result.radius.shape == (1, 3)
    assert result.radius[0, 0] > 0
    assert result.radius[0, 2] == -1
    assert certify.poisoning.certify_counts(torch.tensor([[30, 20], [20, 20], [19, 20]])).radius.tolist() == [5, 0, 0]


def test_smoothed_predicts_and_certifies():
    base = lambda copies: torch.stack((copies.sum((1, 2, 3)), torch.ones(len(copies))), 1)  # noqa: E731
    x = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)
    smoothed = Smoothed(base, DeterministicSplittingNoise(0.5), num_classes=2)
    assert smoothed.certify(x).prediction.tolist() == [0, 0]
    assert smoothed.predict(x).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("algorithm", "env"),
    [
        (rl.DDPG, "ContinuousSeek-v0"),
        (rl.TD3, "ContinuousSeek-v0"),
        (rl.SAC, "ContinuousSeek-v0"),
        (rl.DQN, "BitFlipping-v0"),
    ],
)
def test_algorithms_take_the_coefficient(algorithm, env):
    model = algorithm(
        "MultiInputPolicy", gymnasium.make(env), goal_gradient_coef=0.1, replay_buffer_class=rl.HerReplayBuffer
    )
    assert model.goal_gradient_coef == 0.1


def test_environments_are_registered():
    assert gymnasium.make("ContinuousSeek-v0", d=7).action_space.shape == (7,)
    for name in ("ContinuousSeek-v0", "DriveSeek-v0", "NoisySeek-v0", "BitFlipping-v0"):
        observation, _ = gymnasium.make(name).reset(seed=0)
        assert {"observation", "desired_goal"} <= observation.keys()
        assert np.isfinite(observation["observation"]).all()
