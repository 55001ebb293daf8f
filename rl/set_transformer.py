"""Attention between goals: a Set Transformer (Lee et al., ICML 2019) with gated tokens.

See the dissertation, Section 8.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from gymnasium import spaces
from torch import Tensor, nn

from rl.deep_sets import GoalSet, GoalSetEncoder


def gated_attention(queries: Tensor, keys: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """Attention with a weight per token: ``sum_j w_j exp(q . k_j) v_j / (1 + sum_j w_j exp(q . k_j))``.

    Logits are scaled by ``1 / sqrt(d)``. The 1 stands for an ever-present token with logit and value 0, so that the set
    may be empty. A token of weight 0 might as well be absent: it affects neither the result nor, where weights are
    squares of gates, the gradients with respect to the gates.

    Args:
        queries, keys, values: ``[..., n, d]``.
        weights: ``[..., n]``, nonnegative.
    """
    logits = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    logits = logits.masked_fill(weights.detach()[..., None, :] == 0, -math.inf)
    highest = logits.detach().amax(dim=-1, keepdim=True).clamp(min=0)
    shares = weights[..., None, :] * (logits - highest).exp()
    return shares @ values / (shares.sum(dim=-1, keepdim=True) + (-highest).exp())


class _Block(nn.Module):
    """Self-attention and a token-wise network, both with residual connections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.alone = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        split = self.project(self.first(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = split.unbind(0)
        mixed = gated_attention(queries, keys, values, weights[:, None])
        tokens = tokens + self.join(mixed.transpose(1, 2).flatten(2))
        return tokens + self.alone(self.second(tokens))


class SetTransformer(GoalSetEncoder):
    """Embedding ``sum_i b_i^2 y_i / n_max``, where the tokens ``y_i`` attend to each other with weights ``b_j^2``.

    The rows of absent goals have no influence and their gates no gradient, and the order of the goals is irrelevant.
    The cost is quadratic in the number of goals.

    Args:
        width: of the tokens.
        heads: number of attention heads, a divisor of the width.
        blocks: number of attention blocks.
        embedding_dim: size of the output.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        width: int = 64,
        heads: int = 4,
        blocks: int = 2,
        embedding_dim: int = 20,
    ) -> None:
        sizes: dict[str, Sequence[int]] = {"width": [width], "heads": [heads], "blocks": [blocks]}
        self.check_positive(**sizes)
        if width % heads:
            raise ValueError(f"heads: got {heads}, expected a divisor of the width, {width}")
        super().__init__(observation_space, embedding_dim)
        self.inputs = nn.Linear(self.state_dim + self.item_dim, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.outputs = nn.Linear(width, embedding_dim)

    def embed(self, goals: GoalSet) -> Tensor:
        weights = goals.gates.square()
        items = goals.items.masked_fill((goals.gates.detach() == 0)[..., None], 0)
        state = goals.state[:, None].expand(-1, self.n_max, -1)
        tokens = self.inputs(torch.cat([state, items], dim=2))
        for block in self.blocks:
            tokens = block(tokens, weights)
        return torch.bmm(weights[:, None], self.outputs(tokens))[:, 0] / self.n_max
