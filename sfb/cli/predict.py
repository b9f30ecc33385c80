"""The commands that use model files: sfb predict and sfb export; they need no MPI."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sfb.cli.common import Failure, Names, Output, Single, examples
from sfb.files import write

if TYPE_CHECKING:
    import numpy as np

    from sfb.models.saved.predictors import Predictor

__all__ = ["export", "predict"]

_SUFFIXES = (".npy", ".csv", ".txt")
_MODEL = click.Path(exists=True, dir_okay=False, path_type=Path)
_UNKNOWN = 5  # labels that a message names


@click.command(
    cls=Single,
    epilog=examples(
        "sfb predict model.npz test.csv --labels species",
        "sfb predict model.npz new.csv --no-labels -o predictions.csv",
    ),
)
@click.argument("model", type=_MODEL)
@click.argument("data")
@click.option("-o", "--output", type=Output(), help="Write the predictions to FILE: .npy, .csv or .txt.")
@click.option("--proba", is_flag=True, help="Predict the probability of each class.")
@click.option("--features", type=Names(), metavar="NAME,...", help="Columns of a table, or the array of a .npz file.")
@click.option("--labels", metavar="NAME", help="Column or array of the labels; beside a .npy file, another .npy file.")
@click.option("--no-labels", is_flag=True, help="DATA has no labels.")
@click.option("--zero-based", is_flag=True, help="Indices of the LIBSVM file count from 0.")
def predict(model: Path, data: str, output: Path | None, proba: bool, no_labels: bool, **reading: Any) -> None:
    """Predict by the model in MODEL, a file of sfb.models.save or sfb train, for the samples of DATA; needs no MPI.

    DATA is what sfb train takes. Where DATA has labels, the accuracy is shown, or R² of a regression.
    """
    from sfb.data import DataError, read
    from sfb.models import ModelError, load

    if output is not None and output.suffix not in _SUFFIXES:
        raise Failure(f"-o takes a file that ends in {', '.join(_SUFFIXES)}, got {output.name!r}")
    try:
        loaded = load(model)
    except ModelError as error:
        raise Failure(str(error)) from error
    if loaded.kind == "factorization":
        raise Failure(
            f"{model}: predicts ratings of users for items, not samples: sfb.models.load(FILE).predict(users, items)"
        )
    # What is not said is left to the reader, which knows the formats.
    options = {name: value for name, value in reading.items() if value}
    if no_labels:
        options["labelled"] = False
    elif loaded.classes_ is None and hasattr(loaded, "predict"):
        options["targets"] = "numbers"
    try:
        x, labels = read(data, **options)
        x = _widened(x, loaded.n_features_in_)
        values, header = _values(loaded, x, proba)
    except (DataError, ValueError) as error:
        lacking = "; --no-labels if there are none" if "(--labels NAME)" in str(error) else ""
        raise Failure(f"{data}: {error}{lacking}") from error
    known = None if no_labels or not hasattr(loaded, "predict") else labels
    if known is None and output is None:
        raise Failure("without labels there is nothing to compare with: name a file for the predictions, -o FILE")
    click.echo(f"{len(values)} samples" + ("" if known is None else f", {_score(loaded, x, known)}"))
    if output is not None:
        write(output, _formatted(values, header, output.suffix))
        click.echo(f"written: {output}")


@click.command(cls=Single, epilog=examples("sfb export model.npz model.onnx"))
@click.argument("model", type=_MODEL)
@click.argument("output", type=Output())
def export(model: Path, output: Path) -> None:
    """Write the model in MODEL, a file of sfb.models.save or sfb train, to OUTPUT in the format ONNX; needs no MPI."""
    from sfb.models import ModelError, load, to_onnx

    try:
        to_onnx(load(model), output)
    except (ModelError, ImportError) as error:
        raise Failure(str(error)) from error
    click.echo(f"written: {output}")


def _widened(x: Any, features: int) -> Any:
    """Return samples; sparse ones may lack the last features of the model, which are 0 in all of them."""
    import numpy as np

    if not isinstance(x, np.ndarray) and x.shape[1] < features:
        x.resize(x.shape[0], features)
    return x


def _values(model: Predictor, x: Any, proba: bool) -> tuple[np.ndarray, Sequence[str]]:
    """Return what to predict, N or N×M, and the names of its columns."""
    if proba:
        if not hasattr(model, "predict_proba"):
            raise Failure(f"--proba needs a classifier with probabilities, not {model!r}")
        assert model.classes_ is not None
        return model.predict_proba(x), [str(label) for label in model.classes_]
    if not hasattr(model, "predict"):  # a map of the features
        values = model.transform(x)  # type: ignore[attr-defined]
        return values, [f"component{i}" for i in range(values.shape[1])]
    values = model.predict(x)
    if values.ndim == 2:
        return values, [f"target{i}" for i in range(values.shape[1])]
    return values, ["target" if model.classes_ is None else "label"]


def _score(model: Any, x: Any, labels: np.ndarray) -> str:
    """Return how well a model predicts labels, in words."""
    import numpy as np

    found = model.predict(x)
    if model.classes_ is None:
        if found.shape != labels.shape:
            raise Failure(f"the model predicts targets of shape {found.shape}, the data has {labels.shape}")
        error = ((labels - found) ** 2).sum(axis=0)
        spread = ((labels - labels.mean(axis=0)) ** 2).sum(axis=0)
        return f"R² {np.mean(1 - error / np.where(spread, spread, 1)):.4f}"
    if (labels.dtype.kind in "US") != (model.classes_.dtype.kind in "US"):
        raise Failure(f"labels of the data are {labels.dtype}, classes of the model {model.classes_.dtype}")
    unknown = np.setdiff1d(labels, model.classes_)
    if unknown.size:
        names = ", ".join(map(str, unknown[:_UNKNOWN])) + (", …" if unknown.size > _UNKNOWN else "")
        click.echo(f"warning: the model does not know the labels {names}; their samples count as wrong", err=True)
    right = int(np.sum(found == labels))
    return f"accuracy {right / len(labels):.4f} ({right} right)"


def _formatted(values: np.ndarray, header: Sequence[str], suffix: str) -> str | bytes:
    """Return the content of a file of predictions."""
    import numpy as np

    if suffix == ".npy":
        file = io.BytesIO()
        np.save(file, values, allow_pickle=False)
        return file.getvalue()
    rows = values.reshape(len(values), -1).tolist()
    if values.dtype == np.float32:  # the shortest text that gives the same float32
        rows = [
            [np.format_float_positional(number, unique=True) for number in row] for row in values.reshape(len(rows), -1)
        ]
    text = io.StringIO()
    writer = csv.writer(text, delimiter="," if suffix == ".csv" else " ", lineterminator="\n")
    if suffix == ".csv":
        writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
