"""The pages lead somewhere, the site builds without a warning, its commands end with 0.

The last two are slow. Commands run in a folder of their own, shrunk by overrides that
are the same for a whole page, so that a run that is gone on with is the same run.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fences, test_docs
from tests.fences import PAGES, ROOT

DOCS = ROOT / "docs"
TEXTS = {str(p.relative_to(ROOT)): p for p in PAGES.values()}
TEXTS["experiments/README.md"] = ROOT / "experiments" / "README.md"
LINK = re.compile(r"\]\(([^)\s]+)\)")


# ---- links


def anchors(text):
    """What a heading can be linked to as, on GitHub and in the site."""
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}


def dead(text, folder):
    """Links of a page in `folder` that lead nowhere."""
    code = re.compile(r"^```.*?^```$|`[^`\n]*`", re.M | re.S)
    for link in LINK.findall(code.sub("", text)):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        path = (folder / name).resolve() if name else None
        if path and not (path.is_file() and path.is_relative_to(ROOT)):
            yield link
        elif anchor and anchor not in anchors(path.read_text() if path else text):
            yield link


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files_that_are_there(name):
    path = TEXTS[name]
    assert list(dead(path.read_text(encoding="utf-8"), path.parent)) == []


@pytest.mark.parametrize(
    "link", ["nowhere.md", "../nowhere.json", "hooks.md#nothing", "figures", "#none"]
)
def test_a_planted_dead_link_is_found(link):
    assert list(dead(f"# A\n\n[x]({link}) [y](hooks.md#loggers) [z](#a)", DOCS)) == [
        link
    ]


def test_every_page_is_in_the_contents_once():
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^- \[.+?\]\(([\w/]+\.\w+)\)", text, re.M)
    pages = [*DOCS.glob("*.md"), *DOCS.rglob("*.rst")]
    there = [str(p.relative_to(DOCS)) for p in pages if p.name != "index.md"]
    assert sorted(listed) == sorted(there)


def test_every_figure_is_shown_and_has_words():
    texts = "\n".join(p.read_text(encoding="utf-8") for p in TEXTS.values())
    shown = dict(
        reversed(x) for x in re.findall(r"!\[(.*?)\]\((?:docs/)?figures/(\S+)\)", texts)
    )
    shown["seven.png"] = re.search(r"predict.*docs/figures/seven\.png", texts)[0]
    assert sorted(shown) == sorted(p.name for p in (DOCS / "figures").iterdir())
    assert all(len(words) > 10 for words in shown.values())


# ---- recipes


def header(config):
    """(its module's text in one line, its module)."""
    path = ROOT / "configs" / config
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return " ".join(module.__doc__.split()), module


def recipes():
    """Rows of the table: [configs, what, device, time, published, ours]."""
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|( `\w+\.py.*)\|$", text, re.M)
    return [[cell.strip() for cell in row.split("|")] for row in rows]


def claims(cell):
    """What a cell says, bit by bit; of a link the name of its file."""
    plain = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", cell)
    return [bit for bit in re.split(r"; |, (?=[\w-]+\.json|for one GPU)", plain) if bit]


def unsaid(row):
    """What a row says and the header of its config does not."""
    configs, *cells = row
    assert len(cells) == 5, configs
    for config in re.findall(r"`([\w:.,-]+)`", configs):
        file, _, mode = config.partition(":")
        text, module = header(file)
        module.get_config(mode or "full")
        for bit in (bit for cell in cells for bit in claims(cell)):
            if bit.removeprefix("one ") not in text:
                yield config, bit


def test_recipes_say_what_the_headers_say():
    named = {name for row in recipes() for name in re.findall(r"`(\w+\.py)", row[0])}
    assert named == {path.name for path in (ROOT / "configs").glob("*.py")}
    assert [x for row in recipes() for x in unsaid(row)] == []


def test_a_planted_number_is_found():
    (row,) = [row for row in recipes() if row[0] == "`cifar10.py`"]
    wrong = [cell.replace("96.42", "96.43") for cell in row]
    assert list(unsaid(wrong)) == [("cifar10.py", "96.43 % with 2-512")]


# ---- the site


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(
            package, reason=f"{package} is missing: pip install '.[docs]'"
        )
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    where = [str(DOCS), str(tmp_path / "site"), "-d", str(tmp_path / "trees")]
    run = subprocess.run(build + where, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0 and run.stderr == "", run.stderr

    made = {p.stem for p in (tmp_path / "site").rglob("*.html")}
    assert made >= {p.stem for p in [*DOCS.glob("*.md"), *DOCS.rglob("*.rst")]}
    page = (tmp_path / "site" / "api" / "functional.html").read_text()
    plain = re.sub(r"<[^>]+>", "", page)
    # an equation stands as it stands in the docstring, an argument has its words
    assert "s[t] = Θ(h[t] - v_th)                                 fires" in plain
    assert "time constant in timesteps" in plain
    for name in ("lif_step", "a2os2a", "from_curve", "expand"):
        assert 'id="a2os2a_jax.functional.' in page and f".{name}" in page, name
    for path in (tmp_path / "site").rglob("*.html"):
        assert str(ROOT) not in path.read_text(), path.name
        assert stray(path.read_text()) == [], path.name


def stray(page):
    """Lines of a page's article with a backtick: markup that became text."""
    article = "".join(re.findall(r"<article.*?</article>", page, re.S))
    words = re.sub(r"<pre>.*?</pre>|<[^>]+>", "", article, flags=re.S)
    return [line for line in words.split("\n") if "`" in line]


def test_a_stray_backtick_is_found():
    page = "<p>`</p><article><pre>`ls`</pre><code>a</code>{}</article>".format
    assert stray(page("")) == []
    assert stray(page("<p>\nx `y`\n</p>")) == ["x `y`"]


def conf():
    spec = importlib.util.spec_from_file_location("docs_conf", DOCS / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_docstring_becomes_prose_equations_and_sections():
    text = """What `x y`_z is, in *one* line.

        h = a * b_
          + c

    Args:
      q, k: two [...]
        lines.
      **rest: others, `f(
        x)`.
    Returns:
      (a, b), `c
      d`, as in
        f(x)
      - one `e
        f`
      - two
    """
    lines = [line[4:] for line in ("    " + text).splitlines()]
    made = "\n".join(conf().docstring(lines))
    assert "What ``x y``\\ \\_z is, in \\*one\\* line." in made
    assert "::\n\n   h = a * b_\n     + c\n" in made
    assert ".. rubric:: Args\n\n``q, k``\n   two [...] lines.\n" in made
    assert "``**rest``\n   others, ``f( x)``." in made
    assert ".. rubric:: Returns\n\n(a, b), ``c d``, as in\n\n::\n\n   f(x)" in made
    assert "- one ``e f``\n- two" in made


def test_the_contents_are_those_of_the_index():
    text = "# A\n\n## B\n\n- [c](c.md): d\n- [e](api/e.rst): f\n\n## G\n\nh\n"
    made = conf().contents(text)
    assert made.startswith(text)
    assert made.endswith("```{toctree}\n:hidden:\n:caption: B\n\nc\napi/e\n```")


# ---- commands

MODEL = {"model.variant": "1-32", "model.heads": 4}
SHORT = {
    "train.steps": 4,
    "train.log_steps": 2,
    "train.batch": 8,
    "optim.warmup_epochs": 0,
    "eval.examples": 32,
    "eval.batch": 32,
}


def shrunk(command, kept=()):
    """The command with overrides that make it quick; `kept`: runs of another model."""
    if "-m a2os2a_jax.main" not in command or "--config=" not in command:
        return command
    own = any(f"--workdir={run}" in f"{command} " for run in kept)
    own |= "zoo:" in command  # those weights have their size
    own |= "--config.model.variant=" in command
    values = SHORT | ({} if own else MODEL)
    return " ".join([command, *(f"--config.{k}={v}" for k, v in values.items())])


def test_overrides_are_those_of_a_page():
    train = "python -m a2os2a_jax.main --config=a.py --workdir=runs/a"
    assert shrunk(train).endswith("--config.model.variant=1-32 --config.model.heads=4")
    assert shrunk(f"{train} --config.init_from=zoo:b").endswith("eval.batch=32")
    assert shrunk(train, kept=["runs/a "]).endswith("eval.batch=32")
    assert "heads=4" not in shrunk(f"{train} --config.model.variant=3-64")
    for other in ("python -m a2os2a_jax.main --list", "python a/load.py"):
        assert shrunk(other) == other


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A folder that looks like a checkout to a command, and a `python` that is ours."""
    for name in ("configs", "docs", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{python.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # halves compilation
    return tmp_path


MADE = {  # what `make` runs once it has installed; what follows needs its run
    "make digits": "--config=configs/digits.py --workdir=runs/digits",
    "make recall": "--config=configs/recall.py --workdir=runs/recall",
}
LOCAL = {
    page: [
        f"python -m a2os2a_jax.main {MADE[command]}" if command in MADE else command
        for block in fences.of(page)
        if block.info == "sh"
        for command in block.commands
        if command in MADE or not test_docs.elsewhere(command)
    ]
    for page in PAGES
}


@pytest.mark.parametrize("command", MADE)
def test_make_runs_what_stands_in_for_it(command):
    dry = subprocess.run(
        [*command.replace("make", "make -n").split()],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
        capture_output=True,
        text=True,
        check=True,
    )
    last = dry.stdout.strip().splitlines()[-1]
    assert last.endswith(f"-m a2os2a_jax.main {MADE[command]}")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("sh"), reason="no shell")
@pytest.mark.parametrize("page", [page for page, commands in LOCAL.items() if commands])
def test_commands_of_a_page_end_with_0(page, scratch):
    data, left = os.environ.get("A2OS2A_DATA"), []
    kept = [
        re.search(r"--workdir=(\S+)", command)[1] + " "
        for command in LOCAL[page]
        if "init_from=zoo:" in command
    ]
    for command in LOCAL[page]:
        line = shrunk(command, kept)
        if re.search(r"\bDIR\b", line):
            if not data:
                left.append(command)
                continue
            line = re.sub(r"\bDIR\b", str(Path(data).resolve() / "tfds"), line)
        run = subprocess.run(
            line, shell=True, cwd=scratch, capture_output=True, text=True, timeout=600
        )
        assert run.returncode == 0, f"{command}\n{line}\n{run.stdout}\n{run.stderr}"
    if left:
        pytest.skip(f"A2OS2A_DATA is unset, so these did not run: {left}")


def test_a_planted_command_that_fails_is_found(scratch, monkeypatch):
    monkeypatch.setitem(LOCAL, "README", ["python -c 'import a2os2a_jax'"])
    test_commands_of_a_page_end_with_0("README", scratch)
    monkeypatch.setitem(LOCAL, "README", ["python -c 'raise SystemExit(3)'"])
    with pytest.raises(AssertionError, match="SystemExit"):
        test_commands_of_a_page_end_with_0("README", scratch)


def test_commands_on_data_are_skipped_where_there_are_none(scratch, monkeypatch):
    monkeypatch.delenv("A2OS2A_DATA", raising=False)
    monkeypatch.setitem(LOCAL, "data", ["python -c 'print()' DIR"])
    with pytest.raises(pytest.skip.Exception, match="A2OS2A_DATA is unset"):
        test_commands_of_a_page_end_with_0("data", scratch)
