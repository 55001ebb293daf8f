"""Goal-conditioned reinforcement learning on Stable-Baselines3, with critics that also learn from goal gradients.

``rl.DDPG``, ``rl.TD3``, ``rl.SAC`` and ``rl.DQN`` are the Stable-Baselines3 algorithms plus ``goal_gradient_coef``, the
ReenGAGE coefficient; with a coefficient of 0, they train networks that are bit-identical to Stable-Baselines3's.
``rl.DDPG("MultiGoalPolicy", env, ...)`` is Multi-ReenGAGE, for environments with many simultaneous goals
(:mod:`rl.gates`).
"""

try:
    import gymnasium as _gymnasium  # noqa: F401
    import stable_baselines3 as _stable_baselines3  # noqa: F401
except ModuleNotFoundError as error:
    if error.name not in ("gymnasium", "stable_baselines3"):
        raise
    raise ModuleNotFoundError(
        f'rl: {error.name} is not installed; install the extra with pip install "scalable-robust-ml[rl]"',
        name=error.name,
    ) from error

from rl.actor_critic import DDPG, SAC, TD3
from rl.buffers import GoalSetReplayBuffer
from rl.checkpoint import load_checkpoint, save_checkpoint
from rl.dqn import DQN
from rl.gates import GateGradient
from rl.goals import GoalGradient, GradientRule
from rl.her import HerReplayBuffer
from rl.multi_goal import MultiGoalPolicy
from rl.normalization import NormalizedExtractor
from rl.reengage import GoalConditioned
from rl.training import Plan, run, run_episodes
from rl.vec_env import VectorEnvAdapter

__all__ = [
    "DDPG",
    "DQN",
    "SAC",
    "TD3",
    "GateGradient",
    "GoalConditioned",
    "GoalGradient",
    "GoalSetReplayBuffer",
    "GradientRule",
    "HerReplayBuffer",
    "MultiGoalPolicy",
    "NormalizedExtractor",
    "Plan",
    "VectorEnvAdapter",
    "load_checkpoint",
    "run",
    "run_episodes",
    "save_checkpoint",
]
