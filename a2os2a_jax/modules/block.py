"""The MLP, and the transformer block with either of the field's residuals."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.attention import SpikingSelfAttention
from a2os2a_jax.modules.dssa import DSSA
from a2os2a_jax.modules.linear import linear, param_dtype
from a2os2a_jax.modules.norm import BatchNorm

SHORTCUTS = ("full", "attention")
RESIDUALS = ("membrane", "spikes")


class MLP(nn.Module):
    """BN(Linear(SN(BN(Linear(S))))), [B, T, N, D] spikes -> [B, T, N, D] membrane.

    hidden: width between the two linear maps, both with bias.
    """

    hidden: int
    neuron: Mapping[str, Any]
    dtype: Any
    folded: bool = False
    initial: str = "normal"

    @nn.compact
    def __call__(self, s: jax.Array, train: bool) -> jax.Array:
        def layer(name, features, x):
            how = dict(bias=not self.folded, dtype=self.dtype, init=self.initial)
            how |= dict(inputs=x.shape[-1])
            x = linear(features, **how, name=f"{name}_linear")(x)
            how = dict(param_dtype=param_dtype(self.dtype), folded=self.folded)
            return BatchNorm(**how, name=f"{name}_bn")(x, train)

        x = layer("fc1", self.hidden, s)
        x = neuron.make("binary", self.neuron, dtype=self.dtype, name="fc1_neuron")(x)
        return layer("fc2", s.shape[-1], x)


class Block(nn.Module):
    """Attention and MLP around a residual: (S, U) -> (S, U), each [B, T, N, D].

    residual "membrane", equations 15 to 17 of the paper:

        U' = attention(S) + U           (U' = U without attention)
        S' = SN(U')
        S  = SN(MLP(S') + U')
        U  = MLP(S') + U'               shortcut "full"
           = U'                         shortcut "attention"

    residual "spikes", as in Spikformer and QKFormer; there is no U:

        S' = S + SN(attention(S))       (S' = S without attention)
        S  = S' + SN(MLP(S'))           counts: the additions go on, {0, 1, 2, ...}

    side: the tokens are a side x side map; None where there is no map.
    drop_path: in training, chance that attention, and again that the MLP, adds nothing
    to an example, at all its steps; else it adds 1 / (1 - drop_path) times as much.
    Draws from the rng "drop_path".
    fires: False where nobody reads S: there is no neuron then, and the block gives
    (None, MLP(S') + U') with either shortcut.
    over_batch: the neuron behind the attention goes on from one example to the next,
    over T B steps: QKFormer's public code does, by mistake.
    Source: Guo et al. 2025, arXiv:2503.00226, which leaves the second U open; Zhou et
    al. 2023 (Spikformer), arXiv:2209.15425; Huang et al. 2016, arXiv:1603.09382, for
    the dropping.
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
    residual: str = "membrane"
    side: int | None = None
    initial: str = "normal"
    over_batch: bool = False

    @nn.compact
    def __call__(self, s: jax.Array, u: jax.Array | None, train: bool):
        drop = nn.Dropout(
            self.drop_path,
            (1, 2, 3),
            deterministic=not train,
            rng_collection="drop_path",
        )
        how = dict(neuron=self.neuron, dtype=self.dtype, folded=self.folded)
        mlp = MLP(self.mlp_ratio * self.dim, **how, initial=self.initial, name="mlp")
        if self.residual == "spikes":
            if self.attention["kind"] != "none":
                s = s + drop(self._mid(self._attend(s, train)))
            return s + drop(self._fire("out", mlp(s, train))), None
        if self.attention["kind"] != "none":
            u = u + drop(self._attend(s, train))
        out = drop(mlp(self._fire("mid", u), train)) + u
        if not self.fires:
            return None, out
        return self._fire("out", out), (out if self.shortcut == "full" else u)

    def _attend(self, s: jax.Array, train: bool) -> jax.Array:
        how = dict(dim=self.dim, heads=self.heads, neuron=self.neuron)
        how |= dict(dtype=self.dtype, folded=self.folded, side=self.side)
        if self.attention["kind"] == "dssa":
            patch = self.attention["patch"]
            return DSSA(**how, patch=patch, name="attention")(s, train)
        how |= dict(options=self.attention, initial=self.initial)
        return SpikingSelfAttention(**how, name="attention")(s, train)

    def _fire(self, name: str, x: jax.Array) -> jax.Array:
        how = dict(dtype=self.dtype, name=f"{name}_neuron")
        return neuron.make("binary", self.neuron, **how)(x)

    def _mid(self, x: jax.Array) -> jax.Array:
        if not self.over_batch:
            return self._fire("mid", x)
        # Steps in a row as the public code flattens them: time first, then examples
        row = jnp.swapaxes(x, 0, 1)
        s = self._fire("mid", row.reshape(1, -1, *x.shape[2:]))
        return jnp.swapaxes(s.reshape(row.shape), 0, 1)
