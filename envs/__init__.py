"""Goal-conditioned Gymnasium environments; importing this package registers them.

``gymnasium.make(id, ...)`` creates one environment, ``gymnasium.make_vec(id, num_envs=n, ...)`` n environments that
step together in NumPy. Both accept the fields of the task as keyword arguments, such as ``d=40``.
"""

try:
    import gymnasium as _gymnasium  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "gymnasium":
        raise
    raise ModuleNotFoundError(
        'envs: gymnasium is not installed; install the extra with pip install "scalable-robust-ml[rl]"',
        name="gymnasium",
    ) from error

from envs.bit_flipping import BitFlipping
from envs.continuous_seek import ContinuousSeek
from envs.core import GoalEnv, GoalVectorEnv
from envs.drive_seek import DriveSeek
from envs.linear import LinearDense, LinearSparse
from envs.multi_goal import MultiGoalTask
from envs.noisy_seek import NoisySeek
from envs.registration import register
from envs.task import Task

__all__ = [
    "BitFlipping",
    "ContinuousSeek",
    "DriveSeek",
    "GoalEnv",
    "GoalVectorEnv",
    "LinearDense",
    "LinearSparse",
    "MultiGoalTask",
    "NoisySeek",
    "Task",
    "register",
]

register("ContinuousSeek-v0", ContinuousSeek)
register("BitFlipping-v0", BitFlipping)
register("LinearDense-v0", LinearDense)
register("LinearSparse-v0", LinearSparse)
register("DriveSeek-v0", DriveSeek)
register("NoisySeek-v0", NoisySeek)
