"""Makes an image: starts an interpreter as the executable does, saves it, tries it, and puts it in place."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from sriov_fast.image import layout, start
from sriov_fast.image.layout import ImageError
from sriov_fast.image.memory import Saved
from sriov_fast.image.start import END, FAILED, TRIAL

PATIENCE = 30.0  # seconds for an interpreter to start, on a node that has better to do
_PARK = "from sriov_fast.image.parked import main\nmain()\n"
_ADDRESS = 8
_VERSION = b"supportedVersions"


def main() -> None:
    """Be the builder, given the image's path, the executable, and the words behind it; see ``start``.

    Who started it has taken the lock.
    """
    path, executable, *words = sys.argv
    os.nice(19)
    status = 0
    try:
        renew(path, executable, words)
    except Exception as error:  # whatever it was, it would be the same a moment later
        remember(path, error)
        status = 1
    os._exit(status)


def make(path: str, executable: str, words: list[str]) -> bool:
    """Make the image for an executable, unless it is there or somebody makes it; return whether it was made.

    Raises ImageError, OSError and SubprocessError where none can be made.
    """
    held = start.lock(path)
    if held < 0:
        return False
    try:
        return renew(path, executable, words)
    finally:
        os.close(held)


def renew(path: str, executable: str, words: list[str]) -> bool:
    """Make the image, unless there is one that fits; return whether it was made. The lock is the caller's."""
    packed = layout.packed_words(words)
    if not layout.fault_of(path, packed):
        return False
    directory, name = os.path.split(path)
    temporary = f"{directory}/.{name}.tmp"
    with ExitStack() as closing:
        Path(temporary).unlink(missing_ok=True)  # of a builder that was killed
        closing.callback(Path(temporary).unlink, missing_ok=True)
        _write(temporary, words, packed)
        attempt(temporary, executable)
        os.replace(temporary, path)
    clear(directory)
    return True


def remember(path: str, error: BaseException) -> None:
    """Write down why there is no image, so that not every request tries to make one."""
    try:
        Path(path + FAILED).write_text(f"{error}\n", encoding="utf-8", errors="backslashreplace")
    except OSError:
        pass


def _write(path: str, words: list[str], packed: bytes) -> None:
    """Write the image of an interpreter that has imported what a request needs."""
    began = time.time_ns()
    with ExitStack() as closing:
        process = _started(words)
        closing.callback(_end, process)
        origins, address = _said(process)
        _check_alone(process.pid)
        saved = Saved(process.pid)
        for origin in origins:
            saved.file(origin)
    _check_unchanged(saved.files, began)
    head = layout.head(packed, saved.files, saved.pieces, address, saved.size)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(head)
        file.writelines(saved.data)


def _started(words: list[str]) -> subprocess.Popen[bytes]:
    """Start the interpreter with what comes before the plugin's own part of its code."""
    interpreter, flags, option, code = words
    if not code.endswith(END):
        raise ImageError("not an executable of the plugin")
    return subprocess.Popen(
        [interpreter, flags, option, code.removesuffix(END) + _PARK, "sriov"],
        env={"LD_BIND_NOW": "1"},  # what is bound late would be bound again by every process
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _said(process: subprocess.Popen[bytes]) -> tuple[list[str], int]:
    """Wait until it stands still; return the files that it was made of and where it stands."""
    fd, data, deadline = _fd(process.stdout), b"", time.monotonic() + PATIENCE
    while (end := data.find(b"\0\0") + 2) < 2 or len(data) < end + _ADDRESS:
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise ImageError("the interpreter did not start in time")
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            process.wait()
            raise ImageError(f"the interpreter ended: {_last_words(process)}")
        data += chunk
    origins = [os.fsdecode(path) for path in data[: end - 2].split(b"\0")]
    return origins, int.from_bytes(data[end:], sys.byteorder)


def _fd(pipe: IO[bytes] | None) -> int:
    return pipe.fileno() if pipe else -1


def _last_words(process: subprocess.Popen[bytes]) -> str:
    lines = os.read(_fd(process.stderr), 1 << 16).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {process.returncode}"


def _check_alone(pid: int) -> None:
    """Only memory can be saved: no threads, and no files but the three that every process is given."""
    threads, files = os.listdir(f"/proc/{pid}/task"), sorted(os.listdir(f"/proc/{pid}/fd"))
    if len(threads) > 1 or files != ["0", "1", "2"]:
        raise ImageError(f"more than memory to save: {len(threads)} threads, files {', '.join(files)}")


def _check_unchanged(files: list[layout.File], began: int) -> None:
    """Refuse what was changed since it may have been read. The clock of files ticks a few times slower."""
    for file in files:
        if os.stat(file.path).st_ctime_ns > began - 20_000_000:
            raise ImageError(f"{file.path} is being changed")


def attempt(path: str, executable: str) -> None:
    """Let the executable exercise and answer VERSION from the image at ``path``; ImageError if it cannot."""
    trace = f"{path}.trace"
    env = {"CNI_COMMAND": "VERSION", "SRIOV_FAST_SOCKET": "none", "SRIOV_FAST_IMAGE": path}
    env |= {"SRIOV_FAST_TRACE": trace, TRIAL: "1"}
    with ExitStack() as closing:
        closing.callback(Path(trace).unlink, missing_ok=True)
        done = subprocess.run(
            [executable], env=env, input=b"{}", capture_output=True, timeout=PATIENCE, check=False
        )
        told = Path(trace).read_bytes() if os.path.exists(trace) else b""
    if done.returncode or _VERSION not in done.stdout or b'"image"' not in told:
        raise ImageError(f"it does not run: exit status {done.returncode}, {done.stderr[-200:]!r}")


def clear(directory: str) -> None:
    """Remove the images that no executable can use any more, and what is noted of those that failed.

    Raises OSError where that is refused; a directory that is not there has none.
    """
    names = os.listdir(directory) if os.path.isdir(directory) else []
    for name in names:
        path = f"{directory}/{name}"
        is_image = name.startswith("sriov-") and name.endswith(".image")
        if (is_image and layout.fault_of(path)) or name.endswith(f".image{FAILED}"):
            Path(path).unlink(missing_ok=True)
