"""SpikingResformer: stages of dual spike attention and a convolution in the MLP."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from a2os2a_jax.functional import spikes
from a2os2a_jax.functional.pooling import max_pool
from a2os2a_jax.models.base import SpikingModel
from a2os2a_jax.modules import dssa, gwffn, neuron
from a2os2a_jax.modules.dssa import DSSA
from a2os2a_jax.modules.gwffn import GWFFN
from a2os2a_jax.modules.linear import conv, param_dtype
from a2os2a_jax.modules.norm import BatchNorm
from a2os2a_jax.modules.stem import over_time

STEMS = ("cifar", "imagenet")


class Sizes(NamedTuple):
    """pairs: (DSSA, GWFFN) pairs of each stage. planes: width of each stage.

    image_size: in pixels, what the public code builds it for.
    """

    pairs: tuple[int, ...]
    planes: tuple[int, ...]
    stem: str
    image_size: int


# Shi et al. 2024, arXiv:2403.14302, and its code; "cifar" is its direct training.
VARIANTS = {
    "ti": Sizes((1, 2, 3), (64, 192, 384), "imagenet", 224),
    "s": Sizes((1, 2, 3), (64, 256, 512), "imagenet", 224),
    "m": Sizes((1, 2, 3), (64, 384, 768), "imagenet", 224),
    "l": Sizes((1, 2, 3), (128, 512, 1024), "imagenet", 224),
    "cifar": Sizes((1, 2, 3), (64, 192, 384), "cifar", 32),
}
# Of all of them: heads of 64 channels, patches that leave 14 x 14 keys of 224 pixels.
HEAD_DIM, GROUP_SIZE, PATCH_SIZES = 64, 64, (4, 2, 1)


class SpikingResformer(SpikingModel, kw_only=True):
    """A stem, stages of pairs (DSSA, GWFFN), a linear head without bias.

        U = stem(images); between two stages U = BN(conv3x3 stride 2 (SN(U)))
        pair:  U = U + DSSA(SN(U)),  U = U + GWFFN(SN(U))
        logits[t] = Linear(mean of U[t] over positions), logits = mean over t

    The head reads membranes: its product is one of real numbers.

    pairs, planes, heads, patch_sizes: of each stage; see `check`.
    stem: "cifar", conv3x3 - BN, or "imagenet", conv7x7 stride 2 - BN - max-pool.
    drop_path: of the last pair, as in `modules.block`; pair l of L, from 1, has l / L
    of it. The public code has none.
    remat: in training keep the spikes of a pair alone, and compute the rest again.
    Source: Shi et al. 2024, arXiv:2403.14302.
    """

    pairs: tuple[int, ...]
    planes: tuple[int, ...]
    heads: tuple[int, ...]
    patch_sizes: tuple[int, ...]
    group_size: int
    stem: str
    mlp_ratio: int = 4
    drop_path: float = 0.0
    remat: bool = False
    readout: str = "potential"
    head_bias: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, per_step: bool = False
    ) -> jax.Array:
        """Class scores, float32 at least.

        Args:
          images: [B, H, W, C], shown for `timesteps` steps, or a sequence
            [B, T, H, W, C] of any T.
          train: normalise with the batch's statistics, and move the running ones and
            the firing rates of the attention (make "batch_stats" mutable).
          per_step: give the scores of each step.
        Returns:
          [B, classes], or [B, T, classes] with per_step; the first is the mean of the
          second over T.
        Raises:
          ValueError: sizes as in `check`, images of another shape than the model was
            built for, or a sequence of no frames; of a folded model also train, and
            without per_step a sequence of another length than `folded_steps`.
        """
        sides = check(
            pairs=self.pairs,
            planes=self.planes,
            heads=self.heads,
            patch_sizes=self.patch_sizes,
            group_size=self.group_size,
            stem=self.stem,
            image_size=self.image_size,
            mlp_ratio=self.mlp_ratio,
        )
        x, repeats = self.with_time(images)
        self.check_folded(x, repeats, train, per_step)
        how = dict(dtype=self.dtype, folded=self.folded is not None)
        stem = Stem(self.planes[0], self.stem, **how, name="stem")
        u = stem(x.astype(self.dtype), train, repeats)
        how |= dict(neuron=self.neuron, group_size=self.group_size)
        how |= dict(mlp_ratio=self.mlp_ratio, remat=self.remat)
        share = self.drop_path / sum(self.pairs)
        for k, side in enumerate(sides):
            before = sum(self.pairs[:k])
            u = Stage(
                dim=self.planes[k],
                heads=self.heads[k],
                side=side,
                patch=self.patch_sizes[k],
                drop_paths=tuple(
                    share * (before + i + 1) for i in range(self.pairs[k])
                ),
                down=k > 0,
                **how,
                name=f"stage_{k + 1}",
            )(u, train)
        return self.read_out(u, per_step)

    @property
    def side(self) -> int:
        return self.side_of((f"stage_{len(self.pairs)}",))

    def side_of(self, path: tuple[str, ...]) -> int:
        stage = int(path[0].removeprefix("stage_"))
        quarter = 4 if self.stem == "imagenet" else 1
        return self.image_size // (quarter * 2 ** (stage - 1))


class Stem(nn.Module):
    """From images to the first membrane, [B, T, H, W, C] -> [B, T, N, dim].

    kind: "cifar" keeps the size, "imagenet" has a quarter of it on both axes.
    """

    dim: int
    kind: str
    dtype: Any
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, repeats: int = 1) -> jax.Array:
        """x [B, T, H, W, C], or [B, 1, H, W, C] standing for `repeats` steps."""
        large = self.kind == "imagenet"
        how = dict(kernel=7, stride=2, padding=3) if large else {}
        x = conv(self.dim, dtype=self.dtype, **how, name="conv")(x)
        how = dict(param_dtype=param_dtype(self.dtype), folded=self.folded)
        x = BatchNorm(**how, name="bn")(x, train, repeats)
        x = over_time(max_pool(x) if large else x, repeats)
        return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], self.dim)


class Stage(nn.Module):
    """Pairs of one width, membrane [B, T, N, D] -> [B, T, N, D].

    side: of its map, in pixels. down: begin by halving a map of twice that side.
    drop_paths: of each pair, hence their number.
    """

    dim: int
    heads: int
    side: int
    patch: int
    group_size: int
    mlp_ratio: int
    drop_paths: tuple[float, ...]
    down: bool
    neuron: Mapping[str, Any]
    dtype: Any
    remat: bool = False
    folded: bool = False

    @nn.compact
    def __call__(self, u: jax.Array, train: bool) -> jax.Array:
        how = dict(neuron=self.neuron, dtype=self.dtype, folded=self.folded)
        if self.down:
            u = Down(dim=self.dim, side=2 * self.side, **how, name="down")(u, train)
        pair = Pair
        if self.remat:
            pair = nn.remat(Pair, policy=spikes.save_spikes(), static_argnums=(2,))
        for i, drop_path in enumerate(self.drop_paths):
            u = pair(
                heads=self.heads,
                side=self.side,
                patch=self.patch,
                group_size=self.group_size,
                mlp_ratio=self.mlp_ratio,
                drop_path=drop_path,
                **how,
                name=f"block_{i}",
            )(u, train)
        return u


class Down(nn.Module):
    """BN(conv3x3 stride 2 (SN(U))), a map of `side` pixels to one of side / 2."""

    dim: int
    side: int
    neuron: Mapping[str, Any]
    dtype: Any
    folded: bool = False

    @nn.compact
    def __call__(self, u: jax.Array, train: bool) -> jax.Array:
        s = neuron.make("binary", self.neuron, dtype=self.dtype, name="neuron")(u)
        x = s.reshape(*s.shape[:2], self.side, self.side, s.shape[-1])
        x = conv(self.dim, stride=2, dtype=self.dtype, name="conv")(x)
        how = dict(param_dtype=param_dtype(self.dtype), folded=self.folded)
        x = BatchNorm(**how, name="bn")(x, train)
        return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], self.dim)


class Pair(nn.Module):
    """U = U + DSSA(SN(U)), then U = U + GWFFN(SN(U)), membrane [B, T, N, D].

    drop_path: as in `modules.block`; draws from the rng "drop_path".
    """

    heads: int
    side: int
    patch: int
    group_size: int
    mlp_ratio: int
    neuron: Mapping[str, Any]
    dtype: Any
    drop_path: float = 0.0
    folded: bool = False

    @nn.compact
    def __call__(self, u: jax.Array, train: bool) -> jax.Array:
        drop = nn.Dropout(
            self.drop_path,
            (1, 2, 3),
            deterministic=not train,
            rng_collection="drop_path",
        )

        def fire(name, u):
            return neuron.make("binary", self.neuron, dtype=self.dtype, name=name)(u)

        how = dict(side=self.side, neuron=self.neuron, dtype=self.dtype)
        how |= dict(folded=self.folded)
        sizes = dict(dim=u.shape[-1], heads=self.heads, patch=self.patch)
        attention = DSSA(**sizes, **how, name="attention")
        u = u + drop(attention(fire("in_neuron", u), train))
        sizes = dict(ratio=self.mlp_ratio, group_size=self.group_size)
        mlp = GWFFN(**sizes, **how, name="mlp")
        return u + drop(mlp(fire("mid_neuron", u), train))


def check(
    *,
    pairs: Sequence[int],
    planes: Sequence[int],
    heads: Sequence[int],
    patch_sizes: Sequence[int],
    group_size: int,
    stem: str,
    image_size: int,
    mlp_ratio: int = 4,
) -> tuple[int, ...]:
    """The sides of the stages' maps, in pixels, of sizes that fit each other.

    Args:
      pairs: (DSSA, GWFFN) pairs of each stage, >= 1; planes: width of each;
        heads: of each, dividing the width; patch_sizes: of each, dividing the side.
      group_size: divides mlp_ratio times each width.
      stem: one of STEMS; "imagenet" divides the side of the image by four.
      image_size: in pixels, a multiple of what stem and stages divide it by.
    Raises:
      ValueError: says which of these does not hold, of which stage.
    """
    name = "spikingresformer"
    of_stages = dict(pairs=pairs, planes=planes, heads=heads, patch_sizes=patch_sizes)
    for key, values in of_stages.items():
        whole = all(isinstance(v, int) and not isinstance(v, bool) for v in values)
        if not whole or not values or min(values) < 1:
            raise ValueError(
                f"{name}: {key} is {tuple(values)}, expected integers >= 1"
            )
        if len(values) != len(pairs):
            raise ValueError(
                f"{name}: {key} is {tuple(values)}, expected {len(pairs)} of them, one "
                f"for each stage of pairs {tuple(pairs)}"
            )
    if stem not in STEMS:
        raise ValueError(f"{name}: stem is {stem!r}, expected one of {STEMS}")
    divisor = (4 if stem == "imagenet" else 1) * 2 ** (len(pairs) - 1)
    if not isinstance(image_size, int) or image_size < 1 or image_size % divisor:
        raise ValueError(
            f"{name}: image_size is {image_size!r}, expected a multiple of {divisor} "
            f"with {len(pairs)} stages and the stem {stem!r}"
        )
    last = image_size // divisor
    sides = tuple(last * 2**k for k in reversed(range(len(pairs))))
    for k, side in enumerate(sides):
        where = f"{name}, stage {k + 1}"
        sizes = dict(dim=planes[k], heads=heads[k], patch=patch_sizes[k])
        dssa.check(where, side=side, **sizes)
        gwffn.check(where, hidden=mlp_ratio * planes[k], group_size=group_size)
    return sides
