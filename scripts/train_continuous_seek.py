"""Train on ContinuousSeek with hindsight, with or without ReenGAGE.

The defaults are the published ones (Tables G.1 to G.3), with the best learning rate and batch size for the algorithm,
the dimension and the coefficient:

    python -m scripts.train_continuous_seek runs/seek20-ddpg --d 20 --steps 120000 --seeds 0 1 2 3 --jobs 2
    python -m scripts.train_continuous_seek runs/seek20-reengage --d 20 --steps 120000 --seeds 0 1 2 3 --jobs 2 \\
        --goal-gradient-coef 0.2
    python -m scripts.evaluate runs/seek20-ddpg runs/seek20-reengage --baseline runs/seek20-ddpg
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scripts.parts import cli, goal_training

Best = dict[tuple[int, bool], tuple[int, float]]
# (d, ReenGAGE): batch size, learning rate; the same for all coefficients, except for SAC with 0.1
DDPG: Best = {
    (5, False): (512, 0.001),
    (5, True): (512, 0.0015),
    (10, False): (256, 0.0005),
    (10, True): (512, 0.001),
    (20, False): (256, 0.0005),
    (20, True): (128, 0.0005),
}
SAC: Best = {
    (5, False): (8192, 0.0025),
    (5, True): (2048, 0.0025),
    (10, False): (1024, 0.0015),
    (10, True): (512, 0.0025),
    (20, False): (4096, 0.0005),
    (20, True): (8192, 0.0025),
}
SAC_WITH_SMALL_COEF: Best = {(5, True): (4096, 0.0025), (10, True): (1024, 0.0025)}


@dataclass
class Args(goal_training.Args):
    """Train on ContinuousSeek: one run per seed in OUT/seed-K."""

    d: int = cli.arg("dimension of states, actions and goals", 20)
    bound: float = cli.arg("half the side of the box", 5.0)
    eps: float = cli.arg("distance within which a goal counts as reached", 0.1)
    episode_steps: int = cli.arg("steps per episode", 10)
    algorithm: Literal["ddpg", "td3", "sac"] = cli.arg("learning algorithm", "ddpg")
    num_envs: int = cli.arg("environments stepped together, with one update for each", 1)
    layers: list[int] = cli.arg("widths of the hidden layers of actor and critic", [256, 256])


def best(args: Args) -> tuple[int, float]:
    """Published batch size and learning rate, for the nearest published dimension; for TD3, those of DDPG."""
    d = min((5, 10, 20), key=lambda known: abs(known - args.d))
    key = (d, args.goal_gradient_coef > 0)
    if args.algorithm != "sac":
        return DDPG[key]
    small = 0 < args.goal_gradient_coef <= 0.1
    return SAC_WITH_SMALL_COEF.get(key, SAC[key]) if small else SAC[key]


def configuration(args: Args) -> goal_training.Run:
    if any(width < 1 for width in args.layers):
        raise ValueError(f"layers: got {args.layers}, expected widths of at least 1")
    batch_size, lr = best(args)
    arguments = {
        "learning_rate": lr if args.lr is None else args.lr,
        "batch_size": batch_size if args.batch_size is None else args.batch_size,
        "buffer_size": 1_000_000,
        "learning_starts": max(1_000, args.episode_steps * args.num_envs),
        "gamma": 0.95,
        "tau": 0.005,
        "train_freq": 1,
        "gradient_steps": args.num_envs,
        "policy_kwargs": {"net_arch": args.layers},
        "goal_gradient_coef": args.goal_gradient_coef,
    }
    return goal_training.Run(
        env="ContinuousSeek-v0",
        env_arguments={"d": args.d, "bound": args.bound, "eps": args.eps, "steps": args.episode_steps},
        num_envs=args.num_envs,
        algorithm=args.algorithm,
        arguments=arguments,
        plan=goal_training.plan_of(args),
        noise=0.03,
    )


def main(args: Args) -> None:
    goal_training.train_all(configuration(args), args, "scripts.train_continuous_seek")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.train_continuous_seek")
