"""The server: threads that wait for connections, and carry out the requests that come in.

The thread that the kernel wakes serves the request, so no request is handed from thread to thread. What must
outlive a crash is in the journal and in file locks, as for processes, so server and processes may work at the
same time.
"""

from __future__ import annotations

import _thread
import gc
import os
import signal
import sys
import time
import traceback
from contextlib import suppress

from sriov_fast.cni import request, response
from sriov_fast.common import cpu, descriptors, log
from sriov_fast.common.errors import SriovError
from sriov_fast.common.record import Record
from sriov_fast.plugin import recovery, run
from sriov_fast.plugin.context import Context, Reply
from sriov_fast.server import protocol
from sriov_fast.server.connections import Connections
from sriov_fast.vf import netns

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from sriov_fast.common.paths import Roots
    from sriov_fast.common.trace import Steps

_STDERR = 2
_SIGNALS = {signal.SIGTERM, signal.SIGINT}
# A request makes some hundred objects that last to its end, and hardly ever a cycle: collections, which take
# as long as a step of it, come seldom, and when nobody waits (``_upkeep``).
_COLLECT = (20_000, 10, 10)
# For so long (seconds) a thread that returns from the kernel waits for the interpreter; the default is 5 ms.
_SWITCH = 0.0002
_TICK = 1.0  # seconds until the main thread looks after threads and connections
_START = 20.0  # seconds that a start waits for the first upkeep, which may wait for an IPAM plugin
_LAST = 5.0  # seconds that a stop waits for an upkeep; the next start finishes it
_PAUSE = 0.05  # seconds between two faults of a thread


class Options(Record):
    """What the operator chooses: at most ``threads`` requests at a time, and when a DEL answers."""

    threads: int = 64
    defer_release: bool = False
    upkeep_every: float = 30.0  # seconds


class Server:
    """Serves a listening socket until a signal ends it."""

    def __init__(self, listener: socket.socket, roots: Roots, options: Options) -> None:
        self._connections = Connections(listener)
        self._roots = roots
        self._options = options
        self._log = log.Logger()
        self._counts = _thread.allocate_lock()
        self._keeping = _thread.allocate_lock()
        self._home = netns.own()
        self._threads = 0
        self._waiting = 0
        self._is_short = False
        self._stopping = False

    def run(self, ready: Callable[[], None], stopping: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT; then finish what runs. Must be called in the main thread."""
        sys.setswitchinterval(_SWITCH)
        gc.set_threshold(*_COLLECT)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        due = self._first_upkeep()
        _warm_up(self._roots.state)
        self._grow()
        ready()
        self._log.info("serving", threads=self._options.threads, defer_release=self._options.defer_release)
        self._look_after(due)
        self._log.info("stopping")
        self._stopping = True
        self._connections.stop()
        self._guarded(stopping)
        while self._threads:
            time.sleep(0.005)
        self._keeping.acquire(timeout=_LAST)
        self._connections.close()
        descriptors.close(self._home)

    def _first_upkeep(self) -> float:
        """Finish what was cut short, as far as that is done in time; return when the next upkeep is due."""
        started = self._upkeep()
        if self._keeping.acquire(timeout=_START):
            self._keeping.release()
        return time.monotonic() + (self._options.upkeep_every if started else 0.0)

    def _look_after(self, due: float) -> None:
        """Do what is due at intervals, until a signal comes. No fault of it ends the server."""
        while not _is_told_to_stop():
            self._guarded(self._tick)
            if time.monotonic() >= due and self._upkeep():
                due = time.monotonic() + self._options.upkeep_every

    def _tick(self) -> None:
        self._grow()
        self._connections.listen()
        if number := self._connections.expire():
            self._log.warning("closed connections that sent no whole request in time", number=number)

    def _guarded(self, work: Callable[[], object]) -> None:
        """Do something whose fault must not end the thread."""
        try:
            work()
        except BaseException as error:
            self._unexpected(error)

    def _unexpected(self, error: BaseException) -> None:
        with suppress(BaseException):  # there may be no memory to say so
            trace = "".join(traceback.format_exception(error))
            self._log.error("an unexpected fault", why=repr(error), trace=trace)

    # --- threads

    def _grow(self) -> None:
        """Start a thread where none waits. If the system refuses, those that there are serve on."""
        with self._counts:
            if self._waiting or self._threads >= self._options.threads or self._stopping:
                return
            self._threads += 1
            self._waiting += 1
        started = False
        try:
            started = self._started(self._work)
        finally:
            if not started:
                with self._counts:
                    self._threads -= 1
                    self._waiting -= 1

    def _started(self, work: Callable[[], None]) -> bool:
        """Start a thread; say whether that was possible. A pids cgroup (TasksMax=) or memory may be full."""
        try:
            _thread.start_new_thread(work, ())
        except (RuntimeError, MemoryError) as error:
            if not self._is_short:
                self._log.error("cannot start a thread", threads=self._threads, why=error)
            self._is_short = True
            return False
        self._is_short = False
        return True

    def _work(self) -> None:
        """Serve one request after the other."""
        try:
            while not self._stopping:
                self._turn()
        finally:
            with self._counts:
                self._threads -= 1
                self._waiting -= 1

    def _turn(self) -> None:
        """Wait for an event; see to the connection that has it."""
        try:
            event = self._connections.wait()
            if self._is_stopping():
                return  # a client that is still in the queue does the work itself
            with self._counts:
                self._waiting -= 1
            try:
                self._guarded(self._grow)
                self._see_to(event)
            finally:
                with self._counts:
                    self._waiting += 1
        except BaseException as error:
            self._unexpected(error)
            time.sleep(_PAUSE)

    def _see_to(self, event: int) -> None:
        begin = time.monotonic_ns()
        try:
            found = self._connections.take(event)
        except (protocol.BrokenRequestError, OSError) as error:
            self._log.warning("a connection without a request", why=error)
            return
        if found:
            client, asked = found
            with client:
                self._serve(client, asked, begin)

    def _is_stopping(self) -> bool:
        return self._stopping

    def _is_alone(self) -> bool:
        """Say whether ours is the only request. Where others are at work, no CPU is quiet (``cpu``)."""
        return self._threads - self._waiting == 1

    def _waits_for_a_move(self, command: str | None) -> bool:
        """Say whether a device will be moved before the reply."""
        return command == "ADD" or (command == "DEL" and not self._options.defer_release)

    # --- requests

    def _serve(self, client: protocol.Incoming, asked: protocol.Asked, begin: int) -> None:
        if not (self._is_alone() and self._waits_for_a_move(asked.environ.get("CNI_COMMAND"))):
            self._carry_out(client, asked, begin)
            return
        try:
            cpu.stay(asked.cpu)
            self._carry_out(client, asked, begin)
        finally:
            cpu.roam()

    def _carry_out(self, client: protocol.Incoming, asked: protocol.Asked, begin: int) -> None:
        """Answer, and only then do what comes after the reply."""
        theirs = client.open_log(asked.stderr_fd)
        streams = [theirs, _STDERR] if theirs >= 0 else [_STDERR]
        try:
            status, output, done = self._answer(asked, streams, begin)
        finally:
            # before the reply: a runtime waits for the end of its plugin's stderr, too
            streams[:] = [_STDERR]
            client.let_go(theirs, asked.stderr_fd)
        delivered = False
        try:
            delivered = self._delivered(client, status, output)
        finally:
            self._follow_up(done.let_go)
            if done.undelivered and not delivered:
                self._follow_up(done.undelivered)
            else:
                client.connection.close()
                self._follow_up(done.afterwards)

    def _delivered(self, client: protocol.Incoming, status: int, output: bytes) -> bool:
        """Send the reply, and say whether it was taken."""
        try:
            protocol.answer(client.connection, status, output)
        except OSError as error:
            self._log.warning("nobody took the reply", why=error)
            return False
        os.sched_yield()  # to the client, which may share our CPU
        return True

    def _follow_up(self, work: Callable[[], object] | None) -> None:
        """Do what comes after a reply, if there is anything; a fault is logged."""
        try:
            if work:
                work()
        except (SriovError, OSError) as error:
            self._log.warning("what follows a reply failed", why=error)
        except BaseException as error:
            self._unexpected(error)

    def _answer(self, asked: protocol.Asked, streams: list[int], begin: int) -> tuple[int, bytes, Reply]:
        """Carry the request out; return exit status, output, and the reply with what comes after it."""
        steps = _steps(asked.environ, begin)
        context = Context(
            environ=asked.environ,
            stderr=streams,
            plugins_stderr=asked.stderr_fd if asked.stderr_fd >= 0 else _STDERR,
            netns_fd=asked.netns_fd,
            host_fd=self._home,
            token=asked.token,
            threads=True,
            defer_release=self._options.defer_release,
            steps=steps,
        )
        try:
            wanted = request.read(asked.environ, asked.stdin)
            if steps:
                steps.verb = wanted.command
            done = run.run(wanted, self._roots, context)
        except Exception as error:
            if response.is_internal(error):
                self._unexpected(error)
            return 1, response.error(error, response.spoken_version(asked.stdin)), Reply()
        finally:
            if steps:
                self._guarded(steps.write)
        return 0, done.output, done

    # --- in between

    def _repair(self) -> None:
        """Finish what was cut short, whoever did it."""
        try:
            found = recovery.repair(self._roots, self._log)
        except (SriovError, OSError) as error:
            self._log.error("what was cut short could not be finished", why=error)
            return
        if found:
            self._log.info("finished what was cut short", number=found)

    def _upkeep(self) -> bool:
        """Start an upkeep in a thread, since it may wait for a service; return False where none starts."""
        if not self._keeping.acquire(blocking=False):
            return True  # the one before it still waits
        started = False
        try:
            started = self._started(self._keep)
        finally:
            if not started:
                self._keeping.release()
        return started

    def _keep(self) -> None:
        try:
            for work in (self._repair, self._pay, self._collect):
                self._guarded(work)
        finally:
            self._keeping.release()

    def _pay(self) -> None:
        """Give back the addresses that are owed to a service that did not answer."""
        if not os.path.isdir(f"{self._roots.state}/pending"):
            return
        from sriov_fast.ipam.txipam import outbox  # late: most nodes never owe any

        try:
            outbox.flush(self._roots.state, self._log, time.monotonic() + self._options.upkeep_every / 2)
        except (SriovError, OSError) as error:
            self._log.error("addresses that are owed could not be given back", why=error)

    def _collect(self) -> None:
        if self._waiting == self._threads:
            gc.collect()


def _is_told_to_stop() -> bool:
    """Wait for a signal, for a tick at most; say whether one came.

    Where the call is interrupted (a debugger attaches, a cgroup thaws) and the time is over by then, CPython
    returns a struct with values that nobody set.
    """
    found = signal.sigtimedwait(_SIGNALS, _TICK)
    return found is not None and found.si_signo in _SIGNALS


def _steps(environ: dict[str, str], begin: int) -> Steps | None:
    path = environ.get("SRIOV_FAST_TRACE")
    if not path:
        return None
    from sriov_fast.common.trace import Steps

    return Steps(path, "resident", begin)


def _warm_up(state: str) -> None:
    """Import the modules that requests import late, and exempt all that is loaded from garbage collection.

    The modules of txipam are imported if this node has used it: HTTPS takes long to import.
    """
    import sriov_fast.common.helpers
    import sriov_fast.ipam.exec
    import sriov_fast.ipam.host_local.plugin
    import sriov_fast.ipam.static
    import sriov_fast.plugin.add
    import sriov_fast.plugin.check
    import sriov_fast.plugin.gc
    import sriov_fast.plugin.status
    import sriov_fast.vf.announce  # noqa: F401

    if os.path.isdir(f"{state}/hosts"):
        from sriov_fast.ipam.txipam import plugin  # noqa: F401

    try:
        import orjson  # noqa: F401 (codec takes it where it is loaded)
    except ImportError:
        pass
    gc.collect()
    gc.freeze()
