"""Labelled data for the models: each rank holds all samples, or its own part of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.data import SCALES, DataError, Scaler, fit_scaler, unite
from sfb.training.reading import File, Held, files, hold, together

__all__ = ["DataError", "Dataset", "load"]

_log = logging.getLogger("sfb")

_NAMED = 5  # classes that a message names
_LARGE = 1 << 30  # bytes in memory, beyond which ranks read parts unless the user says otherwise
_OPERATIONS = {"sum": MPI.SUM, "max": MPI.MAX}


@dataclass(frozen=True)
class Dataset:
    """Samples to learn from and samples held out, those that this rank holds.

    Attributes:
        name: What the user calls the data.
        x: N×D features, float32: an array, or a CSR matrix if the file is sparse. Memory maps cannot be written.
        y: N indices of ``classes``, int64; for a regression the targets in float64, N or N×T.
        classes: The distinct labels of all ranks, in ascending order; empty for a regression.
        train: Indices of the samples to learn from, among the N of this rank; there may be none. They are in the order
            of the file in a shard, and shuffled where each rank holds all samples, which it may thus divide in slices.
        test: Indices of the samples held out, among the rows of ``test_x``.
        test_x: Features of the samples held out; ``x`` unless they come from a file of their own.
        test_y: Their labels, as in ``y``.
        sharded: Whether each rank holds samples of its own, not all.
        low: The number of this rank's first sample among those of all ranks; 0 if each rank holds all.
        total: The number of samples of all ranks, those held out from them included.
        total_train: The number of samples to learn from, of all ranks.
        total_test: The number of samples held out, of all ranks.
        scaler: What has been subtracted from the features, and by what they were multiplied; None if nothing was.
        names: Names of the features, where they have some.
    """

    name: str
    x: Any
    y: np.ndarray
    classes: np.ndarray
    train: np.ndarray
    test: np.ndarray
    test_x: Any
    test_y: np.ndarray
    sharded: bool
    low: int
    total: int
    total_train: int
    total_test: int
    scaler: Scaler | None = None
    names: tuple[str, ...] | None = None


def load(
    comm: MPI.Intracomm,
    source: str,
    *,
    test: str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    zero_based: bool = False,
    features: str | Sequence[str] | None = None,
    labels: str | None = None,
    targets: str = "classes",
    scale: str | None = None,
    cache: str | Path | None = None,
    shard: bool | None = None,
    dense: bool = False,
) -> Dataset:
    """Load a data set; collective.

    The numbers of samples, whichever rank holds them, and the seed decide which are held out, so these are the same
    for any number of ranks.

    Args:
        comm: The ranks that will train.
        source: What `sfb.data.describe` takes.
        test: Data to test on; by default, samples of ``source`` are held out.
        test_fraction: Part of the samples to hold out, between 0 and 1.
        seed: Seed of the split.
        zero_based: As in `sfb.data.describe`, like the next three.
        features: Names of features, or their number.
        labels: Name of the labels.
        targets: "classes", or "numbers" for a regression.
        scale: "standard", "minmax" or "maxabs", as in `sfb.data.fit_scaler`, by the samples to learn from; None for no
            scaling.
        cache: Folder for memory maps of the ranks' parts, so that these may be larger than memory.
        shard: Whether each rank reads its part, not all; by default if the samples take more than 1 GiB, or there is a
            cache.
        dense: Whether sparse features become an array.

    Raises:
        DataError: The data does not exist, is too large, or a model cannot be trained on it; on every rank.
    """
    with together(comm, source):
        if scale is not None and scale not in SCALES:
            raise DataError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
        if cache is not None and shard is False:
            raise DataError("a cache holds parts; leave shard=False (--no-shard) or the cache out")
    names = [source] if test is None else [source, test]
    options = {"zero_based": zero_based, "features": features, "labels": labels, "targets": targets}
    found = files(comm, names, options)
    if shard is None:
        shard = cache is not None or sum(file.nbytes for file in found) > _LARGE
    folder = None if cache is None else Path(cache)
    held = [hold(comm, file, shard=shard, dense=dense, cache=folder, scaled=scale is not None) for file in found]
    _check_shapes(found, held)
    classes, y = _classes(comm, found, held)
    learn, mask = held[0], np.ones(held[0].x.shape[0], bool)
    count = learn.total
    if test is None:
        held_out = max(1, round(test_fraction * learn.total))
        count -= held_out
        draws = _draws(learn, seed)
        mask = draws >= _threshold(comm, draws, held_out, shard)
    if count < comm.size:
        raise DataError(
            f"{source}: {count} samples to train on cannot be divided among {comm.size} ranks; use fewer ranks or more "
            "data"
        )
    _check_classes(comm, found, held, classes, y, mask, shard)
    scaler = None
    if scale is not None:
        scaler = _scaler(comm, source, scale, learn.x, mask, shard)
        with together(comm, source):
            for each in held:
                each.x = scaler.apply(each.x, each.folder)
    if comm.rank == 0:
        _warn(found, held, classes, scale)
    other, out = (learn, ~mask) if test is None else (held[1], np.ones(held[1].x.shape[0], bool))
    order = np.arange(len(mask)) if shard else np.argsort(_draws(learn, seed))
    return Dataset(
        name=source,
        x=learn.x,
        y=y[0],
        classes=classes,
        train=order[mask[order]],
        test=np.flatnonzero(out),
        test_x=other.x,
        test_y=y[-1],
        sharded=shard,
        low=learn.low,
        total=learn.total,
        total_train=count,
        total_test=learn.total - count if test is None else other.total,
        scaler=scaler,
        names=found[0].source.names,
    )


def _check_shapes(found: list[File], held: list[Held]) -> None:
    """Raise DataError unless there are samples with features, as many to test on as to train on; same on all ranks."""
    for file, each, least in zip(found, held, (2, 1), strict=False):
        if each.total < least or each.x.shape[1] < 1:
            raise DataError(
                f"{file.name}: expected at least {least} samples with a feature each, got x of shape "
                f"{(each.total, each.x.shape[1])}"
            )
    if len(held) == 1 or held[0].x.shape[1] == held[1].x.shape[1]:
        return
    width, other = (each.x.shape[1] for each in held)
    if found[1].source.sparse and other < width:  # the last features are 0 in all samples to test on
        held[1].x.resize(held[1].x.shape[0], width)
        return
    hint = f"; --features {other} lets both have {other}" if found[0].source.sparse else ""
    raise DataError(f"{found[1].name}: has {other} features, but {found[0].name} has {width}{hint}")


def _classes(comm: MPI.Intracomm, found: list[File], held: list[Held]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the classes of all files and ranks, and the labels of this rank by them; numbers as they are."""
    if found[0].source.targets == "numbers":
        own = {each.labels.shape[1:] for each in held if len(each.labels)}
        shapes = {shape for shapes in comm.allgather(own) for shape in shapes}
        if len(shapes) > 1:
            raise DataError(f"{found[-1].name}: has another number of targets than {found[0].name}")
        (shape,) = shapes
        return np.empty(0, np.int64), [each.labels.reshape(len(each.labels), *shape) for each in held]
    try:
        kinds = {kind for each in held for distinct in each.distinct if (kind := distinct.dtype.kind) and distinct.size}
        if len({"text" if kind in "US" else "numbers" for kind in kinds}) > 1 and not found[0].source.untyped:
            raise DataError(f"labels are numbers here, and text in {found[-1].name}, or the other way around")
        parts = [distinct for each in held for distinct in each.distinct]
        classes, tables = unite(parts, untyped=any(file.source.untyped for file in found))
    except DataError as error:  # all ranks compute the same
        raise DataError(f"{found[0].name}: {error}") from error
    return classes, [tables[i * comm.size + comm.rank][each.labels] for i, each in enumerate(held)]


def _draws(held: Held, seed: int) -> np.ndarray:
    """Return for each sample of this rank a number that its own number and the seed decide, uint64.

    Steele et al., "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 17 (SplitMix64): a bijection of
    sample numbers.
    """
    with np.errstate(over="ignore"):
        start = np.random.SeedSequence(seed).generate_state(1, np.uint64)
        z = np.arange(held.low + 1, held.low + 1 + held.x.shape[0], dtype=np.uint64)
        z = z * np.uint64(0x9E3779B97F4A7C15) + start
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _threshold(comm: MPI.Intracomm, draws: np.ndarray, count: int, shard: bool) -> np.uint64:
    """Return the number below which ``count`` draws of all ranks lie; collective if ``shard``."""
    ordered = np.sort(draws)
    if not shard:
        return ordered[count] if count < len(ordered) else np.uint64(2**64 - 1)
    low, high = 0, 2**64 - 1  # as many draws lie below ``low`` as are wanted at most, below ``high`` at least
    while low < high:
        middle = (low + high) // 2
        below = comm.allreduce(int(np.searchsorted(ordered, np.uint64(middle))))
        if below < count:
            low = middle + 1
        else:
            high = middle
    return np.uint64(low)


def _scaler(comm: MPI.Intracomm, name: str, kind: str, x: Any, mask: np.ndarray, shard: bool) -> Scaler:
    """Return the scale of the samples to learn from, the same bits on all ranks; collective."""
    scaler = None
    if not shard:
        with together(comm, name):
            scaler = fit_scaler(kind, x, mask) if comm.rank == 0 else None
        return comm.bcast(scaler)

    def combine(array: np.ndarray, operation: str) -> np.ndarray:
        array = np.ascontiguousarray(array)
        comm.Allreduce(MPI.IN_PLACE, array, _OPERATIONS[operation])
        return array

    with together(comm, name):  # what `fit_scaler` refuses, it refuses on all ranks before it combines anything
        scaler = fit_scaler(kind, x, mask, combine)
    return comm.bcast(scaler)


def _check_classes(
    comm: MPI.Intracomm,
    found: list[File],
    held: list[Held],
    classes: np.ndarray,
    y: list[np.ndarray],
    mask: np.ndarray,
    shard: bool,
) -> None:
    """Raise DataError on every rank if a class has no sample to learn from."""
    counts = np.bincount(y[0][mask], minlength=len(classes)) if len(classes) else np.empty(0, np.int64)
    if shard:
        comm.Allreduce(MPI.IN_PLACE, counts)
    unseen = classes[counts == 0]
    if unseen.size:
        names = ", ".join(map(str, unseen[:_NAMED])) + (", …" if unseen.size > _NAMED else "")
        raise DataError(
            f"{found[0].name}: no sample to train on has the label {names}; only "
            + (
                f"samples of {found[1].name} have"
                if len(found) > 1
                else "samples held out have. Take more data, another seed or a smaller test fraction"
            )
            + _regression(held[0].total, len(classes))
        )


def _warn(found: list[File], held: list[Held], classes: np.ndarray, scale: str | None) -> None:
    """Warn of what is suspicious in data that can be trained on, and tell what was made of it."""
    for file, each in zip(found, held, strict=True):
        for note in each.notes:
            _log.warning("%s: %s", file.name, note)
    if scale == "standard" and found[0].source.sparse and not isinstance(held[0].x, np.ndarray):
        _log.warning("%s: sparse features are scaled to variance 1, but keep their means", found[0].name)
    suspicion = _regression(held[0].total, len(classes))
    if suspicion:
        _log.warning("%s%s", found[0].name, suspicion)


def _regression(samples: int, classes: int) -> str:
    """Return what to say of labels that look like regression targets; nothing if they do not."""
    if 2 * classes <= samples:
        return ""
    return f": {samples} samples have {classes} classes; are the labels regression targets (--targets numbers)?"
