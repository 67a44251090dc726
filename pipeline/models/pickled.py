"""Pickles of numpy arrays, read without running anything that the file says.

detectron2 publishes the weights of its model zoo as such pickles (.pkl). A pickle names the
functions that are to be called; here every name but those of plain arrays is refused, and stand-ins
take the place of numpy's own functions, which would let a file forge pointers to objects.
"""

import math
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ModelError

# Numbers, texts, and objects, which are in the file themselves; no fields, dates or pointers.
_PLAIN_DTYPE: Final = re.compile(r"[<>=|]?([?bBhHiIlLqQefd]|[biufcSU]\d+|O8?)")


def read_pickle(path: Path) -> Any:
    """Return arrays, numbers, texts, and containers of them.

    Raises ModelError for any other object, and for a truncated file.
    """
    try:
        with path.open("rb") as stream:
            # Python 2 wrote the older ones; latin1 keeps the bytes of their arrays.
            return _ArraysOnly(stream, encoding="latin1").load()
    except _RefusedError as error:
        raise ModelError(
            f"{path} holds an object of type {error}, which is refused because loading it "
            "runs code; save its weights alone with torch.save, where you trust the file"
        ) from None
    except Exception as error:  # a broken pickle fails in any way, by where it is broken
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(
            f"{path} is truncated or no pickle of arrays: {type(error).__name__}: {reason}"
        ) from None


class _RefusedError(Exception):
    """A name that is not one of plain arrays."""


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what a name of plain arrays stands for."""
        try:
            return _ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, by which Python 3 writes bytes for Python 2.

    The original would look any codec up.
    """
    if encoding != "latin1":
        raise _RefusedError(f"bytes as {encoding}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stand in for `bytes`, by which Python 3 writes empty bytes for Python 2."""
    return b""


class _Dtype:
    """Stands in for `numpy.dtype`, which takes flags from a file and then bytes for objects."""

    def __init__(self, code: str, align: object = False, copy: object = False) -> None:
        if not _PLAIN_DTYPE.fullmatch(code):
            raise ValueError(f"arrays of {code!r:.40} are not read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take the byte order; the rest follows from the code."""
        if state[1] not in ("<", ">", "=", "|"):
            raise ValueError(f"{state[1]!r:.40} is no byte order")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array whose contents a file gives only where shape, dtype and length fit together."""

    def __setstate__(self, state: Any) -> None:
        """Take the contents: bytes, or a list of objects."""
        *_, shape, kind, is_fortran, content = state
        if self.size:
            raise ValueError("an array is given contents twice")
        checked: Any = (1, shape, kind.dtype, bool(is_fortran), _checked(content, kind, shape))
        super().__setstate__(checked)


def _reconstruct(*_: object) -> _Array:
    return _Array(0)


def _frombuffer(
    content: Any, kind: Any, shape: Any, order: Any, axes: Any = None
) -> NDArray[np.generic]:
    flat = np.frombuffer(_checked(content, kind, shape), kind.dtype)
    if order == "K" and axes is not None:
        return flat.reshape(shape).transpose(axes)
    return flat.reshape(shape, order=order)


def _scalar(kind: Any, content: Any) -> np.generic:
    value: np.generic = np.frombuffer(_checked(content, kind, ()), kind.dtype)[0]
    return value


def _checked(content: Any, kind: Any, shape: Any) -> Any:
    """Return the contents of an array; raises ValueError where they do not fill it exactly.

    numpy itself reads past the end of a list that is too short.
    """
    if not isinstance(kind, _Dtype) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError("an array has no dtype or shape of numpy")
    if isinstance(content, str):  # of Python 2
        content = content.encode("latin1")
    if not isinstance(content, list if kind.dtype.hasobject else bytes | bytearray):
        raise ValueError(f"an array of {kind.dtype} is made of a {type(content).__name__}")
    item = 1 if kind.dtype.hasobject else kind.dtype.itemsize
    if len(content) != math.prod(shape) * item:
        raise ValueError(
            f"an array of {kind.dtype} has length {len(content)}, not {math.prod(shape) * item}"
        )
    return content


def _allowed() -> dict[str, Any]:
    names: dict[str, Any] = {
        "numpy.ndarray": "ndarray",  # what is reconstructed; never called
        "numpy.dtype": _Dtype,
        "collections.OrderedDict": OrderedDict,
        "_codecs.encode": _latin1,
        "__builtin__.bytes": _no_bytes,
    }
    for package in ("numpy.core", "numpy._core"):  # numpy 1, numpy 2
        names[f"{package}.multiarray._reconstruct"] = _reconstruct
        names[f"{package}.multiarray.scalar"] = _scalar
        names[f"{package}.numeric._frombuffer"] = _frombuffer
    return names


_ALLOWED: Final = _allowed()
