"""Models as ONNX files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from sfb.files import write
from sfb.models.saved.files import predictor_of
from sfb.models.saved.maps import MetricPredictor
from sfb.models.saved.predictors import (
    LinearPredictor,
    ModelError,
    PerceptronPredictor,
    Predictor,
)

__all__ = ["to_onnx"]

_OPSET = 17
_ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "logistic": "Sigmoid"}


def to_onnx(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a model to an ONNX file, for runtimes such as ONNX Runtime.

    The graph takes ``X``, N×D of the model's type, and gives

    - of a classifier, ``label``, N, and ``probabilities``, N×K, or ``scores``, N×K or N×1, where there are none;
    - of a regression, ``target``, N×M;
    - of a metric, ``components``, N×K.

    Args:
        model: A fitted estimator, a trained model, or what `sfb.models.load` returns.
        path: The file.

    Raises:
        ImportError: The package onnx is missing.
        ModelError: No graph is defined for the model, such as for the codes of a dictionary, which take iterations.
        OSError: The file cannot be written; it then holds what it held before.

    >>> import os, tempfile
    >>> from sfb.models import LogisticRegression, to_onnx
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_onnx(LogisticRegression().fit([[0.0], [1.0]], [3, 4]), f"{folder}/model.onnx")
    ...     os.listdir(folder)
    ['model.onnx']
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"ONNX files need the package {error.name}: pip install 'sfb-mpi[onnx]'") from error
    graph = _Graph(onnx)
    source = model if isinstance(model, Predictor) else predictor_of(model)
    if isinstance(source, (LinearPredictor, PerceptronPredictor)):
        graph.network(source)
    elif isinstance(source, MetricPredictor):
        graph.dtype = source.components_.dtype
        graph.output(
            "components", graph.dense(graph.samples(source), source.components_, None), len(source.components_)
        )
    else:
        raise ModelError(f"no ONNX file is defined for {source!r}: codes and topics take iterations")
    made = graph.finish(f"sfb {source.settings.get('model', source.kind)}")
    onnx.checker.check_model(made)
    write(Path(path), made.SerializeToString())


class _Graph:
    """A graph under construction.

    Args:
        onnx: The package.

    Attributes:
        dtype: Type of numbers.
    """

    def __init__(self, onnx: Any) -> None:
        self._onnx = onnx
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def network(self, model: LinearPredictor | PerceptronPredictor) -> None:
        """Add the layers of a model and its outputs."""
        if isinstance(model, LinearPredictor):
            layers, activation = [(model.coef_, model.intercept_)], "identity"
        else:
            layers, activation = list(zip(model.weights, model.biases, strict=True)), model.settings["activation"]
        self.dtype = np.result_type(*(weights for weights, _ in layers))
        found = self.samples(model)
        for i, (weights, bias) in enumerate(layers):
            if i and activation in _ACTIVATIONS:
                found = self.add(_ACTIVATIONS[activation], found)
            found = self.dense(found, weights, bias)
        width = len(layers[-1][1])
        if model.classes_ is None:
            self.output("target", found, width)
            return
        self._classifier(found, width, model.classes_, model.settings["out_activation"] != "identity")

    def _classifier(self, scores: str, width: int, classes: np.ndarray, likely: bool) -> None:
        """Add the outputs of a classifier."""
        if width == 1:
            above = self.add("Greater", scores, self.constant(np.zeros(1, self.dtype)))
            numbers = self.add("Cast", above, to=self._onnx.TensorProto.INT64)
            picked = self.add("Squeeze", numbers, self.constant(np.array([1])))
        else:
            picked = self.add("ArgMax", scores, axis=1, keepdims=0)
        if classes.dtype.kind in "US":
            labels = self.constant(classes.astype(np.str_).astype(object))
        else:
            labels = self.constant(classes.astype(np.int64) if classes.dtype.kind in "iu" else classes)
        self.output("label", self.add("Gather", labels, picked, axis=0), None, classes.dtype)
        if not likely:
            self.output("scores", scores, width)
        elif width == 1:
            both = self.add("Concat", self.add("Neg", scores), scores, axis=1)
            self.output("probabilities", self.add("Sigmoid", both), 2)
        else:
            self.output("probabilities", self.add("Softmax", scores, axis=1), width)

    def samples(self, model: Predictor) -> str:
        """Add the input, scaled as the model wants it."""
        features = model.n_features_in_
        self._inputs.append(self._onnx.helper.make_tensor_value_info("X", self._type(self.dtype), ["N", features]))
        if model.scaler is None:
            return "X"
        # In float64 as predictors do it: the difference may be small beside both terms.
        double = self.add("Cast", "X", to=self._onnx.TensorProto.DOUBLE)
        moved = self.add("Sub", double, self.constant(model.scaler.offset.astype(np.float64)))
        scaled = self.add("Mul", moved, self.constant(model.scaler.factor.astype(np.float64)))
        return self.add("Cast", scaled, to=self._type(self.dtype))

    def dense(self, x: str, weights: np.ndarray, bias: np.ndarray | None) -> str:
        """Add x Wᵀ + b."""
        terms = [self.constant(np.ascontiguousarray(weights, self.dtype))]
        if bias is not None:
            terms.append(self.constant(bias.astype(self.dtype)))
        return self.add("Gemm", x, *terms, transB=1)

    def constant(self, array: np.ndarray) -> str:
        """Add a constant."""
        name = f"c{len(self._constants)}"
        self._constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def add(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """Add a node, and return the name of its result."""
        name = f"r{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(operation, list(inputs), [name], **attributes))
        return name

    def output(self, name: str, result: str, width: int | None, dtype: Any = None) -> None:
        """Give a result out."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [result], [name]))
        shape = ["N"] if width is None else ["N", width]
        kind = self._type(self.dtype if dtype is None else dtype)
        self._outputs.append(self._onnx.helper.make_tensor_value_info(name, kind, shape))

    def finish(self, name: str) -> Any:
        """Return the model."""
        helper = self._onnx.helper
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, self._constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="sfb")
        made.ir_version = 8  # that of the opset; runtimes refuse later ones
        return made

    def _type(self, dtype: Any) -> int:
        """Return the number of a type."""
        kind = np.dtype(dtype).kind
        if kind in "US":
            return self._onnx.TensorProto.STRING
        return self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(np.int64) if kind in "iu" else np.dtype(dtype))
