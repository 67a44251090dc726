"""Pickles of numpy arrays, read without running anything that the file says.

detectron2 publishes the weights of its model zoo as such pickles (.pkl). A pickle names the
functions that are to be called; here every name but those of plain arrays is refused.
"""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import numpy as np

from schemas.errors import ModelError


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


def _array_makers() -> list[Any]:
    """Return what pickled arrays and scalars name: all private, so they are asked for."""
    array = np.empty(0)
    return [array.__reduce__()[0], array.__reduce_ex__(5)[0], np.float32(0).__reduce__()[0]]


def _allowed() -> dict[str, Any]:
    names: dict[str, Any] = {
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
        "collections.OrderedDict": OrderedDict,
        "_codecs.encode": _latin1,
        "__builtin__.bytes": _no_bytes,
    }
    for maker in _array_makers():
        home = "numeric" if maker.__name__ == "_frombuffer" else "multiarray"
        for package in ("numpy.core", "numpy._core"):  # numpy 1, numpy 2
            names[f"{package}.{home}.{maker.__name__}"] = maker
    return names


_ALLOWED: Final = _allowed()
