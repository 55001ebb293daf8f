"""Time to add a transition to a full hindsight buffer and sample a minibatch, relative to Stable-Baselines3's buffer.

    python -m benchmarks.full_buffer [--quick]

A million transitions of ContinuousSeek in 20 dimensions, in episodes of ten steps; batch size 256. Measurements of the
buffers alternate, and the median of the pairwise ratios is reported.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3 as sb3
from stable_baselines3.common.vec_env import DummyVecEnv

import envs  # noqa: F401  (registers them)
import rl
from benchmarks.measure import arguments, median_ratio, seconds_in_turn

BATCH, EPISODE, STEPS = 256, 10, 10


def full(kind: type[sb3.HerReplayBuffer], size: int) -> sb3.HerReplayBuffer:
    """A full buffer, about to overwrite its oldest episode."""
    env = DummyVecEnv([partial(gymnasium.make, "ContinuousSeek-v0", d=20)])
    space: Any = env.observation_space
    buffer = kind(size, space, env.action_space, env=env, device="cpu")
    for own in (buffer.observations, buffer.next_observations):
        for values in own.values():
            values[:] = 1
    buffer.rewards[:] = 0  # since the achieved goals equal the desired ones
    buffer.ep_start[:, 0] = np.arange(size) // EPISODE * EPISODE
    buffer.ep_length[:] = EPISODE
    buffer.full = True
    return buffer


def step(buffer: Any) -> None:
    observation = {key: values[:1, 0] for key, values in buffer.observations.items()}
    for _ in range(STEPS):
        done = np.array([buffer.pos % EPISODE == EPISODE - 1])
        action, reward = np.zeros((1, 20)), np.zeros(1)
        buffer.add(observation, observation, action, reward, done, [{"TimeLimit.truncated": True}])
        buffer.sample(BATCH)


def main() -> None:
    quick = arguments("full_buffer", __doc__, quick=(False, "fewer rounds")).quick
    kinds: dict[str, Any] = {"Stable-Baselines3": sb3.HerReplayBuffer, "this project": rl.HerReplayBuffer}
    buffers = {name: full(kind, 1_000_000) for name, kind in kinds.items()}
    times = seconds_in_turn({name: partial(step, own) for name, own in buffers.items()}, 20 if quick else 100)
    reference = next(iter(times.values()))
    print(f"{'':<20} {'ratio':>6}   per step")
    for name, own in times.items():
        print(f"{name:<20} {median_ratio(own, reference):>6.3f}   {1000 / STEPS * statistics.median(own):>7.2f} ms")


if __name__ == "__main__":
    main()
