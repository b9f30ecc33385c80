"""Model files: what a trained model needs to predict, in one .npz that NumPy alone reads; no MPI."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from sfb import __version__
from sfb.data.arrays import read_npz
from sfb.data.errors import DataError
from sfb.files import parse_json, write
from sfb.models.saved.kinds import KINDS
from sfb.models.saved.predictors import ModelError, Predictor, Scaler

__all__ = ["FORMAT", "ModelError", "load", "predictor_of", "save"]

FORMAT = 1
# What the header says of the file itself, beside what a kind of model needs.
_OWN = ("format", "kind", "sfb")
_STORABLE = "fiubUS"  # kinds of dtypes


def save(path: str | os.PathLike[str], model: Any, scaler: Any = None, *, classes: Any = None) -> None:
    """Write a trained model into a file, as a whole; on one rank.

    Args:
        path: The file; whatever happens meanwhile, it holds the old model or the new one.
        model: A fitted estimator of `sfb.models`, or a model that `sfb train` trains; in general what has a method
            ``save`` that returns the contents of the file by name: arrays, and texts, numbers or truth values for the
            header, "kind" among them.
        scaler: What was done to the features before the model saw them, x ↦ (x − offset)·factor: a pair of arrays of D
            numbers, an object with these as ``offset`` and ``factor``, or a fitted StandardScaler, MinMaxScaler or
            MaxAbsScaler of scikit-learn. The model that `load` returns does it, too.
        classes: The K labels of the classes, where the model knows their numbers alone.

    Raises:
        ModelError: The model has not been fitted, or holds what a file cannot.
        TypeError: No file is defined for what is passed.
        OSError: The file cannot be written; it then holds what it held before.

    >>> import tempfile
    >>> import numpy as np
    >>> import sfb.models
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array(["no", "no", "yes", "yes"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sfb.models.save(f"{folder}/model.npz", sfb.models.LogisticRegression().fit(X, y))
    ...     model = sfb.models.load(f"{folder}/model.npz")
    >>> model.predict([[0.5], [2.5]])
    array(['no', 'yes'], dtype='<U3')
    """
    if isinstance(model, (str, os.PathLike)):
        raise TypeError(f"expected save(path, model), a file and a model, got {model!r} as the model")
    header, arrays = _parts(model, scaler, classes)
    _make(header, arrays)  # what cannot be loaded is not written
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, header=np.array(json.dumps(header)), **arrays)
    write(Path(path), file.getvalue())


def load(path: str | os.PathLike[str]) -> Predictor:
    """Return the model of a file, which predicts by NumPy alone.

    Args:
        path: A file that `save` or ``sfb train`` wrote.

    Returns:
        A predictor, whose class is that of the kind in `sfb.models.saved.kinds`; it takes dense and CSR rows, or users
        and items.

    Raises:
        ModelError: The file is no model, has been cut short or damaged, or is of another version.
        OSError: The file cannot be read.

    >>> import tempfile
    >>> import sfb.models
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sfb.models.save(f"{folder}/model.npz", sfb.models.LogisticRegression().fit([[0.0], [1.0]], [3, 4]))
    ...     model = sfb.models.load(f"{folder}/model.npz")
    >>> model.predict([[0.2], [0.9]])
    array([3, 4])
    """
    try:
        with Path(path).open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise ModelError("is no model file, or has been cut short: expected a .npz that sfb.models.save wrote")
        arrays = read_npz(Path(path))
        return _make(_header(arrays.pop("header", None)), arrays)
    except (ModelError, DataError) as error:
        what = str(error) if isinstance(error, ModelError) else f"is a damaged model file: {error}"
        raise ModelError(f"{os.fspath(path)}: {what}") from error


def predictor_of(model: Any, scaler: Any = None, *, classes: Any = None) -> Predictor:
    """Return what `load` returns after `save`, without a file; see there."""
    return _make(*_parts(model, scaler, classes))


def _parts(model: Any, scaler: Any, classes: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the header and the arrays of the file of a model."""
    contents = _contents(model)
    if classes is not None:
        contents["classes"] = np.asarray(classes)
    if scaler is not None:
        found = Scaler.of(scaler)
        contents["scale_offset"], contents["scale_factor"] = found.offset, found.factor
    header: dict[str, Any] = {"format": FORMAT, "kind": None, "sfb": __version__}
    arrays: dict[str, np.ndarray] = {}
    for name, value in contents.items():
        if isinstance(value, np.ndarray) and value.ndim:
            arrays[name] = _storable(name, value)
        else:
            header[name] = value.item() if isinstance(value, (np.ndarray, np.generic)) else value
    return header, arrays


def _contents(model: Any) -> dict[str, Any]:
    """Return what a model puts into its file."""
    give = getattr(model, "save", None) or getattr(model, "_contents", None)
    if not callable(give) or isinstance(model, type):
        raise TypeError(f"a fitted estimator of sfb.models or a trained model is needed, got {model!r}")
    return dict(give())


def _storable(name: str, array: np.ndarray) -> np.ndarray:
    """Return an array as a file can hold it, without Python objects."""
    if array.dtype.kind == "O":
        texts = [value for value in array.ravel() if not isinstance(value, str)]
        if texts:
            raise ModelError(f"{name} holds {type(texts[0]).__name__}: labels in files are numbers or texts")
        array = array.astype(np.str_)
    if array.dtype.kind not in _STORABLE:
        raise ModelError(f"{name} is of {array.dtype}: arrays in files hold numbers or texts")
    return np.ascontiguousarray(array)


def _header(array: np.ndarray | None) -> dict[str, Any]:
    """Return the header of a file, whose format this version knows."""
    if array is None or array.ndim or array.dtype.kind != "U":
        raise ModelError("is a .npz file, but no model: it has no header")
    try:
        header = parse_json(array.item())
    except ValueError as error:
        raise ModelError(f"is a damaged model file: its header is no JSON ({error})") from error
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise ModelError("is a .npz file, but no model: its header has no format")
    if header["format"] != FORMAT:
        raise ModelError(
            f"is of format {header['format']}, written by sfb {header.get('sfb', '?')}; this sfb {__version__} reads "
            f"format {FORMAT}: upgrade sfb-mpi, or save the model anew"
        )
    return header


def _make(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Predictor:
    """Return the predictor of these contents, or raise ModelError if they do not go together."""
    kind = header.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ModelError(f"is of kind {kind!r}; this sfb {__version__} knows {', '.join(KINDS)}")
    odd = [name for name, array in arrays.items() if array.dtype.kind not in _STORABLE]
    if odd:
        raise ModelError(f"{odd[0]} is of {arrays[odd[0]].dtype}: arrays in files hold numbers or texts")
    settings = {name: value for name, value in header.items() if name not in _OWN}
    return KINDS[kind](settings, arrays)
