"""Activations at rest: one HDF5 file per run, whose format docs/store_format.md describes."""

from seamscope.activations._layout import FORMAT_VERSION
from seamscope.activations._schema import Schema
from seamscope.activations._store import Store, open_store
from seamscope.activations._writer import StoreWriter, create_store

__all__ = ["FORMAT_VERSION", "Schema", "Store", "StoreWriter", "create_store", "open_store"]
