"""Time of an update with and without the goal-gradient term, relative to Stable-Baselines3's algorithm.

    python -m benchmarks.updates [--quick]

ContinuousSeek in 20 dimensions, two hidden layers of 256, hindsight, batch size 256. All buffers hold the same
transitions of a random policy. Measurements of a few updates each alternate, and the median of the pairwise ratios is
reported. The last row is Stable-Baselines3's algorithm with this project's buffer, to separate the two contributions.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import gymnasium
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import envs  # noqa: F401  (registers them)
import rl
from benchmarks.measure import arguments, median_ratio, seconds_in_turn

BATCH, UPDATES = 256, 20


def agent(algorithm: Any, buffer: Any, **options: Any) -> OffPolicyAlgorithm:
    """An untrained agent with a buffer filled by random actions."""
    model = algorithm(
        "MultiInputPolicy",
        gymnasium.make("ContinuousSeek-v0", d=20),
        batch_size=BATCH,
        learning_starts=2_000,
        buffer_size=120_000,
        policy_kwargs={"net_arch": [256, 256]},
        replay_buffer_class=buffer,
        seed=0,
        device="cpu",
        **options,
    )
    model.set_logger(configure(None, []))
    return model.learn(2_000)


def update(model: OffPolicyAlgorithm) -> None:
    for _ in range(UPDATES):
        model.train(1, BATCH)


def compare(name: str, rounds: int) -> None:
    stock, ours = getattr(sb3, name), getattr(rl, name)
    agents = {
        f"{name}, Stable-Baselines3": agent(stock, sb3.HerReplayBuffer),
        f"{name}, coefficient 0": agent(ours, rl.HerReplayBuffer),
        f"{name}, ReenGAGE": agent(ours, rl.HerReplayBuffer, goal_gradient_coef=0.2),
        f"{name}, stock with our buffer": agent(stock, rl.HerReplayBuffer),
    }
    times = seconds_in_turn({label: partial(update, model) for label, model in agents.items()}, rounds)
    reference = next(iter(times.values()))
    for label, own in times.items():
        ratio = median_ratio(own, reference)
        print(f"{label:<32} {ratio:>6.3f}   {1000 / UPDATES * statistics.median(own):>7.2f} ms", flush=True)


def main() -> None:
    quick = arguments("updates", __doc__, quick=(False, "DDPG only, fewer rounds")).quick
    print(f"{'':<32} {'ratio':>6}   per update, {torch.get_num_threads()} threads")
    for name in ("DDPG",) if quick else ("DDPG", "TD3", "SAC"):
        compare(name, 10 if quick else 30)


if __name__ == "__main__":
    main()
