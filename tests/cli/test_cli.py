import json
import subprocess
import sys

import pytest

pytest.importorskip("sklearn")


def process(*arguments, code=0):
    """Run the command in a process of its own; return its output and its error output."""
    done = subprocess.run(
        [sys.executable, "-m", "sfb", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


SMALL = ("--data", "digits", "--epochs", 2, "--hidden", "20,20")


def test_train_and_compare(sfb, tmp_path):
    for comm in ("mpi", "auto"):
        out, _ = sfb("train", "mlp", *SMALL, "--comm", comm, "-J", tmp_path / f"{comm}.json")
        assert "epoch 2/2" in out
        assert "replicas identical: yes" in out
    out, _ = sfb(
        "compare", tmp_path / "mpi.json", tmp_path / "auto.json", "-J", tmp_path / "both.json",
        "--plot", tmp_path / "both.png",
    )  # fmt: skip
    for word in ("test accuracy", "time per step", "exchange per step", "bytes per step", "ratio"):
        assert word in out
    both = json.loads((tmp_path / "both.json").read_text())
    assert set(both["runs"]) == {"mpi", "auto"}
    assert both["runs"]["auto"]["epochs"][1]["epoch"] == 2
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    long = [tmp_path / f"{'a-long-name-' * 9}{n}.json" for n in (1, 2)]
    for path in long:  # a table in a pipe does not cut names
        path.write_bytes((tmp_path / "mpi.json").read_bytes())
    out, _ = sfb("compare", *long)
    assert all(str(path) in out for path in long)
    assert "bytes per step and rank" in out


def test_bench(sfb, tmp_path):
    out, _ = sfb(
        "bench", "allreduce", "-K", 20, "-D", "10,30", "-S", "1:3", "-n", 2, "-J", tmp_path / "b.json",
        "--plot", tmp_path / "b.png",
    )  # fmt: skip
    rows = json.loads((tmp_path / "b.json").read_text())["results"]
    assert {(row["D"], row["S"]) for row in rows} == {(d, s) for d in (10, 30) for s in (1, 2, 3)}
    assert "#wrong" in out
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_bench_of_csr(sfb, tmp_path):
    small = "bench", "allreduce", "-K", 20, "-D", 300, "-S", 3, "-n", 2, "--filled", 0.05
    out, _ = sfb(*small, "-a", "node", "-r", "sgd")
    rows = [line.split() for line in out.splitlines() if not line.startswith("#")]
    assert [row[3] for row in rows] == ["mpi", "densified", "node"]
    _, err = sfb(*small, "-a", "sharded", code=1)
    assert "sharded do not take CSR v" in err


def test_bench_of_shapes_and_its_choice(sfb, tmp_path):
    sfb("bench", "allreduce", "--shapes", "8x9,20x10", "-S", 2, "-n", 2, "-r", "momentum", "-J", tmp_path / "b.json")
    rows = json.loads((tmp_path / "b.json").read_text())["results"]
    assert {(row["K"], row["D"]) for row in rows} == {(8, 9), (20, 10)}
    out, _ = sfb("bench", "choice", tmp_path / "b.json", "--plot", tmp_path / "b.png")
    assert "| 1 ranks, 1 node | 20×10 | 2 |" in out
    assert "of 2 cells" in out
    assert "median error" in out
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("content", ["{}", "not json", '{"environment": {"hosts": [], "ranks": 1}, "results": [{}]}'])
def test_choice_refuses_other_json(sfb, tmp_path, content):
    (tmp_path / "other.json").write_text(content)
    _, err = sfb("bench", "choice", tmp_path / "other.json", code=1)
    assert "not what sfb bench allreduce -J wrote" in err


def test_bench_overlap(sfb, tmp_path):
    out, _ = sfb("bench", "overlap", "-K", 30, "-D", 20, "-S", 2, "-n", 2, "-J", tmp_path / "o.json")
    assert "overlap(%)" in out
    rows = json.loads((tmp_path / "o.json").read_text())["results"]
    assert [row["candidate"] for row in rows] == ["mpi", "thread", "poll"]
    assert all(0 <= row["overlap"] <= 100 for row in rows)


def test_tune_and_explain(sfb, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    out, _ = sfb("tune", "-t", 0.1, "-o", tmp_path / "p.json")
    assert "measured on 1 ranks" in out
    assert len(list(tmp_path.glob("sfb/profile-*.json"))) == 1
    out, _ = sfb("explain", "--profile", tmp_path / "p.json", "--ranks", 8, "--nodes", 2)
    assert "times measured on 1 ranks" in out
    for name in ("node", "broadcast", "dense", "sharded", "taken:"):
        assert name in out
    monkeypatch.setenv("SFB_PROFILE", str(tmp_path / "p.json"))
    assert "times measured" in sfb("explain")[0]
    out, _ = sfb("explain", "-K", 50, "-D", 47000, "-S", 64, "--filled", 0.002)
    assert "256 samples with 24064 non-zeros in CSR v of 4 ranks" in out
    _, err = sfb("train", "mlp", *SMALL)
    assert "elsewhere" not in err


def test_a_profile_that_is_none(sfb, tmp_path, monkeypatch):
    (tmp_path / "p.json").write_text("{")
    assert "not JSON" in sfb("explain", "--profile", tmp_path / "p.json", code=1)[1]
    monkeypatch.setenv("SFB_PROFILE", str(tmp_path / "p.json"))
    assert "not JSON" in sfb("bench", "allreduce", "-K", 4, "-D", 4, "-S", 1, code=1)[1]


def test_a_cut_off_profile_says_what_to_do(sfb, tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"format": 1,')
    assert f"sfb tune -o {path} writes a new one" in sfb("explain", "--profile", path, code=1)[1]


def test_a_profile_without_a_cache(sfb, tmp_path, monkeypatch):
    """A user without a home, and a cache that cannot be written, cost nothing but the cache."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    out, err = sfb("tune", "-t", 0.1, "-o", tmp_path / "p.json")
    assert "measured on 1 ranks" in out
    assert f"SFB_PROFILE={tmp_path / 'p.json'} selects the file" in err
    assert json.loads((tmp_path / "p.json").read_text())["format"] == 1
    out, err = sfb("tune", "-t", 0.1, code=1)
    assert "measured on 1 ranks" in out
    assert "-o FILE writes it elsewhere" in err


def test_encodings_without_our_letters(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    out, _ = process("train", "mlp", *SMALL, "-J", tmp_path / "run.json")
    assert "replicas identical: yes" in out
    assert "layer1  20x64  " in out
    assert json.loads((tmp_path / "run.json").read_text())["epochs"]
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    assert "halton" in process("topology", "halton", 8)[0]


def test_click_writes_ascii_too(monkeypatch):
    import io

    import click

    from sfb.cli.letters import spell

    file = io.BytesIO()
    stream = io.TextIOWrapper(file, "ascii")
    spell(stream)
    monkeypatch.setattr(sys, "stdout", stream)
    click.echo("8×8 → λ₁, 行")
    stream.flush()
    assert file.getvalue() == b"8x8 -> lambda1, ?\n"


def test_a_package_without_its_metadata(monkeypatch):
    from importlib import metadata

    import numpy as np
    from mpi4py import MPI

    from sfb.environment import describe

    def missing(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", missing)
    assert describe(MPI.COMM_SELF)["numpy"] == np.__version__


def test_bench_exits_with_1_when_results_are_wrong(monkeypatch, capsys):
    from sfb import cli
    from sfb.bench import allreduce

    monkeypatch.setattr(allreduce._Oracle, "wrong", lambda *args: 1)
    monkeypatch.setattr(sys, "argv", ["sfb", "bench", "allreduce", "-K", "4", "-D", "4", "-S", "1", "-n", "1"])
    assert cli.run() == 1


def test_warmup(sfb):
    out, _ = sfb("warmup")
    assert "cached" in out


def test_version_and_help(sfb):
    assert sfb("--version")[0].startswith("sfb, version")
    assert "Examples:" in sfb("--help")[0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "cnn"], 2, "'cnn'"),
        (["train", "mlp", "--comm", "ring"], 2, "'ring'"),
        (["train", "mlp", "--epochs", "0"], 2, "0"),
        (["train", "mlp", "--lr", "-1"], 2, "-1"),
        (["train", "mlp", "--hidden", "a"], 2, "'a'"),
        (["train", "mlp", "--lr", "nan"], 2, "finite"),
        (["train", "mlp", "--weight-decay", "inf"], 2, "finite"),
        (["bench", "allreduce", "--plot", "x.txt"], 2, ".png"),
        (["train", "mlp", "-J", "no/such/folder/x.json"], 2, "folder"),
        (["train", "mlp", "--data", "missing.npz"], 1, "no such file"),
        (["train", "mlp", "--data", "imagenet"], 1, "expected mnist"),
        (["bench", "allreduce", "-S", "5:1"], 2, "ends before"),
        (["bench", "allreduce", "-K", "0"], 2, "less than 1"),
        (["bench", "allreduce", "-d", "float16"], 2, "float16"),
        (["compare", "missing.json"], 2, "missing.json"),
        (["bench", "allreduce", "--shapes", "4x"], 2, "not a list of shapes"),
        (["bench", "allreduce", "-b", "1M", "-e", "8"], 1, "-b must not be above -e"),
        (["bench", "allreduce", "-b", "1T"], 2, "64K or 128M"),
        (["bench", "allreduce", "-e", "8", "--link", "fast"], 1, "1Gbit/s"),
        (["bench", "allreduce", "-d", "int32"], 1, "plain arrays"),
        (["explain", "--ranks", "2", "--nodes", "3"], 1, "cannot fill"),
    ],
)
def test_wrong_usage(sfb, arguments, code, message):
    _, err = sfb(*arguments, code=code)
    assert message in err
    assert "Traceback" not in err


def test_compare_refuses_other_json(sfb, tmp_path):
    path = tmp_path / "other.json"
    for content in ("{}", "not json", '{"format": 1, "epochs": []}'):
        path.write_text(content)
        assert "not a run" in sfb("compare", path, code=1)[1] or "expected format" in sfb("compare", path, code=1)[1]


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_divergence_ends_with_a_message(sfb):
    _, err = sfb("train", "mlp", *SMALL, "--lr", 1e6, code=1)
    assert "smaller learning rate" in err


def test_import_does_not_start_mpi_or_numba():
    code = "import sys, sfb; sfb.Factors; sfb.optim; print('mpi4py.MPI' in sys.modules, 'numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]


def test_bench_of_plain_arrays(sfb, tmp_path):
    out, _ = sfb(
        "bench", "allreduce", "-b", "1K", "-e", "4K", "-n", 1, "-d", "int64", "-o", "max", "-J", tmp_path / "a.json",
        "--plot", tmp_path / "a.png",
    )  # fmt: skip
    rows = json.loads((tmp_path / "a.json").read_text())["results"]
    assert [row["bytes"] for row in rows] == [1024, 2048, 4096]
    assert all(row["added"] == row["sfb_seconds"] - row["mpi_seconds"] for row in rows)
    assert "added(us)" in out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [line.split()[:2] for line in out.splitlines() if line[0] != "#"] == [
        ["1024", "128"],
        ["2048", "256"],
        ["4096", "512"],
    ]


def test_bench_store_and_consistency(sfb):
    out, _ = sfb("bench", "store", "-K", 8, "-D", 9, "-S", "0,1", "--topology", "ring", "-n", 1)
    assert [line.split()[1] for line in out.splitlines() if line[0] != "#"] == ["Allreduce", "ring"] * 2
    out, _ = sfb("bench", "consistency", "--data", "digits", "--steps", 3, "--compute", 0, "--modes", "bsp,ssp:2")
    assert [line.split()[0] for line in out.splitlines() if line[0] != "#"] == ["bsp", "ssp:2"]
    assert "bsp, ssp:S or asp, got 'ssp'" in sfb("bench", "consistency", "--modes", "ssp", code=1)[1]
    wrong = sfb("bench", "consistency", "--data", "digits", "--bandwidth", "fast", code=1)[1]
    assert "1Gbit/s" in wrong
    assert "fifo" in sfb("bench", "consistency", "--data", "digits", "--priority", "best", code=1)[1]


def test_bench_torch(sfb, tmp_path):
    pytest.importorskip("torch")
    out, _ = sfb(
        "bench", "torch", "-m", "mlp", "-l", "20,300,300,4", "-S", "1,2", "-a", "attach", "-n", 1, "-w", 1,
        "-J", tmp_path / "t.json", "--plot", tmp_path / "t.png",
    )  # fmt: skip
    rows = json.loads((tmp_path / "t.json").read_text())["results"]
    assert [(row["samples"], row["candidate"]) for row in rows] == [
        (s, c) for s in (1, 2) for c in ("ddp-gloo", "attach")
    ]
    assert "#wrong" in out
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    assert "expected models of mlp, embedding, conv, got x, y" in sfb("bench", "torch", "-m", "x,mlp,y", code=1)[1]
    assert "at least two widths" in sfb("bench", "torch", "-l", "10", code=1)[1]


def test_bench_torch_without_torch(monkeypatch, capsys):
    from sfb import cli

    monkeypatch.setattr("sfb.cli.bench.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["sfb", "bench", "torch"])
    assert cli.run() == 1
    assert "pip install 'sfb-mpi[torch]'" in capsys.readouterr().err


def test_bench_torch_exits_with_1_when_weights_are_wrong(monkeypatch, capsys):
    pytest.importorskip("torch")
    from sfb import cli
    from sfb.bench import training

    monkeypatch.setattr(training.Trainer, "difference", lambda *args: (1.0, 1))
    monkeypatch.setattr(sys, "argv", ["sfb", "bench", "torch", "-m", "mlp", "-l", "4,3", "-a", "local", "-n", "1"])
    assert cli.run() == 1
    assert capsys.readouterr().out.endswith("# wrong: 1\n")
