"""The files around the package agree with each other and name no machine."""

import hashlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# An absolute path on somebody's machine; an address's own slashes do not count.
MACHINE_PATH = re.compile(rb"(?<![\w./~-])/(?:work|root|home|Users|mnt)/[\w.]")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict:
    return tomllib.loads(read("pyproject.toml"))


def requirements(text: str) -> list[str]:
    """Lines without comments and blanks."""
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def test_no_file_names_a_machine():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout: which files are ours is not known")
    files = [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]!r}"
        for path in files
        if path.is_file()
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("folder", ["work", "root", "home", "Users"])
def test_a_planted_machine_path_is_found(folder):
    assert MACHINE_PATH.search(f'open("/{folder}/me/x.npz")'.encode())
    assert not MACHINE_PATH.search(f"https://example.org/{folder}/me".encode())
    assert not MACHINE_PATH.search(f"../{folder}/me".encode())


def test_extra_train_is_requirements_txt():
    train = project()["project"]["optional-dependencies"]["train"]
    assert train == requirements(read("requirements.txt"))


def test_every_dependency_has_two_bounds_and_the_same_everywhere():
    table = project()["project"]
    extras = table["optional-dependencies"].values()
    bounds: dict[str, str] = {}
    for line in [*table["dependencies"], *(line for extra in extras for line in extra)]:
        if line.startswith(table["name"]):
            continue  # one of our own extras
        name, bound = re.fullmatch(r"([\w-]+)(?:\[\w+\])?(.*)", line).groups()
        assert re.fullmatch(r">=[\d.]+,<[\d.]+", bound), line
        assert bounds.setdefault(name, bound) == bound, line


def test_plain_install_brings_jax_and_numpy_only():
    lines = project()["project"]["dependencies"]
    assert [re.match(r"[\w-]+", line)[0] for line in lines] == ["jax", "numpy"]


def test_the_version_stands_in_one_place():
    table = project()
    assert table["project"]["dynamic"] == ["version"]
    where = table["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert where == "a2os2a_jax.__version__"
    (version,) = re.findall(
        r'^__version__ = "(\d+\.\d+\.\d+)"$', read("a2os2a_jax/__init__.py"), re.M
    )
    sources = [path.relative_to(ROOT) for path in ROOT.glob("a2os2a_jax/**/*.py")]
    assigned = re.compile(r"(?m)^_*version_* *[:=] *[\"']?\d")
    for name in ["pyproject.toml", "CITATION.cff", *sources]:
        expected = 1 if str(name) == "a2os2a_jax/__init__.py" else 0
        assert len(assigned.findall(read(name))) == expected, name
    assert version in read("CHANGELOG.md")


def test_citation_names_the_paper_and_its_six_authors():
    import yaml  # comes with flax and ml_collections

    paper = yaml.safe_load(read("CITATION.cff"))["preferred-citation"]
    names = [f"{a['given-names']} {a['family-names']}" for a in paper["authors"]]
    assert names == [
        "Yufei Guo",
        "Xiaode Liu",
        "Yuanpei Chen",
        "Weihang Peng",
        "Yuhan Zhang",
        "Zhe Ma",
    ]
    assert "Addition-Only Spiking Self-Attention" in paper["title"]
    assert paper["identifiers"][0]["value"] == "arXiv:2503.00226"


def test_licence_is_the_one_announced():
    assert project()["project"]["license"] == "Apache-2.0"
    assert "Apache License\n" in read("LICENSE")
    assert "Version 2.0, January 2004" in read("LICENSE")
    assert "END OF TERMS AND CONDITIONS" in read("LICENSE")


def test_reference_outputs_are_those_described():
    table = dict(
        re.findall(r"\| `(\w+\.npz)` .*`([0-9a-f]{64})`", read("tests/data/README.md"))
    )
    files = {path.name: path for path in (ROOT / "tests" / "data").glob("*.npz")}
    assert table.keys() == files.keys()
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == table[name], name
