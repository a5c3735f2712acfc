"""The single-resolution spiking transformer of the paper."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from a2os2a_jax.functional import spikes
from a2os2a_jax.modules import attention as attentions
from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.block import Block
from a2os2a_jax.modules.linear import linear
from a2os2a_jax.modules.stem import SPS, Tokens

READOUTS = ("mean", "query")


class Columnar(nn.Module):
    """Stem, `depth` blocks of one width, linear head. Make it with `models.build`.

        U_0 = stem(images), S_0 = SN(U_0), (S_l, U_l) = block_l(S_{l-1}, U_{l-1})
        logits[t] = Linear(mean of S_L[t] over tokens), logits = mean over t

    readout "query": the head reads the last token in place of the mean over tokens.
    drop_path: of the last block, see `Block`; block l of L, from 1, has l / L of it.
    Spikes are sown in the collection "spikes", and only there; what the head reads, its
    mean over time [B, D], in "features".
    Source: Guo et al. 2025, arXiv:2503.00226, eq. 14-17.
    """

    depth: int
    dim: int
    num_classes: int
    image_size: int | None
    in_channels: int
    timesteps: int
    heads: int
    pool: str
    stem: str
    readout: str
    attention: Mapping[str, Any]
    neuron: Mapping[str, Any]
    shortcut: str
    mlp_ratio: int
    remat: bool
    dtype: Any
    drop_path: float = 0.0

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
            sequence of no frames.
        """
        x, repeats = self._with_time(images)
        dtype = self.dtype
        if self.stem == "sps":
            stem = SPS(self.dim, self.pool, self.neuron, dtype, name="stem")
        else:
            stem = Tokens(self.dim, dtype, name="stem")
        u = stem(x.astype(dtype), train, repeats)
        s = neuron.make("binary", self.neuron, dtype=dtype, name="stem_neuron")(u)
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
                dtype=dtype,
                drop_path=self.drop_path * (i + 1) / self.depth,
                name=f"block_{i}",
            )(s, u, train)
        s = s.astype(jnp.promote_types(dtype, jnp.float32))
        features = s.mean(2) if self.readout == "mean" else s[:, :, -1]
        if self.is_mutable_collection("features") and not self.is_initializing():
            self.sow("features", "out", features.mean(1))  # [B, D], what the head reads
        head = linear(self.num_classes, bias=True, dtype=features.dtype, name="head")
        return head(features if per_step else features.mean(1))

    def _with_time(self, images: jax.Array) -> tuple[jax.Array, int]:
        """([B, T or 1, ...], how often one frame is shown)."""
        if self.stem == "sps":
            frame = (self.image_size, self.image_size, self.in_channels)
        else:
            frame = (None, self.in_channels)
        static = images.ndim == len(frame) + 1
        got = images.shape[-len(frame) :]
        fits = all(want in (None, have) for want, have in zip(frame, got, strict=False))
        if images.ndim not in (len(frame) + 1, len(frame) + 2) or not fits:
            axes = ", ".join("N" if n is None else str(n) for n in frame)
            raise ValueError(
                f"images: got {images.shape}, expected [B, {axes}] or [B, T, {axes}]"
            )
        # Of no frames there is no mean; `stream` starts with none.
        streaming = (
            self.is_mutable_collection("membrane") and not self.is_initializing()
        )
        if not static and not images.shape[1] and not streaming:
            raise ValueError(f"images: got {images.shape}, expected T >= 1 frames")
        return (images[:, None], self.timesteps) if static else (images, 1)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Parameters that must not be trained, as regular expressions on their names.

        They get no gradient; an optimizer has to leave weight decay off them as well.
        """
        names = attentions.frozen(self.attention)
        return tuple(rf"block_\d+/attention/{name}" for name in names)

    def stream(self, variables: Mapping[str, Any]) -> tuple[Callable, Callable]:
        """One frame at a time, in evaluation mode, with the state in the caller's hand.

        Args:
          variables: params and batch_stats.
        Returns:
          init: batch_size -> state, every membrane at rest; with the stem `tokens`,
            (batch_size, N) -> state.
          step: (state, frame [B, H, W, C]) -> (state, logits [B, classes] of the
            frame), equal to what the whole sequence gives with per_step at this step.
            Pure: jit and scan it.
        """

        def forward(state, frames):
            held = {**variables, "membrane": state} if state else variables
            logits, state = self.apply(
                held, frames, per_step=True, mutable=["membrane"]
            )
            return logits, state["membrane"]

        def init(batch_size: int, tokens: int | None = None):
            if self.stem == "sps":
                frame = (self.image_size, self.image_size, self.in_channels)
            elif tokens is None:
                raise ValueError(
                    "stream: init needs (batch_size, tokens) with this stem"
                )
            else:
                frame = (tokens, self.in_channels)
            # A sequence of no frames leaves every neuron at rest, whatever its rest is.
            return forward(None, jnp.zeros((batch_size, 0, *frame), self.dtype))[1]

        def step(state, frame: jax.Array):
            logits, state = forward(state, frame[:, None])
            return state, logits[:, 0]

        return init, step
