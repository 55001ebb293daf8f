"""Returns of agents that need no training: baselines to compare trained agents with.

    python -m scripts.reference_agents NoisySeek-v0 --agent greedy
    python -m scripts.reference_agents DriveSeek-v0 --agent random --gif random.gif

Greedy agents move to the nearest goal; random agents sample uniformly from the action space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from certify.files import write_atomically
from envs import reference
from rl.evaluation import student_interval
from rl.training import run_episodes
from rl.vec_env import VectorEnvAdapter
from scripts.parts import cli
from scripts.rollout import animation, play

TOGETHER = 50  # environments stepped together; which random actions each one gets depends on this number


@dataclass
class Args:
    """Mean return of an agent that needs no training, with a 95 % confidence interval; optionally an animation."""

    env: Literal["DriveSeek-v0", "NoisySeek-v0"] = cli.arg("id of the environment", positional=True)
    agent: Literal["greedy", "random"] = cli.arg("kind of agent", "greedy")
    max_goals: int = cli.arg("maximum number of goals in an episode", 200)
    episodes: int = cli.arg("number of episodes to average over", 1_000)
    seed: int = cli.arg("seed of the environments and of the random agent", 0)
    gif: Path | None = cli.arg("file for an animation of a few more episodes", None)
    gif_episodes: int = cli.arg("number of episodes in the animation", 3)
    fps: float = cli.arg("steps shown per second", 4.0)


@dataclass(frozen=True)
class Agent:
    """A policy with the ``predict`` method of a trained agent."""

    policy: reference.Policy

    def predict(self, observation: Mapping[str, Any], deterministic: bool = True) -> tuple[Any, None]:
        return self.policy(observation), None


def check(args: Args) -> None:
    """Raise for illegal arguments."""
    if args.episodes < 2:
        raise ValueError(f"episodes: got {args.episodes}, expected at least 2, for an interval")
    if args.seed < 0:
        raise ValueError(f"seed: got {args.seed}, expected at least 0")
    if args.gif is not None and args.gif.suffix.lower() != ".gif":
        raise ValueError(f"gif: got {args.gif}, expected a name that ends in .gif")
    if args.gif_episodes < 1:
        raise ValueError(f"gif-episodes: got {args.gif_episodes}, expected at least 1")
    if not 0 < args.fps <= 50:
        raise ValueError(f"fps: got {args.fps}, expected above 0, at most 50")


def main(args: Args) -> None:
    check(args)
    together = min(TOGETHER, args.episodes)
    goals: dict[str, Any] = {"max_goals": args.max_goals}
    env = gymnasium.make_vec(args.env, together, "vector_entry_point", autoreset_mode=AutoresetMode.SAME_STEP, **goals)
    task = env.task  # pyright: ignore[reportAttributeAccessIssue]
    rng = np.random.default_rng(args.seed)
    agent = Agent(reference.greedy(task) if args.agent == "greedy" else reference.random(task, rng))
    returns = run_episodes(agent, VectorEnvAdapter(env), args.episodes, seed=args.seed).returns
    mean = student_interval(returns)
    print(
        f"{args.env}, up to {args.max_goals} goals, {args.agent}: mean return {mean.value:.2f}, "
        f"95 % interval [{mean.low:.2f}, {mean.high:.2f}], standard deviation {np.std(returns, ddof=1):.2f}, "
        f"{args.episodes} episodes"
    )
    if args.gif is not None:
        one = gymnasium.make(args.env, render_mode="rgb_array", **goals)
        episodes = [play(agent, one, args.seed if i == 0 else None) for i in range(args.gif_episodes)]
        write_atomically(args.gif, animation(episodes, args.fps))
        print(f"wrote {args.gif}; returns {', '.join(f'{sum(episode.rewards):g}' for episode in episodes)}")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.reference_agents")
