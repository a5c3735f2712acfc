"""From a config to the parts of a run: data, model, devices, optimizer."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from a2os2a_jax import config as configs
from a2os2a_jax import data as datasets
from a2os2a_jax.analysis import summary
from a2os2a_jax.data import augment, mix, pipeline
from a2os2a_jax.models import build
from a2os2a_jax.train import losses, optim, parallel, step
from a2os2a_jax.train.evaluate import Evaluator, size_of


class Parts(NamedTuple):
    """What a config describes, before anything is trained."""

    dataset: pipeline.Dataset
    model: nn.Module
    mesh: Mesh
    tx: optax.GradientTransformation
    rate: optax.Schedule
    inputs: step.Inputs
    loss: losses.Loss
    ema: float | None
    total_steps: int
    epoch_steps: int
    frozen: tuple[str, ...] = ()  # names of parameters, as regular expressions

    def abstract_state(self) -> step.TrainState:
        """Shapes, dtypes and shardings of the state, for `Checkpoints.restore`."""
        make = self._init()
        shapes = jax.eval_shape(make, jax.random.key(0), self._example())
        sharding = parallel.whole(self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
        )

    def fresh_state(self, key: jax.Array) -> step.TrainState:
        """The initial state, whole on every device."""
        make = jax.jit(self._init(), out_shardings=parallel.whole(self.mesh))
        return make(key, self._example())

    def _init(self):
        how = dict(ema=self.ema is not None)
        return functools.partial(step.init_state, self.model, self.tx, **how)

    def _example(self) -> jax.Array:
        return jnp.zeros((1, *self.dataset.shape), jnp.float32)

    def layers(self, config: ConfigDict) -> list[summary.Layer]:
        """The layers of the model, for `summary.text`."""
        frozen = optim.patterns(config.optim.freeze)
        return summary.layers(self.model, self.dataset.shape, frozen)

    def evaluator(self, config: ConfigDict, split: str) -> Evaluator:
        c = config.eval
        examples = c.examples if split == c.split else None
        return Evaluator(
            self.model,
            self.dataset.split(split),
            self.mesh,
            batch=c.batch,
            examples=examples,
        )


def prepare(config: ConfigDict) -> Parts:
    """Everything that can be wrong with a config is found here, in seconds.

    Raises:
      ValueError: names the key, what was got and what was expected.
    """
    configs.check(config)
    config = configs.filled(config)
    m, o, t = config.model, config.optim, config.train
    dataset = load_data(config)
    size_of(dataset.split(config.eval.split), config.eval.examples)
    _check_stem(m.stem, m.timesteps, config.data.timesteps, dataset)
    mesh = parallel.make_mesh(config.mesh.data)
    if config.deterministic:
        parallel.check_deterministic(mesh)
    key = "train.batch" + (" / accumulate" if t.accumulate > 1 else "")
    parallel.check_batch(key, t.batch // t.accumulate, mesh)
    model = make_model(config, dataset)
    epoch_steps = pipeline.steps_per_epoch(dataset.train.size, t.batch)
    total_steps = max(1, round(t.epochs * epoch_steps)) if t.steps is None else t.steps
    if total_steps > configs.MOST:
        raise ValueError(
            f"train.epochs: got {t.epochs:g}, expected at most "
            f"{configs.MOST // epoch_steps:,}, which are {configs.MOST} steps"
        )
    rate = optim.schedule(
        lr=o.lr,
        warmup_lr=o.warmup_lr,
        min_lr=o.min_lr,
        warmup_steps=round(o.warmup_epochs * epoch_steps),
        total_steps=total_steps,
        name=o.schedule,
    )
    frozen = (*model.frozen, *optim.patterns(o.freeze))
    tx = optim.make(
        rate,
        name=o.name,
        weight_decay=o.weight_decay,
        momentum=o.momentum,
        b2=o.b2,
        clip=o.clip,
        frozen=frozen,
        layer_decay=o.layer_decay,
    )
    loss = losses.make(t.loss, smoothing=t.label_smoothing, mse=t.tet_mse)
    inputs = _inputs(config.augment, dataset, epoch_steps)
    parts = Parts(
        dataset=dataset,
        model=model,
        mesh=mesh,
        tx=tx,
        rate=rate,
        inputs=inputs,
        loss=loss,
        ema=t.ema,
        frozen=frozen,
        total_steps=total_steps,
        epoch_steps=epoch_steps,
    )
    parts.abstract_state()  # shapes that do not fit are found by tracing
    batch = {"image": parts._example(), "label": jnp.zeros(1, jnp.int32)}
    jax.eval_shape(lambda b: inputs(b, jax.random.key(0), jnp.int32(0)), batch)
    return parts


def load_data(config: ConfigDict) -> pipeline.Dataset:
    """The data set that `config.data` names.

    Raises:
      ValueError: there is none, or it cannot honour a key; names it.
    """
    d = config.data
    names = ("channels", "pairs", "slice_by", "fit", "corrupt", "area", "workers")
    names += ("resident_gib",)
    options = {name: d[name] for name in names}
    return datasets.load(
        d.name,
        size=d.size,
        classes=d.classes,
        data_dir=d.data_dir,
        validation=d.validation,
        seed=config.seed,
        timesteps=d.timesteps,
        **{k: v for k, v in options.items() if v is not None},
    )


def make_model(config: ConfigDict, data: pipeline.Dataset | pipeline.Spec) -> nn.Module:
    """The model of the config, for examples and classes as those of `data`."""
    config = configs.filled(config)
    m = config.model
    return build(
        m.name,
        m.variant,
        num_classes=data.classes,
        image_size=None if m.stem == "tokens" else data.shape[-3],
        in_channels=data.shape[-1],
        timesteps=m.timesteps,
        heads=m.heads,
        pool=m.pool,
        attention=m.attention.to_dict(),
        neuron=m.neuron.to_dict(),
        shortcut=m.shortcut,
        residual=m.residual,
        dtype=config.dtype,
        stem=m.stem,
        readout=m.readout,
        mlp_ratio=m.mlp_ratio,
        remat=m.remat,
        drop_path=m.drop_path,
        neuron_over_batch=m.neuron_over_batch,
    )


def _inputs(a: ConfigDict, dataset: pipeline.Dataset, epoch_steps: int) -> step.Inputs:
    """What `augment.*` makes of a batch."""
    names = ("crop", "flip", "shift", "rotate", "zoom", "jitter", "randaugment", "ops")
    names += ("resample", "erase", "roll", "cutout", "drop")
    augmented = augment.build(
        **{name: a[name] for name in names},
        fill=dataset.black,
        mean=dataset.mean,
        std=dataset.std,
    )
    mixed = mix.build(mixup=a.mixup, cutmix=a.cutmix)
    until = a.off_epoch and min(a.off_epoch * epoch_steps, configs.MOST)
    return step.Inputs(augmented, mixed, dataset.classes, until)


def _check_stem(stem: str, steps: int, frames: int | None, dataset) -> None:
    """ValueError unless the stem takes examples of this shape and length."""
    axes = ("(N, F)",) if stem == "tokens" else ("(H, W, C)", "(T, H, W, C)")
    if len(dataset.shape) not in {text.count(",") + 1 for text in axes}:
        raise ValueError(
            f"model.stem: {stem!r} got examples {dataset.shape} of {dataset.name}, "
            f"expected {' or '.join(axes)}"
        )
    if frames is None and len(dataset.shape) == 4:
        frames = dataset.shape[0]  # the source's own choice
    if frames is not None and frames != steps:
        raise ValueError(
            f"model.timesteps: got {steps}, expected {frames}, the frames of one "
            "example (data.timesteps)"
        )
