"""Files appear whole: what a reader sees when a write stops between its moves."""

import os

import pytest

from learnopt import atomic


@pytest.fixture
def folder(tmp_path):
    for name in ("first", "second", "last"):
        (tmp_path / name).write_bytes(b"old")
    return tmp_path


def fail_at(monkeypatch, n_moves):
    """Let `n_moves` files be moved, and no more."""
    move, moved = os.replace, []

    def replace(source, target):
        if len(moved) == n_moves:
            raise OSError("stopped")
        moved.append(target)
        move(source, target)

    monkeypatch.setattr(os, "replace", replace)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("names", [["last"], ["first", "last"], ["new/first", "new/last"]])
def test_files_are_written_and_nothing_is_left_beside_them(folder, names):
    before = content(folder)
    atomic.write({folder / name: name.encode() for name in names})
    for name in names:
        assert (folder / name).read_bytes() == name.encode()
    written = {path.name for path in folder.rglob("*") if path.is_file()}
    assert written == before.keys() | {name.split("/")[-1] for name in names}


def test_one_file_that_cannot_be_moved_stays_as_it_was(folder, monkeypatch):
    before = content(folder)
    fail_at(monkeypatch, 0)
    with pytest.raises(OSError, match="stopped"):
        atomic.write({folder / "last": b"new"})
    assert content(folder) == before


@pytest.mark.parametrize("n_moves", [0, 1, 2])
def test_of_several_files_the_last_is_absent_until_all_are_new(folder, monkeypatch, n_moves):
    fail_at(monkeypatch, n_moves)
    with pytest.raises(OSError, match="stopped"):
        atomic.write({folder / name: b"new" for name in ("first", "second", "last")})
    found = content(folder)
    assert "last" not in found
    assert list(found.values()).count(b"new") == n_moves and len(found) == 2


def test_a_file_that_cannot_be_written_is_named_and_changes_nothing(folder):
    before = content(folder)
    (folder / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        atomic.write({folder / "first": b"new", folder / "file" / "last": b"new"})
    assert content(folder) == before | {"file": b""}
