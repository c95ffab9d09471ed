"""Pickles from outside: arrays are read, and nothing that a pickle names is run."""

import os
import pickle

import numpy as np
import pytest

from data.errors import UserError
from data.pickled_arrays import load_arrays


class Calls:
    """Pickles to a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "x.pkl"
        path.write_bytes(content)
        return str(path)

    return write


def test_arrays_of_numpy_1_and_2(write):
    content = pickle.dumps({"a": np.arange(10.0).reshape(2, 5)}, protocol=2)
    assert b"numpy._core.multiarray" in content
    for names in (content, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")):
        assert load_arrays(write(names))["a"].tolist() == np.arange(10.0).reshape(2, 5).tolist()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_that_calls_something_runs_nothing(write, tmp_path, protocol, nested):
    mark = tmp_path / "run"
    call = Calls(os.system, f"touch {mark}")
    content = pickle.dumps({"a,902": call} if nested else call, protocol=protocol)
    with pytest.raises(UserError, match=r"refused.*refers to posix\.system"):
        load_arrays(write(content))
    assert not mark.exists()


@pytest.mark.parametrize(
    "call",
    [
        Calls(eval, "1"),
        Calls(bytes, 10),
        Calls(getattr, "x", "load"),
        Calls(np.load, "x"),
        Calls(np.fromfile, "/etc/passwd"),
        Calls(open, "/etc/passwd"),
    ],
)
def test_other_functions_are_refused_too(write, call):
    with pytest.raises(UserError, match="refused"):
        load_arrays(write(pickle.dumps({"a": call}, protocol=4)))


@pytest.mark.parametrize(
    "content",
    [
        # Attributes of what is allowed, and codecs other than the one that numpy needs.
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
        b"",
        b"not a pickle",
        b"\x80\x04]\x94.",
        b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
        pickle.dumps({"a": np.array([{}], dtype=object)}),
        pickle.dumps({"a": np.array(["x"])}),
        pickle.dumps({1: np.zeros(3)}),
        pickle.dumps({"a": [1, 2]}),
    ],
)
def test_anything_else_is_an_error_of_the_file(write, content):
    with pytest.raises(UserError, match=r"x\.pkl"):
        load_arrays(write(content))


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_arrays(str(tmp_path / "none.pkl"))
