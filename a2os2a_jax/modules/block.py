"""The MLP and the transformer block with its membrane shortcut."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.attention import SpikingSelfAttention
from a2os2a_jax.modules.linear import linear, param_dtype
from a2os2a_jax.modules.norm import BatchNorm

SHORTCUTS = ("full", "attention")


class MLP(nn.Module):
    """BN(Linear(SN(BN(Linear(S))))), [B, T, N, D] spikes -> [B, T, N, D] membrane.

    hidden: width between the two linear maps, both with bias.
    """

    hidden: int
    neuron: Mapping[str, Any]
    dtype: Any
    folded: bool = False

    @nn.compact
    def __call__(self, s: jax.Array, train: bool) -> jax.Array:
        def layer(name, features, x):
            how = dict(bias=not self.folded, dtype=self.dtype)
            x = linear(features, **how, name=f"{name}_linear")(x)
            how = dict(param_dtype=param_dtype(self.dtype), folded=self.folded)
            return BatchNorm(**how, name=f"{name}_bn")(x, train)

        x = layer("fc1", self.hidden, s)
        x = neuron.make("binary", self.neuron, dtype=self.dtype, name="fc1_neuron")(x)
        return layer("fc2", s.shape[-1], x)


class Block(nn.Module):
    """Equations 15 to 17, (S, U) -> (S, U), spikes and membrane [B, T, N, D].

        U' = attention(S) + U           (U' = U without attention)
        S' = SN(U')
        S  = SN(MLP(S') + U')
        U  = MLP(S') + U'               shortcut "full"
           = U'                         shortcut "attention"

    drop_path: in training, chance that attention, and again that the MLP, adds nothing
    to an example, at all its steps; else it adds 1 / (1 - drop_path) times as much.
    Draws from the rng "drop_path".
    fires: False where nobody reads S: there is no neuron then, and the block gives
    (None, MLP(S') + U') with either shortcut.
    Source: Guo et al. 2025, arXiv:2503.00226, which leaves the second U open; Huang et
    al. 2016, arXiv:1603.09382, for the dropping.
    """

    dim: int
    heads: int
    attention: Mapping[str, Any]
    neuron: Mapping[str, Any]
    shortcut: str
    mlp_ratio: int
    dtype: Any
    drop_path: float = 0.0
    fires: bool = True
    folded: bool = False

    @nn.compact
    def __call__(self, s: jax.Array, u: jax.Array, train: bool):
        drop = nn.Dropout(
            self.drop_path,
            (1, 2, 3),
            deterministic=not train,
            rng_collection="drop_path",
        )
        if self.attention["kind"] != "none":
            attended = SpikingSelfAttention(
                dim=self.dim,
                heads=self.heads,
                options=self.attention,
                neuron=self.neuron,
                dtype=self.dtype,
                folded=self.folded,
                name="attention",
            )(s, train)
            u = u + drop(attended)
        s = neuron.make("binary", self.neuron, dtype=self.dtype, name="mid_neuron")(u)
        how = dict(neuron=self.neuron, dtype=self.dtype, folded=self.folded)
        mlp = MLP(self.mlp_ratio * self.dim, **how, name="mlp")
        out = drop(mlp(s, train)) + u
        if not self.fires:
            return None, out
        s = neuron.make("binary", self.neuron, dtype=self.dtype, name="out_neuron")(out)
        return s, (out if self.shortcut == "full" else u)
