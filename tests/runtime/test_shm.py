"""Files that jobs leave in shared memory when they are killed."""

import mmap
import os

import pytest

from sfb.runtime.shm import describe, leftovers


@pytest.fixture
def folder(tmp_path):
    for name in ("mpich_shm_3255_0", "sm_segment.host.0.1.0", "osc_sm.host.1", "of_others"):
        (tmp_path / name).write_bytes(bytes(8192))
        os.utime(tmp_path / name, (0, 0))
    return tmp_path


def names(folder):
    return [os.path.basename(path) for path in leftovers(str(folder))]


def test_files_that_nobody_uses_are_named(folder):
    found = leftovers(str(folder))
    assert [os.path.basename(path) for path in found] == ["mpich_shm_3255_0", "osc_sm.host.1", "sm_segment.host.0.1.0"]
    text = describe(found)
    assert text.startswith("3 files of jobs that were killed take 0.0 MiB on ")
    assert text.endswith(f"rm {' '.join(found)}")


def test_files_in_use_and_new_ones_are_not(folder):
    with open(folder / "osc_sm.host.1", "rb"):
        assert names(folder) == ["mpich_shm_3255_0", "sm_segment.host.0.1.0"]
    with open(folder / "osc_sm.host.1", "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    assert names(folder) == ["mpich_shm_3255_0", "sm_segment.host.0.1.0"]
    memory.close()
    os.utime(folder / "mpich_shm_3255_0")
    assert names(folder) == ["osc_sm.host.1", "sm_segment.host.0.1.0"]
    assert leftovers(str(folder / "missing")) == {}


def test_of_many_files_some_are_named():
    text = describe({f"/dev/shm/mpich_shm_{i}_0": 1 << 20 for i in range(9)})
    assert text.startswith("9 files of jobs that were killed take 9.0 MiB on ")
    assert text.endswith(
        "rm /dev/shm/mpich_shm_0_0 /dev/shm/mpich_shm_1_0 /dev/shm/mpich_shm_2_0 and 6 more, which sfb doctor names"
    )
