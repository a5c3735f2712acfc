import re

import pytest

from a2os2a_jax import config as configs
from a2os2a_jax import data, main
from a2os2a_jax.commands import list as listing
from a2os2a_jax.functional import surrogate
from a2os2a_jax.models import families, registry
from a2os2a_jax.modules import attention, neuron
from a2os2a_jax.train import optim


def sections(text):
    """{title: its lines}."""
    found, lines = {}, []
    for line in text.splitlines():
        if line.startswith("  "):
            lines.append(line.strip())
        else:
            lines = found[line.split(",")[0]] = []
    return found


@pytest.fixture(scope="module")
def listed():
    return sections(listing.run(main.MODES, main.LATER))


def test_everything_that_can_be_named_is_listed(listed):
    words = {title: " ".join(lines).split() for title, lines in listed.items()}
    for title, names in {
        "models": [
            name for f in families.FAMILIES.items() for name in (f[0], *f[1].sizes)
        ],
        "stems": registry.STEMS[-1:],
        "attention kinds": attention.KINDS,
        "neuron rules": neuron.RULES[-1:],
        "data sets": data.SOURCES,
        "optimizers": [*optim.OPTIMIZERS][-1:],
        "schedules": [*optim.SCHEDULES][-1:],
        "number formats": registry.DTYPES[-1:],
        "modes": main.MODES,
        "keys that are not built yet": configs.NOT_BUILT,
    }.items():
        assert not set(names) - set(words[title]), title
    joined = " ".join(map(" ".join, words.values()))
    for names in (optim.OPTIMIZERS, optim.SCHEDULES, registry.STEMS, registry.DTYPES):
        assert ", ".join(names) in joined
    for name in surrogate.NAMED:
        assert any(line.startswith(f"{name}(") for line in listed["surrogates"])
    assert "66,338,632 parameters" in joined
    assert any(line.startswith("configs/digits.py  ") for line in listed["configs"])


def test_what_is_planned_is_marked(listed):
    for title, names in {
        "modes": main.LATER,
    }.items():
        text = " ".join(listed[title])
        marked = text[text.index("not built yet: ") :]
        assert marked.startswith(f"not built yet: {', '.join(names)}")


def test_the_list_follows_the_registries(monkeypatch, capsys):
    size = families.Size(2, 4, "cifar", 1234, 0.0)
    family = families.FAMILIES["columnar"]._replace(sizes={"9-9": size})
    monkeypatch.setitem(families.FAMILIES, "planted", family)
    kind = attention.Kind({"v": "binary", "v_th": None}, None, "a planted source")
    monkeypatch.setitem(attention.KINDS, "planted", kind)
    monkeypatch.setitem(optim.OPTIMIZERS, "planted", None)
    monkeypatch.setitem(data.SOURCES, "planted", data.SOURCES["fake"])
    found = sections(listing.run({"planted": "a2os2a_jax.commands.planted"}))
    out = capsys.readouterr().out
    assert re.search(r"planted +9-9", out) and "1,234 parameters" in out
    at = found["attention kinds"].index("planted     a planted source; from the text")
    assert found["attention kinds"][at + 1].strip() == "v=binary, v_th"
    assert found["optimizers"][0].endswith(", planted")
    assert any(line.startswith("planted  ") for line in found["data sets"])
    assert found["modes"] == ["planted  not built yet"]
    assert out.splitlines()[-1].startswith("next: --config=FILE --mode=plan")
    assert max(map(len, out.splitlines())) <= 88


def test_without_configs_the_list_says_where_they_are(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(listing, "CONFIGS", tmp_path / "configs")
    assert "in the repository" in sections(listing.run({}))["configs"][0]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text(
        '"""Mine, on digits.\n\nMore."""\nfrom a2os2a_jax import config\n'
        "get_config = config.default\n"
    )
    assert sections(listing.run({}))["configs"] == ["configs/mine.py  Mine, on digits."]
