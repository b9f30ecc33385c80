"""Data from files, whole and in parts: samples with labels, bags of words, ratings; no MPI."""

from sfb.data.bag_of_words import read_bag_of_words, read_vocabulary
from sfb.data.errors import DataError
from sfb.data.files import SOURCES, describe
from sfb.data.labels import encode, unite
from sfb.data.parts import Part, read, read_part
from sfb.data.ratings import RatingTable, read_ratings
from sfb.data.scaling import SCALES, Scaler, fit_scaler
from sfb.data.source import Block, Source

__all__ = [
    "SCALES",
    "SOURCES",
    "Block",
    "DataError",
    "Part",
    "RatingTable",
    "Scaler",
    "Source",
    "describe",
    "encode",
    "fit_scaler",
    "read",
    "read_bag_of_words",
    "read_part",
    "read_ratings",
    "read_vocabulary",
    "unite",
]
