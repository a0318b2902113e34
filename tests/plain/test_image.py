"""The image of a started interpreter: made, continued by the real client, refused where it does not fit."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import platform
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import sriov_fast
from sriov_fast import client
from sriov_fast.cli import doctor, install, main
from sriov_fast.image import start
from sriov_fast.sriov.roots import Roots

if not (start.is_supported() and client.binary()):
    possible = platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc"
    if possible and os.environ.get("SRIOV_FAST_REQUIRE_EXT", "") not in ("", "0"):
        raise RuntimeError("images are not possible here: the compiled modules or the client are missing")
    pytest.skip("images are for x86-64, glibc and compiled modules", allow_module_level=True)

from sriov_fast.image import build, layout, memory, parked, vdso
from sriov_fast.image.layout import ImageError

SOURCES = Path(sriov_fast.__file__).parents[1]
CONFIG = b'{"cniVersion": "1.0.0"}'
STARTED, CONTINUED = "in-process", "image"
PATIENCE = 60.0


class Done(NamedTuple):
    mode: str  # how the process began
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


class Sriov:
    """The executable with its image, in a directory of their own.

    With a ``path``, the package is imported from there, and no bundle of another one is used.
    """

    def __init__(self, directory: Path, path: list[str] | None = None) -> None:
        self.directory = directory
        self.program = directory / "sriov"
        directory.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            if path:
                patch.setattr(install.bundle, "default_path", lambda: directory / "no.bundle")
            trailer = install.trailer(
                install.PROGRAMS["sriov"], sys.executable, path or install.search_path()
            )
        binary = client.binary()
        assert binary
        install.write_executable(self.program, binary.read_bytes() + trailer)
        self.words = layout.words_of(self.program)
        self.run_dir = directory / "run"
        self.image = self.run_dir / layout.name_of(layout.packed_words(self.words))
        self.failed = Path(f"{self.image}{start.FAILED}")

    def make(self) -> Sriov:
        assert build.make(str(self.image), str(self.program), self.words)
        return self

    def environ(self, **more: str) -> dict[str, str]:
        given = {"CNI_COMMAND": "VERSION", "SRIOV_FAST_SOCKET": "none", "SRIOV_FAST_RUN": str(self.run_dir)}
        return given | more

    def call(self, stdin: Any = CONFIG, *, env: dict[str, str] | None = None, **options: Any) -> Done:
        trace = self.directory / f"trace-{time.monotonic_ns()}-{os.urandom(4).hex()}"
        given = self.environ(SRIOV_FAST_TRACE=str(trace)) | (env or {})
        streams = {"input" if isinstance(stdin, bytes) else "stdin": stdin}
        words = options.pop("argv", [str(self.program)])
        done = subprocess.run(words, env=given, capture_output=True, timeout=PATIENCE, **streams, **options)
        mode = json.loads(trace.read_bytes())["mode"] if trace.exists() else ""
        trace.unlink(missing_ok=True)
        return Done(mode, done.returncode, done.stdout, done.stderr)

    def answers(self, mode: str, **options: Any) -> Done:
        """Call VERSION, which must be right, from such a process.

        Addresses are random: once in some ten thousand times an image does not fit beside the client's own.
        """
        done = self.call(**options)
        if mode == CONTINUED != done.mode:
            done = self.call(**options)
        assert (done.mode, done.status, done.stderr) == (mode, 0, b""), done
        assert "1.1.0" in done.json["supportedVersions"]
        return done


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Sriov:
    """One with an image; tests must leave it as it is."""
    return Sriov(tmp_path_factory.mktemp("image") / "ready").make()


@pytest.fixture
def own(ready: Sriov, tmp_path: Path) -> Sriov:
    """One with a copy of that image, to do harm to. No builder mends it: what was tried failed just now."""
    found = Sriov(tmp_path / "own")
    assert found.words == ready.words
    found.run_dir.mkdir(mode=0o700)
    shutil.copyfile(ready.image, found.image)
    found.image.chmod(0o600)
    found.failed.touch()
    return found


def until(what: Callable[[], object], why: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, why
        time.sleep(0.01)


# --- continued


def test_it_answers_from_the_image_as_without(ready: Sriov) -> None:
    continued = ready.answers(CONTINUED)
    assert continued.stdout == ready.answers(STARTED, env={"SRIOV_FAST_IMAGE": "none"}).stdout


def test_no_interpreter_is_executed(ready: Sriov, tmp_path: Path) -> None:
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    log = tmp_path / "log"
    ready.answers(CONTINUED, argv=["strace", "-f", "-o", str(log), "-e", "trace=execve", str(ready.program)])
    assert log.read_text().count("execve(") == 1


def test_only_its_owner_may_read_it(ready: Sriov) -> None:
    assert ready.image.stat().st_mode & 0o7777 == 0o600
    assert ready.run_dir.stat().st_mode & 0o7777 == 0o700
    assert sorted(os.listdir(ready.run_dir)) == sorted([ready.image.name, start.LOCK])


def test_an_error_is_a_cni_error(ready: Sriov) -> None:
    done = ready.call(b"{", env={"CNI_COMMAND": "NONSENSE"})
    assert (done.status, done.json["code"]) == (1, 4)
    done = ready.call(b"{", env={"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c"})
    assert (done.status, done.json["code"]) == (1, 4)


def test_an_unexpected_fault_has_a_traceback(ready: Sriov, tmp_path: Path) -> None:
    """A verb that finds a directory in place of its lock's: whatever that raises is worded and explained."""
    env = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0", "CNI_PATH": "/x"}
    (tmp_path / "file").touch()
    env |= {"SRIOV_FAST_RUN": str(tmp_path / "file" / "run"), "SRIOV_FAST_IMAGE": str(ready.image)}
    conf = b'{"cniVersion": "1.0.0", "name": "n", "type": "sriov", "master": "pf0"}'
    continued = ready.call(conf, env=env)
    assert continued.status == 1
    assert "code" in continued.json
    assert continued[1:] == ready.call(conf, env=env | {"SRIOV_FAST_IMAGE": "none"})[1:]


@pytest.mark.parametrize("size", [0, 1, 65536, 1 << 19])
def test_stdin_of_any_size(ready: Sriov, size: int) -> None:
    ready.answers(CONTINUED, stdin=b"{}" + b" " * size)


def test_stdin_is_a_file_or_nothing(ready: Sriov, tmp_path: Path) -> None:
    (tmp_path / "conf").write_bytes(CONFIG)
    with open(tmp_path / "conf") as file:
        assert ready.call(stdin=file).mode == CONTINUED
    ready.answers(CONTINUED, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_a_closed_standard_file_is_the_interpreters(ready: Sriov, fd: int) -> None:
    argv = ["/bin/sh", "-c", f'exec "$0" {fd}>&-', str(ready.program)]
    assert ready.call(argv=argv).mode == ("" if fd == 1 else STARTED)


def fixed_interpreter() -> str:
    """Return an interpreter of this version at a fixed address, such as Debian's; "" for none."""
    for path in ("/usr/bin/python3", f"/usr/bin/python3.{sys.version_info[1]}"):
        if not os.access(path, os.X_OK):
            continue
        code = "import sys; print(sys.implementation.cache_tag)"
        done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
        with open(path, "rb") as file:
            is_fixed = file.read(18)[16:] == b"\2\0"  # e_type: ET_EXEC
        if is_fixed and done.stdout.strip() == sys.implementation.cache_tag:
            return path
    return ""


def test_an_interpreter_at_a_fixed_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its heap lies below the client's: a heap that were extended there would be nobody's memory."""
    interpreter = fixed_interpreter()
    if not interpreter:
        pytest.skip("there is none of this version")
    monkeypatch.setattr(sys, "executable", interpreter)
    sriov = Sriov(tmp_path / "own", [str(SOURCES)]).make()
    sriov.answers(CONTINUED, stdin=b"{}" + b" " * (1 << 19))
    names = ", ".join(f'"k{number}": {{}}' for number in range(20_000))
    done = sriov.call(f'{{"cniVersion": "1.0.0", {names}}}'.encode(), env={"CNI_COMMAND": "STATUS"})
    assert (done.status, "code" in done.json, done.stderr) == (1, True, b"")


def test_files_that_are_inherited_stay(ready: Sriov, tmp_path: Path) -> None:
    with open(tmp_path / "kept", "w") as kept:
        high = fcntl.fcntl(kept.fileno(), fcntl.F_DUPFD, 200)
        ready.answers(CONTINUED, pass_fds=[kept.fileno(), high])
        os.close(high)


def test_many_at_the_same_time(ready: Sriov) -> None:
    with ThreadPoolExecutor(32) as pool:
        modes = [done.mode for done in pool.map(lambda _: ready.answers(CONTINUED), range(64))]
    assert modes == [CONTINUED] * 64


def test_often(ready: Sriov) -> None:
    """Addresses are random for every process: what does not fit is started, and the answer is the same."""
    modes = [ready.call().mode for _ in range(100)]
    assert modes.count(CONTINUED) >= 98


# --- what is the process' own


def told(ready: Sriov, tmp_path: Path, env: dict[str, str], **options: Any) -> Done:
    """Make a DEL execute an IPAM plugin, which gets the process' environment and prints it to stderr."""
    plugin = tmp_path / "bin" / "shows"
    plugin.parent.mkdir(exist_ok=True)
    plugin.write_text("#!/bin/sh\ntr '\\0' '\\n' < /proc/$$/environ >&2\necho \"parent $PPID\" >&2\n")
    plugin.chmod(0o755)
    conf = {"cniVersion": "1.0.0", "name": "n", "type": "sriov", "master": "pf0", "ipam": {"type": "shows"}}
    given = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0"}
    given |= {
        "CNI_PATH": str(plugin.parent),
        "PATH": os.environ["PATH"],
        "SRIOV_FAST_IMAGE": str(ready.image),
    }
    given |= {"SRIOV_FAST_RUN": str(tmp_path / "run"), "SRIOV_FAST_STATE": str(tmp_path / "state")}
    return ready.call(json.dumps(conf).encode(), env=given | env, **options)


def test_the_environment_is_the_callers(ready: Sriov, tmp_path: Path) -> None:
    env = {"ODD": os.fsdecode(b"\xff\xfe bytes"), "EMPTY": "", "LONG": "x" * 100_000, "é": "ü"}
    done = told(ready, tmp_path, env)
    assert (done.mode, done.status) == (CONTINUED, 0), done
    lines = done.stderr.split(b"\n")
    for name, value in env.items():
        assert os.fsencode(f"{name}={value}") in lines, name
    assert not [line for line in lines if line.startswith(b"SRIOV_FAST_IMAGE_")]


def test_a_name_that_is_given_twice_and_an_entry_without_one() -> None:
    from sriov_fast.image import parked

    before = dict(os.environ)
    try:
        parked._take_environment([b"A=1", b"A=2", b"novalue", b"B=\xff", b"C=a=b"])
        assert dict(os.environ) == {"A": "1", "B": "\udcff", "C": "a=b"}
        assert os.environb[b"B"] == b"\xff"
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_a_variable_of_the_clients_own_is_not_passed_on(ready: Sriov, tmp_path: Path) -> None:
    done = told(ready, tmp_path, {"SRIOV_FAST_IMAGE_WANTED": "x", "SRIOV_FAST_IMAGE_FOR": "y"})
    assert (done.mode, done.status) == (CONTINUED, 0)
    assert b"SRIOV_FAST_IMAGE_WANTED" not in done.stderr


@pytest.mark.parametrize("ignored", [True, False])
def test_signals_are_as_the_interpreter_has_them(ready: Sriov, tmp_path: Path, ignored: bool) -> None:
    """SIGPIPE is ignored, SIGINT handled, unless the caller ignores it: seen in /proc/PID/status."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)

    def masks(image: str) -> dict[str, int]:
        read, write = os.pipe()
        env = ready.environ(SRIOV_FAST_IMAGE=image)
        process = subprocess.Popen(
            [ready.program], env=env, stdin=read, stdout=subprocess.PIPE, preexec_fn=prepare
        )
        os.close(read)
        status = Path(f"/proc/{process.pid}/status")
        until(lambda: "read" in Path(f"/proc/{process.pid}/wchan").read_text(), "it does not read")
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        os.close(write)
        process.communicate(timeout=PATIENCE)
        return {name: int(lines[name], 16) for name in ("SigIgn", "SigCgt", "SigBlk")}

    assert masks(str(ready.image)) == masks("none")


@pytest.mark.parametrize("limit", [1 << 20, 64 << 20, resource.RLIM_INFINITY])
def test_any_limit_of_the_stack(ready: Sriov, limit: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_STACK)
    if most != resource.RLIM_INFINITY:
        pytest.skip("the limit is fixed")
    ready.answers(CONTINUED, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, (limit, most)))


def test_a_deep_recursion_has_its_stack(ready: Sriov) -> None:
    """Too many levels of JSON are refused, not a fault of memory."""
    done = ready.call(b"[" * 200_000, env={"CNI_COMMAND": "ADD"})
    assert (done.status, "code" in done.json) == (1, True)


def test_txipam_imports_what_is_not_in_the_image(ready: Sriov, tmp_path: Path) -> None:
    conf = {"cniVersion": "1.0.0", "name": "n", "type": "sriov", "master": "pf0"}
    conf |= {"ipam": {"type": "txipam", "remote": "https://127.0.0.1:1", "ca": "/nonexistent"}}
    env = {"CNI_COMMAND": "STATUS", "CNI_PATH": "/x", "SRIOV_FAST_RUN": str(tmp_path / "run")}
    env |= {"SRIOV_FAST_IMAGE": str(ready.image), "SRIOV_FAST_SYS": str(tmp_path)}
    body = json.dumps(conf | {"cniVersion": "1.1.0"}).encode()
    done = ready.call(body, env=env)
    assert done.mode == CONTINUED
    assert done[1:3] == ready.call(body, env=env | {"SRIOV_FAST_IMAGE": "none"})[1:3]


def test_nothing_with_a_state_of_its_own_is_saved() -> None:
    from sriov_fast.image import parked

    code = "from sriov_fast.image import parked; parked._import_all(); import sys; print(*sys.modules)"
    env = {"PYTHONPATH": str(SOURCES)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=env, capture_output=True, text=True, check=True
    )
    found = set(done.stdout.split())
    assert {"sriov_fast.plugin", "sriov_fast.ipam.host_local", "sriov_fast.sriov.announce"} <= found
    assert not found & {*parked._FORBIDDEN, "sriov_fast.ipam.tls", "_random", "_hashlib"}


# --- refused


def test_it_may_be_forbidden(own: Sriov) -> None:
    own.answers(STARTED, env={"SRIOV_FAST_IMAGE": "none"})


def test_it_may_be_elsewhere(own: Sriov, tmp_path: Path) -> None:
    own.image.rename(tmp_path / "elsewhere")
    own.answers(CONTINUED, env={"SRIOV_FAST_IMAGE": str(tmp_path / "elsewhere")})


@pytest.mark.parametrize(
    "env",
    [
        {"SRIOV_FAST_BACKEND": "python"},
        {"LD_PRELOAD": "/nonexistent.so"},
        {"LD_LIBRARY_PATH": "/nonexistent"},
        {"GLIBC_TUNABLES": "glibc.malloc.check=0"},
    ],
)
def test_what_changes_the_interpreter_wants_one_of_its_own(own: Sriov, env: dict[str, str]) -> None:
    done = own.call(env=env)
    assert (done.mode, done.status) == (STARTED, 0)


def test_the_compiled_backend_may_be_named(own: Sriov) -> None:
    own.answers(CONTINUED, env={"SRIOV_FAST_BACKEND": "cython"})


def truncated(path: Path, size: int) -> None:
    os.truncate(path, max(0, path.stat().st_size + size if size < 0 else size))


def patched(path: Path, at: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(content)


def resummed(path: Path, at: int, content: bytes) -> None:
    """Change the head so that its sum is right again."""
    patched(path, at, content)
    data = path.read_bytes()
    (size,) = struct.unpack_from("=Q", data, 16)
    patched(path, 8, struct.pack("=Q", layout._sum(data[16:size])))


def appended(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(bytes(layout.PAGE))


# offsets in struct image_head
CPU, PERSONALITY, FILES, PIECES, WORDS, BOOT, FIRST_FILE = 40, 104, 108, 112, 116, 120, 160
HARM: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: truncated(path, 0),
    "a part of a page": lambda path: truncated(path, 100),
    "a page": lambda path: truncated(path, 4096),
    "without its last page": lambda path: truncated(path, -4096),
    "without its last byte": lambda path: truncated(path, -1),
    "longer": appended,
    "garbage": lambda path: path.write_bytes(os.urandom(1 << 20)),
    "zeros": lambda path: path.write_bytes(bytes(1 << 20)),
    "another format": lambda path: patched(path, 0, b"SRFIMG00"),
    "a bit in its head": lambda path: patched(path, 300, b"\xaa\x55"),
    "a bit in its sum": lambda path: patched(path, 8, b"\xaa\x55"),
    "another processor": lambda path: resummed(path, CPU + 16, b"\xff\xff\xff\xff"),
    "another boot": lambda path: resummed(path, BOOT, b"0" * 36),
    "a head that is too large": lambda path: patched(path, 16, struct.pack("=Q", 1 << 40)),
    "too many files": lambda path: resummed(path, FILES, struct.pack("=I", 1 << 31)),
    "too many pieces": lambda path: resummed(path, PIECES, struct.pack("=I", 60000)),
    "words without end": lambda path: resummed(path, WORDS, struct.pack("=I", 1 << 31)),
    "a file of another time": lambda path: resummed(path, FIRST_FILE + 16, b"\xff"),
    "a path outside": lambda path: resummed(path, FIRST_FILE + 32, struct.pack("=Q", 1 << 50)),
    "readable to others": lambda path: path.chmod(0o640),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "a symbolic link": lambda path: (path.rename(f"{path}.real"), path.symlink_to(f"{path}.real")),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path, 0o600)),
}


@pytest.mark.parametrize("harm", list(HARM))
def test_what_is_not_right_is_not_used(own: Sriov, harm: str) -> None:
    own.answers(CONTINUED)
    HARM[harm](own.image)
    own.answers(STARTED)
    assert layout.fault_of(str(own.image), layout.packed_words(own.words))


def test_another_personality_is_not_served(own: Sriov) -> None:
    resummed(own.image, PERSONALITY, struct.pack("=I", 0x0040000))
    own.answers(STARTED)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_somebody_elses_image_is_not_used(own: Sriov) -> None:
    os.chown(own.image, 12345, -1)
    own.answers(STARTED)


def test_another_executables_image_is_not_used(ready: Sriov, tmp_path: Path) -> None:
    other = Sriov(tmp_path / "other", [*install.search_path(), "/nonexistent"])
    assert other.image.name != ready.image.name
    other.run_dir.mkdir()
    shutil.copyfile(ready.image, other.image)
    other.image.chmod(0o600)
    other.failed.touch()
    other.answers(STARTED)
    assert "another executable" in layout.fault_of(str(other.image), layout.packed_words(other.words))


@pytest.mark.parametrize("megabytes", [1, 8, 20, 24, 28, 32, 36, 40])
def test_too_little_memory_for_it(ready: Sriov, megabytes: int) -> None:
    """Whatever is refused on the way, the interpreter is executed, which may have too little as well."""
    size = megabytes << 20
    env = {"SRIOV_FAST_IMAGE": str(ready.image)}
    limited = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size))}
    done = ready.call(env=env, **limited)
    plain = ready.call(env={"SRIOV_FAST_IMAGE": "none"}, **limited)
    assert done.status == plain.status or (done.mode, done.status) == (CONTINUED, 0), (done, plain)


def test_without_random_addresses_it_may_not_fit(ready: Sriov) -> None:
    if not shutil.which("setarch"):
        pytest.skip("needs setarch")
    done = ready.call(argv=["setarch", "-R", str(ready.program)])
    assert (done.mode, done.status) == (STARTED, 0)


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.parametrize("number", [4, 5, 10, 40, 60])
@pytest.mark.parametrize("error", ["EEXIST", "ENOMEM", "EPERM"])
def test_a_mapping_that_fails(own: Sriov, number: int, error: str) -> None:
    inject = f"inject=mmap:error={error}:when={number}"
    argv = ["strace", "-o", "/dev/null", "-e", "trace=mmap", "-e", inject, str(own.program)]
    done = own.call(argv=argv)
    assert (done.status, "1.1.0" in done.json["supportedVersions"]) == (0, True)
    assert done.mode == STARTED


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_the_last_step_may_be_refused(own: Sriov) -> None:
    inject = "inject=arch_prctl:error=EPERM:when=2"
    argv = ["strace", "-o", "/dev/null", "-e", "trace=arch_prctl", "-e", inject, str(own.program)]
    done = own.call(argv=argv)
    assert (done.mode, done.status) == (STARTED, 0)


# --- what it was made of


@pytest.fixture
def copied(tmp_path: Path) -> Sriov:
    """One whose package is a copy, to be changed."""
    ignored = shutil.ignore_patterns("lab", "txipamd", "__pycache__", "*.pyx", "*.c")
    shutil.copytree(SOURCES / "sriov_fast", tmp_path / "src" / "sriov_fast", ignore=ignored)
    until(lambda: time.time_ns() - newest(tmp_path / "src") > 50_000_000, "time stands still")
    paths = [str(tmp_path / "src"), *install.search_path()[1:]]
    return Sriov(tmp_path / "own", paths).make()


def newest(directory: Path) -> int:
    return max(path.stat().st_ctime_ns for path in directory.rglob("*"))


@pytest.mark.parametrize("name", ["plugin.py", "ipam/host_local.py", "entry.py"])
def test_a_changed_source_makes_it_stale_and_it_is_made_again(copied: Sriov, name: str) -> None:
    copied.answers(CONTINUED)
    before = copied.image.stat().st_ino
    source = copied.directory.parent / "src/sriov_fast" / name
    source.write_text(source.read_text() + "\n# changed\n")
    time.sleep(0.1)
    copied.answers(STARTED)
    until(lambda: copied.image.stat().st_ino != before, "it is not made again")
    copied.answers(CONTINUED)


def test_a_compiled_module_that_is_replaced(copied: Sriov) -> None:
    (module,) = (copied.directory.parent / "src/sriov_fast").glob("_nl.*.so")
    content = module.read_bytes()
    module.unlink()
    module.write_bytes(content)
    module.chmod(0o755)
    copied.failed.touch()
    copied.answers(STARTED)


# --- who makes it


def test_the_first_call_has_it_made_behind_its_reply(tmp_path: Path) -> None:
    sriov = Sriov(tmp_path / "own")
    sriov.answers(STARTED)
    until(sriov.image.exists, "nobody makes it")
    sriov.answers(CONTINUED)
    until(
        lambda: sorted(os.listdir(sriov.run_dir)) == sorted([start.LOCK, sriov.image.name]),
        "something is left",
    )


def test_at_most_one_builder(tmp_path: Path) -> None:
    sriov = Sriov(tmp_path / "own")
    held = start.lock(str(sriov.image))
    assert held >= 0
    assert start.lock(str(sriov.image)) == -1
    sriov.answers(STARTED)
    assert not build.make(str(sriov.image), str(sriov.program), sriov.words)
    time.sleep(0.3)
    assert os.listdir(sriov.run_dir) == [start.LOCK]
    os.close(held)
    sriov.make()


def test_one_that_fits_is_not_made_again(own: Sriov) -> None:
    assert not build.make(str(own.image), str(own.program), own.words)


def test_what_a_killed_builder_left_is_in_nobodys_way(tmp_path: Path) -> None:
    sriov = Sriov(tmp_path / "own")
    sriov.run_dir.mkdir(mode=0o700)
    (sriov.run_dir / f".{sriov.image.name}.tmp").write_bytes(b"half")
    sriov.make().answers(CONTINUED)
    assert sorted(os.listdir(sriov.run_dir)) == sorted([start.LOCK, sriov.image.name])


def test_a_failure_is_noted_and_not_repeated(own: Sriov) -> None:
    own.image.unlink()
    own.failed.write_text("no memory\n")
    own.answers(STARTED)
    time.sleep(0.5)
    assert not own.image.exists()
    os.utime(own.failed, (1, 1))  # long ago
    own.answers(STARTED)
    until(own.image.exists, "it is not tried again")
    until(lambda: not own.failed.exists(), "the note stays")


def test_a_builder_that_fails_says_why(tmp_path: Path) -> None:
    sriov = Sriov(tmp_path / "own")
    sriov.run_dir.mkdir(mode=0o700)
    code = f"import sys; sys.path[:0] = [{str(SOURCES)!r}]; sys.argv[:] = sys.argv[1:]\n"
    code += "from sriov_fast.image import build, layout\n"
    code += "def full(*_): raise OSError(28, 'No space left on device')\n"
    code += "layout.head = full\nbuild.main()\n"
    words = [sys.executable, "-c", code, str(sriov.image), str(sriov.program), *sriov.words]
    done = subprocess.run(words, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert "No space left" in sriov.failed.read_text()
    assert os.listdir(sriov.run_dir) == [sriov.failed.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_no_space_left(tmp_path: Path) -> None:
    sriov = Sriov(tmp_path / "own")
    sriov.run_dir.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(sriov.run_dir)], check=True)
    try:
        with pytest.raises(OSError, match="No space left"):
            build.make(str(sriov.image), str(sriov.program), sriov.words)
        assert os.listdir(sriov.run_dir) == [start.LOCK]
        sriov.answers(STARTED)
        until(sriov.failed.exists, "the builder does not say so")
        sriov.answers(STARTED)
    finally:
        subprocess.run(["umount", "-l", str(sriov.run_dir)], check=True)


def test_the_saved_process_ends_with_its_builder(tmp_path: Path) -> None:
    sriov = Sriov(tmp_path / "own")
    process = build._started(sriov.words)
    build._said(process)
    assert process.poll() is None
    assert process.stdin
    process.stdin.close()  # as the kernel does for who was killed
    assert process.wait(PATIENCE) == 0
    process.stdin = None
    process.communicate()


def test_one_that_does_not_answer_is_not_put_in_place(tmp_path: Path) -> None:
    sriov = Sriov(tmp_path / "own")
    with pytest.raises(ImageError, match="does not run"):
        build.make(str(sriov.image), "/bin/true", sriov.words)
    assert os.listdir(sriov.run_dir) == [start.LOCK]


def test_an_interpreter_that_does_not_start(tmp_path: Path) -> None:
    sriov = Sriov(tmp_path / "own", ["/nonexistent"])
    with pytest.raises(ImageError, match="sriov_fast"):
        build.make(str(sriov.image), str(sriov.program), sriov.words)


def test_words_of_another_program_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not an executable"):
        build.make(str(tmp_path / "image"), "/bin/true", ["/bin/sh", "-c", "-c", "exit"])


def test_stale_ones_are_removed_and_others_stay(own: Sriov, ready: Sriov) -> None:
    stale = own.run_dir / "sriov-0000000000000000.image"
    stale.write_bytes(b"old")
    (own.run_dir / "sriov.sock").touch()
    other = own.run_dir / "sriov-1111111111111111.image"
    shutil.copyfile(ready.image, other)
    other.chmod(0o600)
    build.clear(str(own.run_dir))
    assert sorted(os.listdir(own.run_dir)) == sorted([own.image.name, other.name, "sriov.sock"])


def test_install_removes_stale_ones(own: Sriov, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRIOV_FAST_RUN", str(own.run_dir))
    truncated(own.image, 100)
    assert main(["install", "--bin-dir", str(tmp_path / "bin")]) == 0
    assert os.listdir(own.run_dir) == []


def test_two_installations_have_one_each(ready: Sriov, tmp_path: Path) -> None:
    first = Sriov(tmp_path / "first")
    second = Sriov(tmp_path / "second", [*install.search_path(), "/nonexistent"])
    second.run_dir = first.run_dir
    second.image = first.run_dir / second.image.name
    first.make()
    second.make()
    first.answers(CONTINUED)
    second.answers(CONTINUED)
    assert len(list(first.run_dir.glob("*.image"))) == 2


# --- the server's order, the doctor


def test_the_server_orders_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SRIOV_FAST_IMAGE", raising=False)
    sriov = Sriov(tmp_path / "own")
    start.order(str(sriov.program), str(sriov.run_dir))
    until(sriov.image.exists, "it is not made")
    sriov.answers(CONTINUED)


def test_the_doctor_tells(own: Sriov) -> None:
    here = Roots(run=str(own.run_dir))

    def said() -> tuple[str, str]:
        (finding,) = doctor._image([own.directory], here.run)
        return finding.level, finding.text

    assert said() == ("OK", f"{own.image} fits")
    truncated(own.image, 100)
    own.failed.write_text("no space\n")
    assert said()[0] == "WARN"
    assert "no space" in said()[1]
    own.failed.unlink()
    assert said() == (
        "OK",
        f"{own.image}: {own.image}: cut short; the next request without a server makes it",
    )
    own.program.write_text("#!/bin/sh\n")
    assert "not the client" in said()[1]


# --- parts


def test_runs_of_pages() -> None:
    page, zero = b"x" * layout.PAGE, bytes(layout.PAGE)
    spans = [
        (begin // 4096, end // 4096, is_zero) for begin, end, is_zero in memory.runs(zero * 20 + page + zero)
    ]
    assert spans == [(0, 20, True), (20, 21, False), (21, 22, True)]
    spans = [
        (begin // 4096, end // 4096, is_zero) for begin, end, is_zero in memory.runs(page + zero * 3 + page)
    ]
    assert spans == [(0, 5, False)]
    assert list(memory.runs(zero * 2)) == [(0, 8192, True)]


def test_our_own_mappings_are_understood() -> None:
    found = list(memory.mappings(os.getpid()))
    assert {"[stack]", "[vdso]"} <= {each.name for each in found}
    assert all(each.start < each.end for each in found)


def own_vdso() -> bytes:
    mapping = next(each for each in memory.mappings(os.getpid()) if each.name == "[vdso]")
    return ctypes.string_at(mapping.start, mapping.end - mapping.start)


def test_the_vdso_has_a_system_call_for_each_function() -> None:
    before = own_vdso()
    after = vdso.stubbed(before)
    found = vdso._functions(before)
    assert {"__vdso_clock_gettime", "clock_gettime", "__vdso_time"} <= set(found)
    assert len(after) == len(before)
    for name, at in found.items():
        opcode, _, *rest = struct.unpack_from("<BIBBB", after, at)
        assert (opcode, rest) == (0xB8, [0x0F, 0x05, 0xC3]), name
    clock = found["__vdso_clock_gettime"]
    assert struct.unpack_from("<I", after, clock + 1) == (228,)


def test_the_stubs_answer_as_the_kernel() -> None:
    """Run them: from a page of our own."""
    import mmap

    found = vdso._functions(own_vdso())
    page = mmap.mmap(-1, len(own_vdso()), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(vdso.stubbed(own_vdso()))
    base = ctypes.addressof(ctypes.c_char.from_buffer(page))

    def function(name: str) -> Any:
        return ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_void_p] * 3)(base + found[f"__vdso_{name}"])

    spec = (ctypes.c_long * 2)()
    assert function("clock_gettime")(time.CLOCK_MONOTONIC, ctypes.addressof(spec), None) == 0
    assert abs(spec[0] - time.monotonic()) < 2
    assert function("clock_gettime")(99, ctypes.addressof(spec), None) == -errno.EINVAL
    assert abs(function("time")(None, None, None) - time.time()) < 2
    assert function("gettimeofday")(ctypes.addressof(spec), None, None) == 0
    assert abs(spec[0] - time.time()) < 2


@pytest.mark.parametrize("content", [b"", b"\x7fELF", bytes(8192), b"\x7fELF\x02\x01" + bytes(8000)])
def test_a_vdso_that_is_not_understood(content: bytes) -> None:
    with pytest.raises(ImageError, match="vDSO"):
        vdso.stubbed(content)


def test_words_are_read_and_named_as_the_client_does(ready: Sriov, tmp_path: Path) -> None:
    assert layout.words_of(ready.program)[0] == sys.executable
    for content in (b"", b"short", b"#!/bin/sh\nexit 0\n" * 10):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(ImageError):
            layout.words_of(tmp_path / "other")


# --- what a process may do that continues an image


def continued(
    ready: Sriov, tmp_path: Path, body: str, before: str = ""
) -> subprocess.CompletedProcess[bytes]:
    """Run ``body``, the lines of a function, in a process that continues an image of its own.

    ``before`` are lines that ran when it was saved.
    """
    code = f"import sys; sys.path[:0] = {[str(SOURCES), *install.search_path()]!r}\n"
    code += "from sriov_fast.image import parked\nimport os\ndef main():\n"
    code += "".join(f"    {line}\n" for line in body.splitlines())
    code += f"{before}parked.entry.main = main\nparked.main()\n"
    words = [sys.executable, "-ISXutf8", "-c", code + start.END]
    packed = layout.packed_words(words)
    binary = client.binary()
    assert binary
    content = binary.read_bytes() + packed + struct.pack("=I8s", len(packed), b"SRFARGV1")
    install.write_executable(tmp_path / "own", content)
    image = tmp_path / "own.image"
    if not image.exists():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "_PARK", "")
            build._write(str(image), words, packed)
    env = ready.environ(SRIOV_FAST_IMAGE=str(image))
    argv = [tmp_path / "own", "one", "two words"]
    return subprocess.run(argv, env=env, capture_output=True, input=b"in", timeout=PATIENCE, check=False)


def test_the_stack_grows(ready: Sriov, tmp_path: Path) -> None:
    """A recursion through C and Python that needs a megabyte."""
    body = "def deep(n): return n and max([n], key=lambda _: deep(n - 1))\n"
    body += "sys.setrecursionlimit(100000); deep(3000); os.write(1, b'grown'); os._exit(0)"
    done = continued(ready, tmp_path, body)
    assert (done.returncode, done.stdout) == (0, b"grown"), done


def test_a_fault_has_a_traceback(ready: Sriov, tmp_path: Path) -> None:
    done = continued(ready, tmp_path, "parked.entry.run(lambda stdin: 1 / 0)")
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == 999
    assert b"Traceback" in done.stderr
    assert b"ZeroDivisionError: division by zero" in done.stderr


ALL = """
import _thread, subprocess, ssl, time, threading, uuid, ctypes, json
data = [bytes(100) for _ in range(100000)]; del data
found = []
for _ in range(4):
    thread = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
    thread.start(); thread.join()
child = os.fork()
if not child:
    os._exit(7)
said = {
    "argv": sys.argv,
    "child": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]),
    "executed": subprocess.run(["/bin/echo", "hi"], capture_output=True, text=True).stdout,
    "threads": len(found),
    "random": os.urandom(8).hex() + uuid.uuid4().hex + ssl.RAND_bytes(8).hex(),
    "monotonic": time.monotonic(), "time": time.time(),
    "ids": [os.getpid(), threading.get_native_id(), os.getppid()],
    "core": ctypes.CDLL(None).sched_getcpu(),
    "files": sorted(os.listdir("/proc/self/fd")),
    "read": os.read(0, 10).decode(),
}
print(json.dumps(said), flush=True)
os._exit(0)
"""


def test_everything_else(ready: Sriov, tmp_path: Path) -> None:
    """Threads, children, late imports with libraries, clocks, random numbers."""
    said = []
    for _ in range(2):
        done = continued(ready, tmp_path, ALL)
        assert (done.returncode, done.stderr) == (0, b""), done
        said.append(json.loads(done.stdout))
    first, second = said
    assert first["argv"][1:] == ["one", "two words"]
    assert (first["child"], first["executed"], first["threads"], first["read"]) == (7, "hi\n", 4, "in")
    assert first["random"] != second["random"]
    assert abs(second["monotonic"] - time.monotonic()) < 10
    assert abs(second["time"] - time.time()) < 10
    assert first["ids"] == [first["ids"][0], first["ids"][0], os.getpid()]
    assert first["ids"][0] != second["ids"][0]
    assert 0 <= first["core"] < (os.cpu_count() or 1)
    assert len(first["files"]) == 4  # and the directory that is read


# --- the trial


def test_the_exercise_is_possible_here() -> None:
    parked.exercise()


ANSWER = "parked.entry.run(parked.entry._answer)"


def test_a_good_one_passes(ready: Sriov, tmp_path: Path) -> None:
    assert continued(ready, tmp_path, ANSWER).stdout.startswith(b"{")
    build.attempt(str(tmp_path / "own.image"), str(tmp_path / "own"))


@pytest.mark.parametrize(
    "fault",
    [
        "os.kill(os.getpid(), 11)",
        "raise parked.NotFitError('no')",
        "os._exit(0)",
    ],
    ids=["dies", "raises", "says nothing"],
)
def test_what_fails_in_the_exercise_is_not_put_in_place(ready: Sriov, tmp_path: Path, fault: str) -> None:
    """An ADD that dies could not start an interpreter any more: the trial must find that."""
    broken = f"def broken():\n    {fault}\nparked.exercise = broken\n"
    done = continued(ready, tmp_path, ANSWER, broken)
    assert done.stdout.startswith(b"{"), "without a trial there is no exercise"
    own = tmp_path / "own"
    with pytest.raises(ImageError, match="it does not run"):
        build.attempt(f"{own}.image", str(own))
