"""Gymnasium's native vector environments for Stable-Baselines3, without one Python object per environment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

_GOAL_METHODS = ("compute_reward", "compute_terminated", "compute_truncated")


class VectorEnvAdapter(VecEnv):
    """A ``gymnasium.vector.VectorEnv`` as a Stable-Baselines3 ``VecEnv``.

    A step remains a single call for all environments; only environments whose episode ends cost extra Python work.
    Their info holds ``terminal_observation``, ``TimeLimit.truncated``, ``episode`` as written by Monitor (``r`` return,
    ``l`` length, ``t`` seconds since the adapter was created), and the environment's ``final_info``, such as
    ``is_success``. All other infos are empty.

    ``env_method`` and ``get_attr`` look up methods and attributes on the vector environment and its wrappers, where one
    stands for all environments: goal-conditioned ones have ``compute_reward`` for hindsight. Those not found there are
    looked up on the single environments of a ``SyncVectorEnv`` or ``AsyncVectorEnv``.

    Raises:
        ValueError: if ``env`` is no vector environment, or does not use the same-step autoreset that Stable-Baselines3
            expects.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(env, VectorEnv):
            raise ValueError(
                f"env: got {type(env).__name__}, expected a VectorEnv; pass a gymnasium.Env to the algorithm directly"
            )
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"env: got autoreset_mode {mode}, expected SAME_STEP; create it with "
                "gymnasium.make_vec(..., autoreset_mode=AutoresetMode.SAME_STEP)"
            )
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._started = time.time()
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, dtype=np.int64)
        self._actions: NDArray[Any] | None = None

    def reset(self) -> VecEnvObs:
        """Initial observations, using the seeds and options set beforehand, if any."""
        seed = None if all(each is None for each in self._seeds) else self._seeds
        names = self._options[0].keys()
        if any(each.keys() != names for each in self._options):
            raise ValueError("options: got different names for different environments, expected the same for all")
        options = {name: np.stack([each[name] for each in self._options]) for name in names}
        observations, _ = self.env.reset(seed=seed, options=options or None)  # pyright: ignore[reportArgumentType]
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0
        self._lengths[:] = 0
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, terminated, truncated, batch = self.env.step(self._actions)
        self._returns += rewards
        self._lengths += 1
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        ended = np.flatnonzero(dones).tolist()
        for i in ended:
            infos[i] = self._final_info(i, batch)
            infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        self._returns[ended] = 0
        self._lengths[ended] = 0
        return observations, rewards.astype(np.float32), dones, infos

    def _final_info(self, i: int, batch: dict[str, Any]) -> dict[str, Any]:
        """The info of environment i, whose episode has ended, extracted from the batched infos."""
        info = _info_of(batch.get("final_info", {}), i)
        info["terminal_observation"] = batch["final_obs"][i]
        info["episode"] = {
            "r": round(float(self._returns[i]), 6),
            "l": int(self._lengths[i]),
            "t": round(time.time() - self._started, 6),
        }
        return info

    def close(self) -> None:
        self.env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        return self.env.render() or [None] * self.num_envs  # pyright: ignore[reportReturnType]

    def _owner(self, name: str) -> Any:
        """The outermost of the vector environment and its wrappers that has this attribute; None if none has it."""
        env: Any = self.env
        while not hasattr(env, name):
            if not isinstance(env, VectorWrapper):
                return None
            env = env.env
        return env

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        which, owner, base = list(self._get_indices(indices)), self._owner(attr_name), self.env.unwrapped
        if owner is not None:
            value = getattr(owner, attr_name)
            return [value for _ in which]
        if isinstance(base, SyncVectorEnv):
            return [base.envs[i].get_wrapper_attr(attr_name) for i in which]
        if isinstance(base, AsyncVectorEnv) and attr_name in _GOAL_METHODS:
            self._check_workers(base, attr_name)
            return [partial(self.env_method, attr_name, indices=[i]) for i in which]
        raise AttributeError(f"{type(base).__name__} has no {attr_name}")

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(f"indices: got {indices}, expected all environments: they share their attributes")
        owner, base = self._owner(attr_name), self.env.unwrapped
        if owner is None and isinstance(base, SyncVectorEnv | AsyncVectorEnv):
            base.set_attr(attr_name, [value] * self.num_envs)
        else:
            setattr(self.env if owner is None else owner, attr_name, value)

    @staticmethod
    def _check_workers(base: AsyncVectorEnv, name: str) -> None:
        """Raise AttributeError unless all environments have ``name``: a worker exits when asked for what it lacks."""
        if not all(base.call("has_wrapper_attr", name)):
            raise AttributeError(f"{type(base).__name__} has no {name}")

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any):
        """The method's result for each of ``indices``; a method of the vector environment is called only once.

        All environments of an ``AsyncVectorEnv`` are called, and the results of ``indices`` are returned.

        Raises:
            ValueError: if neither the vector environment nor its single environments have the method.
        """
        which, owner, base = list(self._get_indices(indices)), self._owner(method_name), self.env.unwrapped
        if owner is not None:
            result = getattr(owner, method_name)(*method_args, **method_kwargs)
            return [result for _ in which]
        try:
            if isinstance(base, AsyncVectorEnv):
                self._check_workers(base, method_name)
                results = base.call(method_name, *method_args, **method_kwargs)
                return [results[i] for i in which]
            methods = self.get_attr(method_name, which)
        except AttributeError as error:
            raise ValueError(
                f"{method_name}: neither {type(base).__name__} nor its environments have it ({error}); add it to the "
                "vector environment, or use DummyVecEnv or SubprocVecEnv from stable_baselines3.common.vec_env with "
                "single environments that have it"
            ) from error
        return [method(*method_args, **method_kwargs) for method in methods]

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """True for ``Monitor``, whose work this adapter does; False for any other wrapper."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]


def _info_of(infos: dict[str, Any], i: int) -> dict[str, Any]:
    """The info of environment i from the batched infos, where the mask ``_name`` says whose info has ``name``."""
    info: dict[str, Any] = {}
    for name, values in infos.items():
        mask = infos.get(f"_{name}")
        if name.startswith("_") or (mask is not None and not mask[i]):
            continue
        if isinstance(values, dict):
            info[name] = _info_of(values, i)
        else:
            info[name] = values[i].item() if isinstance(values[i], np.generic) else values[i]
    return info
