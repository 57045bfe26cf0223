"""The pickles of model files are read; those that would run something are refused by name, and nothing runs."""

import collections
import copyreg
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from s2uniseg_d2.core import restricted_pickle
from s2uniseg_d2.core.restricted_pickle import UnsafePickleError, parse_plain_pickle, read_plain_pickle
from tests.exploits import PICKLES

ARRAYS = {
    "c": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "half": np.ones(3, dtype=np.float16),
    "big_endian": np.arange(6, dtype=">f8").reshape(2, 3),
    "bool": np.array([True, False]),
    "text": np.array(["a", "bcd"]),
    "bytes": np.array([b"a", b"bcd"]),
    "complex": np.array([1j]),
    "empty": np.zeros((0, 3), dtype=np.int64),
    "no_axes": np.array(2, dtype=">i4"),
}
PLAIN = {"__author__": "somebody", "matching_heuristics": True, "set": {1, 2}, "frozen": frozenset({3}), "none": None}
NESTED = {"tuple": (1, [2.5, b"\xff", b""]), "number": np.float32(3.5), "dict": {1: {2: 3}}}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_numpy_writes_is_read_back(protocol):
    content = {"model": collections.OrderedDict(ARRAYS), **PLAIN, **NESTED}
    read = parse_plain_pickle(pickle.dumps(content, protocol), "it")
    assert {key: value for key, value in read.items() if key != "model"} == {**PLAIN, **NESTED}
    assert type(read["number"]) is np.float32
    assert list(read["model"]) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert read["model"][name].dtype == array.dtype
        assert read["model"][name].flags.f_contiguous == array.flags.f_contiguous
        np.testing.assert_array_equal(read["model"][name], array)
        read["model"][name][...] = array  # may be written to


def test_python_2_writes_texts_for_bytes(tmp_path):
    # what Python 2's cPickle writes for {'blobs': {'w': numpy.array([1, 2], '<i2')}}: strings in place of bytes
    data = (
        b"\x80\x02}U\x05blobs}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02i2K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x04\x01\x00\x02\x00tbss."
    )
    (tmp_path / "blobs.pkl").write_bytes(data)
    array = read_plain_pickle(tmp_path / "blobs.pkl")["blobs"]["w"]
    assert array.dtype == np.int16
    assert array.tolist() == [1, 2]
    np.testing.assert_array_equal(array, pickle.loads(data, encoding="latin1")["blobs"]["w"])


def test_what_is_shared_stays_shared():
    array = np.zeros(3)
    read = parse_plain_pickle(pickle.dumps([array, array, (array,)]), "it")
    assert read[0] is read[1] is read[2][0]


@pytest.mark.parametrize("wanted", PICKLES)
def test_an_exploit_is_refused_by_name(tmp_path, wanted):
    target = tmp_path / "touched"
    path = tmp_path / "weights.pkl"
    path.write_bytes(PICKLES[wanted](target))
    with pytest.raises(
        UnsafePickleError, match=f"weights.pkl must hold plain .* asks for {re.escape(wanted)}"
    ) as error:
        read_plain_pickle(path)
    assert error.value.wanted == wanted
    assert not target.exists()


@pytest.mark.parametrize("wanted", PICKLES)
def test_the_exploits_are_real(tmp_path, wanted):
    # in a process of its own: this is what Detectron2's own reader does with such a file
    target = tmp_path / "touched"
    (tmp_path / "weights.pkl").write_bytes(PICKLES[wanted](target))
    load = "import pickle, sys, time; pickle.load(open(sys.argv[1], 'rb'), encoding='latin1'); time.sleep(0.2)"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", load, tmp_path / "weights.pkl"], capture_output=True, timeout=60
    )
    assert target.exists()


def test_registered_extensions_and_persistent_ids_are_refused(tmp_path):
    # an extension that was used before comes out of a cache, past every look at its name
    copyreg.add_extension("posix", "system", 200)
    try:
        pickle.loads(b"\x80\x02\x82\xc8.")
        for data, opcode in ((b"\x80\x02\x82\xc8.", "EXT1"), (b"Psomething\n.", "PERSID")):
            with pytest.raises(UnsafePickleError, match=opcode):
                parse_plain_pickle(data, "it")
    finally:
        copyreg.remove_extension("posix", "system", 200)


def test_a_pickle_cannot_change_what_it_is_given():
    # BUILD with a second part sets attributes of any object on the pickle's stack
    for name in ("numpy\ndtype", "numpy\nndarray", "numpy.core.multiarray\nscalar"):
        with pytest.raises(ValueError, match="damaged or no pickle"):
            parse_plain_pickle(f"c{name}\n(N(dV_make\nI1\nstb.".encode(), "it")
    before = dict(restricted_pickle._STAND_INS)
    assert np.array_equal(parse_plain_pickle(pickle.dumps(np.ones(2)), "it"), np.ones(2))
    assert before == restricted_pickle._STAND_INS


def array_pickle(code="f8", shape=(2,), state=(3, "<", None, None, None, -1, -1, 0), content=bytes(16)):
    """A pickle of an array of any parts, sound or not."""

    def part(value):
        return pickle.dumps(value, 2)[2:-1]

    dtype = b"cnumpy\ndtype\n" + part((code, False, True)) + b"R" + part(state) + b"b"
    made = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R("
    return made + part(1) + part(shape) + dtype + part(False) + part(content) + b"tb."


def buffer_pickle(dtype):
    """What numpy writes for an array in protocol 5, with something else for its type."""
    return b"\x80\x05cnumpy.core.numeric\n_frombuffer\n" + pickle.dumps((bytes(8), dtype, (1,), "C"), 2)[2:-1] + b"R."


def test_parts_of_an_array_are_checked():
    assert parse_plain_pickle(array_pickle(), "it").tolist() == [0.0, 0.0]
    refused = {
        "numbers or texts, got the type 'O8'": array_pickle(code="O8"),
        "numbers or texts, got the type 'f4,O'": array_pickle(code="f4,O"),
        "numbers or texts, got the type 'V8'": array_pickle(code="V8"),
        "a plain one of numbers": array_pickle(state=(3, "<", None, ("a",), {"a": 1}, 8, 8, 63)),
        "that many values of 8 bytes, got 16": array_pickle(shape=(3,)),
        "got 0": array_pickle(shape=(2**62, 4), content=b""),
        "whole numbers from 0": array_pickle(shape=(-2,)),
        "must be bytes, got list": array_pickle(content=[1, 2]),
        "named by a text, got int": array_pickle(code=8),
        "at least one byte, got the type 'S0'": array_pickle(code="S0", shape=(2**62,), content=b""),
        "must have 5 parts": b"cnumpy.core.multiarray\n_reconstruct\n)RK\x01b.",
        "lacks its content": b"cnumpy.core.multiarray\n_reconstruct\n)R.",
        "must have a type and an order, got f8 and C": buffer_pickle("f8"),
        "cannot be called by itself": b"cnumpy\nndarray\n)R.",
        "must not hold a _Type by itself": b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8tR.",
        "written as a Latin-1 text, got 'utf-8'": pickle.dumps(b"\xff", 2).replace(
            b"\x06\x00\x00\x00latin1", b"\x05\x00\x00\x00utf-8"
        ),
    }
    for reason, data in refused.items():
        with pytest.raises(ValueError, match=re.escape(reason)):
            parse_plain_pickle(data, "it")


def test_an_array_takes_a_state_with_and_without_a_version():
    for state in (((2,), None, False, b""), (1, (2,), None, False, b"")):
        array = restricted_pickle._Array()
        array.__setstate__(state)
        assert array._state == ((2,), None, False, b"")
    with pytest.raises(ValueError, match="must have 5 parts"):
        restricted_pickle._Array().__setstate__((None, False, b""))


def test_a_refusal_says_its_words_alone():
    error = restricted_pickle.UnsafePickleError("it asks for a.b", "a.b")
    assert (str(error), error.wanted) == ("it asks for a.b", "a.b")


def test_damage_is_named(tmp_path):
    sound = pickle.dumps({"model": ARRAYS})
    for data in (b"", b"no pickle", sound[:-20], sound[: len(sound) // 2], b"\x80\x04K\x01r\xff\xff\xff\x7f."):
        with pytest.raises(ValueError, match=r"^it is damaged or no pickle of plain data"):
            parse_plain_pickle(data, "it")
    with pytest.raises(ValueError, match=r"pickle file .*none.pkl cannot be read: No such file"):
        read_plain_pickle(tmp_path / "none.pkl")


def test_containers_in_themselves_and_bombs_end():
    endless: list = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nor in themselves"):
        parse_plain_pickle(pickle.dumps(endless), "it")
    deep = b"]" * 5000 + b"a" * 4999 + b"."
    with pytest.raises(ValueError, match="deeper than 64"):
        parse_plain_pickle(deep, "it")
    bomb = []
    for _ in range(40):  # 2^40 lists if what is shared were read again
        bomb = [bomb, bomb]
    assert len(parse_plain_pickle(pickle.dumps(bomb), "it")) == 2
