import pytest

from a2os2a_jax.data import pipeline, tree


def below(folder):
    return [
        [p.relative_to(folder).as_posix() for p in part]
        for part in tree.walk(folder)[1:3]
    ]


def make(folder, names):
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_files_come_in_the_order_of_their_paths(tmp_path):
    make(tmp_path, "b.x b/2 b/10 a/c/d a.x B")
    assert below(tmp_path)[0] == ["B", "a/c/d", "a.x", "b/10", "b/2", "b.x"]


def test_litter_is_told_apart_and_not_entered(tmp_path):
    make(tmp_path, "a/Thumbs.db a/@eaDir/x .git/y __MACOSX/a/z Desktop.ini thumbs a.__")
    files, litter = below(tmp_path)
    assert files == ["a.__", "thumbs"]
    assert litter == [".git", "Desktop.ini", "__MACOSX", "a/@eaDir", "a/Thumbs.db"]


def test_links_are_followed_twice_if_they_lead_there_twice(tmp_path):
    make(tmp_path, "in/a/1 more/2")
    for name in ("in/b", "in/a/c"):
        (tmp_path / name).symlink_to(tmp_path / "more")
    assert below(tmp_path / "in")[0] == ["a/1", "a/c/2", "b/2"]


@pytest.mark.parametrize("to", [".", "..", "../../..", "/"])
def test_a_link_to_what_holds_it_is_named(tmp_path, to):
    make(tmp_path, "in/a/1")
    (tmp_path / "in" / "a" / "up").symlink_to(to)
    with pytest.raises(ValueError, match="in/a/up: got a link to /"):
        tree.walk(tmp_path / "in")


def test_two_links_that_lead_to_each_other_are_named(tmp_path):
    make(tmp_path, "a/1 b/2")
    (tmp_path / "a" / "to").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "fro").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match="a/to/fro: got a link to .*a, which holds"):
        tree.walk(tmp_path)


def test_what_cannot_be_read_has_a_reason(tmp_path, monkeypatch, capsys):
    make(tmp_path, "a/1 b/2 c/3")
    (tmp_path / "a" / "gone").symlink_to("nowhere")
    (tmp_path / "a" / "self").symlink_to("self")
    level = tree.level

    def denied(folder):
        if folder.name == "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return level(folder)

    monkeypatch.setattr(tree, "level", denied)
    lost = {p.name: why for p, why in tree.walk(tmp_path).lost}
    assert lost.pop("self")
    assert lost == {"b": "Permission denied", "gone": "a link that leads nowhere"}
    assert [p.name for p in pipeline.files_below(tmp_path)] == ["1", "3"]
    said = capsys.readouterr().err
    assert "passed over 3 that cannot be read, the first " in said
    with pytest.raises(PermissionError):
        tree.walk(tmp_path / "b")
