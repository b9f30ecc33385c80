"""Data from files: samples with labels, labels as classes, bags of words, ratings; no MPI."""

from sfb.data.bag_of_words import read_bag_of_words, read_vocabulary
from sfb.data.errors import DataError
from sfb.data.files import SOURCES, read
from sfb.data.labels import encode
from sfb.data.ratings import RatingTable, read_ratings

__all__ = [
    "SOURCES",
    "DataError",
    "RatingTable",
    "encode",
    "read",
    "read_bag_of_words",
    "read_ratings",
    "read_vocabulary",
]
