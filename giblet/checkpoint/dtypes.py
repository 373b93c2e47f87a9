"""Element types by their names in the safetensors format. Imports torch only when asked for one of its types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from giblet.errors import CheckpointError

if TYPE_CHECKING:
    import torch

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "U16": "uint16", "I16": "int16", "F16": "float16", "BF16": "bfloat16", "U32": "uint32", "I32": "int32",
    "F32": "float32", "U64": "uint64", "I64": "int64", "F64": "float64", "C64": "complex64",
}  # fmt: skip
_BY_TORCH_NAME = {f"torch.{torch_name}": name for name, torch_name in TORCH_NAMES.items()}


def torch_dtype(name: str) -> torch.dtype:
    """`BF16` → `torch.bfloat16`."""
    import torch

    dtype = getattr(torch, TORCH_NAMES[name])
    assert isinstance(dtype, torch.dtype)
    return dtype


def dtype_name(dtype: torch.dtype, what: str) -> str:
    """`torch.bfloat16` → `BF16`. Raises `CheckpointError`, naming `what`, for a type that safetensors does not have."""
    name = _BY_TORCH_NAME.get(str(dtype))
    if name is None:
        raise CheckpointError(
            f"{what}: element type {dtype} cannot be saved", remedy=f"convert it to one of {', '.join(TORCH_NAMES)}"
        )
    return name
