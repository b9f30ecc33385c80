"""The benchmarks of topics and factors."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from mpi4py import MPI

pytest.importorskip("sklearn")

from sfb.bench import factorization, lda, slow
from sfb.cli import cli


def test_every_topic_and_candidate_has_a_row(tmp_path):
    candidates = ["sfb"]
    for name in ("tomotopy", "gensim"):
        try:
            __import__(name)
        except ImportError:
            continue
        candidates.append(name)
    config = lda.Config(
        topics=[3, 7], documents=60, words=80, length=20, candidates=candidates, sweeps=2, warmups=1, blocks=2
    )
    rows = lda.run(MPI.COMM_SELF, config, json_file=tmp_path / "rows.json")
    assert [(row["candidate"], row["topics"]) for row in rows] == [(name, k) for k in (3, 7) for name in candidates]
    assert all(row["rate"] > 0 for row in rows)
    assert json.loads((tmp_path / "rows.json").read_text())["results"] == rows


def test_documents_and_ratings_are_the_same_in_parts():
    whole = lda.made_corpus(2500, 40, 10, 3)
    parts = [lda.made_corpus(2500, 40, 10, 3, *ends) for ends in ((0, 700), (700, 700), (700, 2100), (2100, 2500))]
    np.testing.assert_array_equal(np.vstack([part.toarray() for part in parts]), whole.toarray())
    whole = factorization.made_ratings(2500, 30, 20_000, 3)
    parts = [factorization.made_ratings(2500, 30, 20_000, 3, *ends) for ends in ((0, 999), (999, 2001), (2001, 2500))]
    np.testing.assert_array_equal(np.vstack([part.toarray() for part in parts]), whole.toarray())
    assert set(np.unique(whole.data)) <= {1, 2, 3, 4, 5}


def test_every_factor_and_candidate_has_a_row():
    candidates = ["als-cg", "als-cholesky", "sgd"]
    config = factorization.Config(
        users=50, items=30, ratings=500, factors=[2, 5], candidates=candidates, epochs=2, warmups=1
    )
    rows = factorization.run(MPI.COMM_SELF, config)
    assert [(row["candidate"], row["factors"]) for row in rows] == [(name, k) for k in (2, 5) for name in candidates]
    assert all(row["seconds"] > 0 for row in rows)


def test_implicit_beside_us():
    pytest.importorskip("implicit")
    config = factorization.Config(users=50, items=30, ratings=500, factors=[2], epochs=1, warmups=1)
    assert [row["candidate"] for row in factorization.run(MPI.COMM_SELF, config)] == list(factorization.CANDIDATES)


def test_a_slow_rank(tmp_path):
    config = slow.Config(passes=[0, 2], seconds=0.05, size=40, topics=3, factors=2, slow=1.5)
    rows = slow.run(MPI.COMM_SELF, config, plot=tmp_path / "slow.png")
    assert {(row["model"], row["passes"]) for row in rows} == {(m, p) for m in ("lda", "mf") for p in (0, 2)}
    for row in rows:
        assert np.isfinite(row["objective"])
        assert row["extra"] == 0  # a rank alone has nobody to wait for
    assert (tmp_path / "slow.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments",
    [
        ["lda", "-K", "3", "--documents", "20", "--words", "30", "--length", "9", "-a", "sfb", "-n", "1"],
        ["mf", "-K", "2", "--users", "20", "--items", "9", "--ratings", "99", "-a", "sgd", "-n", "1"],
        ["slow", "-m", "mf", "--passes", "1", "-t", "0.01", "--size", "20"],
    ],
)
def test_the_commands(arguments):
    result = CliRunner().invoke(cli, ["bench", *arguments])
    assert result.exit_code == 0, result.output
    assert any(line[0] != "#" for line in result.output.splitlines())
