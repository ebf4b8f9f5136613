"""Tensors as arrays that HDF5 can hold, bit for bit, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seamscope.activations._layout import FILE_DTYPES
from seamscope.hooks import StoreError

Array = NDArray[Any]

_TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in FILE_DTYPES}
# Types that the file holds under another name, and the torch type of equal width that numpy can hold.
_DISGUISED = {torch.bfloat16: torch.int16, torch.bool: torch.uint8}


def dtype_name(tensor: Tensor) -> str:
    """Name of a tensor's type; raises `StoreError` for one that a store cannot hold."""
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in FILE_DTYPES:
        raise StoreError(f"cannot store {name} activations; one of: {', '.join(FILE_DTYPES)}")
    return name


def to_array(tensor: Tensor) -> Array:
    """The same bits as an array of the file's type."""
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype in _DISGUISED:
        plain = plain.view(_DISGUISED[plain.dtype])
    array: Array = plain.numpy()
    return array.view(FILE_DTYPES[dtype_name(tensor)])


def to_tensor(array: Array, name: str) -> Tensor:
    """The same bits as a tensor of the named type."""
    dtype = _TORCH_DTYPES[name]
    if dtype == torch.bool:  # a foreign byte such as 2 must not become an invalid bool
        return torch.from_numpy(array).bool()
    if dtype == torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(dtype)
    return torch.from_numpy(array)
