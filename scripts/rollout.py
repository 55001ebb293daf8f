"""Watch a trained agent: a few episodes as an animated GIF.

    python -m scripts.rollout runs/seek20-reengage/seed-0 --episodes 3

The agent is taken from the last checkpoint, and acts deterministically.
"""

from __future__ import annotations

import io
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium
from numpy.typing import NDArray
from PIL import Image

from certify.files import check_writable, write_atomically
from rl.checkpoint import load_checkpoint
from rl.training import STATE
from scripts.parts import cli
from scripts.parts.goal_training import read_configuration

LAST = 4  # number of frames for which the last state of an episode is shown


@dataclass
class Args:
    """Run a trained agent: writes an animated GIF of its episodes, and prints the return of each."""

    run: Path = cli.arg("folder of one seed of a training run, such as RUN/seed-0", positional=True)
    episodes: int = cli.arg("number of episodes to show", 3)
    out: Path | None = cli.arg("file of the animation, by default rollout.gif in the run's folder", None)
    seed: int = cli.arg("seed of the environment, set at the first episode", 0)
    fps: float = cli.arg("steps shown per second", 4.0)


@dataclass
class Episode:
    """What happened in one episode.

    Attributes:
        frames: images ``[height, width, 3]`` of the initial state and after each step.
        rewards: reward of each step.
        success: None if the environment does not report success.
    """

    frames: list[NDArray[Any]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    success: bool | None = None


def check(args: Args) -> Path:
    """The file to write; raises ``ValueError`` for illegal arguments."""
    if args.episodes < 1:
        raise ValueError(f"episodes: got {args.episodes}, expected at least 1")
    if args.seed < 0:
        raise ValueError(f"seed: got {args.seed}, expected at least 0")
    if not 0 < args.fps <= 50:  # GIF delays are in hundredths of a second, and viewers slow down delays below two
        raise ValueError(f"fps: got {args.fps}, expected above 0, at most 50")
    out = args.out or args.run / "rollout.gif"
    if out.suffix.lower() != ".gif":
        raise ValueError(f"out: got {out}, expected a name that ends in .gif")
    return out


def play(model: Any, env: gymnasium.Env[Any, Any], seed: int | None) -> Episode:
    """One episode of an environment that renders arrays, with the deterministic actions of ``model``.

    Args:
        seed: of the environment; None continues its random stream.
    """
    episode, done = Episode(), False
    observation, _ = env.reset(seed=seed)
    episode.frames.append(env.render())  # pyright: ignore[reportArgumentType]
    while not done:
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, terminated, truncated, info = env.step(action)
        episode.frames.append(env.render())  # pyright: ignore[reportArgumentType]
        episode.rewards.append(float(reward))
        episode.success = info.get("is_success")
        done = terminated or truncated
    return episode


def animation(episodes: list[Episode], fps: float) -> bytes:
    """A looping GIF; the last state of each episode is shown for a while."""
    images = [Image.fromarray(frame) for episode in episodes for frame in episode.frames]
    steps = [LAST if frame is episode.frames[-1] else 1 for episode in episodes for frame in episode.frames]
    data = io.BytesIO()
    durations = [round(1000 * n / fps) for n in steps]
    images[0].save(data, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return data.getvalue()


def check_rendering(env: gymnasium.Env[Any, Any]) -> None:
    """Raise if ``env`` cannot render here: simulations need a way to render without a display."""
    env.reset(seed=0)
    try:
        env.render()
    except Exception as error:  # its type depends on the version and on the system's graphics
        if not hasattr(env.unwrapped, "mujoco_renderer"):
            raise
        raise ValueError(
            f"pictures: MuJoCo cannot render here ({error}); set the environment variable MUJOCO_GL to egl (graphics "
            "card or Mesa) or osmesa (software)"
        ) from error


def main(args: Args) -> None:
    out, run = check(args), read_configuration(args.run)
    check_writable(out.parent)
    with ExitStack() as stack:  # simulations may have a window or processes
        env = gymnasium.make(run.env, render_mode="rgb_array", **run.env_arguments)
        stack.callback(env.close)
        check_rendering(env)
        model = replace(run, num_envs=1).make_model("cpu")
        assert model.env is not None
        stack.callback(model.env.close)
        load_checkpoint(model, args.run / STATE, buffer=False)
        episodes = [play(model, env, args.seed if i == 0 else None) for i in range(args.episodes)]
    for i, episode in enumerate(episodes):
        success = "" if episode.success is None else f", {'success' if episode.success else 'no success'}"
        print(f"episode {i}: return {sum(episode.rewards):.3f}, {len(episode.rewards)} steps{success}")
    write_atomically(out, animation(episodes, args.fps))
    print(f"wrote {out}")


if __name__ == "__main__":
    cli.run(main, Args, "scripts.rollout")
