"""Activations at rest: HDF5 files, whose format docs/store_format.md describes."""

from seamscope.activations._background import Background, to_host
from seamscope.activations._export import export_store
from seamscope.activations._join import join_stores
from seamscope.activations._joined import is_whole
from seamscope.activations._layout import FORMAT_VERSION, SHARDS, finished_shards
from seamscope.activations._schema import Schema
from seamscope.activations._shards import Shards, fitting_rows_per_shard, planned_rows_per_shard
from seamscope.activations._store import Store, open_store
from seamscope.activations._writer import StoreWriter, create_store

__all__ = [
    "FORMAT_VERSION",
    "SHARDS",
    "Background",
    "Schema",
    "Shards",
    "Store",
    "StoreWriter",
    "create_store",
    "export_store",
    "finished_shards",
    "fitting_rows_per_shard",
    "is_whole",
    "join_stores",
    "open_store",
    "planned_rows_per_shard",
    "to_host",
]
