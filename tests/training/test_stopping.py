"""Reasons to stop a run."""

import signal
import time

import pytest

from sfb.training.stopping import REASONS, Watch

SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


@pytest.mark.parametrize("number", SIGNALS)
def test_signals(number):
    before = [signal.getsignal(each) for each in SIGNALS]
    with Watch(signals=True) as watch:
        assert watch.flags().tolist() == [0, 0]
        signal.raise_signal(number)
        assert watch.flags().tolist() == [1, 0]
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        else:
            signal.raise_signal(number)
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert len(REASONS) == len(watch.flags())


def test_signals_are_left_alone_without_checkpoints(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1")
    before = [signal.getsignal(each) for each in SIGNALS]
    with Watch() as watch:
        assert [signal.getsignal(each) for each in SIGNALS] == before
        assert watch.flags().tolist() == [0, 0]


def test_limits_of_time(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert Watch(limit=1000).flags().tolist() == [0, 0]
    assert Watch(limit=1e-9).flags().tolist() == [0, 1]
    for left, writing, late in ((30, 0, 1), (3000, 0, 0), (3000, 1500, 1)):
        monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + left))
        watch = Watch(signals=True)
        watch.writing = writing
        assert watch.flags().tolist() == [0, late]
    monkeypatch.setenv("SLURM_JOB_END_TIME", "soon")
    assert Watch(signals=True).flags().tolist() == [0, 0]
