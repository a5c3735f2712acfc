"""What all models share: images with a time axis, a head over means, single frames."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from a2os2a_jax.modules.head import FoldedHead
from a2os2a_jax.modules.linear import linear


class SpikingModel(nn.Module, kw_only=True):
    """From images to class scores. Make one with `models.build`.

    A subclass says in `__call__` what lies between `with_time` and `read_out`.

    neuron: options of every neuron, as `modules.neuron.resolve` gives them.
    readout: what the head reads: "mean" over tokens of the last spikes, those of the
    last token, "query", spikes of the mean "membrane", or that "potential" itself.
    folded: None, or as `models.fold` makes it for inference, without BN, scales and
    means: the order of the head, "spikes", "counts" or "bits". tokens: the N that such
    a head stands for, where the model does not tell it. folded_steps: the T that its
    kernel has been divided by: `timesteps`, and per_step multiplies by it; or 1, where
    it was folded for single steps.
    Spikes are sown in the collection "spikes", and only there; what the head reads, its
    mean over time [B, D], in "features".
    """

    num_classes: int
    image_size: int | None
    in_channels: int
    timesteps: int
    neuron: Mapping[str, Any]
    dtype: Any
    readout: str = "mean"
    head_bias: bool = True
    head_init: str = "normal"
    folded: str | None = None
    tokens: int | None = None
    folded_steps: int = 1

    @property
    def frame(self) -> tuple[int | None, ...]:
        """Axes of one frame, (H, W, C); None is any number."""
        return (self.image_size, self.image_size, self.in_channels)

    @property
    def side(self) -> int | None:
        """Of the square map that the last tokens are; None where there is no map."""
        return None

    def side_of(self, path: tuple[str, ...]) -> int | None:
        """Likewise of the tokens of the module at `path`."""
        return self.side

    @property
    def most(self) -> int:
        """The largest entry of what the head reads, where it reads spikes."""
        return 1

    @property
    def frozen(self) -> tuple[str, ...]:
        """Parameters that must not be trained, as regular expressions on their names.

        They get no gradient; an optimizer has to leave weight decay off them as well.
        """
        return ()

    @property
    def whole_sequences(self) -> str | None:
        """Why a frame cannot be told before the next ones are there; None if it can."""
        return None

    def with_time(self, images: jax.Array) -> tuple[jax.Array, int]:
        """([B, T or 1, ...], how often one frame is shown).

        Raises:
          ValueError: images of another shape than the model was built for, or a
            sequence of no frames.
        """
        frame = self.frame
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

    def check_folded(self, x, repeats: int, train: bool, per_step: bool) -> None:
        """ValueError for a call that a folded model cannot answer."""
        if self.folded is None:
            return
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

    def read_out(self, x: jax.Array, per_step: bool) -> jax.Array:
        """Scores of what the head reads, x [B, T, N, D], by its mean over T and N."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        x = x.astype(wide)
        if self.is_mutable_collection("features") and not self.is_initializing():
            self.sow("features", "out", x.mean((1, 2)))  # [B, D], what the head reads
        if self.folded is not None:
            how = dict(order=self.folded, timesteps=self.folded_steps, dtype=wide)
            how |= dict(use_bias=self.head_bias, most=self.most)
            return FoldedHead(self.num_classes, **how, name="head")(x, per_step)
        features = x.mean(2)
        head = linear(
            self.num_classes,
            bias=self.head_bias,
            dtype=wide,
            init=self.head_init,
            inputs=x.shape[-1],
            name="head",
        )
        return head(features if per_step else features.mean(1))

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
        Raises:
          ValueError: the model joins frames (attention "statten").
        """
        if self.whole_sequences:
            raise ValueError(f"stream: {self.whole_sequences}")

        def forward(state, frames):
            held = {**variables, "membrane": state} if state else variables
            logits, state = self.apply(
                held, frames, per_step=True, mutable=["membrane"]
            )
            return logits, state["membrane"]

        def init(batch_size: int, tokens: int | None = None):
            *space, channels = self.frame
            if None in space and tokens is None:
                raise ValueError(
                    "stream: init needs (batch_size, tokens) with this stem"
                )
            frame = [tokens if n is None else n for n in space] + [channels]
            # A sequence of no frames leaves every neuron at rest, whatever its rest is.
            return forward(None, jnp.zeros((batch_size, 0, *frame), self.dtype))[1]

        def step(state, frame: jax.Array):
            logits, state = forward(state, frame[:, None])
            return state, logits[:, 0]

        return init, step
