"""Labelled data: files whole and in parts, labels as classes, scales of features; no MPI."""

from sfb.data.errors import DataError
from sfb.data.files import SOURCES, describe
from sfb.data.labels import encode, unite
from sfb.data.parts import Part, read, read_part
from sfb.data.scaling import SCALES, Scaler, fit_scaler
from sfb.data.source import Block, Source

__all__ = [
    "SCALES",
    "SOURCES",
    "Block",
    "DataError",
    "Part",
    "Scaler",
    "Source",
    "describe",
    "encode",
    "fit_scaler",
    "read",
    "read_part",
    "unite",
]
