"""The single-resolution spiking transformers: the paper's, and its forerunners."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from a2os2a_jax.functional import spikes
from a2os2a_jax.models.base import SpikingModel
from a2os2a_jax.modules import attention as attentions
from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.block import Block
from a2os2a_jax.modules.stem import SPS, Tokens

READOUTS = ("mean", "query", "membrane", "potential")
STEMS = ("sps", "tokenizer", "tokens")


class Columnar(SpikingModel, kw_only=True):
    """Stem, `depth` blocks of one width, linear head. Make it with `models.build`.

        U_0 = stem(images), S_0 = SN(U_0), (S_l, U_l) = block_l(S_{l-1}, U_{l-1})
        logits[t] = Linear(mean of S_L[t] over tokens), logits = mean over t

    stem: "sps", "tokenizer" (both `modules.stem.SPS`) or "tokens".
    residual "spikes": S_l are spike counts, and there is no U; see `Block`.
    readout "query": the head reads the last token in place of the mean over tokens.
    readout "membrane": it reads SN(mean of U_L[t] over tokens), one neuron a channel;
    S_L has no reader then, and is not computed. "potential": the same without SN.
    drop_path: of the last block, see `Block`; block l of L, from 1, has l / L of it.
    inits: of the stem's convolutions and of the blocks' maps, keys of `linear.INITS`.
    Source: Guo et al. 2025, arXiv:2503.00226, eq. 14-17; Yao et al. 2023 (Spike-Driven
      Transformer), arXiv:2307.01694, the same skeleton with the readout "membrane" and
      attention "sdsa"; Zhou et al. 2023, arXiv:2209.15425 (Spikformer: spike counts)
      and arXiv:2304.11954 (Spikingformer: "tokenizer", readout "potential").
    """

    depth: int
    dim: int
    heads: int
    pool: str
    stem: str
    attention: Mapping[str, Any]
    shortcut: str
    mlp_ratio: int
    remat: bool
    residual: str = "membrane"
    drop_path: float = 0.0
    inits: tuple[str, str] = ("normal", "normal")

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, per_step: bool = False
    ) -> jax.Array:
        """Class scores, float32 at least.

        Args:
          images: [B, H, W, C], shown for `timesteps` steps, or a sequence
            [B, T, H, W, C] of any T; with the stem `tokens` [B, N, F] or [B, T, N, F].
          train: normalise with the batch's statistics, and update the running ones
            (make "batch_stats" mutable).
          per_step: give the scores of each step, for losses over time (TET) and
            any-time answers.
        Returns:
          [B, classes], or [B, T, classes] with per_step; the first is the mean of the
          second over T.
        Raises:
          ValueError: images of another shape than the model was built for, or a
            sequence of no frames; of a folded model also train, and without per_step
            a sequence of another length than `folded_steps`.
        """
        x, repeats = self.with_time(images)
        self.check_folded(x, repeats, train, per_step)
        s, u = self._start(x.astype(self.dtype), train, repeats)
        block = Block
        if self.remat:
            block = nn.remat(Block, policy=spikes.save_spikes(), static_argnums=(3,))
        for i in range(self.depth):
            s, u = block(
                dim=self.dim,
                heads=self.heads,
                attention=self.attention,
                neuron=self.neuron,
                shortcut=self.shortcut,
                mlp_ratio=self.mlp_ratio,
                dtype=self.dtype,
                drop_path=self.drop_path * (i + 1) / self.depth,
                fires=i + 1 < self.depth or self.readout in ("mean", "query"),
                folded=self.folded is not None,
                residual=self.residual,
                side=self.side,
                initial=self.inits[1],
                name=f"block_{i}",
            )(s, u, train)
        return self.read_out(self._read(s, u), per_step)

    def _start(self, x, train: bool, repeats: int):
        """(S_0, U_0), or (S_0, None) with the residual "spikes"."""
        dtype, folded = self.dtype, self.folded is not None
        if self.stem == "tokens":
            stem = Tokens(self.dim, dtype, folded, name="stem")
        else:
            own = self.stem == "sps" and self.residual == "spikes"
            form = "tokenizer" if self.stem == "tokenizer" else "membrane"
            how = dict(form="spikes" if own else form, initial=self.inits[0])
            stem = SPS(
                self.dim, self.pool, self.neuron, dtype, folded, **how, name="stem"
            )
        u = stem(x, train, repeats)
        if self.residual == "spikes" and self.stem == "sps":
            return u, None
        s = neuron.make("binary", self.neuron, dtype=dtype, name="stem_neuron")(u)
        return s, (None if self.residual == "spikes" else u)

    def _read(self, s: jax.Array | None, u: jax.Array | None) -> jax.Array:
        """What the head reads, [B, T, N or 1, D]."""
        if self.readout == "membrane":
            # N times the mean, and a neuron of N times the threshold, are a sum.
            unit = u.shape[2] if self.folded is not None else 1.0
            u = u.mean(2) if self.folded is None else u.sum(2)
            how = dict(dtype=self.dtype, unit=unit, name="head_neuron")
            return neuron.make("binary", self.neuron, **how)(u)[:, :, None]
        if self.readout == "potential":
            return u
        return s if self.readout == "mean" else s[:, :, -1:]

    @property
    def side(self) -> int | None:
        if self.image_size is None:
            return None
        return self.image_size // 2 ** self.pool.count("1")

    @property
    def most(self) -> int:
        if self.residual == "membrane":
            return 1
        return (2 if self.stem == "sps" else 1) + 2 * self.depth

    @property
    def frame(self) -> tuple[int | None, ...]:
        if self.stem == "tokens":
            return (None, self.in_channels)
        return super().frame

    @property
    def frozen(self) -> tuple[str, ...]:
        names = attentions.frozen(self.attention)
        return tuple(rf"block_\d+/attention/{name}" for name in names)

    @property
    def whole_sequences(self) -> str | None:
        return attentions.whole_sequences(self.attention)
