"""Interpreter of the few pickle opcodes that describe tensors; executes nothing.

Mirrors torch's `_weights_only_unpickler.py`. Python's unpickler is not safe, even with
its globals restricted: eight bytes make it allocate gigabytes (LONG_BINPUT), and a
deeply nested tuple as a key crashes the process. Here a file's globals are only looked
up in a table, nothing is imported, called or set, and time and memory are linear in the
pickle's length.
"""

import dataclasses
import math
import pickletools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np

from dinov2_jax.weights import lazy_tensor

STORAGES: Mapping[str, np.dtype] = MappingProxyType(
    {
        "FloatStorage": np.dtype(np.float32),
        "HalfStorage": np.dtype(np.float16),
        "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
        "DoubleStorage": np.dtype(np.float64),
        "LongStorage": np.dtype(np.int64),
        "IntStorage": np.dtype(np.int32),
        "ShortStorage": np.dtype(np.int16),
        "CharStorage": np.dtype(np.int8),
        "ByteStorage": np.dtype(np.uint8),
        "BoolStorage": np.dtype(np.bool_),
    }
)

MAX_OPCODES = 2_000_000  # about 50,000 tensors; bounds time and memory
MAX_DEPTH = 100  # so that callers can walk the result recursively
_MAX_DIMS = 32  # limit of NumPy 1
_MAX_SIZE = 2**60  # elements, counting empty dimensions as one

_SCALARS = (str, int, float, bool, type(None), bytes)
_LITERALS = frozenset(
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING BINBYTES "
    "SHORT_BINBYTES BINBYTES8 BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMPY_DTYPES = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1")
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Refused(Exception):
    """Error for a pickle that is damaged or needs what this interpreter lacks."""

    def __init__(self, what: str, fix: str = "download the file again"):
        super().__init__(f"{what}: {fix}")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage, in elements, checked to lie inside it."""

    key: str
    dtype: np.dtype
    storage_size: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class _Global:
    """The name of an allowed function or class; it cannot be called."""

    name: str


_GLOBALS: Mapping[str, Any] = MappingProxyType(
    {
        name: _Global(name.partition(" ")[2])
        for name in (
            "collections OrderedDict",
            "torch._utils _rebuild_tensor",
            "torch._utils _rebuild_tensor_v2",
            "torch._utils _rebuild_parameter",
            "torch._utils _rebuild_parameter_with_state",
            "torch Size",
            "torch device",
            "_codecs encode",  # how protocol 2 writes bytes
            "numpy dtype",
            "numpy.core.multiarray scalar",  # numbers of training logs
            "numpy._core.multiarray scalar",  # the same since NumPy 2
            *(f"torch {name}" for name in STORAGES),
        )
    }
    | {f"torch {dtype.name}": dtype for dtype in STORAGES.values()}
)


def load(data: bytes, make: Callable[[Tensor], lazy_tensor.LazyTensor]) -> Any:
    """Return the structure that a `data.pkl` describes.

    Args:
      data: The pickle.
      make: Function that is called for every tensor.

    Returns:
      Nested dict, list and tuple of str, int, float, bool, None, bytes, np.dtype and
      what `make` returned. At most MAX_DEPTH deep, without cycles, and of at most
      MAX_OPCODES nodes when walked.

    Raises:
      Refused: The pickle is damaged or not allowed; the message is one line.
    """
    machine = _Machine(make)
    try:
        tree = machine.run(data)
    except Refused:
        raise
    except Exception as error:  # damaged bytes can raise almost anything
        reason = " ".join(f"{type(error).__name__} {error}"[:200].split())
        raise Refused(f"data.pkl is damaged ({reason})") from error
    _check_size(tree, {}, depth=0)
    return tree


class _Machine:
    def __init__(self, make: Callable[[Tensor], lazy_tensor.LazyTensor]):
        self._make = make
        self._memo: dict[int, Any] = {}
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._encoded: dict[str, bytes] = {}

    def run(self, data: bytes) -> Any:
        for count, (opcode, arg, _) in enumerate(pickletools.genops(data)):
            if count == MAX_OPCODES:
                raise Refused(f"data.pkl has more than {MAX_OPCODES} opcodes")
            self._step(opcode.name, arg)
        return self._stack.pop()

    def _step(self, name: str, arg: Any) -> None:
        stack = self._stack
        if name in _LITERALS:
            stack.append(arg)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[arg])
        elif name in _TUPLES:
            size = _TUPLES[name]
            stack.append(tuple(stack.pop() for _ in range(size))[::-1])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            self._marks.append(stack)
            self._stack = []
        elif name == "TUPLE":
            items = self._pop_mark()
            self._stack.append(tuple(items))
        elif name == "REDUCE":
            args = stack.pop()
            stack.append(self._reduce(stack.pop(), args))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "GLOBAL":
            stack.append(_global(arg))
        elif name == "STACK_GLOBAL":
            attribute = stack.pop()
            stack.append(_global(f"{stack.pop()} {attribute}"))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop_items(name == "SETITEMS", 2)
            _update(self._top(dict), items)
        elif name in ("APPEND", "APPENDS"):
            items = self._pop_items(name == "APPENDS", 1)
            self._top(list).extend(items)
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], np.dtype):
                if not (isinstance(state, tuple) and state[1:2] in (("<",), ("|",))):
                    raise Refused("data.pkl holds NumPy numbers of another byte order")
            else:
                self._top(dict)  # `_metadata` of a state_dict: versions of modules
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise Refused(f"data.pkl uses the opcode {name}; nothing was executed")

    def _pop_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def _pop_items(self, marked: bool, size: int) -> list[Any]:
        if marked:
            return self._pop_mark()
        return [self._stack.pop() for _ in range(size)][::-1]

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise Refused(f"data.pkl modifies something other than a {kind.__name__}")
        return self._stack[-1]

    def _reduce(self, function: Any, args: Any) -> Any:
        # Every branch takes constant time, so that memoized arguments are no bomb.
        match getattr(function, "name", None), args:
            case "OrderedDict", ():
                return {}
            case "_rebuild_tensor" | "_rebuild_tensor_v2", (
                _Storage() as storage,
                int() as offset,
                tuple() as shape,
                tuple() as stride,
                *_,
            ):
                return self._make(_view(storage, offset, shape, stride))
            case "_rebuild_parameter" | "_rebuild_parameter_with_state", (
                lazy_tensor.LazyTensor() as tensor,
                *_,
            ):
                return tensor
            case "Size", (tuple() as shape,):
                return shape
            case "device", (str() as name,) if len(name) < 100:
                return name
            case "device", (str() as name, int() as index) if len(name) < 100:
                return f"{name}:{index % 2**32}"
            case "dtype", (str() as name, *_) if name in _NUMPY_DTYPES:
                return np.dtype(name)
            case "scalar", (np.dtype() as dtype, bytes() as data):
                if len(data) == dtype.itemsize:
                    return np.frombuffer(data, dtype)[0].item()
            case "encode", (str() as text, "latin1"):
                if text not in self._encoded:
                    self._encoded[text] = text.encode("latin1")
                return self._encoded[text]
        raise Refused(
            "data.pkl calls "
            f"{getattr(function, 'name', 'an object that is not a function')} with "
            "unknown arguments; refused, nothing was executed"
        )


def _global(name: str) -> Any:
    if name not in _GLOBALS:
        dotted = ascii(name.replace(" ", ".")[:100])[1:-1]
        value, what = "v", "only its weights"
        if "_rebuild_qtensor" in name:
            value, what = "v.dequantize()", "its weights dequantised"
        elif "_rebuild_tensor_v3" in name or "loat8" in name:  # since torch 2.1
            value, what = "v.float()", "its weights as float32"
        raise Refused(
            f"asks to run {dotted}; refused, nothing was executed",
            f"if you trust the file, load it with torch and save {what}, "
            f"torch.save({{k: {value} for k, v in state_dict.items()}}, path)",
        )
    return _GLOBALS[name]


def _storage(persistent_id: Any) -> _Storage:
    match persistent_id:
        case "storage", _Global(name), str() as key, _, int() as size:
            if name in STORAGES and 0 <= size < _MAX_SIZE and len(key) < 100:
                return _Storage(key, STORAGES[name], size)
    raise Refused("data.pkl refers to a storage in an unknown form")


def _view(storage: _Storage, offset: int, shape: tuple, stride: tuple) -> Tensor:
    numbers = (offset, *shape[: _MAX_DIMS + 1], *stride[: _MAX_DIMS + 1])
    if (
        len(shape) > _MAX_DIMS
        or len(shape) != len(stride)
        or not all(type(n) is int and 0 <= n < _MAX_SIZE for n in numbers)
        or math.prod(max(n, 1) for n in shape) >= _MAX_SIZE
    ):
        raise Refused("a tensor has an impossible shape or stride")
    if 0 not in shape:
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride))
        if last >= storage.size or math.prod(shape) > storage.size:
            raise Refused(
                f"a tensor of shape {list(shape)} and stride {list(stride)} at "
                f"{offset} does not fit its storage of {storage.size} elements",
                "if it is an expanded view, save its clone()",
            )
    return Tensor(storage.key, storage.dtype, storage.size, offset, shape, stride)


def _update(mapping: dict, items: list[Any]) -> dict:
    if len(items) % 2:
        raise Refused("data.pkl holds a key without a value")
    for key in items[::2]:
        if not isinstance(key, _SCALARS):  # hashing a deep tuple crashes
            raise Refused(f"a dict has a key of type {type(key).__name__}")
    mapping.update(zip(items[::2], items[1::2]))
    return mapping


def _check_size(
    node: Any, seen: dict[int, tuple[int, int]], depth: int
) -> tuple[int, int]:
    """Return the number of values and the height below; refuse cycles and bombs."""
    if isinstance(node, (*_SCALARS, lazy_tensor.LazyTensor, np.dtype)):
        return 1, 0
    if not isinstance(node, (dict, list, tuple)):
        raise Refused("data.pkl holds a storage, a function or a class as a value")
    if depth <= MAX_DEPTH and id(node) not in seen:
        size, height = 1, 0
        for child in node.values() if isinstance(node, dict) else node:
            more, deeper = _check_size(child, seen, depth + 1)
            size, height = size + more, max(height, deeper + 1)
        seen[id(node)] = size, height
    if depth > MAX_DEPTH or depth + seen[id(node)][1] > MAX_DEPTH:
        raise Refused(f"data.pkl is nested more than {MAX_DEPTH} deep")
    if seen[id(node)][0] > MAX_OPCODES:
        raise Refused(f"data.pkl expands to more than {MAX_OPCODES} values")
    return seen[id(node)]
