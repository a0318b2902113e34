"""Execution of another IPAM plugin (CNI's SPEC.md, "Plugin Delegation").

This is on the hot path, so nothing heavy is imported: ``subprocess`` alone would take longer than a delegate
runs. A delegate gets its configuration from a memory file, not a pipe: neither side can block the other,
at any size. It runs in a process group of its own, which is killed as a whole on a timeout.
"""

from __future__ import annotations

import os
import select
import stat
import time

from sriov_fast.common import cpu, descriptors, json
from sriov_fast.common.errors import ConfigError, DecodeError, EnvError, IpamError, is_absent
from sriov_fast.common.interpreter import INTERPRETER
from sriov_fast.common.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

_STDERR = 2

# A CNI result is a few hundred bytes; a larger answer is not an IPAM plugin's.
MAX_ANSWER = 1 << 20
SHOWN = 200
_LARGEST_CODE = (1 << 32) - 1  # CNI's library reads a code into 32 bits, without a sign
_LONGEST_TEXT = 1000  # characters of its msg, and of its details

_EXECUTABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
# From signal.h, the same on every machine with SR-IOV; the module ``signal`` is slow to import.
_SIGKILL = 9
_SIGPIPE = 13
_SIGXFSZ = 25

# "No such verb": CNI's library for plugins answers 4, 1 where the configuration is too old for the verb, and
# before 1.1.0 it misses the container ID first (3).
_UNKNOWN_VERB = (1, 3, 4)
_OPTIONAL_VERBS = ("GC", "STATUS")
_TRY_AGAIN = 11
_LOOK = 1.0  # seconds between two looks at the deadline


def find(kind: str, path: Sequence[str]) -> str:
    """Return the executable named ``kind`` from the first directory of ``path`` (CNI_PATH) that has one."""
    if kind in ("", ".", "..") or "/" in kind or "\0" in kind:
        raise ConfigError(f"ipam.type {kind!r} is no name of a plugin", "give the name of a file in CNI_PATH")
    directories = [directory for directory in path if directory]
    if not directories:
        raise EnvError(
            f"CNI_PATH is missing: cannot look for the IPAM plugin {kind!r}",
            "set it to the directories that hold the plugins, such as /opt/cni/bin",
        )
    for directory in directories:
        program = f"{directory}/{kind}"
        if _is_executable(program):
            return program
    raise IpamError(
        f"no IPAM plugin {kind!r} in CNI_PATH {':'.join(directories)}",
        f"install {kind!r} there as an executable file, or correct ipam.type",
    )


def _is_executable(path: str) -> bool:
    """Return whether there is an executable file; IpamError if that is unknown."""
    try:
        mode = os.stat(path).st_mode
        return stat.S_ISREG(mode) and bool(mode & _EXECUTABLE)
    except OSError as error:
        if is_absent(error):
            return False
        raise IpamError(
            f"IPAM plugin {path} cannot be looked up: {error.strerror or error}",
            "see that every directory of CNI_PATH can be read",
            errno=error.errno or 0,
        ) from error


def delegate_args(text: str) -> str:
    """Return CNI_ARGS for a delegate: ours, which it cannot know, must not be an error to it."""
    pairs = [pair for pair in text.split(";") if pair]
    kept = [pair for pair in pairs if pair.partition("=")[0].strip().lower() != "ignoreunknown"]
    return ";".join(["IgnoreUnknown=1", *kept])


class Running:
    """One delegate on its way. ``finish`` ends it, and leaves no process behind."""

    def __init__(self, program: str, command: str, pid: int, out: int) -> None:
        self.kind = os.path.basename(program)
        self.command = command
        self.pid = pid
        self._out = out
        self._pidfd = _open_pidfd(pid)
        self._status: int | None = None
        self._deadline = float("inf")

    def finish(self, timeout: float) -> dict[str, Any] | None:
        """Wait at most ``timeout`` seconds and return the result; None where the verb has none."""
        self.hurry(timeout)
        try:
            answer = self._read(timeout)
            status = self._wait(timeout)
        finally:
            self._end()
        return self._judge(answer, status)

    def hurry(self, seconds: float) -> None:
        """Have ``finish`` end in at most ``seconds``, also while another thread waits in it."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def _end(self) -> None:
        """Kill the delegate if it still runs, reap it, and close our descriptors."""
        if self._status is None:
            _kill_group(self.pid)
            self._reap(0)
        descriptors.close(self._out)
        if self._pidfd >= 0:
            descriptors.close(self._pidfd)

    # --- waiting

    def _read(self, timeout: float) -> bytes:
        """Read until the end of the output, or until the delegate itself has ended.

        A daemon that the delegate leaves behind may keep the pipe open.
        """
        os.set_blocking(self._out, False)
        chunks: list[bytes] = []
        size = 0
        while True:
            ended = self._pidfd in self._poll(timeout, self._out, self._pidfd)
            while chunk := _read_some(self._out):
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_ANSWER:
                    raise self._error(f"answered with more than {MAX_ANSWER} bytes", _shown(chunks[0]))
            if chunk == b"" or ended:
                return b"".join(chunks)

    def _poll(self, timeout: float, *fds: int) -> list[int]:
        """Wait until a descriptor has input or ends; return those of which it is true."""
        poller = select.poll()
        for fd in fds:
            if fd >= 0:
                poller.register(fd, select.POLLIN)
        with INTERPRETER.released():
            while not (events := poller.poll(min(_LOOK, self._left()) * 1000)):
                if not self._left():
                    raise self._late(timeout)
        return [fd for fd, _ in events]

    def _left(self) -> float:
        """Return the seconds until the deadline, which another thread may bring forward (``hurry``)."""
        return max(0.0, self._deadline - time.monotonic())

    def _wait(self, timeout: float) -> int:
        """Reap the process, which has closed its output and so is about to end."""
        if self._pidfd >= 0:
            self._poll(timeout, self._pidfd)
        while not self._reap(os.WNOHANG):
            if not self._left():
                raise self._late(timeout)
            time.sleep(0.0005)  # only kernels without pidfd_open (before 5.3) come here
        return self._status or 0

    def _reap(self, flags: int) -> bool:
        try:
            pid, status = os.waitpid(self.pid, flags)
        except ChildProcessError:
            # Our parent ignores SIGCHLD, so the kernel reaped: only the output tells of a failure.
            pid, status = self.pid, 0
        if pid:
            self._status = status
        return bool(pid)

    # --- judging

    def _judge(self, answer: bytes, status: int) -> dict[str, Any] | None:
        if os.WIFSIGNALED(status):
            raise self._error(f"was killed by signal {os.WTERMSIG(status)}", _shown(answer))
        code = os.waitstatus_to_exitcode(status)
        document = self._document(answer, code)
        if code or (document and document.get("code")):  # an error, at any exit status
            raise self._relayed(document, answer, code)
        if document is None and self.command == "ADD":
            raise self._error("ended well, without a result", "an ADD must be answered with a CNI result")
        return document

    def _document(self, answer: bytes, code: int) -> dict[str, Any] | None:
        if not answer.strip():
            return None
        try:
            document = json.loads(answer, "its answer")
        except DecodeError as error:
            raise self._error(f"{error.msg} (exit status {code})", _shown(answer)) from error
        if not isinstance(document, dict):
            raise self._error(f"its answer is no JSON object (exit status {code})", _shown(answer))
        return document

    def _relayed(self, document: dict[str, Any] | None, answer: bytes, code: int) -> IpamError:
        """Make our error of the delegate's own, which keeps its code."""
        its_code = document.get("code") if document else None
        if document is None or type(its_code) is not int or not 0 < its_code <= _LARGEST_CODE:
            return self._error(f"failed with exit status {code}", _shown(answer))
        error = self._error(_text(document, "msg") or "no message", _text(document, "details"))
        error.code = its_code
        return error

    def _late(self, timeout: float) -> IpamError:
        error = self._error(f"has not ended after {timeout:g} s and was killed", "see what it waits for")
        error.code = _TRY_AGAIN
        return error

    def _error(self, what: str, details: str) -> IpamError:
        return IpamError(f"IPAM plugin {self.kind!r}, {self.command}: {what}", details)


class Ipam(Record):
    """The IPAM plugin of one request.

    ``path`` is CNI_PATH, split; ``config`` the whole network configuration and ``args`` CNI_ARGS, both as
    they came; ``environ`` is added to the delegate's CNI variables, and ``stderr`` is its stderr.
    """

    kind: str
    path: tuple[str, ...]
    config: bytes
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: str = ""
    environ: Mapping[str, str] = os.environ
    stderr: int = _STDERR

    waits = True  # for another process

    def start(self, command: str) -> Running:
        """Start the plugin with ``command`` and return at once; it inherits ``stderr`` and nothing else."""
        program = find(self.kind, self.path)
        source = _memory_file(self.config)
        try:
            out, its_out = os.pipe()
            try:
                pid = _spawn(program, (source, its_out, self.stderr), self._env(command))
            except BaseException as error:
                descriptors.close(out)
                if isinstance(error, OSError):
                    raise _not_started(program, error) from error
                raise
            finally:
                descriptors.close(its_out)
        finally:
            descriptors.close(source)
        return Running(program, command, pid, out)

    def _env(self, command: str) -> dict[str, str]:
        """Return the delegate's environment: the caller's, with the CNI variables of this request.

        A variable without a name is left out: ``posix_spawn`` refuses it.
        """
        return {
            **{name: value for name, value in self.environ.items() if name},
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.container_id,
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": self.ifname,
            "CNI_ARGS": delegate_args(self.args),
            "CNI_PATH": ":".join(self.path),
        }

    def run(
        self, command: str, timeout: float, on_skip: Callable[[str], None] | None = None
    ) -> dict[str, Any] | None:
        """Run the plugin to its end.

        A plugin from before CNI 1.1.0 knows no GC and no STATUS. That is no fault of this network: the answer
        is None, and ``on_skip`` is told why.
        """
        try:
            return self.start(command).finish(timeout)
        except IpamError as error:
            if command not in _OPTIONAL_VERBS or error.code not in _UNKNOWN_VERB:
                raise
            if on_skip:
                on_skip(error.msg)
            return None


# --- the system calls


def _memory_file(content: bytes) -> int:
    """Return an anonymous file that holds ``content``, to be read from its start."""
    fd = os.memfd_create("cni-config", os.MFD_CLOEXEC)
    try:
        descriptors.write_all(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        descriptors.close(fd)
        raise
    return fd


def _spawn(program: str, streams: tuple[int, int, int], env: Mapping[str, str]) -> int:
    cpu.roam()
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams)]
    return os.posix_spawn(
        program,
        [program],
        env,
        file_actions=[*actions, *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable_files())],
        setpgroup=0,
        setsigmask=(),
        # The interpreter ignores these two, which a delegate must not inherit.
        setsigdef=(_SIGPIPE, _SIGXFSZ),
    )


def _inheritable_files() -> list[int]:
    """Return the inherited descriptors that a delegate must not get."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if fd > _STDERR and os.get_inheritable(fd):
                found.append(fd)
        except OSError:
            pass  # the one that listed
    return found


def _not_started(program: str, error: OSError) -> IpamError:
    return IpamError(
        f"IPAM plugin {program} cannot be started: {error.strerror or error}",
        "it must be an executable for this machine, or a script whose interpreter is there",
        errno=error.errno or 0,
    )


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _kill_group(pid: int) -> None:
    """Kill a delegate, which may have left its process group, and the group."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, _SIGKILL)
        except ProcessLookupError:
            pass


def _read_some(fd: int) -> bytes | None:
    """Read the available bytes: b"" at the end, None if there are none yet."""
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return None


def _text(document: dict[str, Any], key: str) -> str:
    """Return a text of an error object, cut where it is long."""
    text = str(document.get(key) or "")
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


def _shown(answer: bytes) -> str:
    text = answer[:SHOWN].decode("utf-8", "replace").strip()
    return f"its output began with: {text}" if text else "it printed nothing"
