"""Pickles from outside: arrays are read, and nothing that a pickle names is run."""

import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy._core.multiarray import _reconstruct, scalar
from numpy._core.numeric import _frombuffer  # type: ignore[attr-defined]

from data.errors import UserError
from data.pickled_arrays import load_arrays


class Calls:
    """Pickles to a call of a function, and to what is then set as the result's state."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments, state)

    def __reduce__(self):
        return self.call


def array(kind, shape, raw, fortran=False):
    """What numpy makes of an array at protocols below 5."""
    return Calls(_reconstruct, np.ndarray, (0,), b"b", state=(1, shape, kind, fortran, raw))


def kind(code, *state):
    return Calls(np.dtype, code, False, True, state=state)


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
@pytest.mark.parametrize("shape", [(2, 3), (3, 1), (5,), (2, 3, 4), (0, 5), (0,), ()])
def test_every_layout_comes_back(write, protocol, shape):
    for code, order in itertools.product(["<f4", ">f8", "<f2", "|u1", "<i8", ">u2"], "CF"):
        counted = np.arange(np.prod(shape, dtype=int)).reshape(shape)
        values = counted.astype(np.dtype(code), order="C" if order == "C" else "F")
        written = {"whole": values, "strided": values[..., ::2] if shape else values}
        for name, read in load_arrays(write(pickle.dumps(written, protocol))).items():
            assert read.dtype.newbyteorder("=") == values.dtype.newbyteorder("=")
            assert read.shape == written[name].shape
            assert read.tolist() == written[name].tolist()


@pytest.mark.parametrize("protocol", range(6))
def test_one_array_under_two_names(write, protocol):
    values = np.arange(3.0)
    read = load_arrays(write(pickle.dumps({"a": values, "b": values}, protocol)))
    assert read["a"].tolist() == read["b"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "content",
    [
        # As Python 2 writes it at protocols 0 and 2: text and bytes are one, and truths are numbers.
        b"(dS'a'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\nI1\nt"
        b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"S'\\x00\\x00\\x00\\x00\\x00\\x00\\xf0?\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\xc0'\ntbs.",
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        b"\x8a\x01\x02K\x01\x86cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89U\x10\x00\x00\x00\x00\x00\x00\xf0?\x00\x00\x00\x00\x00\x00\x00\xc0tbs.",
    ],
)
def test_arrays_of_python_2(write, content):
    assert load_arrays(write(content))["a"].tolist() == [[1.0], [-2.0]]


PLAIN = (None, None, None, -1, -1)
SIXTEEN = b"A" * 16


HOSTILE = [
    # Flags that make numpy take the bytes for pointers: it would free what they point to.
    array(kind("O8", 3, "|", *PLAIN, 61), (2,), SIXTEEN),
    array(kind("f8", 3, "<", *PLAIN, 61), (2,), SIXTEEN),
    array(kind("i8", 4, "<", *PLAIN, 61, {}), (2,), SIXTEEN),
    array(kind("V8", 3, "|", None, ("x",), {"x": (np.dtype("O"), 0)}, 8, 1, 27), (2,), SIXTEEN),
    array(kind("f8", 3, "<", (np.dtype("O"), (1,)), None, None, -1, -1, 0), (2,), SIXTEEN),
    Calls(scalar, kind("O8", 3, "|", *PLAIN, 61), b"A" * 8),
    Calls(_frombuffer, SIXTEEN, kind("O8", 3, "|", *PLAIN, 0), (2,), "C"),
    Calls(_frombuffer, SIXTEEN, kind("f8", 3, "<", *PLAIN, 61), (2,), "C"),
    array(np.dtype("S8"), (2,), SIXTEEN),
    array(np.dtype("O"), (2,), [1, 2]),
    array(np.dtype("f8"), (-2,), SIXTEEN),
    array(np.dtype("f8"), (-1, -2), SIXTEEN),
    array(np.dtype("f8"), (3,), SIXTEEN),
    array(np.dtype("f8"), (1,), SIXTEEN),
    array(np.dtype("f8"), (2**40,), SIXTEEN),
    array(np.dtype("f8"), (2**61, 8), b""),
    array(np.dtype("f8"), (2**62, 2**62, 0), b""),
    array(np.dtype("f8"), (2,) * 65, SIXTEEN),
    array(np.dtype("f8"), 2, SIXTEEN),
    array("f8", (2,), SIXTEEN),
    array(np.dtype("f8"), (2,), "\u1234" * 16),
    Calls(_frombuffer, SIXTEEN, np.dtype("f8"), (-1,), "C"),
    Calls(_frombuffer, SIXTEEN, np.dtype("f8"), (2**40,), "C"),
    Calls(_frombuffer, SIXTEEN, np.dtype("f8"), (2,), "no order"),
    Calls(_reconstruct, np.ndarray, (2**40,), b"d"),
    Calls(np.ndarray, (2**40,)),
    # What is let in is called and not written to.
    Calls(_reconstruct, np.ndarray, (0,), b"b", state=(None, {"array": 1})),
    Calls(np.dtype, "f8", False, True, state=(None, {"dtype": 1})),
]

# A process of its own for each file, with 4 GB to fill: memory that is wrong shows when it is freed.
LOAD_EACH = """
import os, resource, sys
from data.errors import UserError
from data.pickled_arrays import load_arrays
resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9,) * 2)
for path in sys.argv[1:]:
    if not (child := os.fork()):
        status = 0
        try:
            load_arrays(path)
        except UserError:
            status = 100
        os._exit(status)  # what was read is freed by now
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("protocol", [2, 5])
def test_no_array_is_made_of_what_a_pickle_says_of_its_memory(tmp_path, protocol):
    paths = [tmp_path / f"{number}.pkl" for number in range(len(HOSTILE))]
    for path, value in zip(paths, HOSTILE, strict=True):
        path.write_bytes(pickle.dumps({"a": value}, protocol))
    root = Path(__file__).parents[2]
    ended = subprocess.check_output([sys.executable, "-c", LOAD_EACH, *paths], cwd=root, text=True, timeout=120)
    assert dict(enumerate(ended.split())) == dict.fromkeys(range(len(HOSTILE)), "100")


@pytest.mark.parametrize("protocol", range(6))
def test_numbers_of_numpy_are_no_arrays(write, protocol):
    for value in (np.float64(1), [np.float32(1), np.int8(2)]):
        with pytest.raises(UserError, match="'a' is not a numeric array"):
            load_arrays(write(pickle.dumps({"a": value}, protocol)))


def test_functions_that_are_let_in_stay_as_they_are(write):
    call = b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00xK\x01sb0}."
    with pytest.raises(UserError, match="attributes"):
        load_arrays(write(call))


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


MEMO = [
    b"\x80\x02}r" + (2**26).to_bytes(4, "little") + b".",
    b"\x80\x02}r" + (2**32 - 1).to_bytes(4, "little") + b".",
    b"}p67108864\n.",
    b"}p 67108864\0 is the end of C's text\n.",
    b"\x80\x02}(U\x01rX\x01\0\0\0r\x8c\x01rI1\n\x8a\x01\x01cnumpy\ndtype\nr" + (2**26).to_bytes(4, "little") + b"u.",
]

LOAD_IN_LITTLE = """
import resource, sys
from data.errors import UserError
from data.pickled_arrays import load_arrays
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28,) * 2)
for path in sys.argv[1:]:
    try:
        load_arrays(path)
    except UserError as error:
        print("place in its memo" in str(error))
"""


def test_a_number_of_a_memo_takes_no_memory(tmp_path):
    """C's unpickler makes a table of the size that a pickle's number of an object asks for."""
    paths = [tmp_path / f"{number}.pkl" for number in range(len(MEMO))]
    for path, content in zip(paths, MEMO, strict=True):
        path.write_bytes(content)
    root = Path(__file__).parents[2]
    told = subprocess.check_output([sys.executable, "-c", LOAD_IN_LITTLE, *paths], cwd=root, text=True, timeout=120)
    assert told.split() == ["True"] * len(MEMO)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_arrays(str(tmp_path / "none.pkl"))
