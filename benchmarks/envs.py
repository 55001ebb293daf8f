"""Steps per second of 1,024 environments stepped together, relative to a single environment.

    python -m benchmarks.envs [--copies 1024]

The single environment is made by ``gymnasium.make`` without its checker, the many by ``gymnasium.make_vec`` with the
native entry point; both include resets at the end of episodes, and take random actions drawn beforehand. Measurements
alternate, and the median of the pairwise ratios is reported. The last column adds the adapter to Stable-Baselines3.
"""

from __future__ import annotations

import statistics
import time

import gymnasium
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

import envs  # noqa: F401  (registers them)
from benchmarks.measure import arguments, median_ratio
from rl.vec_env import VectorEnvAdapter

IDS = ("ContinuousSeek-v0", "BitFlipping-v0", "LinearDense-v0", "LinearSparse-v0", "DriveSeek-v0", "NoisySeek-v0")


def single_rate(env: gymnasium.Env, steps: int) -> float:
    actions = [env.action_space.sample() for _ in range(100)]
    env.reset()
    started = time.perf_counter()
    for step in range(steps):
        _, _, terminated, truncated, _ = env.step(actions[step % 100])
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - started)


def vector_rate(env: gymnasium.vector.VectorEnv | VectorEnvAdapter, actions: NDArray, steps: int) -> float:
    env.reset()
    started = time.perf_counter()
    for _ in range(steps):
        env.step(actions)
    return steps * env.num_envs / (time.perf_counter() - started)


def compare(env_id: str, copies: int, rounds: int) -> None:
    one = gymnasium.make(env_id, disable_env_checker=True)
    many = gymnasium.make_vec(env_id, copies, "vector_entry_point", autoreset_mode=AutoresetMode.SAME_STEP)
    adapted, actions = VectorEnvAdapter(many), many.action_space.sample()
    single, vector, adapter = [], [], []
    for _ in range(rounds):
        single.append(single_rate(one, 2000))
        vector.append(vector_rate(many, actions, 200))
        adapter.append(vector_rate(adapted, actions, 200))
    ratio = median_ratio(vector, single)
    print(
        f"{env_id:<20} {ratio:>5.0f}   {copies} together {statistics.median(vector):>9,.0f}/s, one "
        f"{statistics.median(single):>7,.0f}/s, with the adapter {statistics.median(adapter):>9,.0f}/s",
        flush=True,
    )


def main() -> None:
    args = arguments(
        "envs", __doc__, copies=(1024, "environments stepped together"), rounds=(5, "measurements of each")
    )
    print(f"gymnasium {gymnasium.__version__}; ratio of steps per second, together / one")
    for env_id in IDS:
        compare(env_id, args.copies, args.rounds)


if __name__ == "__main__":
    main()
