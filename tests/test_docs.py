"""The code in README and docs runs, or says that it does not.

Blocks of Python run here; commands of the shell in test_pages.py, which is slow.
"""

import csv
import re
import subprocess
import tomllib

import flax.linen as nn
import numpy as np
import pytest

from a2os2a_jax.train import metrics, setup
from tests import fences
from tests.fences import PAGES, ROOT

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Toy(nn.Module):
    """Stands in for a model: compiles at once."""

    frozen = ()

    @nn.compact
    def __call__(self, x, train=False):
        self.variable("batch_stats", "none", lambda: np.zeros(1, np.float32))
        self.sow("spikes", "out", x)
        self.sow("potentials", "out", x)
        return nn.Dense(10)(x.reshape(len(x), -1))


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """name of a page -> the folder in which its blocks have run."""

    def run(page):
        monkeypatch.chdir(tmp_path)
        for block in fences.of(page):
            if block.info.startswith("python"):
                program = compile(block.code, PAGES[page].name, "exec")
                if not block.info.endswith(fences.NOT_RUN):
                    exec(program, {"__name__": "__main__"})
        return tmp_path

    return run


# README's are run by test_readme.py
@pytest.mark.parametrize("page", sorted(set(PAGES) - {"hooks", "README"}))
def test_python_blocks_run_or_say_that_they_do_not(page, ran):
    ran(page)


def test_hooks_run_and_records_are_as_described(ran, capsys, monkeypatch):
    monkeypatch.setattr(setup, "build", lambda *_, **__: Toy())
    folder = ran("hooks")
    records = metrics.read_lines(folder / "runs" / "hooks" / "metrics.jsonl")
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert [r[:3] for r in rows] == [
        [str(r[key]) for key in ("step", "epoch", "split")] for r in records
    ]
    assert {r["split"] for r in records} == {"train", "test"}
    printed = [line for line in capsys.readouterr().out.splitlines() if line[0] == "{"]
    assert len(printed) == len(records)

    text = PAGES["hooks"].read_text(encoding="utf-8")
    described = {}
    for keys, of in re.findall(r"^\| (`.*?) \| (\w+) \|", text, re.M):
        described |= dict.fromkeys(re.findall(r"`(\w+)`", keys), of)
    del described["layers"]  # with eval.layers
    for record in records:
        of = {"all", "train" if record["split"] == "train" else "scores"}
        assert set(record) == {key for key, which in described.items() if which in of}


def test_weights_and_biases_takes_ten_lines_and_is_not_run():
    (code,) = [b.code for b in fences.of("hooks") if b.info == "python not-run"]
    lines = [line for line in code.splitlines() if line.strip()]
    assert lines[0] == "import wandb" and len(lines) == 10


# ---- what is not run

# Of shell blocks that say so: pods, clusters, downloads, hours. A new one has to be
# added here, so that none slips in.
NOT_RUN_HERE = {
    "training": """
trap 'kill -USR1 $run; wait $run; scontrol requeue $SLURM_JOB_ID' USR1
python -m a2os2a_jax.main --config=configs/digits.py --workdir=runs/digits & run=$!
wait $run
""",
    "quickstart": """
pip install '.[train,cuda]'
pip install '.[train,tpu]'
python -m a2os2a_jax.main --config=configs/cifar10.py:2-256 --workdir=runs/c10
""",
    "recipes": """
python -m a2os2a_jax.main --config=configs/cifar10.py --workdir=runs/c10
python -m a2os2a_jax.main --config=configs/cifar10.py --workdir=runs/c10_vssa
python -m a2os2a_jax.main --config=configs/imagenet.py --workdir=runs/in1k
python experiments/sweep.py configs/digits.py
""",
    "devices": """
pip install '.[train,cuda]'
python -m a2os2a_jax.main --config=configs/digits.py --workdir=runs/digits_gpu
python -m a2os2a_jax.main --config=configs/cifar10.py:2-512 --workdir=runs/c10
gcloud compute tpus tpu-vm ssh NAME
srun
""",
    "field": """
python -m a2os2a_jax.main --config=configs/cifar10.py:qkformer --workdir=runs/qkformer
python -m a2os2a_jax.main --config=configs/imagenet.py:spikingformer --workdir=runs/in1k
""",
    "torch": """
python -m a2os2a_jax.main --config=configs/cifar10.py:spikformer --workdir=runs/theirs
python -m a2os2a_jax.main --config=configs/cifar100.py:spikformer --workdir=runs/tuned
""",
    "data": """
pip install '.[prepare]'
python -m a2os2a_jax.data.prepare cifar10 --data_dir=DIR
python -m a2os2a_jax.data.prepare cifar10 --data_dir=DIR
""",
}


def without_options(command):
    """Up to the first option but for those that say what is run and where."""
    kept = re.split(r" (?=--(?!config=|workdir=|data_dir=))", command)
    return kept[0]


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_are_not_run_are_listed(page):
    found = [
        without_options(command)
        for block in fences.of(page)
        if block.info == "sh not-run"
        for command in block.commands
    ]
    assert found == NOT_RUN_HERE.get(page, "").strip().splitlines()


CODE = re.compile(r"^\$? ?(python|make|pip|git|import|from) ", re.M)


@pytest.mark.parametrize("page", PAGES)
def test_a_block_says_what_it_is(page):
    for block in fences.of(page):
        assert block.info in fences.INFOS, f"{page}: ```{block.info}"
        if block.info.endswith(fences.NOT_RUN):
            assert fences.WARNING.search(block.around), (
                f"{page}: the paragraph beside this does not say that it is not run "
                f"here:\n{block.code}"
            )
        if block.info in ("", "text"):  # output; what stands in it would not be run
            assert not CODE.search(block.code), (
                f"{page}: ``` is for output, commands stand in ```sh, and programs in "
                f"```python:\n{block.code}"
            )


def test_every_fence_is_closed():
    for page, path in PAGES.items():
        text = path.read_text(encoding="utf-8")
        assert len(re.findall(r"^\s*```", text, re.M)) == 2 * len(fences.of(page)), page


# ---- what was once added


def hunks(code):
    """(file, lines that stand together in it) of a block of diff."""
    for part in re.split(r"^\+\+\+ ", code, flags=re.M)[1:]:
        name, _, body = part.partition("\n")
        for hunk in re.split(r"^@@.*\n", body, flags=re.M):
            assert re.fullmatch(r"([ +].*\n)*", hunk), f"{name}: a line of no diff"
            yield name, "\n".join(line[1:] for line in hunk.splitlines())


@pytest.mark.parametrize("page", PAGES)
def test_what_a_diff_adds_is_there(page):
    for block in fences.of(page):
        if block.info == "diff":
            found = list(hunks(block.code))
            assert found, f"{page}: a diff without +++ FILE"
            for name, lines in found:
                text = (ROOT / name).read_text(encoding="utf-8")
                assert f"\n{lines}\n" in text, f"{page}: {name} has not\n{lines}"


def test_a_planted_diff_is_found(monkeypatch):
    text = "```diff\n+++ pyproject.toml\n+[project]\n+nothing\n```\n"
    for wrong in (text, text.replace("+++ ", "--- ")):
        monkeypatch.setattr(fences, "of", lambda page, it=wrong: fences.blocks(it))
        with pytest.raises(AssertionError):
            test_what_a_diff_adds_is_there("README")


# ---- commands that another test answers for: pattern -> where, or why not at all


def _make(match):
    """The target is there, and its recipe can be read."""
    dry = ["make", "-n", match[1]]
    subprocess.run(dry, cwd=ROOT, check=True, capture_output=True, timeout=60)


def _pip(match):
    """The extras are there; test_house.py looks at their bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"\[([\w,]+)\]", match[0])
    for extra in ",".join(extras).split(",") if extras else ():
        assert extra in project["optional-dependencies"], match[0]


def _script(match):
    """The script is there; it writes into the checkout, so it has tests of its own."""
    assert (ROOT / "experiments" / match[1]).is_file(), match[0]
    named = match[1].rpartition("/")[2].removesuffix(".py")
    tests = (ROOT / "tests" / "experiments").rglob("test_*.py")
    assert any(re.search(rf"\b{named}\b", path.read_text()) for path in tests), named


ELSEWHERE = {
    r"make ([\w-]+)": _make,  # what they install and run is `.ci/run`'s matter
    r"(?:python -m )?pip install .*": _pip,
    r"python experiments/([\w/]+\.py).*": _script,
    r"git clone .*|cd [\w-]+|\. \.venv/bin/activate": None,  # a fresh clone, by hand
}


def elsewhere(command):
    """(a match, what to check) if another test than that of the page answers."""
    for pattern, check in ELSEWHERE.items():
        if match := re.fullmatch(pattern, command):
            return match, check
    return None


@pytest.mark.parametrize("page", PAGES)
def test_other_commands_are_there(page):
    for block in fences.of(page):
        for command in block.commands if block.info == "sh" else ():
            if found := elsewhere(command):
                match, check = found
                if check:
                    check(match)
            else:  # test_pages.py runs it
                assert re.match(r"(\w+=\S+ )*python ", command), f"{page}: {command}"


# ---- the parser


def test_a_block_is_taken_for_what_its_fence_says():
    text = (
        "```python\na\n```\n\nbefore\n\n```\nb\n```\n\nafter\n\n```sh not-run\n"
        "# all\npython x \\\n    --y  # why\n```\n"
    )
    one, two, three = fences.blocks(text)
    assert (one.info, one.code, two.info) == ("python", "a\n", "")
    assert two.around == "before\nafter"
    assert (three.info, three.commands) == ("sh not-run", ["python x --y"])


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("```sh not-run\nsrun x\n```\n", "no word on it"),
        ("```bash\nls\n```\n", "another language"),
        ("```\npython x.py\n```\n", "a command as output"),
    ],
)
def test_a_planted_block_is_found(text, wrong, monkeypatch):
    monkeypatch.setattr(fences, "of", lambda page: fences.blocks(text))
    with pytest.raises(AssertionError):
        test_a_block_says_what_it_is(wrong)


def test_a_planted_command_is_found(monkeypatch):
    text = "*Not run here*:\n\n```sh not-run\nsrun y\n```\n\n```sh\nrm x\n```\n"
    monkeypatch.setattr(fences, "of", lambda page: fences.blocks(text))
    with pytest.raises(AssertionError):
        test_commands_that_are_not_run_are_listed("README")
    with pytest.raises(AssertionError):
        test_other_commands_are_there("README")
