"""Critic values together with their gradients with respect to the goal, differentiable in the parameters.

There are two ways to the same numbers. Double backpropagation works for every critic. Networks of linear layers and
ReLU allow a cheaper way: such a network is linear in a neighbourhood of almost every input, so the gradient of the
value, the TD term and the goal-gradient term share one backward pass, and the second-order part takes one more forward
pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, ContinuousCritic
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn

from rl.goals import GOAL
from rl.normalization import NormalizedExtractor

_PLAIN = (ContinuousCritic, QNetwork)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_NO_GOAL = (
    "goal_gradient_coef: got a critic that does not depend on the goal; its features extractor must use "
    "'desired_goal' and let gradients through"
)


def slope(value: Tensor, variable: Tensor, *, differentiable: bool) -> Tensor:
    """Gradients of values ``[B, 1]`` with respect to their goals, flattened to ``[B, goal]``."""
    (gradient,) = torch.autograd.grad(
        value, variable, torch.ones_like(value), create_graph=differentiable, allow_unused=True
    )
    if gradient is None:
        raise ValueError(_NO_GOAL)
    return gradient.flatten(1)


def _as_defined(module: nn.Module) -> bool:
    """Whether calling ``module`` runs the ``forward`` of its class and nothing else: no hooks, which may change inputs,
    outputs or weights (as in ``torch.nn.utils.spectral_norm`` and ``prune``), and no function put in its place."""
    hooks = (
        *(getattr(module, name) for name in _HOOKS),
        *(getattr(nn.modules.module, f"_global{name}") for name in _HOOKS),
    )
    return not any(hooks) and "forward" not in vars(module)


def relu_layers(network: nn.Module) -> list[nn.Linear] | None:
    """The linear layers of ``Linear, ReLU, ..., Linear``; None for any other network."""
    if type(network) is not nn.Sequential or not all(map(_as_defined, network.modules())):
        return None
    modules = list(network)
    linear, between = modules[::2], modules[1::2]
    if len(modules) % 2 == 0 or not all(type(m) is nn.Linear and m.bias is not None for m in linear):
        return None
    return linear if all(type(m) is nn.ReLU for m in between) else None  # type: ignore[return-value]


def relu_value_and_slope(layers: list[nn.Linear], x: Tensor, select: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """The value of a ReLU network and its gradient with respect to some inputs.

    Both are differentiable in the parameters, but not in ``x``.

    Args:
        x: ``[B, inputs]``.
        select: ``[B, outputs]``, weights that combine the outputs to the value: one-hot, or ones for a single output.
        columns: the inputs to differentiate with respect to.

    Returns:
        Value ``[B, 1]`` and gradient ``[B, columns]``.
    """
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    return _ReluValueAndSlope.apply(x, select, columns, *parameters)  # type: ignore[return-value]


@dataclass(frozen=True)
class PlainCritic:
    """Critics that are ReLU networks on the goal, the rest of the observation, and the action.

    Attributes:
        inputs: ``[B, inputs]``.
        columns: the inputs that hold the goal.
        layers: the linear layers of each critic.
        select: ``[B, outputs]``, see :func:`relu_value_and_slope`.
        chain: ``[B, goal]``, derivatives of these inputs with respect to the goal; None if they are the goal itself.
    """

    inputs: Tensor
    columns: slice
    layers: list[list[nn.Linear]]
    select: Tensor
    chain: Tensor | None = None

    def values_and_slopes(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The values ``[B, 1]`` and the gradients ``[B, goal]``, one of each per critic."""
        both = [relu_value_and_slope(own, self.inputs, self.select, self.columns) for own in self.layers]
        slopes = tuple(gradient if self.chain is None else gradient * self.chain for _, gradient in both)
        return tuple(value for value, _ in both), slopes


def plain_critic(
    critic: BaseModel, networks: list[nn.Module], observation: dict[str, Tensor], actions: Tensor | None = None
) -> PlainCritic | None:
    """``critic`` as a :class:`PlainCritic`, None if it is not one; ``networks`` follow its features extractor."""
    layers = [own for own in map(relu_layers, networks) if own is not None]
    if type(critic) not in _PLAIN or not _as_defined(critic) or len(layers) < len(networks):
        return None
    extractor = critic.features_extractor
    if extractor is None or not all(map(_as_defined, extractor.modules())):
        return None
    columns = _columns_of_goal(critic, extractor)
    if columns is None:
        return None
    features = critic.extract_features(observation, extractor)
    inputs = features if actions is None else torch.cat([features, actions], dim=1)
    select = inputs.new_ones(len(inputs), layers[0][-1].out_features)
    chain = extractor.slope(observation, GOAL) if isinstance(extractor, NormalizedExtractor) else None
    return PlainCritic(inputs, columns, layers, select, chain)


def _columns_of_goal(critic: BaseModel, extractor: nn.Module) -> slice | None:
    """The features that are the goal, possibly normalized; None if there are no such features."""
    if type(extractor) is NormalizedExtractor:
        return extractor.columns.get(GOAL)
    if type(extractor) is not CombinedExtractor:
        return None
    if not all(type(own) is nn.Flatten for own in extractor.extractors.values()):
        return None
    space = critic.observation_space
    assert isinstance(space, spaces.Dict)
    names = list(extractor.extractors)
    start = sum(get_flattened_obs_dim(space[name]) for name in names[: names.index(GOAL)])
    return slice(start, start + get_flattened_obs_dim(space[GOAL]))


class _ReluValueAndSlope(torch.autograd.Function):
    """The value and its slope for h_i = relu(W_i h_{i-1} + c_i) and value = select . (W h_L + c).

    Let D_i be the 0/1 diagonal matrix that relu applies. The gradient of the value with respect to the pre-activation
    of layer i is b_i = D_i W_{i+1}^T b_{i+1}, and the slope is W_1^T b_1. Let e and u be the incoming gradients of
    value and slope, t_0 = u and t_i = D_i W_i t_{i-1}, the derivative of h_i in direction u. Then W_i has the gradient
    b_i (e h_{i-1} + t_{i-1})^T, and c_i has b_i e. Only some columns of t_0 and the slope are needed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, select: Tensor, columns: slice, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        weights, biases = parameters[::2], parameters[1::2]
        hidden = [x]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            hidden.append(torch.addmm(bias, hidden[-1], weight.t()).relu_())
        output = torch.addmm(biases[-1], hidden[-1], weights[-1].t())
        back = [select]
        for weight, active in zip(weights[:0:-1], hidden[:0:-1], strict=True):
            back.append(_where_active(torch.mm(back[-1], weight), active))
        ctx.columns = columns
        ctx.save_for_backward(*hidden, *back, *weights)
        return (output * select).sum(dim=1, keepdim=True), torch.mm(back[-1], weights[0][:, columns])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_value: Tensor, grad_slope: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = ctx.saved_tensors
        depth = len(saved) // 3
        hidden, back, weights = saved[:depth], saved[depth : 2 * depth][::-1], saved[2 * depth :]
        along = hidden[0] * grad_value
        along[:, ctx.columns] += grad_slope
        tangent = torch.mm(grad_slope, weights[0][:, ctx.columns].t())
        gradients: list[Tensor | None] = [None, None, None]
        for i in range(depth):
            gradients += [torch.mm(back[i].t(), along), torch.mv(back[i].t(), grad_value[:, 0])]
            if i + 1 == depth:
                break
            if i > 0:
                tangent = torch.mm(tangent, weights[i].t())
            tangent = _where_active(tangent, hidden[i + 1])
            along = torch.addcmul(tangent, hidden[i + 1], grad_value)
        return tuple(gradients)


def _where_active(gradient: Tensor, hidden: Tensor) -> Tensor:
    """``gradient`` where relu let its input through, else 0."""
    return torch.ops.aten.threshold_backward(gradient, hidden, 0)
