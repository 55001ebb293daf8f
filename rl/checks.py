"""Checks before training: options of the algorithms, and what hindsight needs from an environment."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize
from torch.nn.modules.batchnorm import _BatchNorm

from rl.goals import ACHIEVED, GOAL
from rl.vec_env import VectorEnvAdapter

if TYPE_CHECKING:
    from rl.normalization import NormalizedExtractor
    from rl.reengage import GoalConditioned

SB3_VEC_ENVS = "DummyVecEnv or SubprocVecEnv (stable_baselines3.common.vec_env) of single environments"


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number."""
    return isinstance(value, float | int | np.number) and bool(np.isfinite(value))


def check_range(target_range: Any) -> None:
    """Raise unless ``target_range`` is the smallest and the largest return, or None."""
    if target_range is not None and not (np.shape(target_range) == (2,) and target_range[0] < target_range[1]):
        raise ValueError(f"target_range: got {target_range}, expected the smallest and the largest return")


def check_options(model: GoalConditioned) -> None:
    """Raise if the range of returns is invalid, or model and environment do not allow the goal-gradient term.

    Checked before every round of updates, since options, rule and environment may come from ``load``, ``set_env`` or
    an assignment.
    """
    check_range(model.target_range)
    coef, rule = model.goal_gradient_coef, model.goal_gradient
    if not (is_number(coef) and coef >= 0):
        schedule = "; it cannot follow a schedule" if callable(coef) else ""
        raise ValueError(f"goal_gradient_coef: got {coef!r}, expected a number of at least 0{schedule}")
    if isinstance(rule, type) or not hasattr(rule, "check"):
        raise ValueError(
            f"goal_gradient: got {rule!r}, expected what is differentiated, such as "
            "rl.GoalGradient(...); the coefficient is goal_gradient_coef"
        )
    if coef == 0:
        return
    rule.check(model.observation_space, model._vec_normalize_env)
    if getattr(model.policy, "share_features_extractor", False):
        raise ValueError(
            "share_features_extractor: got True, which hides the goal from the critic's gradient; leave it False"
        )


def check_samples_apart(policy: Any) -> None:
    """Raise if a network that is differentiated with respect to the goal, and is in training mode, has batch
    normalization.

    The gradient of the sum of all values is that of each value only if no value depends on the goals of other samples.
    """
    networks = {"critic": getattr(policy, "q_net", getattr(policy, "critic", None))}
    if not hasattr(policy, "actor_target"):  # the next action is that of the actor itself
        networks["actor"] = getattr(policy, "actor", None)
    for name, network in networks.items():
        norms = [] if network is None else [part for part in network.modules() if isinstance(part, _BatchNorm)]
        mixing = [part for part in norms if part.training or part.running_mean is None]  # others are frozen
        if mixing:
            raise ValueError(
                f"goal_gradient_coef: got {type(mixing[0]).__name__} in the {name}, in which each value depends on the "
                "goals of all samples in a minibatch; normalize each sample by itself (LayerNorm, "
                "rl.NormalizedExtractor), or set the coefficient to 0"
            )


def check_one_normalization(extractor: NormalizedExtractor | None, normalization: VecNormalize | None) -> None:
    """Raise if observations would be normalized twice."""
    if extractor is None or normalization is None or not normalization.norm_obs:
        return
    twice = [key for key in extractor.keys if key in (normalization.norm_obs_keys or ())]
    if twice:
        raise ValueError(
            f"env: got a VecNormalize that scales {' and '.join(twice)}, and features_extractor_class="
            "NormalizedExtractor, whose statistics are those of unscaled observations; expected one normalization or "
            "the other: make the VecNormalize with norm_obs=False, or leave the extractor out"
        )


def check_goal_spaces(space: spaces.Space[Any], *, relabelled: bool) -> None:
    """Raise unless observations have goals, and achieved ones can replace desired ones if they are ``relabelled``."""
    if not isinstance(space, spaces.Dict):
        raise ValueError(
            f"observation space: got {space}, expected a Dict with 'observation', '{ACHIEVED}' and '{GOAL}', which "
            "hindsight needs; leave replay_buffer_class out for environments without goals"
        )
    missing = [key for key in (ACHIEVED, GOAL) if key not in space.spaces]
    if missing:
        raise ValueError(f"observation space: got no {' and no '.join(missing)}, which hindsight needs")
    achieved, goal = (space[key].shape for key in (ACHIEVED, GOAL))
    if relabelled and achieved != goal:
        raise ValueError(
            f"observation space: got {ACHIEVED} {achieved} and {GOAL} {goal}, expected the same shape, since "
            "hindsight replaces one by the other"
        )


def check_goal_function(env: VecEnv, name: str, why: str) -> None:
    """Raise unless ``env`` has a function ``name`` of achieved goals, goals and infos, as far as this process knows.

    Args:
        why: what needs the function, as the beginning of the error message.
    """
    if _intercepts_calls(env):
        return
    if not env.has_attr(name):
        other = f", or use {SB3_VEC_ENVS} that have it" if isinstance(env.unwrapped, VectorEnvAdapter) else ""
        raise ValueError(
            f"{why}, but the environment has no {name}(achieved, goal, info), which hindsight calls; give it one, "
            f"for arrays [N, ...] of goals{other}"
        )
    if not isinstance(env.unwrapped, DummyVecEnv | VectorEnvAdapter):
        return  # in other processes, from which get_attr would send the whole environment
    function = env.get_attr(name, indices=[0])[0]
    try:
        signature = inspect.signature(function, follow_wrapped=False)  # that of the wrapper, which is what is called
    except (TypeError, ValueError):  # compiled ones have none
        return
    try:
        signature.bind(None, None, None)
    except TypeError as error:
        raise ValueError(
            f"{name}: got a function {name}{signature}, expected {name}(achieved, goal, info), which is called with "
            f"arrays [N, ...] of goals and a list of N infos ({error})"
        ) from error


def _intercepts_calls(env: VecEnv) -> bool:
    """Whether a wrapper handles method calls itself, so that those of the environment in it are unknown."""
    while isinstance(env, VecEnvWrapper):
        if type(env).env_method is not VecEnvWrapper.env_method:
            return True
        env = env.venv
    return False


def check_infos(env: VecEnv) -> None:
    """Raise unless ``env`` reports the infos of all steps."""
    if isinstance(env.unwrapped, VectorEnvAdapter):
        raise ValueError(
            "copy_info_dict: got True with a VectorEnvAdapter, whose infos are those of ended episodes only; expected "
            f"{SB3_VEC_ENVS}, or rewards that do not depend on infos"
        )
