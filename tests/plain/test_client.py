"""The client in C, compiled by the tests, with a fake server that executes a given behaviour."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import platform
import pty
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sriov_fast.cli import install
from sriov_fast.cni import config, response

TOP = Path(__file__).resolve().parents[2]
BUILD = TOP / "tools/build_client.py"
MAGIC = 0x31465253
REQUEST = struct.Struct("=4I16s")
REPLY = struct.Struct("=IiII")
HAS_NETNS, HAS_STDERR = 1, 2
MOST_STDIN = (16 << 20) + (64 << 10)
CONFIG = b'{"cniVersion": "1.0.0", "name": "net"}'
ADD = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1"}
# The program that the client executes in-process: it prints the command, the token and stdin.
STAND_IN = ("/bin/sh", "-c", 'echo "in-process $CNI_COMMAND ${SRIOV_FAST_TOKEN-none}"; exec cat')

# --- compilers


class Compiler(NamedTuple):
    """A compiler's command, "" for the build's own choice, and the machine that it compiles for."""

    words: str
    machine: str = platform.machine()


def compilers() -> list[Compiler]:
    """Return the installed compilers, including cross compilers."""
    zig = f"{sys.executable} -m ziglang cc -static -target" if importlib.util.find_spec("ziglang") else ""
    known = [
        Compiler(""),
        Compiler("cc"),
        Compiler("musl-gcc -static -no-pie"),
        Compiler("aarch64-linux-gnu-gcc -static", "aarch64"),
        *[Compiler(f"{zig} {machine}-linux-musl", machine) for machine in ("x86_64", "aarch64") if zig],
    ]
    return [each for each in known if not each.words or shutil.which(each.words.split()[0])]


def build(output: Path, compiler: Compiler) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("SRIOV_FAST")}
    if compiler.words:
        env["SRIOV_FAST_CLIENT_CC"] = compiler.words
    argv = [sys.executable, BUILD, output, compiler.machine]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The client as the build compiles it."""
    output = tmp_path_factory.mktemp("client") / "sriov-client"
    done = build(output, Compiler(""))
    assert done.returncode == 0, done.stderr
    return output.read_bytes()


def trailer(*words: str | bytes) -> bytes:
    strings = b"".join(os.fsencode(word) + b"\0" for word in words)
    return strings + struct.pack("=I", len(strings)) + b"SRFARGV1"


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o755)
    return path


ClientOf = Callable[..., Path]


@pytest.fixture
def client_of(compiled: bytes, tmp_path: Path) -> ClientOf:
    """A function that installs the client with a program to execute in-process."""
    return lambda *words: write(tmp_path / "sriov", compiled + trailer(*words))


@pytest.fixture
def client(client_of: ClientOf) -> Path:
    """The client with the stand-in as its program."""
    return client_of(*STAND_IN)


# --- the server


class Request(NamedTuple):
    flags: int
    env: bytes
    stdin: bytes
    token: bytes
    files: list[int]
    cpu: int = -1


Behaviour = Callable[[socket.socket, Request], None]


class FakeServer:
    """A server that accepts one call at a time and executes a behaviour for each."""

    def __init__(self, path: Path, behave: Behaviour, read: int | None = None) -> None:
        self.requests: list[Request] = []
        self.faults: list[BaseException] = []
        self._behave = behave
        self._read = read
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        self._listener.close()
        if kind is None:
            assert not self._thread.is_alive()
            assert self.faults == []

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # shut down
                return
            with connection:
                connection.settimeout(30)
                try:
                    self._call(connection)
                except BaseException as fault:
                    self.faults.append(fault)

    def _call(self, connection: socket.socket) -> None:
        if self._read is not None:
            if self._read:
                exactly(connection, self._read)
            self._behave(connection, Request(0, b"", b"", b"", []))
            return
        first, files, _, _ = socket.recv_fds(connection, REQUEST.size, 4)
        header = first + exactly(connection, REQUEST.size - len(first))
        magic, flags, env_len, stdin_len, token = REQUEST.unpack(header)
        assert magic == MAGIC
        cpu, flags = (flags >> 16) - 1, flags & 0xFFFF
        env, stdin = exactly(connection, env_len), exactly(connection, stdin_len)
        request = Request(flags, env, stdin, token, files, cpu)
        self.requests.append(request)
        try:
            self._behave(connection, request)
        finally:
            for fd in files:
                os.close(fd)


def exactly(connection: socket.socket, size: int) -> bytes:
    chunks = []
    while size:
        chunk = connection.recv(min(size, 1 << 20))
        assert chunk, "the client has left"
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def replying(output: bytes = b"{}\n", status: int = 0) -> Behaviour:
    return lambda connection, _: connection.sendall(REPLY.pack(MAGIC, status, len(output), 0) + output)


def logging(text: bytes, then: Behaviour) -> Behaviour:
    """Write to the caller's stderr, then execute another behaviour."""

    def behave(connection: socket.socket, request: Request) -> None:
        with open(os.dup(request.files[-1]), "wb") as file:
            file.write(text)
        then(connection, request)

    return behave


def silent(connection: socket.socket, _: Request) -> None:
    """Send nothing, and wait until the client closes the connection."""
    while connection.recv(1 << 20):
        pass


def leaving(connection: socket.socket, _: Request) -> None:
    """Close the connection without a reply."""


@pytest.fixture
def address() -> Iterator[Path]:
    """A path that is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="sriov-") as directory:
        yield Path(directory, "sriov.sock")


def call(
    program: Path | list[str], address: Path | str, stdin: Any = CONFIG, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    env = {"SRIOV_FAST_SOCKET": str(address), **options.pop("env", ADD)}
    given = {"input" if isinstance(stdin, bytes) else "stdin": stdin}
    options.setdefault("stdout", subprocess.PIPE)
    argv = program if isinstance(program, list) else [program]
    return subprocess.run(argv, env=env, stderr=subprocess.PIPE, timeout=60, **given, **options)  # type: ignore[no-any-return]


def assert_in_process(
    done: subprocess.CompletedProcess[bytes], token: bytes | None = None, stdin: bytes = CONFIG
) -> None:
    first, _, rest = done.stdout.partition(b"\n")
    assert first.decode() == f"in-process ADD {token.hex() if token else 'none'}"
    assert rest == stdin
    assert (done.returncode, done.stderr) == (0, b"")


# --- the request


def test_the_request(client: Path, address: Path) -> None:
    env = {"B": "2", **ADD, "EMPTY": "", "LATIN": "\udce9"}
    with FakeServer(address, replying()) as server:
        done = call(client, address, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"{}\n", b"")
    (request,) = server.requests
    sent = {"SRIOV_FAST_SOCKET": str(address), **env}
    assert request.env == b"".join(os.fsencode(f"{key}={value}") + b"\0" for key, value in sent.items())
    assert request.stdin == CONFIG
    assert request.flags == HAS_STDERR
    assert len(request.files) == 1


@pytest.mark.parametrize("number", sorted(os.sched_getaffinity(0)))
def test_it_says_where_it_runs(client: Path, address: Path, number: int) -> None:
    allowed = os.sched_getaffinity(0)
    with FakeServer(address, replying()) as server:
        os.sched_setaffinity(0, {number})  # inherited
        try:
            call(client, address)
        finally:
            os.sched_setaffinity(0, allowed)
    assert server.requests[0].cpu == number


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "VERSION"])
def test_it_stays_where_it_runs_while_a_device_is_moved(client: Path, address: Path, command: str) -> None:
    seen = []

    def behave(connection: socket.socket, request: Request) -> None:
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        seen.append(os.sched_getaffinity(struct.unpack("3i", peer)[0]))
        replying()(connection, request)

    with FakeServer(address, behave) as server:
        call(client, address, env=ADD | {"CNI_COMMAND": command})
    moves = command in ("ADD", "DEL")
    assert seen == [{server.requests[0].cpu} if moves else os.sched_getaffinity(0)]


@pytest.mark.parametrize("behave", [leaving, replying(status=-1)])
def test_what_runs_in_its_place_may_run_anywhere(
    client_of: ClientOf, address: Path, behave: Behaviour
) -> None:
    code = "import os; print(sorted(os.sched_getaffinity(0)))"
    program = client_of(sys.executable, "-c", code)
    with FakeServer(address, behave) as server:
        done = call(program, address)
    assert len(server.requests) == 1
    assert done.stdout.decode().strip() == str(sorted(os.sched_getaffinity(0)))


def test_every_call_has_another_token(client: Path, address: Path) -> None:
    with FakeServer(address, replying()) as server:
        for _ in range(3):
            call(client, address)
    assert len({request.token for request in server.requests}) == 3


def test_an_environment_of_a_megabyte(client: Path, address: Path) -> None:
    env = ADD | {f"V{number}": "x" * 100_000 for number in range(10)}
    with FakeServer(address, replying()) as server:
        call(client, address, env=env)
    assert server.requests[0].env.count(b"\0") == len(env) + 1
    assert len(server.requests[0].env) > 1_000_000


def test_the_namespace_goes_along(client: Path, address: Path) -> None:
    seen = []

    def behave(connection: socket.socket, request: Request) -> None:
        about = os.fstat(request.files[0])
        seen.append((about.st_dev, about.st_ino))
        replying()(connection, request)

    with FakeServer(address, behave) as server:
        call(client, address, env=ADD | {"CNI_NETNS": "/proc/self/ns/net"})
    here = os.stat("/proc/self/ns/net")
    assert seen == [(here.st_dev, here.st_ino)]
    assert server.requests[0].flags == HAS_NETNS | HAS_STDERR
    assert len(server.requests[0].files) == 2


@pytest.mark.parametrize("path", ["", "/nonexistent/ns", "/dev/null/ns"])
def test_a_namespace_that_cannot_be_opened_does_not(client: Path, address: Path, path: str) -> None:
    with FakeServer(address, replying()) as server:
        assert call(client, address, env=ADD | {"CNI_NETNS": path}).returncode == 0
    assert server.requests[0].flags == HAS_STDERR


ENDINGS: dict[str, Behaviour] = {
    "replies": replying(),
    "refuses": replying(b"", -1),
    "leaves": leaving,
    "is silent": silent,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_servers_log_arrives_whole(client: Path, address: Path, ending: str) -> None:
    log = os.urandom(1 << 20)
    with FakeServer(address, logging(log, ENDINGS[ending])):
        done = call(client, address, env=ADD | {"SRIOV_FAST_WAIT": "0.2" if ending == "is silent" else ""})
    assert done.stderr == log
    assert (done.returncode == 0, done.stdout == b"{}\n") == (ending != "is silent", ending == "replies")


def test_the_log_arrives_before_the_reply(client: Path, address: Path) -> None:
    read = threading.Event()

    def wait(connection: socket.socket, request: Request) -> None:
        assert read.wait(30)
        replying()(connection, request)

    env = {"SRIOV_FAST_SOCKET": str(address)}
    with FakeServer(address, logging(b"working\n", wait)):
        argv: list[Any] = [client]
        with subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            assert process.stderr
            assert process.stderr.readline() == b"working\n"
            read.set()
            assert process.wait(30) == 0


@pytest.mark.parametrize("size", [0, 1, 65_536, 300_000, 5 << 20])
def test_stdin_of_any_size(client: Path, address: Path, size: int) -> None:
    stdin = os.urandom(size)
    with FakeServer(address, replying()) as server:
        assert call(client, address, stdin).returncode == 0
    assert server.requests[0].stdin == stdin


def test_stdin_without_end(client: Path, address: Path) -> None:
    with FakeServer(address, replying()) as server, open("/dev/zero", "rb") as zeros:
        assert call(client, address, stdin=zeros).returncode == 0
    assert server.requests[0].stdin == bytes(MOST_STDIN)


@pytest.mark.parametrize("blocking", [True, False])
def test_stdin_in_pieces(client: Path, address: Path, blocking: bool) -> None:
    with FakeServer(address, replying()) as server:
        reader, writer = os.pipe()
        os.set_blocking(reader, blocking)
        env = {"SRIOV_FAST_SOCKET": str(address)}
        with subprocess.Popen([client], env=env, stdin=reader, stdout=subprocess.PIPE) as process:
            for _ in range(3):
                os.write(writer, b"piece ")
                threading.Event().wait(0.02)
            os.close(writer)
            assert process.wait(30) == 0
        os.close(reader)
    assert server.requests[0].stdin == b"piece piece piece "


@pytest.fixture
def terminal() -> Iterator[int]:
    """A terminal without input."""
    controller, fd = pty.openpty()
    yield fd
    os.close(fd)
    os.close(controller)


@pytest.mark.parametrize("env", [{}, {"CNI_COMMAND": ""}, {"CNI_COMMAND": "VERSION"}])
def test_a_terminal_is_not_read(client: Path, address: Path, terminal: int, env: dict[str, str]) -> None:
    with FakeServer(address, replying()) as server:
        assert call(client, address, env=env, stdin=terminal).returncode == 0
    assert server.requests[0].stdin == b""


@pytest.mark.parametrize("fits", [True, False])
def test_the_directory_of_the_socket(client: Path, address: Path, fits: bool) -> None:
    directory = str(address.parent) + "/." * (0 if fits else 60)
    with FakeServer(address, replying()) as server:
        done = call(client, "", env=ADD | {"SRIOV_FAST_RUN": directory})
    assert len(server.requests) == fits  # a socket's path has at most 107 bytes
    assert done.stdout.startswith(b"{}" if fits else b"in-process")


# --- the reply


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_the_exit_status(client: Path, address: Path, status: int) -> None:
    with FakeServer(address, replying(b"some\0thing", status)):
        done = call(client, address)
    assert (done.returncode, done.stdout) == (status, b"some\0thing")


def test_a_reply_byte_by_byte(client: Path, address: Path) -> None:
    def behave(connection: socket.socket, _: Request) -> None:
        for byte in REPLY.pack(MAGIC, 0, 5, 0) + b"hello":
            connection.sendall(bytes([byte]))
            threading.Event().wait(0.002)

    with FakeServer(address, behave):
        assert call(client, address).stdout == b"hello"


@pytest.mark.parametrize("blocking", [True, False])
def test_a_large_reply_to_a_slow_reader(client: Path, address: Path, blocking: bool) -> None:
    output = os.urandom(1 << 20)
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)
    with FakeServer(address, replying(output)):
        env = {"SRIOV_FAST_SOCKET": str(address)}
        with subprocess.Popen([client], env=env, stdin=subprocess.DEVNULL, stdout=writer) as process:
            os.close(writer)
            threading.Event().wait(0.05)
            with open(reader, "rb") as file:
                assert file.read() == output
            assert process.wait(30) == 0


def test_a_reply_to_a_request_that_was_not_read(client: Path, address: Path) -> None:
    with FakeServer(address, replying(b"too large\n", 1), read=REQUEST.size):
        done = call(client, address, os.urandom(5 << 20))
    assert (done.returncode, done.stdout) == (1, b"too large\n")


# --- without a server


@pytest.mark.parametrize("env", [{}, {"SRIOV_FAST_TOKEN": "00" * 16}], ids=["no token", "another call's"])
def test_no_socket(client: Path, address: Path, env: dict[str, str]) -> None:
    """Without a socket the client executes the plugin, and drops the token of another call."""
    assert_in_process(call(client, address, env=ADD | env))


@pytest.mark.parametrize(
    ("path", "is_served"),
    [("/opt/cni/bin:/a/", True), (":/a::/b:", True), ("", True), ("./bin", False), ("/a:bin", False)],
)
def test_a_relative_directory_of_plugins_is_for_this_process(
    client: Path, address: Path, path: str, is_served: bool
) -> None:
    with FakeServer(address, replying(b"served\n")):
        done = call(client, address, env=ADD | {"CNI_PATH": path})
    if is_served:
        assert done.stdout == b"served\n"
    else:
        assert_in_process(done)


def test_none_asks_nobody(client: Path, address: Path) -> None:
    with FakeServer(address, replying()) as server:
        done = call(client, "none", env=ADD | {"SRIOV_FAST_RUN": str(address.parent)})
    assert_in_process(done)
    assert server.requests == []


@pytest.mark.parametrize("size", [0, 38, 3 << 20])
def test_nobody_listens(client: Path, address: Path, size: int) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
    stdin = os.urandom(size)
    assert_in_process(call(client, address, stdin), stdin=stdin)


def test_a_socket_of_others(compiled: bytes, address: Path) -> None:
    # Root can open every socket, so root calls as nobody; another user removes its own access.
    someone = {"user": 65534} if os.geteuid() == 0 else {}
    program = write(address.with_name("sriov"), compiled + trailer(*STAND_IN))
    address.parent.chmod(0o755)
    with FakeServer(address, replying()) as server:
        address.chmod(0o600 if someone else 0)
        done = call(program, address, **someone)
    assert_in_process(done)
    assert server.requests == []


# --- a server that fails

WRONG = {
    "nothing": b"",
    "half a header": REPLY.pack(MAGIC, 0, 4, 0)[:7],
    "half a text": REPLY.pack(MAGIC, 0, 4, 0) + b"ab",
    "no text": REPLY.pack(MAGIC, 0, 4, 0),
    "another protocol": REPLY.pack(MAGIC + 1, 0, 0, 0),
    "no such status": REPLY.pack(MAGIC, 256, 0, 0),
    "a negative status": REPLY.pack(MAGIC, -2, 0, 0),
    "something reserved": REPLY.pack(MAGIC, 0, 0, 1),
    "far too long": REPLY.pack(MAGIC, 0, (64 << 20) + 1, 0),
    "refused": REPLY.pack(MAGIC, -1, 0, 0),
    "refused with a text": REPLY.pack(MAGIC, -1, 4, 0) + b"stop",
}


@pytest.mark.parametrize("raw", WRONG.values(), ids=WRONG)
def test_not_a_whole_reply(client: Path, address: Path, raw: bytes) -> None:
    with FakeServer(address, lambda connection, _: connection.sendall(raw)) as server:
        done = call(client, address)
    assert_in_process(done, server.requests[0].token)


@pytest.mark.parametrize("size", [38, 5 << 20])
def test_the_whole_of_stdin_comes_again(client: Path, address: Path, size: int) -> None:
    stdin = os.urandom(size)
    with FakeServer(address, leaving) as server:
        done = call(client, address, stdin)
    assert_in_process(done, server.requests[0].token, stdin)


@pytest.mark.parametrize("read", [0, 1, REQUEST.size, REQUEST.size + 10])
def test_a_server_that_leaves_while_it_reads(client: Path, address: Path, read: int) -> None:
    stdin = os.urandom(5 << 20)
    with FakeServer(address, leaving, read=read):
        done = call(client, address, stdin)
    first, _, rest = done.stdout.partition(b"\n")
    assert first.startswith(b"in-process ADD ")
    assert rest == stdin
    assert len(first.split()[-1]) in ((32,) if read else (32, 4))  # "none": nothing was sent


def test_the_reader_of_a_terminal_still_has_it(client_of: ClientOf, address: Path, terminal: int) -> None:
    program = client_of("/bin/sh", "-c", "test -t 0 && echo terminal")
    with FakeServer(address, leaving):
        done = call(program, address, env={"CNI_COMMAND": "VERSION"}, stdin=terminal)
    assert done.stdout == b"terminal\n"


# --- a slow server


def error_of(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    assert done.returncode == 1
    assert done.stderr == b""
    found = json.loads(done.stdout)
    assert found.keys() == {"cniVersion", "code", "msg", "details"}
    return dict(found)


def test_the_limit(client: Path, address: Path) -> None:
    with FakeServer(address, silent) as server:  # fails if the client does not close the connection
        error = error_of(call(client, address, env=ADD | {"SRIOV_FAST_WAIT": "0.2"}))
    assert (error["code"], error["cniVersion"]) == (11, "1.0.0")
    assert str(address) in error["msg"]
    assert "within 0.2 s" in error["msg"]
    assert "try again" in error["details"]
    assert len(server.requests) == 1


@pytest.fixture
def deaf(address: Path) -> Iterator[Path]:
    """The address of a server that never replies."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(64)
        yield address


def test_the_limit_for_what_is_not_read(client: Path, deaf: Path) -> None:
    done = call(client, deaf, bytes(5 << 20), env=ADD | {"SRIOV_FAST_WAIT": "0.2"})
    assert error_of(done)["code"] == 11


def test_the_limit_where_too_many_wait(client: Path, address: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(0)
        waiting = fill(address)
        done = call(client, address, env=ADD | {"SRIOV_FAST_WAIT": "0.2"})
        for each in waiting:
            each.close()
    assert error_of(done)["code"] == 11


def fill(address: Path) -> list[socket.socket]:
    """Connect until the backlog is full."""
    waiting = []
    while True:
        each = socket.socket(socket.AF_UNIX)
        waiting.append(each)
        each.setblocking(False)
        if found := each.connect_ex(str(address)):
            assert found == errno.EAGAIN
            return waiting


@pytest.mark.parametrize("limit", ["", "0", "0.0", "-1", "abc", "1s", "1e3", ".", "99999999999999999999"])
def test_what_is_no_limit_changes_nothing(client: Path, address: Path, limit: str) -> None:
    def behave(connection: socket.socket, request: Request) -> None:
        threading.Event().wait(0.05)
        replying()(connection, request)

    with FakeServer(address, behave):
        assert call(client, address, env=ADD | {"SRIOV_FAST_WAIT": limit}).stdout == b"{}\n"


def worded(client: Path, address: Path, stdin: bytes) -> str:
    """Return the CNI version of an error that the client writes itself."""
    done = call(client, address, stdin, env=ADD | {"SRIOV_FAST_WAIT": "0.001"})
    return str(error_of(done)["cniVersion"])


VERSIONS = [*config.VERSIONS, "", "0.5.0", "1.1", "1.1.00", "1.0.0\\u0041", '1.0.0\\"', "2.0.0"]
CONFIGS = [
    *(f'{{"cniVersion": "{version}"}}' for version in VERSIONS),
    "{}",
    ' \n\t{"cniVersion"\r\n:\t"0.3.1" } \n',
    '{"cniVersion": null}',
    '{"cniVersion": 1}',
    '{"cniVersion": ["0.3.1"]}',
    '{"a": {"cniVersion": "0.3.1"}}',
    '{"a": [{"cniVersion": "0.3.1"}], "cniVersion": "0.4.0"}',
    '{"a": ["cniVersion", "0.3.1"]}',
    '{"a": "cniVersion", "b": "0.3.1"}',
    '{"a": "\\"cniVersion\\": ", "cniVersion": "0.2.0"}',
    '{"a\\\\": "}", "cniVersion": "0.2.0"}',
    '{"name": "cniVersion\\":\\"0.4.0", "type": "{[{["}',
    '{"cniversion": "0.3.1"}',
    '{"cniVersionX": "0.3.1"}',
    "",
    "   ",
    "[]",
    '"cniVersion"',
    '[{"cniVersion": "0.3.1"}]',
    '{"cniVersion": "0.3.1"',
    '{"cniVersion": "0.3.1',
    '{"cniVersion": "0.3.1\\',
    '{"cniVersion"',
    '{"cniVersion":',
    '{"cniVersion": "0.3.1"} x',
    '{"cniVersion": "0.3.1"}}',
    '\ufeff{"cniVersion": "0.3.1"}',
    "\0",
]


@pytest.mark.parametrize("text", CONFIGS)
def test_it_words_errors_in_the_plugins_version(client: Path, deaf: Path, text: str) -> None:
    stdin = text.encode()
    assert worded(client, deaf, stdin) == response.spoken_version(stdin)


# Only the plugin refuses numbers beyond a double or 40 digits, and values that are nested too deep.
SCALARS = (
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text() | st.sampled_from(config.VERSIONS)
)
KEYS = st.text() | st.just("cniVersion")
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(KEYS, VALUES), st.booleans(), st.sampled_from([None, 0, 3]))
def test_it_finds_the_version_in_any_configuration(
    client: Path, deaf: Path, config: dict[str, object], ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(config, ensure_ascii=ascii_only, indent=indent)
    stdin = text.encode("utf-8", "surrogatepass")
    assert worded(client, deaf, stdin) == response.spoken_version(stdin)


# --- a result that cannot be written

RECORDS = 'echo "$CNI_COMMAND ${SRIOV_FAST_TOKEN-none} $(cat)" >>"$RECORD"; echo "to nobody"'


@pytest.fixture
def recording(client_of: ClientOf) -> Path:
    """A client with a program that records its own execution."""
    return client_of("/bin/sh", "-c", RECORDS)


def deliver(recording: Path, address: Path, command: str, status: int, stdout: int) -> str:
    """Call with a stdout that accepts nothing; return the record of the executions in-process."""
    record = recording.with_name("record")
    env = {"CNI_COMMAND": command, "RECORD": str(record), "PATH": os.environ["PATH"]}
    with FakeServer(address, replying(b"result", status)):
        done = call(recording, address, env=env, stdout=stdout)
    assert done.returncode == 1
    assert done.stderr.startswith(b"sriov-fast: stdout: ")
    return record.read_text() if record.exists() else ""


@pytest.fixture(params=["pipe", "full"])
def taking_nothing(request: pytest.FixtureRequest) -> Iterator[int]:
    """A stdout that accepts nothing: a pipe without a reader, and a full disk."""
    if request.param == "full":
        fd = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, fd = os.pipe()
        os.close(reader)
    yield fd
    os.close(fd)


def test_an_attachment_that_nobody_hears_of_is_deleted(
    recording: Path, address: Path, taking_nothing: int
) -> None:
    found = deliver(recording, address, "ADD", 0, taking_nothing)
    assert found == f"DEL none {CONFIG.decode()}\n"


@pytest.mark.parametrize(("command", "status"), [("ADD", 1), ("DEL", 0), ("CHECK", 0), ("VERSION", 0)])
def test_what_attached_nothing_is_just_an_error(
    recording: Path, address: Path, taking_nothing: int, command: str, status: int
) -> None:
    assert deliver(recording, address, command, status, taking_nothing) == ""


# --- the plugin in-process


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_closed_standard_files_are_the_plugins_affair(
    client_of: ClientOf, address: Path, tmp_path: Path, fd: int
) -> None:
    code = f'test -e /proc/$$/fd/{fd} && echo open >"{tmp_path}/found" || echo closed >"{tmp_path}/found"'
    program = client_of("/bin/sh", "-c", code)
    closing = ["/bin/sh", "-c", f'exec "$0" {fd}{"<" if fd == 0 else ">"}&-', str(program)]
    with FakeServer(address, replying()) as server:
        call(closing, address)
    assert server.requests == []
    assert (tmp_path / "found").read_text() == "closed\n"


def test_it_inherits_nothing_else(client_of: ClientOf, address: Path) -> None:
    code = "import os; print(sorted(os.listdir('/proc/self/fd')))"
    words = (sys.executable, "-ISc", code)
    program = client_of(*words)
    plain = subprocess.run(words, input=b"", stdout=subprocess.PIPE, check=True)
    with FakeServer(address, leaving):
        done = call(program, address, env=ADD | {"CNI_NETNS": "/proc/self/ns/net"})
    assert done.stdout == plain.stdout


@pytest.mark.parametrize("ignored", [False, True])
def test_signals_are_as_they_were(client_of: ClientOf, address: Path, ignored: bool) -> None:
    words = ("/bin/sh", "-c", "exec grep SigIgn /proc/self/status")
    program = client_of(*words)
    action = signal.SIG_IGN if ignored else signal.SIG_DFL

    def prepare() -> None:
        signal.signal(signal.SIGPIPE, action)

    options: dict[str, Any] = {"preexec_fn": prepare, "restore_signals": False}
    plain = subprocess.run(words, stdout=subprocess.PIPE, check=True, **options)
    with FakeServer(address, leaving):
        assert call(program, address, **options).stdout == plain.stdout


def test_stdin_that_cannot_be_read(client: Path, address: Path, tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    with FakeServer(address, replying()) as server:
        done = call(client, address, stdin=directory)
    os.close(directory)
    assert server.requests == []
    assert done.stdout == b"in-process ADD none\n"
    assert b"directory" in done.stderr  # the error of cat


AWKWARD = [
    "with blank",
    "tab\there",
    "line\nbreak",
    'quote\'d "twice" $HOME `id` \\',
    "é",
    b"\xff\xfe",
    "x" * 200,
]


@pytest.mark.parametrize("directory", AWKWARD)
def test_awkward_interpreters(compiled: bytes, tmp_path: Path, directory: str | bytes) -> None:
    place = tmp_path / os.fsdecode(directory)
    place.mkdir()
    (place / "python").symlink_to(sys.executable)
    code = "import os, sys; print(*map(os.fsencode, sys.argv), sys.stdin.read(), sep='|')"
    program = write(
        place / "sriov", compiled + trailer(bytes(place / "python"), "-ISXutf8", "-c", code, "", "a b")
    )
    done = call([str(program), "", "of the caller"], "none", b"stdin")
    words = [b"-c", b"", b"a b", bytes(program), b"", b"of the caller"]
    assert done.stdout.decode() == "|".join([*map(repr, words), "stdin\n"])


BROKEN = {
    "nothing": b"",
    "another end": trailer(*STAND_IN) + b"\n",
    "longer than the file": b"/bin/true\0" + struct.pack("=I", 1 << 31) + b"SRFARGV1",
    "no words": struct.pack("=I", 0) + b"SRFARGV1",
    "a word without an end": b"/bin/true" + struct.pack("=I", 9) + b"SRFARGV1",
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN)
def test_a_client_that_was_not_installed(compiled: bytes, tmp_path: Path, raw: bytes) -> None:
    error = error_of(call(write(tmp_path / "sriov", compiled + raw), "none"))
    assert (error["code"], error["cniVersion"]) == (5, "1.0.0")
    assert "sriov-fast install" in error["details"]


FOREIGN_ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 2, 0xF3 ^ 0x8000, 1) + bytes(40)
UNUSABLE = {
    "gone": (None, "No such file or directory"),
    "a dangling link": (lambda path: path.symlink_to("/nonexistent/python"), "No such file or directory"),
    "an empty file": (lambda path: write(path, b""), "Exec format error"),
    "a text": (lambda path: write(path, b"no program\n"), "Exec format error"),
    "of another machine": (lambda path: write(path, FOREIGN_ELF), "Exec format error"),
    "a script of a missing program": (
        lambda path: write(path, b"#!/nonexistent/python\n"),
        "No such file or directory",
    ),
    "not executable": (lambda path: path.touch(0o600), "Permission denied"),
    "a directory": (lambda path: path.mkdir(), "Permission denied"),
}


@pytest.mark.parametrize("served", [False, True], ids=["no socket", "a server that leaves"])
@pytest.mark.parametrize(("make", "why"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_interpreter_that_cannot_be_executed(
    client_of: ClientOf, address: Path, tmp_path: Path, make: Any, why: str, served: bool
) -> None:
    """The error names interpreter and socket, in the configuration's version.

    Before the error, the client repeats its request to a server that closes the connection.
    """
    path = tmp_path / 'the "interpreter"'
    if make:
        make(path)
    program = client_of(bytes(path), "-c", "pass")
    env = ADD | {"SRIOV_FAST_WAIT": "0.8"}
    if served:
        with FakeServer(address, leaving) as server:
            error = error_of(call(program, address, env=env))
        assert len(server.requests) > 1
        assert len({request.token for request in server.requests}) == 1
    else:
        error = error_of(call(program, address, env=env))
    assert (error["code"], error["cniVersion"]) == (5, "1.0.0")
    words = f"cannot execute {tmp_path}/the ?interpreter?: {why}; no server answers at {address}"
    assert error["msg"] == words + ("" if served else " (No such file or directory)")


def asking(program: Path, address: Path) -> subprocess.Popen[bytes]:
    """Start an ADD; return the process."""
    env = ADD | {"SRIOV_FAST_SOCKET": str(address)}
    process = subprocess.Popen([program], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(CONFIG)
    process.stdin.close()
    process.stdin = None
    return process


def test_a_server_that_starts_is_waited_for(client_of: ClientOf, address: Path, tmp_path: Path) -> None:
    """The client waits for a server if its interpreter exists but cannot be executed."""
    write(tmp_path / "python", b"")
    program = client_of(bytes(tmp_path / "python"), "-c", "pass")
    process = asking(program, address)
    time.sleep(0.2)
    with FakeServer(address, replying()) as server:
        assert process.communicate(timeout=60)[0] == b"{}\n"
    assert server.requests[0].stdin == CONFIG


# --- without an interpreter, as the DaemonSet installs the client


@pytest.fixture
def bare(compiled: bytes, tmp_path: Path) -> Path:
    """The client without an interpreter."""
    return write(tmp_path / "bare sriov", compiled)


@pytest.mark.parametrize(("command", "code"), [("ADD", 5), ("DEL", 5), ("STATUS", 50), ("VERSION", 5)])
def test_neither_server_nor_interpreter(bare: Path, address: Path, command: str, code: int) -> None:
    """The error names the missing interpreter and server; STATUS and VERSION do not wait for a server."""
    wait = {"SRIOV_FAST_WAIT": "0.2"} if command in ("ADD", "DEL") else {}
    begin = time.monotonic()
    error = error_of(call(bare, address, env={"CNI_COMMAND": command, **wait}))
    assert time.monotonic() - begin < 10
    assert (error["code"], error["cniVersion"]) == (code, "1.0.0")
    assert "does not know its interpreter" in error["msg"]
    assert f"no server answers at {address}" in error["msg"]


@pytest.mark.parametrize(
    ("env", "tried"),
    [
        ({"SRIOV_FAST_SOCKET": "none"}, "SRIOV_FAST_SOCKET=none forbids to ask a server"),
        ({"SRIOV_FAST_RUN": "/" + "r" * 200}, f"no server answers at /{'r' * 200}/sriov.sock (longer than"),
    ],
)
def test_no_server_can_be_asked(bare: Path, env: dict[str, str], tried: str) -> None:
    error = error_of(call(bare, "", env=ADD | env | {"SRIOV_FAST_WAIT": "0.2"}))
    assert tried in error["msg"]


@pytest.mark.parametrize("fd", [0, 2])
def test_a_server_is_asked_without_a_standard_file(bare: Path, address: Path, fd: int) -> None:
    """Without an interpreter, the client calls the server also if a standard file is closed."""
    closing = ["/bin/sh", "-c", f'exec "$0" {fd}{"<" if fd == 0 else ">"}&-', str(bare)]
    with FakeServer(address, replying()) as server:
        assert call(closing, address).stdout == b"{}\n"
    assert server.requests[0].stdin == (b"" if fd == 0 else CONFIG)


def test_an_unreported_attachment_is_deleted_by_the_server(
    bare: Path, address: Path, taking_nothing: int
) -> None:
    with FakeServer(address, replying()) as server:
        assert call(bare, address, stdout=taking_nothing).returncode == 1
    first, second = server.requests
    assert b"CNI_COMMAND=ADD\0" in first.env
    assert b"CNI_COMMAND=DEL\0" in second.env
    assert b"CNI_COMMAND=ADD\0" not in second.env
    assert (first.stdin, second.stdin) == (CONFIG, CONFIG)


def test_a_server_that_is_being_replaced_is_waited_for(bare: Path, address: Path) -> None:
    """If the first server ends with the request, the client repeats it to the next, with the same token."""
    with FakeServer(address, leaving) as first:
        process = asking(bare, address)
        while not first.requests:
            time.sleep(0.01)
    address.unlink()
    time.sleep(0.2)
    with FakeServer(address, replying()) as second:
        assert process.communicate(timeout=60)[0] == b"{}\n"
    assert second.requests[0].token == first.requests[0].token
    assert second.requests[0].stdin == CONFIG


@pytest.mark.parametrize("waiting", ["nobody listens", "a server that leaves"])
def test_waiting_for_a_server_takes_no_more_descriptors(bare: Path, address: Path, waiting: str) -> None:
    """Repeated attempts close their descriptors: each of the thirty may open four."""
    served = waiting == "a server that leaves"
    if not served:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(address))

    def late(connection: socket.socket, request: Request) -> None:
        if not served or len(server.requests) > 30:
            replying()(connection, request)

    argv = ["/bin/sh", "-c", 'ulimit -n 16; exec "$0"', str(bare)]
    env = ADD | {"SRIOV_FAST_SOCKET": str(address), "CNI_NETNS": "/proc/self/ns/net"}
    asking = subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert asking.stdin
    asking.stdin.write(CONFIG)
    asking.stdin.close()
    asking.stdin = None
    if not served:
        time.sleep(1.5)
        address.unlink()
    with FakeServer(address, late) as server:
        assert asking.communicate(timeout=60)[0] == b"{}\n"


# --- the real plugin


@pytest.fixture
def real(compiled: bytes, tmp_path: Path) -> Path:
    """The client with the real plugin as its program."""
    words = install.trailer(install.PROGRAMS["sriov"], sys.executable, install.search_path())
    return write(tmp_path / "a real sriov", compiled + words)


def test_the_plugin_answers_in_an_empty_environment(real: Path) -> None:
    argv = ["/usr/bin/env", "-i", "CNI_COMMAND=VERSION", str(real)]
    done = subprocess.run(argv, input=b'{"cniVersion": "0.4.0"}', capture_output=True, check=True)
    assert json.loads(done.stdout) == {"cniVersion": "0.4.0", "supportedVersions": list(config.VERSIONS)}
    assert done.stderr == b""


def test_the_plugin_refuses_what_is_far_too_large(real: Path, address: Path) -> None:
    with FakeServer(address, leaving), open("/dev/zero", "rb") as zeros:
        done = call(real, address, zeros, env={"CNI_COMMAND": "VERSION"})
    assert done.returncode == 1
    assert "larger than" in json.loads(done.stdout)["msg"]


# --- every installed compiler


def segments(elf: bytes) -> list[int]:
    """Return the types of the program headers of a 64-bit little-endian ELF file."""
    (start,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    return [struct.unpack_from("<I", elf, start + size * number)[0] for number in range(count)]


def runner(machine: str) -> list[str] | None:
    """Return the command that executes programs of a machine on this one; None without an emulator."""
    if machine == platform.machine():
        return []
    emulator = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
    return [emulator] if emulator else None


@pytest.mark.parametrize(
    "compiler", compilers(), ids=lambda each: " ".join(each.words.split()[-3:]) or "build"
)
def test_every_compiler(compiler: Compiler, address: Path, tmp_path: Path) -> None:
    done = build(tmp_path / "compiled", compiler)
    assert (done.returncode, done.stderr) == (0, "")
    elf = (tmp_path / "compiled").read_bytes()
    assert struct.unpack_from("<H", elf, 18)[0] == {"x86_64": 62, "aarch64": 183}[compiler.machine]
    if "static" in compiler.words or (not compiler.words and shutil.which("musl-gcc")):
        assert 3 not in segments(elf)  # PT_INTERP: dynamically linked
    program = write(tmp_path / "sriov", elf + trailer(*STAND_IN))
    execute = runner(compiler.machine)
    if execute is not None:
        assert_works([*execute, str(program)], address)


def assert_works(argv: list[str], address: Path) -> None:
    assert_in_process(call(argv, address))
    with FakeServer(address, replying(b"served", 3)) as server:
        done = call(argv, address, bytes(1 << 20), env=ADD | {"CNI_NETNS": "/proc/self/ns/net"})
    assert (done.returncode, done.stdout) == (3, b"served")
    assert server.requests[0].flags == HAS_NETNS | HAS_STDERR
    assert server.requests[0].stdin == bytes(1 << 20)
    address.unlink()
    with FakeServer(address, leaving) as server:
        done = call(argv, address)
    assert_in_process(done, server.requests[0].token)


def test_it_is_compiled_without_a_warning(tmp_path: Path) -> None:
    warnings = "-Wconversion -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror"
    done = build(tmp_path / "compiled", Compiler(f"cc {warnings}"))
    assert done.returncode == 0, done.stderr


def test_a_compiler_for_another_machine_is_not_taken(tmp_path: Path) -> None:
    done = build(
        tmp_path / "compiled", Compiler("cc", "aarch64" if platform.machine() == "x86_64" else "x86_64")
    )
    assert done.returncode == 1
    assert "another machine" in done.stderr
    assert not (tmp_path / "compiled").exists()
