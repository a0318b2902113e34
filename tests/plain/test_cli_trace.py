"""``sriov-fast trace`` with small programs as plugins: their calls, their timing, and their end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness.waiting import wait_for
from sriov_fast.cli import main, trace

PLUGIN = """#!{python} -IS
import json, os, sys, time
env = dict(os.environ)
begin = time.monotonic_ns()
stdin = json.load(sys.stdin)
with open({calls!r}, "a") as log:
    log.write(json.dumps([env, stdin]) + "\\n")
verb = env["CNI_COMMAND"]
{body}
end = time.monotonic_ns()
spans = [dict(name="work", kind="kernel", start_ns=begin, end_ns=end)]
document = dict(clock="CLOCK_MONOTONIC", mode="in-process", verb=verb, spans=spans)
with open(env["SRIOV_FAST_TRACE"], "w") as file:
    json.dump(document, file)
if verb == "ADD":
    print(json.dumps({{"cniVersion": "1.0.0", "ips": []}}))
"""
CONF = {"cniVersion": "1.0.0", "name": "net1", "type": "sriov", "master": "pf0"}
SOURCE = str(Path(trace.__file__).parents[2])


class Stage:
    """A plugin, a configuration, and a file in place of a network namespace."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run = root / "run"
        self.log = root / "calls"
        self.netns = root / "netns"
        self.netns.touch()
        self.conf = root / "conf"
        self.conf.write_text(json.dumps(CONF))

    def plugin(self, body: str = "") -> Path:
        path = self.root / "sriov"
        path.write_text(PLUGIN.format(python=sys.executable, calls=str(self.log), body=body))
        path.chmod(0o755)
        return path

    def words(self, *more: str) -> list[str]:
        plugin = str(self.root / "sriov")
        return ["trace", "--plugin", plugin, "--conf", str(self.conf), "--netns", str(self.netns), *more]

    def calls(self) -> list[tuple[dict[str, str], dict[str, Any]]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(env, stdin) for env, stdin in map(json.loads, lines)]

    def verbs(self) -> list[str]:
        return [env["CNI_COMMAND"] for env, _ in self.calls()]

    def left(self) -> list[str]:
        return [str(path) for path in self.run.rglob("*")]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage(tmp_path)
    made.plugin()
    monkeypatch.setenv("SRIOV_FAST_RUN", str(made.run))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("CNI_PATH", raising=False)
    return made


def test_what_the_plugin_is_told(stage: Stage) -> None:
    assert main(stage.words("--ifname", "net7", "--args", "VLAN=5", "--cni-path", "/a:/b")) == 0
    (add, conf), (delete, after) = stage.calls()
    assert (add["CNI_COMMAND"], delete["CNI_COMMAND"]) == ("ADD", "DEL")
    for env in (add, delete):
        assert (env["CNI_IFNAME"], env["CNI_ARGS"], env["CNI_PATH"]) == ("net7", "VLAN=5", "/a:/b")
        assert env["CNI_NETNS"] == str(stage.netns)
        assert env["CNI_CONTAINERID"] == add["CNI_CONTAINERID"]
        assert os.path.isabs(env["SRIOV_FAST_TRACE"])
    assert conf == CONF
    assert after == CONF | {"prevResult": {"cniVersion": "1.0.0", "ips": []}}
    assert stage.left() == []


def test_where_ipam_is_looked_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    main(stage.words())
    monkeypatch.setenv("CNI_PATH", "/x")
    main(stage.words())
    paths = [env["CNI_PATH"] for env, _ in stage.calls()]
    assert paths[0].split(":") == [str(stage.root), "/opt/cni/bin", "/usr/lib/cni"]
    assert paths[2] == "/x"


@pytest.mark.parametrize(
    ("words", "verbs"), [([], ["ADD"]), (["--verb", "DEL"], ["DEL"]), (["--verb", "both"], ["ADD", "DEL"])]
)
def test_what_is_shown(
    stage: Stage, capsys: pytest.CaptureFixture[str], words: list[str], verbs: list[str]
) -> None:
    stage.plugin("time.sleep(0.02)")
    svg, figures = stage.root / "a.svg", stage.root / "a.json"
    assert main(stage.words(*words, "--svg", str(svg), "--json", str(figures))) == 0
    shown = capsys.readouterr().out
    assert [line.split(",")[0] for line in shown.splitlines() if ", in-process: " in line] == verbs
    for name in ("process start", "work", "process end"):
        assert shown.count(f"\n{name} ") == len(verbs)
    assert ElementTree.fromstring(svg.read_text()).tag.endswith("svg")
    found = json.loads(figures.read_text())["waterfalls"]
    assert [item["verb"] for item in found] == verbs
    for item in found:
        start, work, end = item["spans"]
        assert start["start_ms"] == 0
        assert start["end_ms"] == work["start_ms"]
        assert work["end_ms"] - work["start_ms"] >= 20
        assert end["end_ms"] == item["total_ms"]


def test_figures_on_stdout(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(stage.words("--json")) == 0
    assert json.loads(capsys.readouterr().out)["waterfalls"][0]["verb"] == "ADD"


def test_the_median_of_several(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """The waterfall is that of the ADD with the median duration, not that of the slow third one."""
    stage.plugin(
        f"time.sleep(0.3 if open({str(stage.log)!r}).read().count('\"ADD\"') == 3 and verb == 'ADD' else 0)"
    )
    assert main(stage.words("--repeat", "3", "--json", "-")) == 0
    (item,) = json.loads(capsys.readouterr().out)["waterfalls"]
    assert len(item["totals_ms"]) == 3
    assert item["total_ms"] == item["totals_ms"][1]
    assert item["totals_ms"][2] - item["spans"][1]["end_ms"] + item["spans"][1]["start_ms"] > 290
    assert stage.verbs() == ["ADD", "DEL"] * 3
    assert len({env["CNI_CONTAINERID"] for env, _ in stage.calls()}) == 3


def test_a_list_of_plugins(stage: Stage) -> None:
    ours = {"type": "sriov", "master": "pf0"}
    stage.conf.write_text(json.dumps({"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "x"}, ours]}))
    assert main(stage.words()) == 0
    assert stage.calls()[0][1] == ours | {"cniVersion": "1.1.0", "name": "n"}


# --- failures


@pytest.mark.parametrize(
    ("conf", "words", "said"),
    [
        ("{", [], "cannot be decoded"),
        ("[]", [], "not a JSON object"),
        ('{"plugins": [{"type": "bridge"}]}', [], "no plugin of the list"),
        ('{"plugins": 3}', [], "no plugin of the list"),
        ("{}", ["--conf", "/none/x"], "/none/x"),
        ("{}", ["--plugin", "/none/sriov"], "/none/sriov"),
        ("{}", ["--netns", "none-of-that-name"], "/var/run/netns/none-of-that-name"),
        ("{}", ["--json", "-", "--svg", "-"], "stdout is one"),
    ],
)
def test_wrong_arguments_execute_nothing(
    stage: Stage, capsys: pytest.CaptureFixture[str], conf: str, words: list[str], said: str
) -> None:
    stage.conf.write_text(conf)
    assert main(stage.words(*words)) == 1
    assert said in capsys.readouterr().err
    assert stage.calls() == []


ERROR = """
if verb == FAILS:
    print("a line of its log", file=sys.stderr)
    print(json.dumps(dict(cniVersion="1.0.0", code=11, msg="no VF is free", details="wait for one")))
    sys.exit(1)
"""


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_an_error_of_the_plugin(stage: Stage, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    stage.plugin(ERROR.replace("FAILS", repr(verb)))
    assert main(stage.words()) == 1
    said = capsys.readouterr()
    assert f"{verb} failed: code 11: no VF is free; wait for one" in said.err
    assert "a line of its log" in said.err
    assert said.out == ""
    assert stage.verbs() == ["ADD", "DEL"]
    assert stage.left() == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sys.exit(3)", "exit status 3"),
        ("print('[1]'); sys.exit(1)", "exit status 1"),
        ("os.kill(os.getpid(), 9)", "exit status -9"),
    ],
)
def test_a_plugin_that_says_nothing(
    stage: Stage, capsys: pytest.CaptureFixture[str], body: str, words: str
) -> None:
    stage.plugin(body)
    assert main(stage.words()) == 1
    said = capsys.readouterr().err
    assert words in said
    assert "the DEL after it failed, too" in said
    assert stage.verbs() == ["ADD", "DEL"]


def test_no_program(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    (stage.root / "sriov").write_bytes(b"\x7fELF, but no more")
    assert main(stage.words()) == 1
    assert str(stage.root / "sriov") in capsys.readouterr().err


def test_a_plugin_without_steps(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """A plugin that writes no steps, such as another or an older one, is shown as one span."""
    (stage.root / "sriov").write_text("#!/bin/sh\ncat > /dev/null\n")
    assert main(stage.words()) == 0
    assert "the whole process" in capsys.readouterr().out


def test_a_plugin_that_hangs(
    stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin that hangs is killed together with its child processes, and a DEL follows."""
    monkeypatch.setattr(trace, "_PATIENCE", 1.0)
    started = stage.root / "child"
    body = f"""
if verb == "ADD":
    child = os.fork()
    if child:
        open({str(started)!r}, "w").write(str(child))
    time.sleep(60)
"""
    stage.plugin(body)
    assert main(stage.words()) == 1
    assert "was killed" in capsys.readouterr().err
    assert stage.verbs() == ["ADD", "DEL"]
    child = int(started.read_text())
    wait_for(lambda: not is_running(child), "what it started still runs")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- signals


def start(stage: Stage) -> subprocess.Popen[str]:
    env = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([SOURCE, *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-m", "sriov_fast.cli", *stage.words("--repeat", "1000")],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ended_in_between(stage: Stage, number: signal.Signals) -> None:
    """A signal ends the command after every ADD has a complete DEL."""
    process = start(stage)
    wait_for(lambda: len(stage.verbs()) >= 3, "no second ADD")
    process.send_signal(number)
    said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    verbs = stage.verbs()
    assert len(verbs) % 2 == 0
    assert verbs == ["ADD", "DEL"] * (len(verbs) // 2)
    assert stage.left() == []


def test_ended_while_an_add_hangs(stage: Stage) -> None:
    """Ctrl-C ends a hanging ADD at once, but the DEL runs to its end."""
    done = stage.root / "done"
    stage.plugin(f"time.sleep(60 if verb == 'ADD' else 0.5)\nopen({str(done)!r}, 'w').write(verb)")
    process = start(stage)
    wait_for(stage.verbs, "no ADD")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert stage.verbs() == ["ADD", "DEL"]
    assert done.read_text() == "DEL"
    assert stage.left() == []


def test_signals_are_as_a_plugin_expects_them(stage: Stage) -> None:
    """The plugin inherits neither the signal mask of the command nor Python's ignored SIGPIPE."""
    # Shell built-ins read the masks, since the shell changes its own mask when it starts a program.
    reading = f'while read -r line; do echo "$line"; done < /proc/self/status >> {stage.log}'
    (stage.root / "sriov").write_text(f"#!/bin/sh\n{reading}; cat > /dev/null\n")
    assert main(stage.words()) == 0
    lines = [line.split(":") for line in stage.log.read_text().splitlines() if line.startswith("Sig")]
    masks = [(key, int(mask, 16)) for key, mask in lines if key in ("SigBlk", "SigIgn")]
    assert [key for key, _ in masks] == ["SigBlk", "SigIgn"] * 2
    assert all(not mask & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGINT - 1) for _, mask in masks)
