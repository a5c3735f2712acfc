"""QKFormer: three stages of growing width, spike counts as residual."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from a2os2a_jax.functional import spikes
from a2os2a_jax.functional.pooling import max_pool
from a2os2a_jax.models.base import SpikingModel
from a2os2a_jax.modules import attention as attentions
from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.block import Block
from a2os2a_jax.modules.linear import conv3x3, linear, param_dtype
from a2os2a_jax.modules.norm import BatchNorm
from a2os2a_jax.modules.stem import over_time

# Which conv3x3 of an entrance halve the image: (of the first stage, of the others)
POOLS = {"cifar": ("00", "01"), "imagenet": ("110", "10")}
SHARES = (4, 2, 1)  # width of a stage: D over this


class Embed(nn.Module):
    """The entrance of a stage, [B, T, H, W, C] -> [B, T, H', W', dim] counts 0 to 2.

        convolutions: conv3x3 - BN [- max-pool] - SN, one for each character of `pool`
        S = last of them + SN(BN(conv1x1 of the shortcut))

    The shortcut starts at the input, or in the first stage, where the input is no
    spikes, behind the first convolution, of dim / 2 channels; its stride makes up for
    the pools passed by.
    Source: Zhou et al. 2024 (QKFormer), arXiv:2403.16552.
    """

    dim: int
    pool: str
    first: bool
    neuron: Mapping[str, Any]
    dtype: Any
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, repeats: int = 1) -> jax.Array:
        """x [B, T, H, W, C], or [B, 1, H, W, C] standing for `repeats` steps."""

        def norm(name, y, repeats=1):
            how = dict(param_dtype=param_dtype(self.dtype), folded=self.folded)
            return BatchNorm(**how, name=name)(y, train, repeats)

        def fire(name, y):
            return neuron.make("binary", self.neuron, dtype=self.dtype, name=name)(y)

        how = dict(dtype=self.dtype, init="torch")
        shortcut = x
        for i, pooled in enumerate(self.pool):
            opening = self.first and i == 0
            width = self.dim // 2 if opening else self.dim
            x = conv3x3(width, **how, name=f"conv_{i}")(x)
            x = norm(f"bn_{i}", x, repeats if opening else 1)
            if opening:
                x = over_time(x, repeats)
            if pooled == "1":
                x = max_pool(x)
            x = fire(f"neuron_{i}", x)
            if opening:
                shortcut = x
        stride = shortcut.shape[-3] // x.shape[-3]
        y = shortcut[..., ::stride, ::stride, :]
        y = linear(self.dim, bias=False, **how, name="res_conv")(y)
        return x + fire("res_neuron", norm("res_bn", y))


class Stage(nn.Module):
    """`Embed`, then blocks with spike-count residual; maps [B, T, H, W, C]."""

    dim: int
    pool: str
    first: bool
    depth: int
    drop_paths: tuple[float, ...]
    block: Mapping[str, Any]  # what all of its blocks have
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, repeats: int = 1) -> jax.Array:
        how = {key: self.block[key] for key in ("neuron", "dtype", "folded")}
        x = Embed(self.dim, self.pool, self.first, **how, name="embed")(
            x, train, repeats
        )
        make = Block
        if self.remat:
            make = nn.remat(Block, policy=spikes.save_spikes(), static_argnums=(3,))
        s = x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], self.dim)
        for i, drop_path in enumerate(self.drop_paths):
            how = dict(dim=self.dim, side=x.shape[2], drop_path=drop_path)
            how |= dict(shortcut="full", residual="spikes", initial="torch")
            s, _ = make(**how, **self.block, name=f"block_{i}")(s, None, train)
        return s.reshape(x.shape)


class QKFormer(SpikingModel, kw_only=True):
    """Stages of D/4, D/2 and D channels; make it with `models.build`.

        stages 1, 2: `token_attention`, kind "qk_token".  stage 3: `attention`, SSA
        logits[t] = Linear(mean of the last counts over tokens), then the mean over t

    depths, heads: of each stage. stem: "cifar", or "imagenet", which halves the image
    twice more. drop_path: as in `Columnar`, over all blocks in order.
    over_batch: the neuron behind the attention of stage 3 goes on from one example of
    the batch to the next, as it does in the public code; then neither a batch of one
    nor another order of the examples gives the same logits.
    Source: Zhou et al. 2024 (QKFormer), arXiv:2403.16552.
    """

    depths: tuple[int, int, int]
    dim: int
    heads: tuple[int, int, int]
    stem: str
    token_attention: Mapping[str, Any]
    attention: Mapping[str, Any]
    mlp_ratio: int
    remat: bool = False
    drop_path: float = 0.0
    over_batch: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, per_step: bool = False
    ) -> jax.Array:
        """Class scores; see `Columnar.__call__`, which takes and gives the same."""
        x, repeats = self.with_time(images)
        self.check_folded(x, repeats, train, per_step)
        x, total, done = x.astype(self.dtype), sum(self.depths), 0
        for k, (depth, share) in enumerate(zip(self.depths, SHARES, strict=True)):
            drop_paths = [self.drop_path * (done + i + 1) / total for i in range(depth)]
            done += depth
            block = dict(
                heads=self.heads[k],
                attention=self.token_attention if k < 2 else self.attention,
                neuron=self.neuron,
                mlp_ratio=self.mlp_ratio,
                dtype=self.dtype,
                folded=self.folded is not None,
                over_batch=self.over_batch and k == 2,
            )
            x = Stage(
                self.dim // share,
                POOLS[self.stem][min(k, 1)],
                k == 0,
                depth,
                tuple(drop_paths),
                block,
                self.remat,
                name=f"stage_{k + 1}",
            )(x, train, repeats if k == 0 else 1)
        s = x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], self.dim)
        return self.read_out(s, per_step)

    @property
    def side(self) -> int:
        return self.image_size // (16 if self.stem == "imagenet" else 4)

    @property
    def most(self) -> int:
        return 2 + 2 * self.depths[-1]

    @property
    def frozen(self) -> tuple[str, ...]:
        names = attentions.frozen(self.attention)
        return tuple(rf"stage_3/block_\d+/attention/{name}" for name in names)

    @property
    def whole_sequences(self) -> str | None:
        if self.over_batch:
            return (
                "got neuron_over_batch, whose neuron runs over all steps and examples, "
                "expected False"
            )
        return attentions.whole_sequences(self.attention)
