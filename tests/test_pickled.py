"""Pickles of arrays: what model zoos publish is read, anything that would run code is not."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from pipeline.models.checkpoint_file import read_weights
from pipeline.models.pickled import read_pickle
from schemas.errors import ModelError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def write(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, arguments, *state):
        self.call = (function, arguments, *state)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_come_back_whatever_the_protocol(protocol, tmp_path):
    content = OrderedDict(
        {
            "float": np.arange(6, dtype=np.float32).reshape(2, 3),
            "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            "empty": np.zeros((0, 3), dtype=np.float16),
            "scalar": np.float64(0.5),
            "plain": [1, 2.5, None, "text", b"\x00\xff", ("a", True)],
        }
    )
    found = read_pickle(write(tmp_path / "zoo.pkl", content, protocol))
    assert list(found) == list(content)
    for name in ("float", "columns", "empty", "scalar"):
        np.testing.assert_array_equal(found[name], content[name], strict=True)
    assert found["plain"] == content["plain"]


def test_what_python_2_wrote_is_read(tmp_path):
    # A float32 array [1, 2] as `cPickle.dumps(array, 2)` of Python 2 with numpy 1 gives it: its
    # bytes are a Python 2 string.
    text = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b"
        b"\x87Rq\x03(K\x01K\x02\x85cnumpy\ndtype\nq\x04U\x02f4K\x00K\x01\x87Rq\x05(K\x03U\x01<NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\x00\x00\x00@tb."
    )
    (tmp_path / "old.pkl").write_bytes(text)
    found = read_pickle(tmp_path / "old.pkl")
    np.testing.assert_array_equal(found, np.array([1, 2], dtype=np.float32), strict=True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_weights_of_a_model_zoo_are_tensors(protocol, tmp_path):
    model = {"conv.weight": np.ones((2, 3), dtype=">f4"), "conv.bias": np.zeros(2)}
    content = {"model": model, "__author__": "detectron2"}
    file = read_weights(write(tmp_path / "m.pkl", content, protocol))
    assert file.entries == ("__author__",)
    assert not file.has_versions
    torch.testing.assert_close(
        file.weights,
        {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2, dtype=torch.float64)},
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("where", ["alone", "in an array", "in a key"])
def test_an_object_that_would_run_code_is_refused_and_runs_none(protocol, where, tmp_path):
    call = Calls(os.mkdir, (str(tmp_path / "executed"),))
    holder = {"alone": call, "in an array": np.array([call, None]), "in a key": {(call,): 1}}[where]
    file = write(tmp_path / "bad.pkl", {"model": holder}, protocol)
    with pytest.raises(ModelError, match=r"an object of type (posix|nt)\.mkdir, which is refused"):
        read_weights(file)
    assert not (tmp_path / "executed").exists()
    pickle.loads(file.read_bytes())  # it is a working attack
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "call, name",
    [
        (Calls(eval, ("1",)), r"\w+.eval"),
        (Calls(getattr, ("text", "format")), r"\w+.getattr"),
        (Calls(np.load, ("file",)), "numpy.load"),
        (Calls(bytes.fromhex, ("00",)), r"\w+.getattr"),
    ],
    ids=["eval", "getattr", "a function of numpy", "a method"],
)
def test_a_harmless_looking_name_is_refused_too(call, name, tmp_path):
    with pytest.raises(ModelError, match=f"object of type {name}, which is refused"):
        read_pickle(write(tmp_path / "bad.pkl", call))


def test_only_the_codec_of_bytes_is_looked_up(tmp_path):
    bytes_of_python_3 = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R."
    (tmp_path / "codec.pkl").write_bytes(bytes_of_python_3)
    with pytest.raises(ModelError, match="an object of type bytes as rot13, which is refused"):
        read_pickle(tmp_path / "codec.pkl")


POINTERS = b"\x41" * 8  # where no object is


def reconstructed(shape, dtype, content):
    """Return what pickles as numpy arrays do up to protocol 4."""
    maker = np.empty(0).__reduce__()[0]
    return Calls(maker, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, content))


def buffered(shape, dtype, content):
    """Return what pickles as numpy arrays do from protocol 5 on."""
    return Calls(np.empty(0).__reduce_ex__(5)[0], (content, dtype, shape, "C"))


def a_scalar(dtype, content):
    return Calls(np.float32(0).__reduce__()[0], (dtype, content))


def a_dtype(code, *state):
    return Calls(np.dtype, (code, False, True), state)


# With flags 0 numpy takes the bytes of a file for pointers to objects.
OBJECTS = ("O8", 3, "|", None, None, None, -1, -1, 0)
FIELDS = ("V8", 3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)


@pytest.mark.parametrize(
    "forged",
    [
        reconstructed((1,), a_dtype(*OBJECTS), POINTERS),
        buffered((1,), a_dtype(*OBJECTS), POINTERS),
        a_scalar(a_dtype(*OBJECTS), POINTERS),
        reconstructed((1,), a_dtype(*FIELDS), POINTERS),
        buffered((1,), a_dtype(*FIELDS), POINTERS),
        reconstructed((9,), np.dtype("O"), [None]),
        reconstructed((9,), np.dtype("f4"), POINTERS),
        reconstructed((-1, -2), np.dtype("f4"), POINTERS),
        buffered((9,), np.dtype("f4"), POINTERS),
        buffered((1,), np.dtype("u8"), reconstructed((1,), np.dtype("O"), [None])),
        a_scalar(np.dtype("f8"), b""),
        reconstructed((1,), a_dtype("f8", 3, "?", None, None, None, -1, -1, 0), POINTERS),
        Calls(np.ndarray, ((1,), "O")),
    ],
    ids=[
        "objects", "objects in a buffer", "an object", "fields", "fields in a buffer",
        "a short list", "short bytes", "negative", "a short buffer", "pointers as a buffer",
        "an empty scalar", "byte order", "ndarray itself",
    ],
)  # fmt: skip
def test_an_array_is_never_made_of_pointers_or_past_its_end(forged, tmp_path):
    with pytest.raises(ModelError, match=r"bad.pkl is truncated or no pickle of arrays"):
        read_pickle(write(tmp_path / "bad.pkl", {"model": {"a": forged}}))


@pytest.mark.parametrize("length", [0, 1, 40, 120])
def test_a_truncated_file_is_one_line(length, tmp_path):
    file = write(tmp_path / "cut.pkl", {"model": {"a": np.zeros(100)}})
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ModelError, match=r"cut.pkl is truncated or no pickle of arrays") as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)


def test_other_contents_are_named(tmp_path):
    for content, expected in [
        ({"blobs": {"conv1_w": np.zeros(1)}}, "holds the blobs of a Caffe2 model"),
        ({"model": {"a": np.array([None])}}, "a is an array of object, no tensor"),
        ({"model": {"a": np.array(["text"])}}, "a is an array of <U4, no tensor"),
        ([np.zeros(1)], "holds a list, not a mapping of weights"),
    ]:
        with pytest.raises(ModelError, match=expected):
            read_weights(write(tmp_path / "other.pkl", content))
