"""Reads the pickles inside torch files without running anything that they name.

A pickle is a program: it names functions and has them called. Here a name outside a short list is refused, and the
names on it stand for functions of this module that only write down what they were given. No tensor is built, no
module of the file's choosing is imported. What is refused is refused before anything of it was called.
"""

from __future__ import annotations

import codecs
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import numpy as np

from giblet.errors import CheckpointError

MAX_PICKLE_BYTES = 512 * 1024 * 1024
MAX_LEAVES = 2_000_000
MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class StorageStub:
    """A torch storage: `dtype` is None where it is untyped. `key` names its member of the zip file."""

    dtype: str | None
    key: str
    elements: int


@dataclass(frozen=True, slots=True)
class TensorStub:
    """A tensor as a view of a storage; offset, sizes and strides in elements."""

    storage: StorageStub
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DtypeStub:
    """A torch dtype by its name."""

    name: str


class Record:
    """Stands for an object of a class on the list: remembers its class, its arguments and its state."""

    kind = ""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def get(self, name: str, default: Any = None) -> Any:
        """A field of the object."""
        return self.state.get(name, default) if isinstance(self.state, dict) else default

    def __hash__(self) -> int:
        return hash((self.kind, self._identity()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self.kind == other.kind and self._identity() == other._identity()

    def _identity(self) -> str:
        """Dictionary keys are hashed before their state arrives: by identity then."""
        return str(id(self))


def loads(data: bytes, where: str, *, records: frozenset[tuple[str, str]] = frozenset()) -> Any:
    """The plain content of a pickle. `records`: classes to be written down as `Record`.

    Raises `CheckpointError` for a pickle that names anything else, or that is no pickle.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise CheckpointError(f"{where}: its pickle has {len(data):,} bytes; at most {MAX_PICKLE_BYTES:,} are read")
    try:
        return _Unpickler(data, where, records).load()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{where}: not a readable pickle: {type(error).__name__}: {error}") from None


def leaves(tree: Any, where: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The leaves of nested mappings and sequences with their paths. Raises `CheckpointError` for a tree without end."""
    stack: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    count = 0
    while stack:
        path, node = stack.pop()
        count += 1
        if count > MAX_LEAVES or len(path) > MAX_DEPTH:
            raise CheckpointError(
                f"{where}: holds more than {MAX_LEAVES:,} values, or is nested deeper than {MAX_DEPTH}"
            )
        if isinstance(node, dict):
            stack.extend(((*path, str(key)), value) for key, value in reversed(node.items()))
        elif isinstance(node, (list, tuple)):
            stack.extend(((*path, str(index)), value) for index, value in reversed(list(enumerate(node))))
        else:
            yield path, node


class _Unpickler(pickle._Unpickler):
    """The pure Python one, because only there can the state that an object is given be refused.

    `BUILD` could otherwise set attributes of the classes and functions on the list, for everybody after it.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def __init__(self, data: bytes, where: str, records: frozenset[tuple[str, str]]) -> None:
        super().__init__(io.BytesIO(data))
        self._where, self._records = where, records

    def load_build(self) -> None:
        """Give state to the newest object on the stack, if it is one that may have any."""
        *_, owner, state = self.stack
        if type(owner) is OrderedDict:
            self.stack.pop()
        elif isinstance(owner, (Record, _NumpyDtype)):
            self.stack.pop()
            owner.__setstate__(state)
        else:
            self._refuse(f"sets the state of a {type(owner).__name__}")

    def load_unusual(self) -> None:
        """Opcodes that no checkpoint needs."""
        self._refuse("uses registered extensions or buffers")

    dispatch[pickle.BUILD[0]] = load_build
    for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8, pickle.NEXT_BUFFER):
        dispatch[_code[0]] = load_unusual

    def _refuse(self, what: str) -> NoReturn:
        raise CheckpointError(
            f"{self._where}: its pickle {what}, which is not data; refused, nothing of it was run",
            remedy="save a plain state dict of tensors, numbers, strings, lists and dicts",
        )

    def find_class(self, module: str, name: str) -> Any:
        found = _KNOWN.get((module, name))
        if found is not None:
            return found
        if module == "torch" and name in _DTYPES:
            return DtypeStub(name)
        if module in ("torch", "torch.storage") and name.endswith("Storage") and name in _STORAGE_DTYPES:
            return _StorageType(_STORAGE_DTYPES[name])
        if (module, name) in self._records:
            return type(name, (Record,), {"kind": f"{module}.{name}"})
        return self._refuse(f"names {module}.{name}")

    def persistent_load(self, identifier: Any) -> StorageStub:
        if not (isinstance(identifier, tuple) and len(identifier) == 5 and identifier[0] == "storage"):
            raise CheckpointError(f"{self._where}: refers to something outside that is not a torch storage")
        _, kind, key, _location, elements = identifier
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or not isinstance(elements, int):
            raise CheckpointError(f"{self._where}: one of its torch storages is not described as torch does")
        return StorageStub(kind.dtype, key, elements)


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str | None


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any, dtype: str | None = None) -> TensorStub:
    kind = dtype if dtype is not None else getattr(storage, "dtype", None)
    shape, strides = _numbers(size), _numbers(stride)
    if not isinstance(storage, StorageStub) or not isinstance(offset, int) or len(shape) != len(strides):
        raise CheckpointError("a tensor is not described as torch does")
    if kind is None or offset < 0 or min((*shape, *strides), default=0) < 0:
        raise CheckpointError("a tensor has no dtype, or a negative size")
    return TensorStub(storage, kind, offset, shape, strides)


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any) -> TensorStub:
    if not isinstance(dtype, DtypeStub):
        raise CheckpointError("a tensor is not described as torch does")
    return _tensor(storage, offset, size, stride, dtype=dtype.name)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(type(value) is int for value in values):
        raise CheckpointError("a tensor's size or stride is not a tuple of whole numbers")
    return values


def _size(values: Any = ()) -> tuple[int, ...]:
    return _numbers(tuple(values) if isinstance(values, (list, tuple)) else values)


class _NumpyDtype:
    def __init__(self, code: Any, *_: Any) -> None:
        self.code = str(code)

    def __setstate__(self, _state: Any) -> None:
        """Byte order and layout, which a plain number does not need."""


def _numpy_scalar(dtype: Any, data: Any = b"") -> Any:
    raw = data if isinstance(data, bytes) else b""
    if not isinstance(dtype, _NumpyDtype) or dtype.code[:1] not in "fiub" or not raw:
        raise CheckpointError("a numpy value is not a plain number")
    return np.frombuffer(raw, np.dtype(dtype.code), count=1)[0].item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise CheckpointError("bytes are not written as pickle does")
    return codecs.encode(text, "latin1")


def _members(values: Any = ()) -> list[Any]:
    return list(values) if isinstance(values, list) else []


def _text(*parts: Any) -> str:
    return "/".join(str(part) for part in parts).replace("//", "/")


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch", "Size"): _size,
    ("torch", "device"): _text,
    ("torch.serialization", "_get_layout"): _text,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
    ("numpy", "dtype"): _NumpyDtype,
    ("_codecs", "encode"): _encode,
    ("pathlib", "PosixPath"): _text,
    ("pathlib", "PurePosixPath"): _text,
    **{
        (module, name): _members
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset")
    },
}  # fmt: skip
_DTYPES = frozenset(
    {
        "float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool",
        "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
        "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
    }
)  # fmt: skip
_STORAGE_DTYPES: dict[str, str | None] = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128", "BoolStorage": "bool",
    "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16", "IntStorage": "int32",
    "LongStorage": "int64", "UntypedStorage": None,
}  # fmt: skip
