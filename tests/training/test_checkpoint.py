"""Checkpoint files, and the folder of the last of them."""

from __future__ import annotations

import errno
import os
import subprocess

import numpy as np
import pytest

from sfb.training import checkpoint
from sfb.training.checkpoint import CheckpointError, DamagedError, Folder, read, write

ARRAYS = {
    "parameter/layer1": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "velocity/layer1": np.array([[np.pi]]),
    "parameter/empty": np.empty((0, 3), np.float32),
}
HEADER = {"position": {"taken": 7}, "loss": 0.1 + 0.2, "text": "λ"}


def folder_of(path, *steps, keep=10):
    folder = Folder(path, keep)
    folder.prepare(resume=False)
    for step in steps:
        folder.save(step, HEADER | {"step": step}, ARRAYS)
    return folder


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "c", HEADER, ARRAYS)
    header, arrays = read(tmp_path / "c")
    assert header == HEADER
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].flags.writeable
    assert os.listdir(tmp_path) == ["c"]


def test_the_format_is_what_the_documentation_says(tmp_path):
    """Read by nothing but the text of docs/training.md."""
    import hashlib
    import json

    write(tmp_path / "c", HEADER, ARRAYS)
    content = (tmp_path / "c").read_bytes()
    assert hashlib.blake2b(content[:-32], digest_size=32).digest() == content[-32:]
    first, second, rest = content[:-32].split(b"\n", 2)
    assert first == b"sfb checkpoint 1"
    described = json.loads(second)
    assert described["header"] == HEADER
    for name, kind, shape in described["arrays"]:
        count = int(np.prod(shape))
        array = np.frombuffer(rest, kind, count).reshape(shape)
        np.testing.assert_array_equal(array, ARRAYS[name])
        rest = rest[count * np.dtype(kind).itemsize :]
    assert not rest


def test_every_damage_is_found(tmp_path, rng):
    path = tmp_path / "c"
    write(path, HEADER, ARRAYS)
    whole = path.read_bytes()
    for cut in {0, 1, len(whole) - 1, *rng.integers(2, len(whole) - 1, 20).tolist()}:
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=str(path)):
            read(path)
    for place in {0, len(whole) - 1, *rng.integers(0, len(whole), 60).tolist()}:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(DamagedError, match="size"):
        read(path)


def test_another_format(tmp_path):
    write(tmp_path / "c", HEADER, ARRAYS)
    content = (tmp_path / "c").read_bytes()
    (tmp_path / "c").write_bytes(content.replace(b"sfb checkpoint 1\n", b"sfb checkpoint 2\n", 1))
    with pytest.raises(CheckpointError, match=r"format 2.*reads format 1") as caught:
        read(tmp_path / "c")
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"sfb checkpoint 1\nnonsense\n", b"\x80\x04pickle"])
def test_other_files(tmp_path, content):
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(DamagedError):
        read(tmp_path / "c")


def test_only_numbers_are_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "c", {"loss": float("nan")}, {})
    with pytest.raises(ValueError, match="contiguous"):
        write(tmp_path / "c", {}, {"a": np.zeros((3, 4)).T})
    assert not os.listdir(tmp_path)


def test_the_last_are_kept(tmp_path):
    folder = folder_of(tmp_path, 5, 10, 100, 20_000_000_000, keep=2)
    assert folder.steps() == [100, 20_000_000_000]
    assert len(os.listdir(tmp_path)) == 2


def test_the_newest_that_is_whole(tmp_path):
    folder = folder_of(tmp_path, 1, 2, 3)
    (header, _), damaged = folder.newest()
    assert header["step"] == 3
    assert not damaged
    path = folder.file(3)
    path.write_bytes(path.read_bytes()[:-5])
    (header, _), damaged = folder.newest()
    assert header["step"] == 2
    assert len(damaged) == 1
    assert str(path) in damaged[0]
    for step in (1, 2):
        folder.file(step).write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint is left"):
        folder.newest()


def test_a_newer_version_is_not_passed_over(tmp_path):
    folder = folder_of(tmp_path, 1, 2)
    folder.file(2).write_bytes(b"sfb checkpoint 9\n{}\n")
    with pytest.raises(CheckpointError, match="format 9"):
        folder.newest()


def test_a_run_begins_or_goes_on(tmp_path):
    new = tmp_path / "a" / "b"
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        Folder(new, 1).prepare(resume=True)
    folder = folder_of(new, 4)
    folder.prepare(resume=True)
    with pytest.raises(CheckpointError, match=r"up to step 4 of another run.*--resume"):
        folder.prepare(resume=False)
    assert folder.steps() == [4]


def test_what_a_killed_run_left_is_removed(tmp_path):
    folder = folder_of(tmp_path, 1)
    left = tmp_path / ".checkpoint-0000000002.sfb.4711"
    left.write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("the user's")
    folder.prepare(resume=True)
    assert not left.exists()
    assert (tmp_path / "notes.txt").exists()


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write checkpoints"):
        Folder(tmp_path / "file", 1).prepare(resume=False)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(checkpoint.os, "fsync", refuse)
    with pytest.raises(CheckpointError, match="Read-only file system"):
        Folder(tmp_path, 1).prepare(resume=False)


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_failure_leaves_the_old_ones_whole(tmp_path, monkeypatch, moment):
    """Whether the disk is full while data is written, when it is flushed, or when the file takes its name."""
    folder = folder_of(tmp_path, 1, 2, keep=2)
    before = {step: folder.file(step).read_bytes() for step in (1, 2)}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if moment == "write":
            patch.setattr(checkpoint._Hashed, "write", full)
        elif moment == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(checkpoint.Path, "replace", full)
        with pytest.raises(CheckpointError, match="No space left"):
            folder.save(3, HEADER, ARRAYS)
    assert sorted(os.listdir(tmp_path)) == [folder.file(step).name for step in (1, 2)]
    assert {step: folder.file(step).read_bytes() for step in (1, 2)} == before
    folder.save(3, HEADER, ARRAYS)
    assert folder.steps() == [2, 3]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_file_system(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        folder = folder_of(disk, 1)
        before = folder.file(1).read_bytes()
        with pytest.raises(CheckpointError, match="No space left on device"):
            folder.save(2, HEADER, {"parameter/w": np.zeros((100, 1000))})
        assert folder.steps() == [1]
        assert folder.file(1).read_bytes() == before
        assert len(os.listdir(disk)) == 1
        folder.save(2, HEADER, ARRAYS)
    finally:
        subprocess.run(["umount", disk], check=True)
