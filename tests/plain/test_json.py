"""The JSON module: strict where it reads, and readable by everybody where it writes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import sriov_fast
from sriov_fast.common import json as codec
from sriov_fast.common.errors import DecodeError

# A busy machine is no failure.
relaxed = settings(suppress_health_check=[HealthCheck.too_slow])

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
    pytest.param(b'{"a', "Unterminated string", id="in a key"),
    pytest.param(b'{"a":', "a value is missing at line 1 column 6", id="no value"),
    pytest.param(b'{"a": "x', "Unterminated string", id="in a string"),
    pytest.param(b'{"a":1,}', " at line 1 column ", id="comma"),
    pytest.param(b'{"a":1} {"b":2}', "something follows the value at line 1 column 9", id="two values"),
    pytest.param(b'{"a":1}\0', "something follows", id="NUL behind"),
    pytest.param(b'{\n "a": 1\n "b": 2\n}', "line 3 column 2", id="place"),
    pytest.param(b'{"a":1,"b":{"c":1,"d":2,"c":3}}', '"c" is given twice', id="duplicate"),
    pytest.param(b'{"a":1,"\\u0061":2}', '"a" is given twice', id="duplicate, escaped"),
    pytest.param(b'{"a":"NaN","b":NaN}', "NaN is not JSON at line 1 column 16", id="NaN"),
    pytest.param(b"[Infinity]", "Infinity is not JSON at line 1 column 2", id="infinity"),
    pytest.param(b'["\\"NaN",-Infinity]', "-Infinity is not JSON at line 1 column 10", id="-infinity"),
    pytest.param(b"1e999", "1e999 is too large", id="wide float"),
    pytest.param(b"1" * 5000, "too large", id="wide integer"),
    pytest.param(b"01", "something follows", id="octal"),
    pytest.param(b"'a'", "a value is missing", id="single quotes"),
    pytest.param(b'"\x01"', "Invalid control character at line", id="control character"),
    pytest.param(b'"\\x"', "Invalid", id="escape"),
    pytest.param(b'"\\ud800"', "surrogate", id="lone surrogate"),
    pytest.param(b'{"\\udc00":1}', "surrogate", id="lone surrogate in a key"),
    pytest.param(b"\xef\xbb\xbf{}", "byte order mark", id="BOM"),
    pytest.param('{"a": 1}'.encode("utf-16"), "not UTF-8", id="UTF-16"),
    pytest.param(b'{"a": "\xff"}', "byte 7 is not UTF-8", id="not UTF-8"),
    pytest.param(b"[" * 101 + b"]" * 101, "nested deeper than 100", id="deep"),
    pytest.param(b"[" * 100_000, "nested deeper than 100", id="very deep"),
    pytest.param(b'{"a":' * 100_000, "nested deeper than 100", id="very deep objects"),
    pytest.param(b" " * codec.MAX_BYTES + b"1", "larger than 1048576 bytes", id="large"),
    pytest.param(b"[" + b"1," * (5 << 20), "larger than", id="10 MiB"),
]


@pytest.mark.parametrize(("data", "words"), REFUSED)
def test_refused(data: bytes, words: str) -> None:
    with pytest.raises(DecodeError) as caught:
        codec.loads(data, "the thing")
    assert words in caught.value.msg
    assert caught.value.msg.startswith("the thing cannot be decoded: ")
    assert caught.value.details
    assert caught.value.code == 6


def test_the_same_errors_without_json_imported() -> None:
    """The C scanner behaves differently as long as nobody has imported ``json``."""
    program = (
        f"import sys; sys.path.insert(0, {SRC!r})\n"
        "from sriov_fast.common import json as codec\n"
        "from sriov_fast.common.errors import DecodeError\n"
        "assert 'json' not in sys.modules\n"
        "for text in sys.argv[1:]:\n"
        "    try: codec.loads(bytes.fromhex(text), 'the thing')\n"
        "    except DecodeError as error: print(repr(error.msg))\n"
    )
    cases = [case.values for case in REFUSED if len(case.values[0]) < 10_000]
    command = [sys.executable, "-I", "-S", "-c", program, *(data.hex() for data, _ in cases)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    for (data, words), said in zip(cases, run.stdout.splitlines(), strict=True):
        assert words in eval(said), data


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
    ],
)
def test_read(data: bytes, value: object) -> None:
    assert codec.loads(data) == value


@pytest.mark.parametrize("size", [0, 1, 9, 20])
def test_our_own(size: int) -> None:
    """Nothing of ours is called for each object and number; what was cut short is refused all the same."""
    written = codec.dumps({"a": {"b": [1, 2.5, None]}})
    assert codec.loads(written, own=True) == codec.loads(written)
    with pytest.raises(DecodeError, match="cannot be decoded"):
        codec.loads(written[:size], own=True)


def _strict(data: bytes) -> object:
    """The obvious reader: json.loads with what we refuse beyond it."""

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(items)
        if len(found) != len(items):
            raise ValueError
        return found

    def constant(_: str) -> float:
        raise ValueError

    def real(digits: str) -> float:
        if not math.isfinite(float(digits)):
            raise ValueError
        return float(digits)

    def whole(digits: str) -> int:
        if len(digits) > 40:
            raise ValueError
        return int(digits)

    text = data.decode("utf-8")
    value = json.loads(
        text, object_pairs_hook=pairs, parse_constant=constant, parse_float=real, parse_int=whole
    )
    json.dumps(value, ensure_ascii=False).encode()
    return value


@relaxed
@given(
    st.binary(max_size=40)
    | st.text(alphabet='{}[]",:0123456789.eE+-NaInfitytrufals\\ \n\t\x00é', max_size=60).map(str.encode)
    | documents.map(lambda value: json.dumps(value).encode())
)
@example(b'{"a":1,"a":1}')
@example(b"\xef\xbb\xbf1")
def test_agrees_with_json(data: bytes) -> None:
    try:
        expected = _strict(data)
    except (ValueError, RecursionError):
        with pytest.raises(DecodeError):
            codec.loads(data)
    else:
        assert codec.loads(data) == expected


@relaxed
@given(documents, st.booleans())
def test_round_trip(value: object, indented: bool) -> None:
    data = codec.dumps(value, indented=indented)
    assert codec.loads(data) == value
    assert json.loads(data) == value


def _indentation(text: str) -> list[int]:
    return [len(line) - len(line.lstrip(" ")) for line in text.split("\n")]


@relaxed
@given(documents)
@example({"\x7f": False})  # json escapes this character, orjson does not: both are JSON
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
    pytest.importorskip("orjson")
    assert codec.dumps({"a": [1, "é", None]}) == '{"a":[1,"é",null]}'.encode()
    assert codec.loads(codec.dumps({"wide": 2**70})) == {"wide": 2**70}  # refused by orjson, not by us


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
    """An interpreter without ``_json`` reads and writes the same."""
    monkeypatch.setattr(codec, "_scan", None)
    monkeypatch.setattr(codec, "c_make_encoder", None)
    monkeypatch.delitem(sys.modules, "orjson", raising=False)
    assert codec.loads(b'{"a": [1, 2]}') == {"a": [1, 2]}
    assert codec.dumps({"a": [1, "é"]}) == b'{"a":[1,"\\u00e9"]}'
    assert codec.text("é") == '"é"'
    for case in REFUSED:
        data, words = case.values
        with pytest.raises(DecodeError) as caught:
            codec.loads(data)
        assert words in caught.value.msg
