import json

from click.testing import CliRunner
from mpi4py import MPI

from sfb.bench import kernels
from sfb.cli import cli


def test_every_kernel_has_a_row(tmp_path):
    config = kernels.Config(shapes=[(20, 30), (3, 5)], depths=[0, 1, 40], threads=2, iterations=2, seconds=0.1)
    rows = kernels.run(MPI.COMM_SELF, config, json_file=tmp_path / "rows.json")
    assert [(r["kernel"], r["K"], r["m"]) for r in rows] == [
        (name, rows_, m) for rows_ in (20, 3) for name in kernels.KERNELS for m in (0, 1, 40)
    ]
    assert all(row["seconds"] > 0 and row["other_seconds"] > 0 and row["limit"] > 0 for row in rows)
    assert json.loads((tmp_path / "rows.json").read_text())["results"] == rows


def test_the_command_prints_and_draws(tmp_path):
    plot = tmp_path / "roofline.png"
    arguments = ["bench", "kernels", "--shapes", "8x9", "-m", "1:2", "-k", "adam", "-n", "1", "--plot", str(plot)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split()[:4] for line in lines if line[0] != "#"] == [["adam", "8", "9", "1"], ["adam", "8", "9", "2"]]
    assert plot.read_bytes().startswith(b"\x89PNG")
