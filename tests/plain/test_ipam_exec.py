"""IPAM delegation, with executables that the tests write."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.descriptors import open_files
from harness.waiting import wait_for
from sriov_fast.common.errors import ConfigError, EnvError, IpamError
from sriov_fast.ipam import exec as ipam_exec
from sriov_fast.ipam.exec import Ipam, Running

RESULT = '{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]}'
CONFIG = b'{"name": "n", "type": "sriov", "ipam": {"type": "fake"}}'
Plugin = Callable[..., str]


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    files, before = open_files(), children()
    yield
    assert open_files() == files
    assert children() == before


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    """A function that writes the plugin ``fake`` from the body of a script, and returns its path."""

    def write(body: str, interpreter: str = "/bin/sh") -> str:
        path = tmp_path / "fake"
        path.write_text(f"#!{interpreter}\n{body}\n")
        path.chmod(0o755)
        return str(path)

    return write


def run(program: str, command: str = "ADD", timeout: float = 20.0, stdin: bytes = CONFIG) -> object:
    return ipam(program, config=stdin).start(command).finish(timeout)


def failure(program: str, command: str = "ADD", timeout: float = 20.0) -> IpamError:
    with pytest.raises(IpamError) as caught:
        run(program, command, timeout)
    return caught.value


def ipam(program: str, **fields: Any) -> Ipam:
    return Ipam(**{"kind": "fake", "path": (str(Path(program).parent),), "config": CONFIG} | fields)


# --- the search for the executable


def test_find_takes_the_first_directory_that_has_it(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    for name in ("b", "c"):
        (tmp_path / name / "fake").touch(0o755)
    path = [str(tmp_path / name) for name in ("missing", "a", "b", "c")]
    assert ipam_exec.find("fake", path) == str(tmp_path / "b/fake")


def test_find_passes_over_what_cannot_be_executed(tmp_path: Path) -> None:
    (tmp_path / "a/fake").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/fake").touch(0o644)
    path = [str(tmp_path / "a"), str(tmp_path / "b")]
    with pytest.raises(IpamError, match="no IPAM plugin 'fake' in CNI_PATH") as caught:
        ipam_exec.find("fake", path)
    assert caught.value.code == 102
    assert ":".join(path) in caught.value.msg


@pytest.mark.parametrize("kind", ["", ".", "..", "../evil", "/bin/sh", "a/b", "nul\0"])
def test_find_takes_names_only(kind: str) -> None:
    with pytest.raises(ConfigError):
        ipam_exec.find(kind, ["/bin"])


@pytest.mark.parametrize("path", [[], [""]])
def test_find_without_cni_path(path: list[str]) -> None:
    with pytest.raises(EnvError, match="CNI_PATH"):
        ipam_exec.find("fake", path)


# --- results and errors


@pytest.mark.parametrize("stdin", [CONFIG, b" " * (4 << 20)], ids=["small", "large"])
def test_a_result_without_a_look_at_the_configuration(plugin: Plugin, stdin: bytes) -> None:
    assert run(plugin(f"echo '{RESULT}'"), stdin=stdin) == json.loads(RESULT)


def test_configuration_arrives_whole(plugin: Plugin, tmp_path: Path) -> None:
    stdin = b'{"filler": "' + os.urandom(4 << 20).hex().encode() + b'"}'
    run(plugin(f"cat > {tmp_path}/got; echo '{RESULT}'"), stdin=stdin)
    assert (tmp_path / "got").read_bytes() == stdin


def test_large_result_while_the_configuration_is_read(plugin: Plugin) -> None:
    body = (
        'import sys\nfirst = sys.stdin.read(1)\nprint(\'{"x": "\' + "y" * 900_000 + \'"}\')\nsys.stdin.read()'
    )
    assert run(plugin(body, sys.executable), stdin=b"z" * (4 << 20)) == {"x": "y" * 900_000}


def test_result_in_pieces(plugin: Plugin) -> None:
    assert run(plugin("printf '{\"a\"'; sleep 0.1; printf ': 1}'")) == {"a": 1}


@pytest.mark.parametrize("command", ["DEL", "CHECK", "GC", "STATUS"])
def test_verbs_without_a_result(plugin: Plugin, command: str) -> None:
    assert run(plugin("exit 0"), command) is None


OWN_ERROR = '{"cniVersion": "1.0.0", "code": 117, "msg": "no address free", "details": "range full"}'
GARBAGE = ("hello, this is no JSON", '{"a": ', "[1]", '"text"')
NO_CNI_ERRORS = ("", '{"msg": "no code"}', '{"code": "7"}', '{"code": 0}', "panic: oh")


@pytest.mark.parametrize(
    ("body", "code", "msg", "details"),
    [
        ("exit 0", 102, "without a result", "an ADD must be answered"),
        *((f"echo '{text}'", 102, "IPAM plugin 'fake', ADD: ", text.strip()) for text in GARBAGE),
        *((f"echo '{text}'; exit 3", 102, "exit status 3", text or "nothing") for text in NO_CNI_ERRORS),
        (f"echo '{OWN_ERROR}'; exit 1", 117, "IPAM plugin 'fake', ADD: no address free", "range full"),
        (f"echo '{OWN_ERROR}'", 117, "IPAM plugin 'fake', ADD: no address free", "range full"),
        ("echo partial; kill -SEGV $$", 102, f"signal {int(signal.SIGSEGV)}", "partial"),
        ("cat /dev/zero", 102, "more than 1048576 bytes", "began with"),
        ("head -c 5000 /dev/zero | tr '\\0' '\\377'", 102, "cannot be decoded", "began with"),
    ],
)
def test_failures(plugin: Plugin, body: str, code: int, msg: str, details: str) -> None:
    error = failure(plugin(body))
    assert (error.code, msg in error.msg, details in error.details) == (code, True, True), vars(error)
    assert len(error.details) < 300


def test_not_startable(plugin: Plugin) -> None:
    error = failure(plugin("", interpreter="/does/not/exist"))
    assert "cannot be started" in error.msg
    assert error.errno == 2


# --- timeouts


@pytest.mark.parametrize(
    "body",
    ["sleep 60", "exec >&-; sleep 60", "echo '{}'; sleep 60", "trap '' TERM; cat /dev/zero | sleep 60"],
)
def test_hanging_plugin_is_killed_with_what_it_started(plugin: Plugin, tmp_path: Path, body: str) -> None:
    program = plugin(f"echo $$ > {tmp_path}/group; {body}")
    begin = time.monotonic()
    error = failure(program, timeout=0.5)
    assert time.monotonic() - begin < 30
    assert error.code == 11
    assert "0.5 s" in error.msg
    group = int((tmp_path / "group").read_text())
    wait_for(lambda: not members(group), "it does not come to that")


def test_a_hanging_plugin_in_another_process_group_is_killed(plugin: Plugin) -> None:
    code = "import os, time; os.setpgid(0, os.getpgid(os.getppid())); time.sleep(15)"
    begin = time.monotonic()
    assert failure(plugin(f"exec {sys.executable} -c '{code}'"), timeout=1).code == 11
    assert time.monotonic() - begin < 10


def members(group: int) -> list[str]:
    """Return the living processes of a group.

    /proc/PID/stat has state, parent and group after the name.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgid = path.read_text().rpartition(")")[2].split()[:3]
            if int(pgid) == group and state not in "ZX":
                found.append(path.parent.name)
    return found


def test_a_daemon_that_keeps_the_pipe_does_not_hold_us_up(plugin: Plugin) -> None:
    begin = time.monotonic()
    program = plugin(f"echo '{RESULT}'; (trap '' HUP; exec sleep 60) & exit 0")
    running = ipam(program).start("ADD")
    assert running.finish(20) == json.loads(RESULT)
    assert time.monotonic() - begin < 30
    os.killpg(running.pid, signal.SIGKILL)  # a daemon is not killed with the plugin


def test_kernel_without_pidfd(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", none)
    assert run(plugin(f"echo '{RESULT}'")) == json.loads(RESULT)
    assert run(plugin(f"echo '{RESULT}'; exec >&-; sleep 0.2")) == json.loads(RESULT)
    assert failure(plugin("exec >&-; sleep 60"), timeout=0.3).code == 11


def test_sigchld_ignored_by_our_parent(plugin: Plugin) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert run(plugin(f"sleep 0.1; echo '{RESULT}'")) == json.loads(RESULT)
    finally:
        signal.signal(signal.SIGCHLD, before)


# --- inherited descriptors and signal settings


PYTHONS = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)


def ignored_by_our_caller() -> int:
    """Return the mask of the signals that the caller of the tests ignores; delegates inherit it.

    A background job of a shell ignores SIGINT and SIGQUIT. Signals that Python ignores are left out.
    """
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["SigIgn"], 16) & 0x7FFFFFFF & ~PYTHONS


def test_it_inherits_three_files_and_no_signal_settings(plugin: Plugin) -> None:
    body = (
        "import json, os\n"
        "status = dict(line.split(':\\t') for line in open('/proc/self/status'))\n"
        "masks = {name: int(status[name], 16) & 0x7fffffff for name in ('SigBlk', 'SigIgn')}\n"
        "print(json.dumps({'fds': [n for n in range(200) if os.path.exists(f'/proc/self/fd/{n}')]} | masks))"
    )
    program = plugin(body, f"{sys.executable} -I")
    ours = os.open(__file__, os.O_RDONLY)
    careless = os.dup2(ours, 77, inheritable=True)  # inheritable, as a runtime may have left one
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        found = run(program)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(ours)
        os.close(careless)
    # This plugin's own Python ignores PYTHONS; the plugin of the next test is a shell script
    assert found == {"fds": [0, 1, 2], "SigBlk": 0, "SigIgn": ignored_by_our_caller() | PYTHONS}


def test_plugins_do_not_ignore_sigpipe(plugin: Plugin) -> None:
    body = 'grep SigIgn /proc/self/status | { read _ mask; echo "{\\"mask\\": \\"$mask\\"}"; }'
    found = run(plugin(body))
    assert isinstance(found, dict)
    # signals above 31 are those of the C library
    assert int(found["mask"], 16) & 0x7FFFFFFF == ignored_by_our_caller()


def test_stderr_is_ours(plugin: Plugin, capfd: pytest.CaptureFixture[str]) -> None:
    run(plugin(f"echo 'a log line' >&2; echo '{RESULT}'"))
    assert capfd.readouterr().err == "a log line\n"


def test_environment(plugin: Plugin, tmp_path: Path) -> None:
    program = plugin(f"env -0 > {tmp_path}/env; cat > {tmp_path}/stdin")
    asked = ipam(
        program,
        container_id="c1",
        netns="/run/netns/x",
        ifname="net1",
        args="CORES=1,2;ignoreunknown=0;K8S_POD_NAME=p;;VF=0",
        environ={
            "PATH": "/usr/bin:/bin",
            "HTTPS_PROXY": "proxy",
            "CNI_COMMAND": "stale",
            "CNI_NETNS_OVERRIDE": "1",
            "": "without a name",
        },
    )
    asked.run("DEL", 20)
    got = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().rstrip("\0").split("\0"))
    for added_by_sh in ("PWD", "_", "OLDPWD", "SHLVL"):
        got.pop(added_by_sh, None)
    assert got == {
        "PATH": "/usr/bin:/bin",
        "HTTPS_PROXY": "proxy",
        "CNI_NETNS_OVERRIDE": "1",
        "CNI_COMMAND": "DEL",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/x",
        "CNI_IFNAME": "net1",
        "CNI_ARGS": "IgnoreUnknown=1;CORES=1,2;K8S_POD_NAME=p;VF=0",
        "CNI_PATH": str(tmp_path),
    }
    assert (tmp_path / "stdin").read_bytes() == CONFIG


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ("", "IgnoreUnknown=1"),
        ("IgnoreUnknown=1;A=1", "IgnoreUnknown=1;A=1"),
        ("A=1;IGNOREUNKNOWN=true;B=2", "IgnoreUnknown=1;A=1;B=2"),
        (";;A=x=y;", "IgnoreUnknown=1;A=x=y"),
    ],
)
def test_arguments(given: str, passed: str) -> None:
    assert ipam_exec.delegate_args(given) == passed


# --- verbs that older plugins do not know


@pytest.mark.parametrize("command", ["GC", "STATUS"])
@pytest.mark.parametrize("code", [1, 4])
def test_unknown_verbs_are_passed_over(plugin: Plugin, command: str, code: int) -> None:
    told: list[str] = []
    program = plugin(f'echo \'{{"code": {code}, "msg": "unknown CNI_COMMAND: {command}"}}\'; exit 1')
    assert ipam(program).run(command, 20, told.append) is None
    assert ipam(program).run(command, 20) is None
    assert told == [f"IPAM plugin 'fake', {command}: unknown CNI_COMMAND: {command}"]


@pytest.mark.parametrize(
    ("command", "code"), [("STATUS", 50), ("STATUS", 51), ("GC", 102), ("ADD", 4), ("DEL", 4)]
)
def test_other_errors_are_relayed(plugin: Plugin, command: str, code: int) -> None:
    program = plugin(f'echo \'{{"code": {code}, "msg": "no"}}\'; exit 1')
    with pytest.raises(IpamError) as caught:
        ipam(program).run(command, 20)
    assert caught.value.code == code


def waiting(running: Running, timeout: float) -> threading.Thread:
    """Start a thread that waits for a delegate."""

    def wait() -> None:
        with contextlib.suppress(IpamError):
            running.finish(timeout)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_hurrying_lets_a_slow_one_end(plugin: Plugin, tmp_path: Path) -> None:
    """After ``hurry``, a delegate still has the given time to end."""
    program = plugin(f"sleep 0.3\ntouch {tmp_path}/done\necho '{{}}'")
    running = ipam(program).start("ADD")
    thread = waiting(running, 60)
    running.hurry(20)
    thread.join()
    assert (tmp_path / "done").exists()
    running.hurry(20)  # harmless when repeated


@pytest.mark.parametrize("first", [True, False])
def test_hurrying_has_an_end(plugin: Plugin, first: bool) -> None:
    """The delegate is killed after the time given to ``hurry``, also if the wait for it begins later."""
    running = ipam(plugin("sleep 600")).start("ADD")
    if first:
        running.hurry(0.2)
    thread = waiting(running, 600)
    running.hurry(0.2)
    thread.join(10)
    assert not thread.is_alive()
    assert not Path(f"/proc/{running.pid}").exists()
