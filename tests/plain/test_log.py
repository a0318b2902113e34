"""common.log: logfmt that can be parsed, and failures that never fail a verb."""

import ast
import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriov_fast.common.log import Logger, quote

_FIELD = re.compile(r'([^\s="]+)=("(?:[^"\\]|\\.)*"|[^\s"]*)(?: |$)')


def parse(line: str) -> dict[str, str]:
    """Parse a line of logfmt."""
    found = {}
    at = 0
    while at < len(line):
        match = _FIELD.match(line, at)
        assert match, line[at:]
        assert match[1] not in found, match[1]
        # a quoted value has the form of a Python string
        found[match[1]] = ast.literal_eval(match[2]) if match[2].startswith('"') else match[2]
        at = match.end()
    return found


def lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    out, err = capfd.readouterr()
    assert out == ""  # stdout is only for the CNI result
    return [parse(line) for line in err.split("\n")[:-1]]


def test_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    Logger(context={"containerID": "abc"}).info("VF attached", vf=3, mac="02:00:00:00:00:01", note='a "b"')
    text = capfd.readouterr().err
    assert re.fullmatch(
        r'time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=info msg="VF attached" containerID=abc vf=3 '
        r'mac=02:00:00:00:00:01 note="a \\"b\\""\n',
        text,
    )


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
        ("nonsense", ["info", "warning", "error"]),
    ],
)
def test_levels(level: str, seen: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    log = Logger(level)
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)("said")
    assert [line["level"] for line in lines(capfd)] == seen


@given(st.text())
def test_quoting_round_trip(text: str) -> None:
    written = quote(text)
    assert written.isprintable()
    assert parse(f"a={written}") == {"a": text}


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("", '""'),
        ("plain", "plain"),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ("a\nb", '"a\\nb"'),
        ("\x1b[0m", '"\\x1b[0m"'),
        ("\u2028", '"\\u2028"'),
        ("\U000e0001", '"\\U000e0001"'),
        ("é", '"é"'),
        ("\udc80", '"\\udc80"'),
        (None, '""'),
        (True, "true"),
        (False, "false"),
        (7, "7"),
        ((1, 2, "c"), "1,2,c"),
        (b"\xff1", '"\\\\xff1"'),
    ],
)
def test_quote(value: object, written: str) -> None:
    assert quote(value) == written


def test_odd_fields(capfd: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    Logger().info("said", **{"a key=": 1, "msg": "other", "": 2, "broken": Broken()})  # type: ignore[arg-type]
    (line,) = lines(capfd)
    assert line["a_key_"] == "1"
    assert line["msg"] == "said"
    assert line["msg_"] == "other"
    assert line["_"] == "2"
    assert line["broken"] == "<Broken>"


def test_bind_adds_and_overrides(capfd: pytest.CaptureFixture[str]) -> None:
    outer = Logger("debug", context={"a": 1, "b": 1})
    outer.bind(b=2, c=3).debug("inner", c=4)
    outer.info("outer")
    inner_line, outer_line = lines(capfd)
    assert (inner_line["a"], inner_line["b"], inner_line["c"]) == ("1", "2", "4")
    assert (outer_line["a"], outer_line["b"]) == ("1", "1")
    assert "c" not in outer_line


def test_a_line_that_is_made_before(capfd: pytest.CaptureFixture[str]) -> None:
    logger = Logger(context={"a": 1})
    tell = logger.informing("done", b="two words")
    assert lines(capfd) == []
    logger.info("before")
    tell()
    first, second = lines(capfd)
    assert (second["level"], second["msg"], second["a"], second["b"]) == ("info", "done", "1", "two words")
    assert first["time"] <= second["time"]


def test_a_line_that_nobody_wants(capfd: pytest.CaptureFixture[str]) -> None:
    Logger("warning").informing("done")()
    assert lines(capfd) == []


def test_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log"
    log = Logger(file=str(file))
    log.debug("not written")
    assert not file.exists()
    log.info("one")
    log.bind(a=1).info("two")
    log.close()
    Logger(file=str(file)).info("three")
    assert [parse(line)["msg"] for line in file.read_text().splitlines()] == ["one", "two", "three"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert capfd.readouterr().err == file.read_text()


@pytest.mark.parametrize("kind", ["symlink", "directory", "missing", "fifo", "nul", "full"])
def test_file_that_cannot_be_written(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log"
    target = tmp_path / "target"
    if kind == "symlink":
        file.symlink_to(target)
    elif kind == "directory":
        file.mkdir()
    elif kind == "missing":
        file = tmp_path / "none" / "log"
    elif kind == "fifo":
        os.mkfifo(file)
    log = Logger(file={"nul": "/tmp/a\0b", "full": "/dev/full"}.get(kind, str(file)))
    log.info("one")
    log.bind(a=1).info("two")
    assert [line["msg"] for line in lines(capfd)] == ["one", "the log file cannot be written", "two"]
    assert not target.exists()


def test_closed_stderr(tmp_path: Path) -> None:
    file = tmp_path / "log"
    saved = os.dup(2)
    os.close(2)
    try:
        blocker = os.open("/dev/null", os.O_RDONLY)  # takes number 2: EBADF on write
        Logger(file=str(file)).error("still here")
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        if blocker != 2:
            os.close(blocker)
    assert parse(file.read_text().rstrip("\n"))["msg"] == "still here"
