"""The JSON module: its readers agree, and other readers read its output."""

import json
import math
import subprocess
import sys
from pathlib import Path

import orjson  # noqa: F401 (the module reads with it if it is loaded)
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import sriov_fast
from sriov_fast.common import json as codec
from sriov_fast.common.errors import DecodeError

SRC = str(Path(sriov_fast.__file__).parent.parent)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"))
)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)

REFUSED = [
    pytest.param(b"", "empty", id="empty"),
    pytest.param(b" \n\t", "empty", id="blank"),
    pytest.param(b"{", "line 1 column 2", id="brace"),
    pytest.param(b'{"a', "line 1 column", id="in a key"),
    pytest.param(b'{"a":', "line 1 column 6", id="no value"),
    pytest.param(b'{"a": "x', "line 1 column", id="in a string"),
    pytest.param(b'{"a":1,}', "trailing comma", id="comma"),
    pytest.param(b'{"a":1} {"b":2}', "content after document: line 1 column 9", id="two values"),
    pytest.param(b'{"a":1}\0', "content after document", id="NUL behind"),
    pytest.param(b'{\n "a": 1\n "b": 2\n}', "line 3 column 2", id="place"),
    pytest.param(b'{"a":"NaN","b":NaN}', "line 1 column 16", id="NaN"),
    pytest.param(b"[Infinity]", "line 1 column 2", id="infinity"),
    pytest.param(b'["\\"NaN",-Infinity]', "line 1 column 1", id="-infinity"),
    pytest.param(b"1e999", "infinity", id="wide float"),
    pytest.param(b"1" * 400, "infinity", id="wide integer"),
    pytest.param(b"1" * 5000, "infinity", id="very wide integer"),
    pytest.param(b"01", "leading zero", id="octal"),
    pytest.param(b"'a'", "line 1 column 1", id="single quotes"),
    pytest.param(b'"\x01"', "control character", id="control character"),
    pytest.param(b'"\\x"', "escaped", id="escape"),
    pytest.param(b'"\\ud800"', "surrogate", id="lone surrogate"),
    pytest.param(b'{"\\udc00":1}', "surrogate", id="lone surrogate in a key"),
    pytest.param(b"\xef\xbb\xbf{}", "byte order mark", id="BOM"),
    pytest.param('{"a": 1}'.encode("utf-16"), "line 1 column 1", id="UTF-16"),
    pytest.param(b'{"a": "\xff"}', "UTF-8", id="not UTF-8"),
    pytest.param(b"[" * 101 + b"]" * 101, "nested deeper than 100", id="deep"),
    pytest.param(b"[" * 1020 + b"]" * 1020, "nested deeper than 100", id="as deep as orjson reads"),
    pytest.param(b"[" * 100_000, "depth limit", id="very deep"),
    pytest.param(b'{"a":' * 100_000, "depth limit", id="very deep objects"),
    pytest.param(b" " * codec.MAX_BYTES + b"1", "larger than 1048576 bytes", id="large"),
    pytest.param(b"[" + b"1," * (5 << 20), "larger than", id="10 MiB"),
]


@pytest.fixture(params=["orjson", "the C scanner", "neither"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose the reader: loaded orjson, the C scanner, or without ``_json`` an import of orjson."""
    if request.param != "orjson":
        monkeypatch.delitem(sys.modules, "orjson", raising=False)
    if request.param == "neither":
        monkeypatch.setattr(codec, "_scan", None)
        monkeypatch.setattr(codec, "c_make_encoder", None)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(("data", "words"), REFUSED)
def test_refused(data: bytes, words: str) -> None:
    with pytest.raises(DecodeError) as caught:
        codec.loads(data, "the thing")
    assert words in caught.value.msg
    assert caught.value.msg.startswith("the thing cannot be decoded: ")
    assert caught.value.details
    assert caught.value.code == 6


def test_the_same_errors_without_json_imported() -> None:
    """The errors are the same before ``json`` is imported, when the C scanner behaves differently."""
    program = (
        f"import sys; sys.path.insert(0, {SRC!r})\n"
        "from sriov_fast.common import json as codec\n"
        "from sriov_fast.common.errors import DecodeError\n"
        "for text in sys.argv[1:]:\n"
        "    assert 'json' not in sys.modules\n"
        "    try: codec.loads(bytes.fromhex(text), 'the thing')\n"
        "    except DecodeError as error: print(repr(error.msg))\n"
        "    sys.modules.pop('orjson', None), sys.modules.pop('json', None)\n"
    )
    cases = [case.values for case in REFUSED if len(case.values[0]) < 10_000]
    command = [sys.executable, "-I", "-c", program, *(data.hex() for data, _ in cases)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    for (data, words), said in zip(cases, run.stdout.splitlines(), strict=True):
        assert words in eval(said), data


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"{}", {}),
        (b" \r\n\t[1, 2.5, -0, 1e3, true, false, null] \n", [1, 2.5, 0, 1000.0, True, False, None]),
        (b'"\\ud83d\\ude00 \xc3\xa9"', "😀 é"),
        (b'"\\\\ud800"', "\\ud800"),
        (b"[" * 100 + b"]" * 100, json.loads("[" * 100 + "]" * 100)),
        (b"[" + b"[]," * 500 + b"1]", [[]] * 500 + [1]),
        (b" " * (codec.MAX_BYTES - 1) + b"1", 1),
        (b'{"a":{"x":1},"b":{"x":1}}', {"a": {"x": 1}, "b": {"x": 1}}),
        (b'{"a":1,"b":{"c":1,"c":3},"\\u0061":2}', {"a": 2, "b": {"c": 3}}),  # the last value counts
        (b"[18446744073709551615, -9223372036854775808]", [2**64 - 1, -(2**63)]),
        (b"[18446744073709551616, -9223372036854775809]", [float(2**64), float(-(2**63))]),
    ],
)
def test_read(data: bytes, value: object) -> None:
    assert repr(codec.loads(data)) == repr(value)  # 1 and 1.0 differ


def test_a_document_without_limit() -> None:
    assert codec.loads(b" " * codec.MAX_BYTES + b"1", limited=False) == 1


@given(
    st.binary(max_size=40)
    | st.text(alphabet='{}[]",:0123456789.eE+-NaInfitytrufals\\ \n\t\x00é', max_size=60).map(str.encode)
    | documents.map(lambda value: json.dumps(value).encode())
)
@example(b'{"a":1,"a":1}')
@example(b"\xef\xbb\xbf1")
def test_both_readers_agree(data: bytes) -> None:
    """orjson (in the server) and the C scanner (in a process of one request) read and refuse the same."""
    found = []
    for loaded in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not loaded:
                patch.delitem(sys.modules, "orjson", raising=False)
            try:
                found.append(repr(codec.loads(data)))
            except DecodeError as error:
                found.append(error.msg)
    assert found[0] == found[1]


@given(documents, st.booleans())
def test_round_trip(value: object, indented: bool) -> None:
    data = codec.dumps(value, indented=indented)
    assert codec.loads(data) == value
    assert json.loads(data) == value


def _indentation(text: str) -> list[int]:
    return [len(line) - len(line.lstrip(" ")) for line in text.split("\n")]


@given(documents)
@example({"\x7f": False})  # json escapes this character, orjson does not
def test_indents_like_json(value: object) -> None:
    written = codec.dumps(value, indented=True).decode()
    assert json.loads(written) == value
    assert _indentation(written) == _indentation(json.dumps(value, indent=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "orjson", raising=False)
        assert codec.dumps(value, indented=True).decode() == json.dumps(value, indent=2)


def test_compact_without_orjson(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "orjson", raising=False)
    assert codec.dumps({"a": [1, "é", None]}) == b'{"a":[1,"\\u00e9",null]}'


def test_orjson_serves_where_it_is_loaded() -> None:
    assert codec.dumps({"a": [1, "é", None]}) == '{"a":[1,"é",null]}'.encode()
    assert json.loads(codec.dumps({"wide": 2**70})) == {"wide": 2**70}  # orjson alone refuses this number


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object()])
@pytest.mark.parametrize("indented", [False, True])
def test_what_is_no_json(value: object, indented: bool) -> None:
    with pytest.raises(TypeError):
        codec.dumps({"a": value}, indented=indented)


def test_nan_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "orjson", raising=False)
    with pytest.raises(ValueError, match="not JSON compliant"):
        codec.dumps([math.nan], indented=True)


def test_text_keeps_letters() -> None:
    assert codec.text({"ключ": 'a"b'}) == '{"ключ":"a\\"b"}'


def test_without_the_c_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The output is the same without ``_json``."""
    monkeypatch.setattr(codec, "c_make_encoder", None)
    monkeypatch.delitem(sys.modules, "orjson", raising=False)
    assert codec.dumps({"a": [1, "é"]}) == b'{"a":[1,"\\u00e9"]}'
    assert codec.text("é") == '"é"'
