"""The resident server as a process: socket, end, client without a server, concurrency, resources."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.server import Strace, injecting, needs_strace
from harness.veth import MakeNode, Node, ResidentNode, flocked, held_up, let_go, waits
from harness.waiting import wait_for
from sriov_fast import client

pytestmark = [pytest.mark.modes("resident"), pytest.mark.fresh]

MOST_MEMORY = 40 << 10  # KiB
LATE = {"type": "host-local", "delegate": True}  # the IPAM plugin that ``held_up`` installs
GC = {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}


def own(node: Node) -> dict[str, Any]:
    """Return an ``ipam`` object for the built-in host-local."""
    return node.host_local(delegate=False)


# --- the socket


def test_for_root_alone(node: ResidentNode) -> None:
    """Socket and directory are for root alone, with any umask and any mode of an existing directory."""
    node.server.stop()
    node.run_dir.chmod(0o755)
    node.serve(enter=("sh", "-c", 'umask 0; exec "$@"', "sh")).ready()
    paths = (node.run_dir, node.run_dir / "sriov.sock", node.run_dir / "server.lock")
    assert [path.stat().st_mode & 0o7777 for path in paths] == [0o700, 0o600, 0o600]


def test_behind_a_chroot(node: ResidentNode, tmp_path: Path) -> None:
    """Multus' thick plugin executes plugins in a chroot: the host's root, mounted in its container."""
    root = tmp_path / "hostroot"
    root.mkdir()
    wrap = ("unshare", "-m", "sh", "-c", 'mount --rbind / "$0" && exec chroot "$0" "$@"', str(root))
    before, pod = node.state(), node.pod()
    node.add(node.conf(ipam=own(node)), pod, wrap=wrap)
    node.delete(node.conf(ipam=own(node)), pod, wrap=wrap)
    node.settle()
    assert node.state() == before


@pytest.fixture
def open_node() -> Iterator[ResidentNode]:
    """A node in a directory that all users can enter."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    node = ResidentNode(root, vfs=1)
    node.may_fall_back = True
    yield node
    node.close()


@pytest.mark.modes
def test_a_peer_that_is_not_root(open_node: ResidentNode) -> None:
    """The server refuses a peer that is not root even if the modes permit the connection.

    The plugin that the peer then executes itself lacks the rights as well.
    """
    node = open_node
    before, pod = node.state(), node.pod()
    node.server.ready()
    node.run_dir.chmod(0o755)
    (node.run_dir / "sriov.sock").chmod(0o666)
    (node.root / "in-process").touch()
    (node.root / "in-process").chmod(0o666)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    words = [*node.enter(), *nobody, str(node.root / "sriov")]
    environment = node.environment("ADD", pod, "eth0", "", "")
    done = subprocess.run(words, check=False, env=environment, input=b"{}", capture_output=True)
    assert done.returncode != 0
    # the server refuses the peer before or after its request
    assert node.in_process() in (["ADD"], ["ADD again"])
    assert "the peer is not root" in node.server.said()
    assert (node.state(), node.records()) == (before, [])


def test_a_socket_that_a_dead_server_left(node: ResidentNode) -> None:
    node.may_fall_back = True
    node.server.ready().kill()
    assert (node.run_dir / "sriov.sock").is_socket()
    assert node.run("VERSION", {}).status == 0
    assert node.in_process() == ["VERSION"], "nobody listens, so nothing was sent"
    node.serve().ready()
    assert node.run("VERSION", {}).status == 0
    assert len(node.in_process()) == 1


def test_a_second_server_is_refused(node: ResidentNode) -> None:
    first = node.server.ready()
    second = node.serve()
    assert second.ended() == 1
    why = f"a server runs already for {node.run_dir}: pid {first.pid}; stop that server first"
    assert why in second.said()
    node.servers.remove(second)
    assert node.run("VERSION", {}).status == 0
    assert second.notices == []


# The steps of systemd between fork and exec (sd_listen_fds(3)).
PASS = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="x")
os.execvp(sys.argv[2], sys.argv[2:])
"""


@contextlib.contextmanager
def activated(node: ResidentNode) -> Iterator[dict[str, Any]]:
    """Create the listening socket as systemd does; yield arguments for the start of the server."""
    path = str(node.run_dir / "sriov.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        fd = listener.fileno()
        yield {"enter": (sys.executable, "-c", PASS, str(fd)), "files": (fd,)}


def test_a_socket_of_systemds(node: ResidentNode) -> None:
    """A request before the server's start waits for the server; the socket outlives the server."""
    node.server.ready().stop()
    node.delegate("theirs", 'env > "$ROOT/env"; echo "{\\"ips\\":[]}"')
    pod, conf = node.pod(), node.conf(ipam={"type": "theirs"})
    with activated(node) as start:
        early = node.start("ADD", conf, pod)
        node.serve(**start).ready()
        assert node.finish(early).status == 0
        node.server.stop()
        assert (node.run_dir / "sriov.sock").is_socket()
        late = node.start("DEL", conf, pod)
        node.serve(**start).ready()
        assert node.finish(late).status == 0
        node.server.stop()
        assert node.server.notices == ["READY=1", "STOPPING=1"]
    assert "LISTEN_" not in (node.root / "env").read_text(), "that was not meant for a delegate"
    assert node.records() == []


def test_a_second_server_leaves_a_socket_of_systemds(node: ResidentNode) -> None:
    """A second server leaves systemd's socket alone: systemd starts the service with the next call."""
    node.server.ready().stop()
    with activated(node) as start:
        second = node.serve()
        assert second.ended() == 1
        assert f"a process listens at {node.run_dir}/sriov.sock already" in second.said()
        node.servers.remove(second)
        node.serve(**start).ready()
        assert node.run("VERSION", {}).status == 0
        node.server.stop()


def test_a_socket_that_is_meant_for_another_process(node: ResidentNode) -> None:
    node.server.ready().stop()
    node.serve(env={"LISTEN_PID": "1", "LISTEN_FDS": "1"}).ready()
    assert node.run("VERSION", {}).status == 0


STRANGE = {
    "nothing": b"",
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "a beginning": b"SRF1",
    "too much": b"SRF1" + b"\xff" * 60,
    "zeros": b"\0" * 100,
}


@pytest.mark.parametrize("what", STRANGE)
def test_who_connects_and_speaks_otherwise(node: ResidentNode, what: str) -> None:
    server, path = node.server.ready(), str(node.run_dir / "sriov.sock")
    files = server.idle()
    for _ in range(20):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
            one.connect(path)
            one.sendall(STRANGE[what])
            one.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(64) == b""
    assert node.run("VERSION", {}).status == 0
    assert server.said().count("a connection without a request") == 20
    assert server.idle() == files


# --- the stop


def test_a_stop_waits_for_what_runs(node: ResidentNode) -> None:
    """During the stop, new requests are served by the plugin in a process of its own."""
    node.may_fall_back = True
    held_up(node)
    before, pods = node.state(), [node.pod(), node.pod()]
    slow = node.start("ADD", node.conf(ipam=LATE), pods[0])
    waits(node, pods[0])
    server = node.server
    server.process.terminate()
    wait_for(lambda: not (node.run_dir / "sriov.sock").exists(), "it does not stop")
    node.add(node.conf(ipam=own(node)), pods[1])
    assert node.in_process() == ["ADD"]
    assert (slow.poll(), server.process.poll()) == (None, None)
    let_go(node)
    assert node.finish(slow).json["ips"][0]["address"] == "10.1.0.2/24"
    assert server.ended() == 0
    node.serve().ready()
    for pod, ipam in zip(pods, (LATE, own(node)), strict=True):
        node.delete(node.conf(ipam=ipam), pod)
    assert (node.state(), node.records(), node.leases(), node.locks()) == (before, [], [], [])
    assert len(node.in_process()) == 1


# --- the client without the server


@pytest.mark.modes("resident", falls_back=True)
def test_one_attaches_the_other_releases(node: ResidentNode) -> None:
    """Server and process release each other's attachments, since both use the same journal."""
    before, pods, conf = node.state(), [node.pod(), node.pod()], node.conf(ipam=own(node), cores=[1])
    node.add(conf, pods[0])
    node.server.stop()
    node.delete(conf, pods[0])
    node.add(conf, pods[1])
    node.serve().ready()
    node.delete(conf, pods[1])
    assert (node.state(), node.records(), node.leases(), node.locks()) == (before, [], [], [])
    assert node.in_process() == ["DEL", "ADD"]


@needs_strace
@pytest.mark.modes("resident", falls_back=True)
def test_an_attachment_that_nobody_was_told_of(node: ResidentNode) -> None:
    """The client repeats an ADD after a kill of the server right before the reply.

    The record has the state "attached" and the token of the client's call, so the repetition undoes it first.
    """
    pod, conf = node.pod(), node.conf(ipam=own(node), vf=0)
    node.add(conf, pod)
    node.delete(conf, pod)
    node.settle()
    calls = sending(node, conf, pod)
    reply = next(number for number, call in enumerate(calls, 1) if '"SRF1' in call)
    with Strace(node.server.pid, node.root / "strace", *injecting("sendto", f"signal=SIGKILL:when={reply}")):
        done = node.run("ADD", conf, pod)
        assert node.server.ended() == -signal.SIGKILL
    assert done.status == 0, done
    assert "an earlier ADD was interrupted" in done.stderr
    address = done.json["ips"][0]["address"]
    assert (len(node.records()), node.leases()) == (1, [address.partition("/")[0]])
    assert node.addresses("eth0", pod) == [address]
    assert "has eth0 already" in node.refused(101, "ADD", conf, pod), "that is another call"


def sending(node: ResidentNode, conf: dict[str, Any], pod: str) -> list[str]:
    """Add and delete an attachment; return the ``sendto`` calls of the thread that served the ADD."""
    output = node.root / "sends"
    with Strace(node.server.pid, output, "-e", "trace=sendto") as trace:
        node.add(conf, pod)
        node.settle()
    node.delete(conf, pod)
    return max(trace.calls().values(), key=len)


@pytest.mark.modes("resident", falls_back=True)
@pytest.mark.parametrize("how", ["host-local", "theirs"])
def test_the_server_is_killed_while_ipam_works(node: ResidentNode, how: str) -> None:
    """The client executes the ADD after a kill of server and IPAM plugin.

    The kill happens during the move, or before a VF is chosen. systemd would kill the IPAM plugin as well.
    """
    held_up(node, how)
    before, pod = node.state(), node.pod()
    conf = node.conf(ipam={"type": how, "delegate": True})
    process = node.start("ADD", conf, pod)
    delegate = waits(node, pod)
    if how == "host-local":
        wait_for(lambda: "pf0v0" not in node.state(), "the VF was not moved")
    node.server.kill()
    os.kill(delegate, signal.SIGKILL)
    let_go(node)
    done = node.finish(process)
    assert (done.status, node.addresses("eth0", pod)) == (0, ["10.1.0.2/24"]), done
    assert node.calls() == (["ADD", "DEL", "ADD"] if how == "host-local" else ["ADD", "ADD"])
    node.delete(conf, pod)
    assert (node.state(), node.records(), node.held()) == (before, [], [])


# --- interrupted ADDs


def half_done(node: ResidentNode) -> tuple[dict[str, Any], str]:
    """Kill server, client and IPAM plugin during an ADD; return configuration and pod."""
    held_up(node)
    pod, conf = node.pod(), node.conf(ipam=LATE, mtu=1300)
    process = node.start("ADD", conf, pod)
    delegate = waits(node, pod)
    wait_for(lambda: "pf0v0" not in node.state(), "the VF was not moved")
    node.server.kill()
    process.kill()
    process.communicate()
    with contextlib.suppress(ProcessLookupError):
        os.kill(delegate, signal.SIGKILL)
    node.settle()
    assert [name.split("~")[1] for name in node.records()] == [pod]
    (node.root / "calls").unlink()
    let_go(node)
    return conf, pod


@pytest.mark.modes("resident", falls_back=True)
@pytest.mark.parametrize("by", ["start", "GC", "DEL", "ADD", "ADD vf", "ADD deviceID", "ADD again"])
def test_half_an_add_is_put_right(make_node: MakeNode, by: str) -> None:
    """The next request, or the server's start, undoes an interrupted ADD of the only VF."""
    node = make_node(vfs=1)
    assert isinstance(node, ResidentNode)
    node.nip("link", "set", "pf0v0", "up", "mtu", "1400")
    before, other = node.state(), node.pod()
    conf, pod = half_done(node)
    if by in ("GC", "ADD"):  # the server cannot undo the ADD at its start: the VF is locked
        with flocked(node.run_dir / "locks" / f"vf-{node.tree.pci(0)}"):
            node.serve().ready()
        assert len(node.records()) == 1
    if by == "start":
        node.serve().ready()
    elif by == "GC":
        node.collect(conf)
    elif by == "DEL":
        node.delete(conf, pod)
    else:
        more = {"ADD vf": {"vf": 0}, "ADD deviceID": {"master": None, "deviceID": node.tree.pci(0)}}.get(
            by, {}
        )
        asked = {key: value for key, value in (conf | more).items() if value is not None}
        who = pod if by == "ADD again" else other
        done = node.run("ADD", asked, who)
        assert done.status == 0, done
        assert "interrupted" in done.stderr
        assert node.link("eth0", who)["mtu"] == 1300
        node.delete(asked, who)
    assert node.calls()[0] == "DEL", "the address, if there was one, is given back"
    assert f"DEL {pod} eth0" in (node.root / "calls").read_text()
    assert (node.state(), node.records(), node.held()) == (before, [], [])


# --- the CPUs of the threads


def kept(node: ResidentNode) -> list[int]:
    """Return the CPUs that threads of the server are pinned to."""
    found = []
    for thread in Path(f"/proc/{node.server.pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            found.append(os.sched_getaffinity(int(thread.name)))
    return sorted(min(mask) for mask in found if mask != os.sched_getaffinity(0))


@pytest.mark.modes("resident", "deferred")
def test_a_release_that_answers_before_the_move_is_kept_nowhere(node: ResidentNode) -> None:
    pod, conf = node.pod(), node.conf()
    node.add(conf, pod)
    number = min(os.sched_getaffinity(0))
    wait_for(lambda: not node.held(), "the ADD removes its locks after its reply")
    with flocked(node.run_dir / "locks" / f"owner-{pod}~eth0"):
        process = node.start("DEL", conf, pod, wrap=("taskset", "-c", str(number)))
        wait_for(lambda: busy(node) == 1, "there is no request")
        if node.options_of_server:
            time.sleep(0.2)
            assert kept(node) == []
        else:
            wait_for(lambda: kept(node) == [number], f"no thread is kept on CPU {number}")
    assert node.finish(process).status == 0


@pytest.mark.modes("resident", "deferred")
@pytest.mark.parametrize("last", [False, True])
def test_a_request_alone_is_served_on_its_clients_cpu(node: ResidentNode, last: bool) -> None:
    """A single request is pinned to its client's CPU until its end; a second one is not pinned."""
    node.server.ready()
    number = (max if last else min)(os.sched_getaffinity(0))
    first, second, conf = node.pod(), node.pod(), node.conf(ipam=own(node))
    node.add(conf, first)  # creates the directories
    node.delete(conf, first)
    before = node.snapshot()
    with (
        flocked(node.run_dir / "locks" / f"owner-{first}~eth0"),
        flocked(node.run_dir / "locks" / f"owner-{second}~eth0"),
    ):
        assert kept(node) == []
        adding = [node.start("ADD", conf, first, wrap=("taskset", "-c", str(number)))]
        wait_for(lambda: kept(node) == [number], f"no thread is kept on CPU {number}")
        adding.append(node.start("ADD", conf, second, wrap=("taskset", "-c", str(number))))
        wait_for(lambda: busy(node) == 2, "there are not two requests")
        assert kept(node) == [number]
    for process in adding:
        assert node.finish(process).status == 0
    wait_for(lambda: not kept(node), "a thread is kept on a CPU for no request")
    for pod in (first, second):
        node.delete(conf, pod)
    wait_for(lambda: not kept(node), "a thread is kept on a CPU for no request")
    assert node.snapshot() == before


def busy(node: ResidentNode) -> int:
    """Return the number of connections of the server; a request may have other sockets as well."""
    server = Path(f"/proc/{node.server.pid}")
    own = {os.readlink(path) for path in (server / "fd").iterdir() if path.is_symlink()}
    sockets = [line.split() for line in (server / "net/unix").read_text().splitlines()[1:]]
    return sum(state == "03" and f"socket:[{inode}]" in own for *_, state, inode in (s[:7] for s in sockets))


def test_what_it_executes_may_run_anywhere(node: ResidentNode) -> None:
    held_up(node)
    pod, conf = node.pod(), node.conf(ipam=LATE)
    number = min(os.sched_getaffinity(0))
    process = node.start("ADD", conf, pod, wrap=("taskset", "-c", str(number)))
    wait_for(lambda: kept(node) == [number], f"no thread is kept on CPU {number}")
    assert os.sched_getaffinity(waits(node, pod)) == os.sched_getaffinity(0)
    let_go(node)
    assert node.finish(process).status == 0
    node.delete(conf, pod)


# --- signals, and replies that are not read


@needs_strace
@pytest.mark.modes("resident")
def test_an_interrupted_wait_for_a_signal_ends_no_server(node: ResidentNode) -> None:
    """The server continues after EINTR of sigtimedwait(2), which a debugger can cause."""
    server = node.server.ready()
    words = injecting("rt_sigtimedwait", "error=EINTR:delay_exit=1500000:when=1")
    with Strace(server.pid, node.root / "strace", *words) as trace:
        wait_for(lambda: "INJECTED" in trace.output.read_text(), "it does not wait for a signal")
        wait_for(lambda: trace.output.read_text().count("sigtimedwait(") > 2, "it waits for no other")
    assert server.process.poll() is None
    node.delete(node.conf(), node.pod())


@needs_strace
@pytest.mark.modes("resident", "deferred", falls_back=True)
def test_a_reply_that_cannot_be_received(node: ResidentNode) -> None:
    """The client deletes an attachment if it cannot receive the reply: the server has sent it."""
    pod, conf = node.pod(), node.conf(ipam=node.host_local(), mtu=1300)
    before = node.snapshot()
    wrap = (
        "strace",
        "-o",
        "/dev/null",
        *injecting("recvfrom", "error=ENOMEM:when=2+"),
    )
    said = node.refused(11, "ADD", conf, pod, wrap=wrap)
    assert "cannot be received" in said
    node.settle()
    assert node.snapshot() == before


@pytest.mark.modes("resident", "deferred")
@pytest.mark.parametrize("how", ["impatient", "killed"])
def test_nobody_waits_for_the_reply(node: ResidentNode, how: str) -> None:
    held_up(node)
    pod, conf = node.pod(), node.conf(ipam=LATE, mtu=1300, cores=[1])
    before = node.snapshot()
    process = node.start("ADD", conf, pod, env={"SRIOV_FAST_WAIT": "0.2"} if how == "impatient" else None)
    waits(node, pod)
    if how == "impatient":
        done = node.finish(process)
        assert (done.status, done.json["code"]) == (1, 11), done
        assert "did not answer within 0.2 s" in done.json["msg"]
    else:
        process.kill()
        process.communicate()
    assert len(node.records()) == 1
    let_go(node)
    wait_for(lambda: not node.records(), "nothing is undone")
    node.settle()
    assert node.snapshot() == before
    assert node.calls() == ["ADD", "DEL"]
    assert "the client did not read the reply" in node.server.said()


# --- logs


def test_a_log_goes_to_both(node: ResidentNode) -> None:
    pod, file = node.pod(), node.root / "log"
    conf = node.conf(logLevel="debug", logFile=str(file), foo=1)
    lines = node.run("ADD", conf, pod).stderr.splitlines()
    assert any(r"unknown key \"foo\"" in line for line in lines)
    assert any("msg=attached" in line for line in lines)
    assert all(f"containerID={pod}" in line for line in lines)
    assert file.read_text().splitlines() == lines
    assert set(lines) <= set(node.server.said().splitlines())
    assert node.delete(conf, pod).stderr
    wait_for(lambda: str(file) not in node.server.files(), "the log file stays open")


def test_logs_of_many_are_not_mixed_up(make_node: MakeNode) -> None:
    node = make_node(vfs=8)
    held_up(node)
    pods = [node.pod() for _ in range(8)]
    conf = node.conf(logLevel="debug", ipam=LATE, foo=1)
    running = {pod: node.start("ADD", conf, pod) for pod in pods}
    for pod in pods:
        waits(node, pod)  # all are served concurrently
    let_go(node)
    for pod, process in running.items():
        done = node.finish(process)
        assert done.status == 0, done
        assert "msg=attached" in done.stderr
        assert set(re.findall(r"containerID=(\S+)", done.stderr)) == {pod}
        assert done.stderr.count("containerID=") == done.stderr.count("\n")


def test_what_a_delegate_says_reaches_the_runtime(node: ResidentNode) -> None:
    node.delegate("theirs", 'echo "$CNI_COMMAND is hard" >&2; echo "{\\"ips\\":[]}"')
    pod, conf = node.pod(), node.conf(ipam={"type": "theirs"})
    assert "ADD is hard\n" in node.run("ADD", conf, pod).stderr
    assert "DEL is hard\n" in node.delete(conf, pod).stderr


def test_each_delegate_has_its_own_callers_environment(node: ResidentNode) -> None:
    node.delegate("theirs", 'env > "$ROOT/env-$CNI_CONTAINERID"; echo "{\\"ips\\":[]}"')
    pods, conf = [node.pod(), node.pod()], node.conf(ipam={"type": "theirs"})
    for number, pod in enumerate(pods):
        assert node.run("ADD", conf, pod, env={"MINE": f"of {number}"}).status == 0
    for number, pod in enumerate(pods):
        lines = (node.root / f"env-{pod}").read_text().splitlines()
        assert f"MINE=of {number}" in lines
        assert not [line for line in lines if line.startswith("NOTIFY_SOCKET")]


# --- concurrent requests


def test_threads_are_bounded(make_node: MakeNode) -> None:
    """Requests above the limit of threads wait until a thread is free."""
    node = make_node(vfs=6)
    assert isinstance(node, ResidentNode)
    node.again("--processes", "1", "--threads", "2")
    held_up(node)
    before, pods = node.state(), [node.pod() for _ in range(6)]
    running = [node.start("ADD", node.conf(ipam=LATE), pod) for pod in pods]
    wait_for(lambda: len(node.calls()) == 2, "two are served")
    beyond = node.start("VERSION", {})
    with pytest.raises(subprocess.TimeoutExpired):
        beyond.wait(0.3)
    assert len(node.calls()) == 2
    assert node.server.threads() <= 1 + 2 * 2, "main, and two requests with something beside each"
    let_go(node)
    assert [node.finish(process).status for process in [*running, beyond]] == [0] * 7
    for pod in pods:
        node.delete(node.conf(ipam=LATE), pod)
    assert node.state() == before


# --- resources


@pytest.mark.modes("resident", "deferred")
def test_memory_and_descriptors(make_node: MakeNode, mode: str) -> None:
    """Attaching and deleting pods repeatedly does not increase open descriptors and threads."""
    node = make_node(vfs=4)
    assert isinstance(node, ResidentNode)
    conf, pods = node.conf(ipam=own(node), cores=[1]), [node.pod() for _ in range(4)]

    def pairs(rounds: int) -> None:
        for command in ("ADD", "DEL") * rounds:
            for process in [node.start(command, conf, pod) for pod in pods]:
                assert node.finish(process).status == 0
            node.homed()
        node.settle()

    pairs(2)
    before = node.server.idle()
    # main, the accepting thread, the helpers; and per pod, a request may start while earlier ones still
    # announce or move a VF to the host. Threads are kept, so their number is the largest so far.
    most = 1 + 1 + len(pods) + 3 * len(pods)
    rounds = 13 if mode == "resident" else 4
    assert 2 * rounds * len(pods) > most, "a thread for each request would not be noticed"
    pairs(rounds)
    assert node.server.memory_kib() < MOST_MEMORY
    assert node.server.idle() == before
    assert node.server.threads() <= most


# --- concurrent steps of a request


@needs_strace
def test_a_failed_add_waits_for_what_runs_beside_it(node: ResidentNode) -> None:
    """The undo waits until the concurrent pinning of interrupts has ended."""
    pod = node.pod()
    node.ip("-n", pod, "link", "add", "eth0", "type", "veth", "peer", "name", "its-peer")
    before = node.snapshot()
    mask = node.tree.mask(node.tree.irqs(0)[0])
    # the first write is the pinning, the second the undo
    words = injecting("write", "delay_enter=300000:when=1", mask)
    with Strace(node.server.ready().pid, node.root / "strace", *words) as trace:
        node.refused(101, "ADD", node.conf(ipam=own(node), cores=[1], vf=0), pod)
        wait_for(lambda: "write" in (node.root / "strace").read_text(), "nothing was pinned")
        node.settle()
    assert trace.calls()
    assert node.snapshot() == before


# --- in a container


def hiding(*directories: str) -> tuple[str, ...]:
    """Return a command that starts a program without access to some directories of the host."""
    mounts = "".join(f"mount -t tmpfs none {each} && " for each in directories)
    return ("unshare", "--mount", "sh", "-c", f'{mounts}exec "$@"', "sh")


def test_gc_of_a_server_that_does_not_see_the_namespaces(node: ResidentNode) -> None:
    """GC fails and changes nothing if the server cannot see the namespaces of running pods."""
    pod, conf = node.pod(), node.conf(ipam=own(node))
    node.server.stop()
    node.serve(enter=hiding("/run")).ready()
    node.check(conf, pod, node.add(conf, pod))  # the client opens the namespace
    records, leases = node.records(), node.leases()
    error = node.run("GC", conf | GC).json
    assert error["code"] == 5
    assert "not visible here" in error["msg"]
    assert "HostToContainer" in error["details"]
    assert (node.records(), node.leases()) == (records, leases)
    node.delete(conf, pod)
    assert (node.records(), node.leases()) == ([], [])


def test_gc_without_sight_releases_a_vf_whose_pod_is_gone(node: ResidentNode) -> None:
    """GC needs no access to the namespaces for a VF that is back in the host."""
    pod, conf = node.pod(), node.conf(ipam=own(node), vf=0)
    node.server.stop()
    node.serve(enter=hiding("/run")).ready()
    node.add(conf, pod)
    node.ip("netns", "del", pod)
    node.tree.unbind(0)
    node.collect(conf)
    assert (node.records(), node.leases()) == ([], [])


def test_the_second_socket(node: ResidentNode) -> None:
    """A client without access to /run finds the server below /var/lib/cni.

    The client has no interpreter. /var/lib is a directory of the test, so that the client cannot reach
    another server of this machine.
    """
    node.server.stop()
    state = node.root / "var"
    state.mkdir()
    node.serve("--also-listen", f"{state}/cni/sriov-fast/sriov.sock").ready()
    second = state / "cni/sriov-fast/sriov.sock"
    modes = [path.stat().st_mode & 0o777 for path in (second, second.parent)]
    assert modes == [0o600, 0o700]
    binary = node.root / "bare"
    binary.write_bytes(client_in_c())
    binary.chmod(0o755)
    shell = f'mount --bind {state} /var/lib && mount -t tmpfs none /run && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", shell, "sh", str(binary)]
    env = {"CNI_COMMAND": "VERSION", "PATH": os.environ["PATH"]}
    done = subprocess.run(words, env=env, input=b"{}", capture_output=True, check=True)
    assert b"supportedVersions" in done.stdout
    node.server.stop()
    assert not second.exists()
    failed = subprocess.run(words, env=env, input=b"{}", capture_output=True, check=False)
    assert failed.returncode == 1
    assert b"no server answers at /run/sriov-fast/sriov.sock" in failed.stdout
    node.serve().ready()


def client_in_c() -> bytes:
    binary = client.binary()
    assert binary
    return binary.read_bytes()
