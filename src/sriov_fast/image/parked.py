"""The process that is saved: imports what a request may need, stands still, and serves one when continued."""

from __future__ import annotations

import _thread
import gc
import os
import sys
import time

from sriov_fast import _park, entry
from sriov_fast.errors import SriovError
from sriov_fast.image.start import TRIAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# What an ADD, a DEL and the other verbs import late; what only txipam and some faults need is not among it.
_LATE = (
    *("call", "plugin", "upkeep", "backend", "steps", "addresses", "cni.request", "cni.reply"),
    *("sriov.roots", "sriov.announce", "sriov.check", "ipam.builtin", "ipam.host_local", "ipam.static"),
    *("ipam.search", "ipam.delegate"),
)
# Each has a state that no two processes may share.
_FORBIDDEN = ("random", "uuid", "secrets", "ssl", "_ssl", "_hashlib", "_uuid", "tempfile", "threading")
_WAIT, _TELL = 0, 1


class NotFitError(SriovError):
    """This process is not one that may be saved."""


def main() -> None:
    """Stand still to be saved; where continued, be ``sriov``. Does not return."""
    _import_all()
    _write(b"\0".join(os.fsencode(path) for path in _origins()) + b"\0\0")
    if _park.park(_TELL, _WAIT):
        _awake()
        entry.main()
    os._exit(0)


def _import_all() -> None:
    for name in _LATE:
        __import__(f"sriov_fast.{name}")
    found = [name for name in _FORBIDDEN if name in sys.modules]
    if found:
        raise NotFitError(f"not to be saved: {', '.join(found)}")
    gc.collect()
    gc.freeze()
    gc.disable()


def _origins() -> list[str]:
    """Return the files of the modules that are here, and what the interpreter was found by."""
    specs = [getattr(module, "__spec__", None) for module in sys.modules.values()]
    found = {spec.origin for spec in specs if spec and spec.has_location and spec.origin}
    found |= {sys.executable, *_settings_of(sys.executable)}
    return sorted(found)


def _settings_of(interpreter: str) -> Iterable[str]:
    """Return the file that tells a virtual environment's interpreter where it is at home."""
    directory = os.path.dirname(interpreter)
    places = (f"{directory}/pyvenv.cfg", f"{os.path.dirname(directory)}/pyvenv.cfg")
    return [path for path in places if os.path.exists(path)]


def _write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(_TELL, rest) :]


def _awake() -> None:
    """Take over what is this process' own: its environment and its words."""
    entry.origin = "image"
    _take_environment(_park.environment())
    sys.argv[:] = [os.fsdecode(word) for word in _park.arguments()]
    if os.environ.pop(TRIAL, ""):
        exercise()


def _take_environment(entries: Iterable[bytes]) -> None:
    """Fill ``os.environ``, which others hold, as the interpreter does: the first of a name counts."""
    data = os.environ._data  # type: ignore[attr-defined]  # posix.environ, and behind os.environb
    data.clear()
    for each in entries:
        name, given, value = each.partition(b"=")
        if given:
            data.setdefault(name, value)


def exercise() -> None:
    """Do what a request may do and VERSION does not; raise, or die, where a continued process cannot.

    Once a process has been continued nobody can start an interpreter in its place. So what could go wrong
    with this C library and this kernel is to go wrong before the image is used.
    """
    _grow()
    _thread_runs()
    _children_run()
    _asks_the_kernel()


def _grow() -> None:
    """Let Python's heap grow, and malloc(3) serve sizes on either side of its threshold for mmap(2)."""
    kept = [bytes(size) for size in (1 << 10, 1 << 16, 1 << 20) for _ in range(40)]
    if any(kept[-1]):
        raise NotFitError("new memory is not empty")


def _thread_runs() -> None:
    ended = _thread.allocate_lock()
    ended.acquire()
    _thread.start_new_thread(ended.release, ())
    if not ended.acquire(timeout=10):
        raise NotFitError("a thread does not run")


def _children_run() -> None:
    """Fork, as what comes behind a reply does, and execute, as for an IPAM plugin."""
    child = os.fork()
    if not child:
        os._exit(7)
    code = "raise SystemExit(7)"
    spawned = os.posix_spawn(sys.executable, [sys.executable, "-ISc", code], {})
    for pid in (child, spawned):
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 7:
            raise NotFitError("a child does not end as it should")


def _asks_the_kernel() -> None:
    """Look at the clocks, and ask rtnetlink for all devices."""
    from sriov_fast.backend import nl  # late: only where an image is tried

    began, wall = time.monotonic(), time.time()
    time.sleep(0.001)
    if not 0.0005 < time.monotonic() - began < 10 or not 0.0005 < time.time() - wall < 10:
        raise NotFitError("a clock stands still")
    with nl.Socket() as host:
        if not any(link.name == "lo" for link in host.links()):
            raise NotFitError("rtnetlink does not name the loopback device")
