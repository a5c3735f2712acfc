"""The single-resolution spiking transformer: the paper's, and its forerunner."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from a2os2a_jax.functional import spikes
from a2os2a_jax.modules import attention as attentions
from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.block import Block
from a2os2a_jax.modules.head import FoldedHead
from a2os2a_jax.modules.linear import linear
from a2os2a_jax.modules.stem import SPS, Tokens

READOUTS = ("mean", "query", "membrane")


class Columnar(nn.Module):
    """Stem, `depth` blocks of one width, linear head. Make it with `models.build`.

        U_0 = stem(images), S_0 = SN(U_0), (S_l, U_l) = block_l(S_{l-1}, U_{l-1})
        logits[t] = Linear(mean of S_L[t] over tokens), logits = mean over t

    readout "query": the head reads the last token in place of the mean over tokens.
    readout "membrane": it reads SN(mean of U_L[t] over tokens), one neuron a channel;
    S_L has no reader then, and is not computed.
    drop_path: of the last block, see `Block`; block l of L, from 1, has l / L of it.
    folded: None, or as `models.fold` makes it for inference, without BN, scales and
    means: the order of the head, "spikes", "counts" or "bits". tokens: the N that such
    a head stands for, where the model does not tell it. folded_steps: the T that its
    kernel has been divided by: `timesteps`, and per_step multiplies by it; or 1, where
    it was folded for single steps.
    Spikes are sown in the collection "spikes", and only there; what the head reads, its
    mean over time [B, D], in "features".
    Source: Guo et al. 2025, arXiv:2503.00226, eq. 14-17; Yao et al. 2023 (Spike-Driven
      Transformer), arXiv:2307.01694, the same skeleton with the readout "membrane" and
      attention "sdsa".
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
    folded: str | None = None
    tokens: int | None = None
    folded_steps: int = 1

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
        x, repeats = self._with_time(images)
        dtype = self.dtype
        folded = self.folded is not None
        if folded:
            self._check_folded(x, repeats, train, per_step)
        if self.stem == "sps":
            stem = SPS(self.dim, self.pool, self.neuron, dtype, folded, name="stem")
        else:
            stem = Tokens(self.dim, dtype, folded, name="stem")
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
                fires=self.readout != "membrane" or i + 1 < self.depth,
                folded=folded,
                name=f"block_{i}",
            )(s, u, train)
        s = self._read(s, u)
        wide = s.dtype
        if self.is_mutable_collection("features") and not self.is_initializing():
            self.sow("features", "out", s.mean((1, 2)))  # [B, D], what the head reads
        if folded:
            how = dict(order=self.folded, timesteps=self.folded_steps, dtype=wide)
            return FoldedHead(self.num_classes, **how, name="head")(s, per_step)
        features = s.mean(2)
        head = linear(self.num_classes, bias=True, dtype=wide, name="head")
        return head(features if per_step else features.mean(1))

    def _read(self, s: jax.Array | None, u: jax.Array) -> jax.Array:
        """The spikes that the head reads, [B, T, N or 1, D], float32 at least."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        if self.readout == "membrane":
            # N times the mean, and a neuron of N times the threshold, are a sum.
            unit = u.shape[2] if self.folded is not None else 1.0
            u = u.mean(2) if self.folded is None else u.sum(2)
            how = dict(dtype=self.dtype, unit=unit, name="head_neuron")
            return neuron.make("binary", self.neuron, **how)(u).astype(wide)[:, :, None]
        return (s if self.readout == "mean" else s[:, :, -1:]).astype(wide)

    def _check_folded(self, x, repeats: int, train: bool, per_step: bool) -> None:
        if train:
            raise ValueError("folded model: got train=True, expected False: no BN left")
        steps = x.shape[1] * repeats
        if steps != self.folded_steps and not per_step:
            raise ValueError(
                f"folded model: got {steps} frames, expected {self.folded_steps}, "
                "which its head has been divided by; or per_step"
            )
        if self.tokens is not None and x.shape[2] != self.tokens:
            raise ValueError(
                f"folded model: got {x.shape[2]} tokens, expected {self.tokens}, which "
                "its head has been divided by"
            )

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
            Pure: jit and scan it. A model folded with per_step has no product here.
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
