"""Train on DriveSeek or NoisySeek, environments with many simultaneous goals, with or without Multi-ReenGAGE.

The defaults are the published ones (Table G.4); smaller networks and fewer goals fit a CPU:

    python -m scripts.train_multi_goal runs/drive-ddpg --env DriveSeek-v0 --seeds 0 1
    python -m scripts.train_multi_goal runs/drive-reengage --env DriveSeek-v0 --seeds 0 1 --goal-gradient-coef 0.1
    python -m scripts.evaluate runs/drive-ddpg runs/drive-reengage --baseline runs/drive-ddpg --metric return
    python -m scripts.rollout runs/drive-reengage/seed-0
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scripts.parts import cli, goal_training

NOISE = {"DriveSeek-v0": 0.05, "NoisySeek-v0": 0.1}


@dataclass
class Args(goal_training.Args):
    """Train on DriveSeek or NoisySeek: one run per seed in OUT/seed-K."""

    env: Literal["DriveSeek-v0", "NoisySeek-v0"] = cli.arg("environment", "DriveSeek-v0")
    max_goals: int = cli.arg("maximum number of goals in an episode", 200)
    margin: float = cli.arg("margin of DriveSeek's torus beyond the goals; 0.5 in its authors' code", 0.0)
    steps: int = cli.arg("environment steps of each run", 160_000)
    goal_gradient_coef: float = cli.arg("alpha of Multi-ReenGAGE; 0 is the baseline", 0.0)
    batch_size: int | None = cli.arg("transitions per update", 256)
    lr: float | None = cli.arg("learning rate", 0.001)
    eval_every: int = cli.arg("steps between evaluations", 4_000)
    eval_episodes: int = cli.arg("episodes per evaluation", 100)
    algorithm: Literal["ddpg", "td3"] = cli.arg("learning algorithm", "ddpg")
    num_envs: int = cli.arg("environments stepped together, with one update for each", 1)
    encoder: Literal["deep-sets", "cnn", "attention"] = cli.arg(
        "encoder of the goals: a sum over encoded goals, a CNN on an image of them (DriveSeek only), or attention",
        "deep-sets",
    )
    unshared: bool = cli.arg("separate encoders for actor and critic", False)
    layers: list[int] = cli.arg("widths of the encoder's hidden layers (deep-sets)", [400, 400])
    width: int = cli.arg("width of the tokens (attention)", 64)
    blocks: int = cli.arg("number of attention blocks (attention)", 2)
    embedding: int = cli.arg("dimension of the goals' embedding", 20)
    head: list[int] = cli.arg("widths of the hidden layers of actor and critic after the encoder", [400])


def encoder_arguments(args: Args) -> dict[str, Any]:
    own: dict[str, dict[str, Any]] = {
        "deep-sets": {"layers": args.layers},
        "cnn": {},
        "attention": {"width": args.width, "blocks": args.blocks},
    }
    return {"embedding_dim": args.embedding, **own[args.encoder]}


def check_encoder(args: Args) -> None:
    """Raise for arguments of encoders other than the chosen one, which would have no effect."""
    for encoder, names in {"deep-sets": ("layers",), "attention": ("width", "blocks")}.items():
        for name in names:
            if encoder != args.encoder and getattr(args, name) != getattr(Args(Path()), name):
                raise ValueError(f"{name}: applies to --encoder {encoder}, not to {args.encoder}; leave it out")


def configuration(args: Args) -> goal_training.Run:
    check_encoder(args)
    if args.margin and args.env != "DriveSeek-v0":
        raise ValueError(f"margin: has no effect on {args.env}, only on DriveSeek-v0; leave it out")
    if any(width < 1 for width in args.head):
        raise ValueError(f"head: got {args.head}, expected widths of at least 1")
    arguments = {
        "learning_rate": args.lr,
        "batch_size": args.batch_size,
        "buffer_size": 1_000_000,
        "learning_starts": 1_000,
        "gamma": 0.95,
        "tau": 0.005,
        "train_freq": 1,
        "gradient_steps": args.num_envs,
        "policy_kwargs": {
            "net_arch": args.head,
            "encoder": args.encoder,
            "encoder_kwargs": encoder_arguments(args),
            "share_encoder": not args.unshared,
        },
        "goal_gradient_coef": args.goal_gradient_coef,
    }
    return goal_training.Run(
        env=args.env,
        env_arguments={"max_goals": args.max_goals} | ({"margin": args.margin} if args.margin else {}),
        num_envs=args.num_envs,
        algorithm=args.algorithm,
        arguments=arguments,
        plan=goal_training.plan_of(args),
        noise=NOISE[args.env],
        hindsight=None,
        policy="MultiGoalPolicy",
    )


def main(args: Args) -> None:
    goal_training.train_all(configuration(args), args, "scripts.train_multi_goal")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.train_multi_goal")
