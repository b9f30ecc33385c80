"""One data set in files of every format."""

import bz2
import gzip
import lzma
from pathlib import Path

import numpy as np

PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
# What `write` takes.
FORMATS = (
    *(f"{kind}{packer}" for kind in ("svm", "csv") for packer in PACKERS),
    "parquet",
    "npz",
    "compressed npz",
    "Fortran npz",
    "compressed Fortran npz",
    "npy",
    "float64 npy",
    "Fortran npy",
)


def example(samples=29, features=5, seed=0):
    """Return features, of which half are 0, and labels; every class is frequent."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-50, 50, (samples, features)) * rng.integers(0, 2, (samples, features)) / 4
    x[:, -1] = 1
    return x, rng.permutation(np.arange(samples) % 3) * 10 - 10


def svm(x, y):
    """Return samples as text in LIBSVM's format."""
    lines = (
        " ".join([f"{label:g}", *(f"{j}:{value!r}" for j, value in enumerate(row, 1) if value)])
        for row, label in zip(x.tolist(), y.tolist(), strict=True)
    )
    return "".join(f"{line}\n" for line in lines).encode()


def csv(x, y, names=None):
    """Return samples as CSV, with labels in the last column."""
    names = names or [f"f{j}" for j in range(x.shape[1])]
    lines = (",".join(map(repr, [*row, label])) for row, label in zip(x.tolist(), y.tolist(), strict=True))
    return "".join(f"{line}\n" for line in (",".join([*names, "label"]), *lines)).encode()


def write(folder: Path, kind: str, x, y):
    """Write a file of a format, and return its path and the options that it takes."""
    *words, name = kind.split()
    path = folder / f"data.{name}"
    suffix = path.suffix if path.suffix in PACKERS else ""
    stored = np.asfortranarray(x) if "Fortran" in words else x
    if name.startswith("svm"):
        path.write_bytes(PACKERS[suffix](svm(x, y)))
    elif name.startswith("csv"):
        path.write_bytes(PACKERS[suffix](csv(x, y)))
    elif name == "parquet":
        import pyarrow
        import pyarrow.parquet

        columns = {f"f{j}": column for j, column in enumerate(x.T)}
        pyarrow.parquet.write_table(pyarrow.table({"label": y, **columns}), path, row_group_size=6)
    elif name == "npz":
        (np.savez_compressed if "compressed" in words else np.savez)(path, x=stored, y=y)
    else:
        np.save(path, stored if "float64" in words else stored.astype(np.float32))
        np.save(folder / "labels.npy", y)
        return str(path), {"labels": "labels.npy"}
    return str(path), {}
