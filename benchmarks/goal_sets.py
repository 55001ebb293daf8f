"""Time of a Multi-ReenGAGE update relative to one of DDPG with the same networks.

    python -m benchmarks.goal_sets [--quick]

DeepSets of the published size (Table G.4), batch size 256, a random number of goals from 1 to 200, as in DriveSeek. All
agents have the same transitions. Measurements alternate, and the median of the pairwise ratios is reported. The first
row is this project's DDPG with coefficient 0; the last is Stable-Baselines3's training loop with the same policy, where
actor and critic each evaluate the shared encoder.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import rl
from benchmarks.measure import arguments, median_ratio, seconds_in_turn

BATCH, GOALS, TRANSITIONS = 256, 200, 1_000


class RandomGoals(gymnasium.Env[dict[str, Any], Any]):
    """Random states and goal sets with DriveSeek's shapes, in episodes of one step."""

    observation_space = spaces.Dict(
        {
            "observation": spaces.Box(-10, 10, (6,), np.float32),
            "achieved_goal": spaces.Box(-10, 10, (2,), np.float32),
            "desired_goal": spaces.Box(-10, 10, (GOALS, 3), np.float32),
        }
    )
    action_space = spaces.Box(-0.5, 0.5, (1,), np.float32)

    def _observe(self) -> dict[str, Any]:
        state = self.np_random.uniform(-10, 10, 6).astype(np.float32)
        return {"observation": state, "achieved_goal": state[:2].round(), "desired_goal": self._goals}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        n = self.np_random.integers(1, GOALS + 1)
        self._goals = np.zeros((GOALS, 3), np.float32)
        self._goals[:n, :2], self._goals[:n, 2] = self.np_random.integers(-10, 11, (n, 2)), 1
        return self._observe(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        return self._observe(), float(self.np_random.integers(2)), False, True, {}


def agent(algorithm: Any, policy: Any, **options: Any) -> OffPolicyAlgorithm:
    model = algorithm(
        policy,
        RandomGoals(),
        batch_size=BATCH,
        gamma=0.95,
        learning_starts=TRANSITIONS,
        buffer_size=TRANSITIONS,
        replay_buffer_class=rl.GoalSetReplayBuffer,
        seed=0,
        device="cpu",
        **options,
    )
    model.set_logger(configure(None, []))
    return model.learn(TRANSITIONS)


def compare(policy_kwargs: dict[str, Any], rounds: int, updates: int) -> None:
    options = {"policy_kwargs": policy_kwargs}
    agents = {
        "DDPG": agent(rl.DDPG, "MultiGoalPolicy", **options),
        "Multi-ReenGAGE": agent(rl.DDPG, "MultiGoalPolicy", goal_gradient_coef=0.1, **options),
        "Stable-Baselines3's loop": agent(sb3.DDPG, rl.MultiGoalPolicy, **options),
    }
    times = seconds_in_turn({label: partial(model.train, updates, BATCH) for label, model in agents.items()}, rounds)
    for label, own in times.items():
        ratio = median_ratio(own, times["DDPG"])
        print(f"  {label:<26} {ratio:>6.3f}   {1000 / updates * statistics.median(own):>8.1f} ms", flush=True)


def main() -> None:
    quick = arguments("goal_sets", __doc__, quick=(False, "fewer rounds, shared encoders only")).quick
    print(f"{'':<28} {'ratio':>6}   per update, {torch.get_num_threads()} threads")
    for share in (True,) if quick else (True, False):
        print("one encoder shared by actor and critic" if share else "separate encoders for actor and critic")
        compare({"share_encoder": share}, rounds=5 if quick else 15, updates=1 if quick else 3)


if __name__ == "__main__":
    main()
