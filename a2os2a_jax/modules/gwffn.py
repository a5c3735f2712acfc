"""The feed-forward part of SpikingResformer: an MLP that looks at neighbours."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.linear import conv, linear, param_dtype
from a2os2a_jax.modules.norm import BatchNorm


class GWFFN(nn.Module):
    """Group-wise feed-forward network, [B, T, N, D] spikes -> [B, T, N, D] membrane.

        u = BN(Linear up (S))                                  [B, T, N, ratio D]
        u = u + BN(conv3x3 in groups of channels (SN(u)))
        out = BN(Linear down (SN(u)))

    No bias but the norms'. side: the N tokens are a map of side x side pixels,
    row-major. ratio: hidden width over D. group_size: hidden channels that one group of
    the convolution joins.
    Source: Shi et al. 2024 (SpikingResformer), arXiv:2403.14302.
    """

    side: int
    ratio: int
    group_size: int
    neuron: Mapping[str, Any]
    dtype: Any
    folded: bool = False

    @nn.compact
    def __call__(self, s: jax.Array, train: bool) -> jax.Array:
        """Membrane of the spikes s [B, T, side^2, D].

        Args:
          s: [B, T, N, D], in {0, 1}.
          train: normalise with the batch's statistics, and move the running ones.
        Returns:
          [B, T, N, D], at least float32.
        Raises:
          ValueError: N is not side^2, or the hidden width is no multiple of the group.
        """
        if s.ndim != 4 or s.shape[2] != self.side**2:
            raise ValueError(
                f"GWFFN: got spikes {s.shape}, expected [B, T, {self.side**2}, D], a "
                f"map of side {self.side}"
            )
        dim = s.shape[-1]
        check("GWFFN", hidden=self.ratio * dim, group_size=self.group_size)
        u = self._linear("up", self.ratio * dim, s, train)
        u = u + self._neighbours(self._fire("group", u), train)
        return self._linear("down", dim, self._fire("down", u), train)

    def _neighbours(self, s: jax.Array, train: bool) -> jax.Array:
        hidden = s.shape[-1]
        groups = hidden // self.group_size
        x = s.reshape(*s.shape[:2], self.side, self.side, hidden)
        x = conv(hidden, groups=groups, dtype=self.dtype, name="group_conv")(x)
        return self._norm("group", x.reshape(s.shape), train)

    def _linear(self, name: str, features: int, s: jax.Array, train: bool) -> jax.Array:
        how = dict(bias=False, dtype=self.dtype)
        x = linear(features, **how, name=f"{name}_linear")(s)
        return self._norm(name, x, train)

    def _norm(self, name: str, x: jax.Array, train: bool) -> jax.Array:
        how = dict(param_dtype=param_dtype(self.dtype), folded=self.folded)
        return BatchNorm(**how, name=f"{name}_bn")(x, train)

    def _fire(self, name: str, x: jax.Array) -> jax.Array:
        name = f"{name}_neuron"
        return neuron.make("binary", self.neuron, dtype=self.dtype, name=name)(x)


def check(name: str, *, hidden: int, group_size: int) -> None:
    """ValueError, which begins with `name`, for a width that groups do not divide."""
    if group_size < 1 or hidden % group_size:
        raise ValueError(
            f"{name}: hidden width is {hidden}, expected a multiple of the group size, "
            f"{group_size}"
        )
