"""Quicker observations of the simulated robots of gymnasium-robotics, the same bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

_SLIDE = 2  # mujoco.mjtJoint: free, ball, slide and hinge joints, in this order; the last two have one coordinate
_ROBOT = "robot"  # how names of a robot's own joints begin, unlike those of objects and targets


def read_quickly(env: gymnasium.Env[Any, Any]) -> bool:
    """Let a robot read its joints by address, found once, instead of looking up each name for each observation.

    The look-ups take about a third of the time of a step of HandReach. Environments without such a robot stay as they
    are.

    Returns:
        Whether the environment is quicker now.
    """
    robot: Any = env.unwrapped
    if not all(hasattr(robot, name) for name in ("_utils", "_model_names", "model", "data")):
        return False
    utils, names, model, data = robot._utils, robot._model_names, robot.model, robot.data
    if not hasattr(utils, "robot_get_obs"):
        return False
    if isinstance(utils, _ByAddress):
        return True
    joints = [names.joint_name2id[name] for name in names.joint_names if name.startswith(_ROBOT)]
    if len(joints) < 2 or (model.jnt_type[joints] < _SLIDE).any():  # read into arrays of other shapes
        return False
    quick = _ByAddress(utils, model, names.joint_names, model.jnt_qposadr[joints], model.jnt_dofadr[joints])
    trial = type(data)(model)
    trial.qpos[:], trial.qvel[:] = np.arange(model.nq), -np.arange(model.nv)  # all different
    both = [reader.robot_get_obs(model, trial, names.joint_names) for reader in (utils, quick)]
    if not all(np.array_equal(own, other) for own, other in zip(*both, strict=True)):
        return False  # another release of gymnasium-robotics
    robot._utils = quick
    return True


class _ByAddress:
    """The functions of ``gymnasium_robotics.utils.mujoco_utils``, of which one is quicker for one model.

    Args:
        utils: that module.
        positions: where the robot's joints are in ``data.qpos``.
        velocities: where they are in ``data.qvel``.
    """

    def __init__(
        self, utils: Any, model: Any, joints: Sequence[str], positions: NDArray[Any], velocities: NDArray[Any]
    ) -> None:
        self._utils, self._model, self._joints = utils, model, joints
        self._positions, self._velocities = positions, velocities

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copies ask for such names before there is anything to delegate to
            raise AttributeError(name)
        return getattr(self._utils, name)

    def robot_get_obs(self, model: Any, data: Any, joint_names: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Positions and velocities of the robot's joints, ``[joints]`` each."""
        if model is not self._model or joint_names is not self._joints:
            return self._utils.robot_get_obs(model, data, joint_names)
        return data.qpos[self._positions], data.qvel[self._velocities]
