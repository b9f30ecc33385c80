"""Communicators and shared arrays that come and go; `tests/support/leaks.py` makes ten thousand."""

import leaks
import pytest

import sfb

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("unwatched")]


def growth(run, subject):
    """Return what a process holds in addition after some more rounds, without memory, which settles late."""
    leaks.held()  # collects what earlier tests have left, which the next rounds free
    run(subject, 8)
    before = leaks.held()
    run(subject, 24)
    return {key: value - before[key] for key, value in leaks.held().items() if key != "MiB"}


def test_communicators(world):
    assert not any(growth(leaks.communicators, world).values())


def test_shared_arrays(world):
    with sfb.Comm(world) as comm:
        assert not any(growth(leaks.arrays, comm).values())
