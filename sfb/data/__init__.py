"""Labelled data: files, and labels as classes; no MPI."""

from sfb.data.errors import DataError
from sfb.data.files import SOURCES, read
from sfb.data.labels import encode

__all__ = ["SOURCES", "DataError", "encode", "read"]
