"""What `prepare` finds wrong, and that every rule and rank it should take, it takes."""

import pytest

from a2os2a_jax import config as configs
from a2os2a_jax.train import setup


def _config(**changes):
    c = configs.default()
    c.data.update(name="fake", size=8, channels=1)
    c.model.update(variant="1-16", timesteps=2, heads=2, pool="0001")
    c.train.batch = 32
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


@pytest.mark.parametrize("rule", ["paper", "guo"])
@pytest.mark.parametrize("kind", ["a2os2a", "vssa", "none"])
def test_every_rule_and_kind_of_a_config_builds(rule, kind):
    how = dict(model__neuron__rule=rule, model__attention__kind=kind)
    parts = setup.prepare(_config(**how))
    assert parts.model.neuron["rule"] == rule


def test_the_stem_has_to_fit_the_data():
    with pytest.raises(ValueError, match=r"model.stem: 'tokens' got .*\(N, F\)"):
        setup.prepare(_config(model__stem="tokens"))
    c = _config(model__stem="sps")
    c.data.update(name="recall", size=None, channels=None)
    with pytest.raises(ValueError, match="model.stem: 'sps' got .* of recall"):
        setup.prepare(c)


def test_frames_and_timesteps_have_to_agree():
    with pytest.raises(ValueError, match="model.timesteps: got 2, expected 6"):
        setup.prepare(_config(data__timesteps=6))
    assert setup.prepare(_config(data__timesteps=2)).dataset.shape == (2, 8, 8, 1)


def test_attention_options_out_of_range_are_named():
    with pytest.raises(ValueError, match="attention.patch: got 5, expected a divisor"):
        setup.prepare(_config(model__attention__kind="dssa", model__attention__patch=5))
    for key in ("scale", "k_gain"):
        with pytest.raises(ValueError, match=f"attention.{key}: got 0.0"):
            setup.prepare(_config(**{f"model__attention__{key}": 0.0}))


def test_the_cosine_does_not_rise():
    with pytest.raises(ValueError, match="optim.min_lr: got 0.1, expected at most"):
        setup.prepare(_config(optim__min_lr=0.1))
