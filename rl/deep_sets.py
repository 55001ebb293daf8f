"""DeepSets: a sum over the present goals, each encoded by the same network (dissertation, Eqs. 8.15, 8.16, G.14)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from rl.gates import check_goal_set
from rl.goals import GOAL, Observation

STATE = "observation"
ROWS = 2048  # goals encoded at once on a CPU, few enough for their hidden activations to stay in its cache


class GoalSet(NamedTuple):
    """A multi-goal observation: state ``[B, state]``, items ``[B, n_max, item]``, gates ``[B, n_max]``."""

    state: Tensor
    items: Tensor
    gates: Tensor


class GoalSetEncoder(BaseFeaturesExtractor):
    """Base of the goal-set encoders; the features are an embedding of state and goals, followed by the state.

    A Stable-Baselines3 features extractor. The gates may enter the features only squared, so that absent goals have no
    influence.

    Args:
        observation_space: see :mod:`rl.gates`; ``observation`` is the state.
        embedding_dim: size of the embedding.
    """

    def __init__(self, observation_space: spaces.Dict, embedding_dim: int) -> None:
        self.check_positive(embedding_dim=[embedding_dim])
        n_max, item_dim = check_goal_set(observation_space, "policy")
        if not isinstance(observation_space.spaces.get(STATE), spaces.Box):
            raise ValueError(
                f"policy: got the observation space {observation_space}, expected it to have a Box 'observation'"
            )
        state_dim = get_flattened_obs_dim(observation_space[STATE])
        super().__init__(observation_space, embedding_dim + state_dim)
        self.n_max, self.item_dim, self.state_dim, self.embedding_dim = n_max, item_dim, state_dim, embedding_dim

    @staticmethod
    def check_positive(**sizes: Sequence[int]) -> None:
        for name, values in sizes.items():
            if any(value < 1 for value in values):
                raise ValueError(f"{name}: got {values}, expected sizes of at least 1")

    def read(self, observation: Observation) -> GoalSet:
        """The parts of an observation, in this encoder's precision; within the goals, only gates carry gradients.

        Items are detached because they share a tensor with the gates: otherwise, differentiating with respect to the
        gates would backpropagate through the whole encoder just to find that the items do not depend on them.
        """
        like = next(self.parameters())
        goal = observation[GOAL].to(like)
        return GoalSet(observation[STATE].to(like).flatten(1), goal[..., :-1].detach(), goal[..., -1])

    def forward(self, observation: Observation) -> Tensor:
        goals = self.read(observation)
        return torch.cat([self.embed(goals), goals.state], dim=1)

    def embed(self, goals: GoalSet) -> Tensor:
        """The embedding, ``[B, embedding_dim]``."""
        raise NotImplementedError


class DeepSets(GoalSetEncoder):
    """Permutation-invariant embedding ``sum_i b_i^2 encoder(state, g_i) / n_max``.

    This is Eq. G.14 divided by n_max, which is not in the text and only scales the encoder's outputs.

    Only present goals are evaluated, so the content of padding rows has no influence. The encoder does not depend on
    the gates: gradients with respect to them, ``2 b_i encoder(state, g_i) . dQ/d(embedding) / n_max``, are products
    with its outputs, so a loss on values and such gradients takes a single backward pass through the encoder.

    Args:
        layers: widths of the encoder's hidden layers.
        embedding_dim: size of the encoder's output.
    """

    def __init__(
        self, observation_space: spaces.Dict, layers: Sequence[int] = (400, 400), embedding_dim: int = 20
    ) -> None:
        self.check_positive(layers=layers)
        super().__init__(observation_space, embedding_dim)
        modules: list[nn.Module] = []
        width = self.state_dim + self.item_dim
        for after in layers:
            modules += [nn.Linear(width, after), nn.ReLU(inplace=True)]
            width = after
        self.encoder = nn.Sequential(*modules, nn.Linear(width, embedding_dim))

    def embed(self, goals: GoalSet) -> Tensor:
        rows, columns = goals.gates.detach().nonzero(as_tuple=True)
        inputs = torch.cat([goals.state[rows], goals.items[rows, columns]], dim=1)
        parts = inputs.split(ROWS) if inputs.device.type == "cpu" else [inputs]
        encodings = torch.cat([self.encoder(part) for part in parts])
        weighted = encodings * goals.gates[rows, columns].square()[:, None]
        empty = weighted.new_zeros(len(goals.state), self.embedding_dim)
        return empty.index_add(0, rows, weighted) / self.n_max
