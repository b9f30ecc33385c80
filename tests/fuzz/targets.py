"""What sfb parses, as functions of bytes: each raises what is documented, which counts as a refusal, or nothing."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import math
import os
import shlex
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import click
import numpy as np

__all__ = ["Target", "targets"]


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        run: Parses bytes; what it raises beyond ``refusals`` is a fault.
        refusals: The errors by which the parser may refuse.
        seeds: Inputs that are right, to be damaged.
    """

    run: Callable[[bytes], object]
    refusals: tuple[type[BaseException], ...]
    seeds: tuple[bytes, ...]

    def __call__(self, data: bytes) -> bool:
        """Parse an input; return whether it was refused, and raise whatever must not be raised."""
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            try:
                self.run(data)
            except self.refusals as error:
                if not str(error) and not isinstance(error, click.exceptions.Exit):
                    raise AssertionError("a refusal without a message") from error
                return True
        return False


def targets(folder: Path) -> dict[str, Target]:
    """Return all parsers by name.

    Args:
        folder: Where they may write files.
    """
    made: dict[str, Target] = {}
    for add in (_texts, _commands, _json, _checkpoints, _models, _data, _archives, _reports, _messages):
        made |= add(folder)
    return made


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: parse(data.decode("utf-8", "replace"))


def _file(path: Path, parse: Callable[[Path], object]) -> Callable[[bytes], object]:
    def run(data: bytes) -> object:
        path.write_bytes(data)
        return parse(path)

    return run


def _texts(folder: Path) -> dict[str, Target]:
    from sfb import topology
    from sfb.doctor import scheduler
    from sfb.launch import launched
    from sfb.training.config import TrainingError, consistency_of
    from sfb.units import format_bytes, format_duration, format_size, parse_duration, parse_rate, parse_size

    def environment(text: str) -> None:
        values = (text.replace("\0", "").split("|") + [""] * 4)[:4]
        names = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_CPUS_PER_TASK")
        given = dict(zip(names, values, strict=True))
        scheduler.judge(scheduler.facts(given), ["a", "b"], [1, 1], 1)
        before = os.environ.get("SLURM_STEP_NUM_TASKS")
        try:
            os.environ["SLURM_STEP_NUM_TASKS"] = values[2].encode("utf-8", "replace").decode()
            launched()
        finally:
            os.environ.pop("SLURM_STEP_NUM_TASKS")
            if before is not None:
                os.environ["SLURM_STEP_NUM_TASKS"] = before

    return {
        "size": Target(_text(lambda t: format_size(parse_size(t))), (ValueError,), (b"64K", b" 1 MiB", b"7B")),
        "rate": Target(
            _text(lambda t: format_bytes(parse_rate(t))), (ValueError,), (b"1Gbit/s", b"1.5e3 MiB/s", b"9bps")
        ),
        "duration": Target(
            _text(lambda t: format_duration(parse_duration(t))),
            (ValueError,),
            (b"1h30m", b"2d", b"1-02:03:04", b"90 s"),
        ),
        "consistency": Target(_text(consistency_of), (TrainingError,), (b"ssp:3", b"bsp", b"asp")),
        "topology": Target(_text(lambda t: topology.create(t, 5)), (ValueError,), (b"halton", b"ring", b"hypercube")),
        "environment": Target(_text(environment), (), (b"1|4(x2)|4|2", b"7|2|2|1")),
    }


def _commands(folder: Path) -> dict[str, Target]:
    from sfb.cli.bench import bench
    from sfb.cli.common import Bytes, Shapes, Sizes
    from sfb.cli.doctor import doctor
    from sfb.cli.main import cli
    from sfb.cli.train import train

    commands = {"train": train, "doctor": doctor, "soak": cli.commands["soak"], "explain": cli.commands["explain"]}
    commands |= {f"bench {name}": command for name, command in bench.commands.items()}
    commands |= {"predict": cli.commands["predict"], "topology": cli.commands["topology"]}

    def line(text: str) -> None:
        try:
            words = shlex.split(text.replace("\0", ""))
        except ValueError:
            words = text.split()
        name = words[0] if words and words[0] in commands else "train"
        commands[name].make_context(name, words[1:])

    def option(kind: click.ParamType) -> Callable[[bytes], object]:
        return _text(lambda text: kind.convert(text, None, None))

    def toml(path: Path) -> None:
        train.make_context("train", ["mlp", "--config", str(path)])

    wrong = (click.ClickException, click.exceptions.Exit)
    lines = (
        b"train mlp --hidden 20,20 --lr 0.1 --epochs 2 --sync ssp:3 --time-limit 1h",
        b"train lasso --data x.svm --seed 3", b"soak --minutes 0.1 --seed 7 --first 3 -J out.json",
        b"doctor -t 7", b"explain -K 10 -D 20 --ranks 4 --nodes 2",
        b"'bench allreduce' -K 1:100 -D 4096 -S 1,10 -d float32",
        b"topology halton 64 --plot a.png",
    )  # fmt: skip
    config = (
        b'lr = 0.1\nhidden = [20, 30]\nepochs = 3\noverlap = true\nsync = "ssp:3"\n',
        b'model = "mlp"\nbatch-size = 64\n',
        b'[data]\nx = 1\n', b'seed = 1979-05-27\nlr = 1e3\ntargets = "numbers"\n',
    )  # fmt: skip
    return {
        "sizes": Target(option(Sizes(1)), wrong, (b"1:100", b"1,10,100", b"7")),
        "shapes": Target(option(Shapes()), wrong, (b"10x20,30x40", b"4096x4096")),
        "bytes": Target(option(Bytes()), wrong, (b"64K", b"1G")),
        "command line": Target(_text(line), wrong, lines),
        "TOML": Target(_file(folder / "c.toml", toml), wrong, config),
    }


def _json(folder: Path) -> dict[str, Target]:
    from sfb.tuning.profile import EXCHANGES, Place, Profile, ProfileError, Use

    kinds = (*EXCHANGES, "rebuild", "pass")

    def profile(path: Path) -> None:
        found = Profile.load(path)
        for kind in kinds:
            for amount in (0.0, 1.0, 1e9):
                seconds = found.seconds(Use(kind, amount, 3.0), Place(4, 2, 2, 2.0))
                assert not math.isnan(seconds)
        found.describe()
        assert Profile.from_json(found.to_json()) == found

    measured = Profile(
        tables={
            "sync": [(8.0, 1e-6), (1024.0, 2e-6)], "rebuild/small": [(1.0, 1e-9)],
            "rebuild/large": [(1.0, 1e-9), (8.0, 2e-9)],
        },
        overheads={"node": 1e-6}, identity={"hosts": ["a"]},
    )  # fmt: skip
    seeds = tuple(each.to_json().encode() for each in (Profile(), measured))
    return {"profile": Target(_file(folder / "profile.json", profile), (ProfileError,), seeds)}


def _checkpoints(folder: Path) -> dict[str, Target]:
    from sfb.training.checkpoint import CheckpointError, Folder, read, write

    path = folder / "seed.sfb"
    arrays = {"w": np.arange(6.0).reshape(2, 3), "b": np.zeros(0, np.float32), "m": np.ones((2, 1, 2), np.float32)}
    write(path, {"step": 3, "position": {"taken": 3}}, arrays)
    seed = path.read_bytes()

    def resealed(data: bytes) -> None:
        """Read a file whose content is damaged, but whose checksum fits."""
        body = data[:-32]
        path.write_bytes(body + blake2b(body, digest_size=32).digest())
        read(path)

    def newest(path: Path) -> None:
        Folder(path.parent, 1).newest()

    own = folder / "run"
    own.mkdir(exist_ok=True)
    return {
        "checkpoint": Target(_file(own / "checkpoint-0000000003.sfb", newest), (CheckpointError,), (seed,)),
        "resealed checkpoint": Target(resealed, (CheckpointError,), (seed,)),
    }


# The contents of model files: what the header says, and the shape and dtype of each array.
_MODELS = (
    ({"kind": "linear", "out_activation": "softmax"},
     {"coef": [[3, 2], "<f4"], "intercept": [[3], "<f4"], "classes": [[3], "<i8"]}),
    ({"kind": "mlp", "activation": "relu", "out_activation": "identity"},
     {"weights0": [[3, 2], "<f8"], "bias0": [[3], "<f8"], "weights1": [[1, 3], "<f8"], "bias1": [[1], "<f8"]}),
    ({"kind": "nearest"},
     {"components": [[2, 2], "<f8"], "references": [[3, 2], "<f8"], "classes": [[4], "<U3"], "labels": [[3], "<i4"]}),
    ({"kind": "dictionary", "alpha": 0.5, "split_sign": True}, {"components": [[3, 2], "<f4"]}),
    ({"kind": "factorization", "mean": 3.5, "rating_range": [1, 5]},
     {"user_factors": [[3, 2], "<f4"], "item_factors": [[4, 2], "<f4"], "user_biases": [[3], "<f4"],
      "item_biases": [[4], "<f4"],
      "users": [[3], "<U4"]}),
    ({"kind": "lda", "mean_change_tol": 0.1, "max_doc_update_iter": 9},
     {"components": [[3, 2], "<f8"], "doc_topic_prior": [[3], "<f8"]}),
)  # fmt: skip


def _models(folder: Path) -> dict[str, Target]:
    from sfb.models.saved.files import load
    from sfb.models.saved.predictors import ModelError

    path = folder / "model.npz"

    def use(path: Path) -> None:
        model = load(path)
        repr(model)
        x = np.ones((2, model.n_features_in_ if model.n_features_in_ < 1000 else 1))
        with contextlib.suppress(ValueError):  # the samples may not fit
            if model.kind == "factorization":
                model.predict([0], [0])
            else:
                getattr(model, "predict", getattr(model, "transform", None))(x)

    def contents(data: bytes) -> None:
        """Use a file of arrays that a text describes."""
        try:
            header, arrays = json.loads(data)
            made = {str(name): _array(*each) for name, each in arrays.items()}
        except (ValueError, TypeError, AttributeError, RecursionError, MemoryError, OverflowError, SyntaxError):
            return
        made.pop("file", None)
        made["header"] = np.array(json.dumps(header))
        try:
            np.savez(path, **made)
        except (ValueError, UnicodeError, TypeError):  # not what an archive can hold
            return
        use(path)

    seeds = []
    for header, arrays in _MODELS:
        contents(json.dumps([{"format": 1, "sfb": "0", **header}, arrays]).encode())
        seeds.append(path.read_bytes())
    texts = tuple(json.dumps([{"format": 1, "sfb": "0", **header}, arrays]).encode() for header, arrays in _MODELS)
    return {
        "model": Target(_file(path, use), (ModelError,), tuple(seeds)),
        "contents of a model": Target(contents, (ModelError,), texts),
    }


def _array(shape: list, kind: str) -> np.ndarray:
    """Return a small array of some shape and dtype, of rising elements."""
    sizes = [int(n) for n in shape]
    if math.prod(sizes) > 10_000 or len(kind) > 8:
        raise ValueError
    dtype = np.dtype(kind)
    if dtype.itemsize > 1000:
        raise ValueError
    return (np.arange(math.prod(sizes)) % 7 + 1).astype(dtype).reshape(sizes)


_SVM = (b"1 1:0.5 3:2 7:-1e-3 # note\n-1 2:1e10\n\n+1 qid:3 1:1\n", b"0 1:1\n1 2:2.5e-7 3:.5\n", b"3\n4 1:1\n")
_CSV = (
    b"a,b,label\n1,2,x\n3.5,-4,y\n",
    b"1,2,0\n3,4,1\n",
    b"a;b;y\n1;true;0\n;false;1\n",
    b'# x,y\n1,"0"\n2,1\n',
    b"a,y\r\n1,0\r2,1\r\n",
)
_BAGS = (b"3\n4\n5\n1 1 2\n1 4 1\n2 2 7\n3 1 1\n3 3 1\n", b"0\n0\n0\n")
_RATINGS = (
    b"1::2::5::97\n3::1::4.5::98\n", b"userId,movieId,rating\n1,2,3.5\n2,2,1\n", b"1\t2\t3\n2\t1\t5\n",
    b"u i 1\nv i 2\n",
    b"# c\n1 2 3\n",
)  # fmt: skip


def _data(folder: Path) -> dict[str, Target]:
    from sfb.data import DataError, describe, read, read_bag_of_words, read_part, read_ratings, read_vocabulary
    from sfb.data.libsvm import Libsvm
    from sfb.data.text import Text

    def read_all(path: Path) -> None:
        size = path.stat().st_size
        if size % 2:
            source = describe(str(path), targets="numbers")
            for part in range(2):
                read_part(source, part, 2)
        else:
            read(str(path), labelled=size % 4 == 0)

    def both(path: Path) -> None:
        """Parse by the kernel and by Python, and compare."""
        text = Text.of(path)
        source = Libsvm(str(path), "numbers", True, text=text)
        for position, lines in text.chunks():
            found = []
            for parse in (source._parse, source._slow):
                try:
                    x, labels, queries = parse(position, lines)
                    found.append((x.data.tobytes(), x.indices.tolist(), x.indptr.tolist(), labels.tobytes(), queries))
                except DataError as error:
                    found.append(str(error))
            assert found[0] == found[1], found

    def bag(path: Path) -> None:
        for rank in range(2):
            read_bag_of_words(path, rank=rank, size=2)
        read_vocabulary(path)

    def ratings(path: Path) -> None:
        read_ratings(path).shard(0, 2)

    def packed(data: bytes) -> None:
        path = folder / "packed"
        for pack in (gzip.compress, bz2.compress, lzma.compress):
            whole = pack(_SVM[0] * 3)
            at = int.from_bytes(data[:2], "little") % len(whole)
            path.write_bytes(whole[:at] + data[2:] + whole[at + len(data) :])
            with contextlib.suppress(DataError):
                read_all(path)

    refusals = (DataError,)
    return {
        "LIBSVM": Target(_file(folder / "d.svm", read_all), refusals, _SVM),
        "LIBSVM twice": Target(_file(folder / "e.svm", both), refusals, _SVM),
        "CSV": Target(_file(folder / "d.csv", read_all), refusals, _CSV),
        "bag of words": Target(_file(folder / "docword.txt", bag), refusals, _BAGS),
        "ratings": Target(_file(folder / "ratings.dat", ratings), refusals, _RATINGS),
        "compressed text": Target(packed, refusals, (b"\x07\x00abc", b"\x20\x00\xff\xff", b"\x00\x00")),
    }


def _archives(folder: Path) -> dict[str, Target]:
    from sfb.data import DataError, read, read_ratings

    x, y = np.arange(12.0).reshape(4, 3), np.array([0, 1, 0, 1])
    seeds = []
    for save, array in ((np.savez, x), (np.savez_compressed, np.asfortranarray(x)), (np.savez, x.astype("f4"))):
        file = io.BytesIO()
        save(file, x=array, y=y)
        seeds.append(file.getvalue())
    labels = folder / "y.npy"
    np.save(labels, y)
    single = []
    for array in (x, np.asfortranarray(x), x.astype("i2").reshape(4, 3, 1)):
        file = io.BytesIO()
        np.save(file, array)
        single.append(file.getvalue())
    rated = io.BytesIO()
    np.savez(rated, users=y, items=y, ratings=y + 0.5)

    def archive(path: Path) -> None:
        read(str(path))

    def array(path: Path) -> None:
        read(str(path), labels=str(labels))

    def table(path: Path) -> None:
        with contextlib.suppress(DataError):
            read(str(path))
        read_ratings(path)

    made = {
        "npz": Target(_file(folder / "d.npz", archive), (DataError,), tuple(seeds)),
        "npy": Target(_file(folder / "d.npy", array), (DataError,), tuple(single)),
        "npz of ratings": Target(_file(folder / "r.npz", read_ratings), (DataError,), (rated.getvalue(),)),
    }
    with contextlib.suppress(ImportError):
        import pyarrow
        import pyarrow.parquet

        path = folder / "seed.parquet"
        columns = {"user": [1, 2], "item": [3, 4], "rating": [0.5, 1.0], "y": ["a", "b"]}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        made["Parquet"] = Target(_file(folder / "d.parquet", table), (DataError,), (path.read_bytes(),))
    return made


def _reports(folder: Path) -> dict[str, Target]:
    from sfb.bench.choice import ChoiceError, report
    from sfb.bench.choice import read as read_choice
    from sfb.training.report import ReportError, compare_runs

    epoch = {"epoch": 1, "loss": 0.5, "score": 0.9, "seconds": 1.0, "exchange_seconds": 0.1, "wire_bytes": 100}
    run = {
        "format": 1, "steps_per_epoch": 3, "measure": "accuracy", "epochs": [epoch, epoch], "replicas_identical": True,
        "config": {"comm": "auto", "sync": "bsp", "model": "mlp", "data": "mnist"},
        "environment": {"ranks": 2, "cores_per_node": 2},
    }  # fmt: skip
    rows = [
        {"K": 3, "D": 4, "S": 1, "algorithm": name, "seconds": 0.1, "predicted": 0.1, "taken": "node"}
        for name in ("auto", "node", "mpi")
    ]  # fmt: skip
    bench = {"environment": {"hosts": ["a"], "ranks": 2}, "results": rows}
    return {
        "training run": Target(
            _file(folder / "run.json", lambda path: compare_runs([path], None, None)),
            (ReportError,),
            (json.dumps(run).encode(),),
        ),
        "benchmark rows": Target(
            _file(folder / "rows.json", lambda path: report(read_choice([path]))),
            (ChoiceError,),
            (json.dumps(bench).encode(),),
        ),
    }


def _messages(folder: Path) -> dict[str, Target]:
    """Return what travels between ranks."""
    from messages import messages

    return messages(folder)
