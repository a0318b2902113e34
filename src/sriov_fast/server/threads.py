"""The server: threads that wait for connections and serve their requests.

The thread that the kernel wakes serves the request: no request is passed between threads. All state that must
survive a crash is in the journal and in file locks, as in a process of one request, so both may run
concurrently. A connection that has to wait for the interpreter may be passed on to a worker (``workers``),
which is a server as well.
"""

from __future__ import annotations

import _thread
import gc
import os
import signal
import sys
import time
import traceback
from contextlib import nullcontext, suppress

from sriov_fast.cni import request, response
from sriov_fast.common import cpu, descriptors, log
from sriov_fast.common.errors import SriovError, is_there
from sriov_fast.common.interpreter import INTERPRETER
from sriov_fast.common.record import Record
from sriov_fast.plugin import recovery, run
from sriov_fast.plugin.context import Context, Reply
from sriov_fast.server import protocol
from sriov_fast.server.connections import Connections
from sriov_fast.vf import netns

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from sriov_fast.common.paths import Roots
    from sriov_fast.common.trace import Steps
    from sriov_fast.server.counts import Counts
    from sriov_fast.server.workers import Channel, Worker

_STDERR = 2
_SIGNALS = {signal.SIGTERM, signal.SIGINT}
# A request makes some hundred objects and hardly ever a cycle. A garbage collection takes as long as a step
# of a request, so it runs rarely, and in the upkeep while no request is served.
_GC_THRESHOLDS = (20_000, 10, 10)
# Seconds until a thread that returns from the kernel gets the interpreter's lock; the default is 5 ms.
_SWITCH_INTERVAL = 0.0002
_TICK = 1.0  # seconds between two checks of threads and connections by the main thread
_START = 20.0  # seconds that a start waits for the first upkeep, which may wait for an IPAM plugin
_LAST = 5.0  # seconds that a stop waits for an upkeep; the next start finishes the upkeep
_PAUSE = 0.05  # seconds that a thread sleeps after an unexpected error


class Options(Record):
    """Options of the operator: a process's largest number of requests, and whether a DEL is deferred."""

    threads: int = 64
    defer_release: bool = False
    timeout: float = 0.0  # seconds for a request without a limit in its configuration; 0 is no limit
    upkeep_every: float = 30.0  # seconds


class Server:
    """Serves listening sockets until SIGTERM or SIGINT; a worker serves its channel."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        roots: Roots,
        options: Options,
        *,
        workers: Sequence[Worker] = (),
        channel: Channel | None = None,
    ) -> None:
        self._connections = Connections(channel) if channel else Connections(*listeners)
        self._workers = list(workers)
        self._channel = channel
        self._roots = roots
        self._options = options
        self._log = log.Logger()
        self._count_lock = _thread.allocate_lock()
        self._upkeep_lock = _thread.allocate_lock()
        self._host_netns = netns.own()
        self._threads = 0
        self._waiting = 0
        self._is_out_of_threads = False
        self._stopping = False
        self._due = 0.0  # the time of the next upkeep
        self.counts: Counts | None = None

    def start(self) -> None:
        """Finish interrupted requests, then serve in threads; call it in the main thread.

        SIGTERM and SIGINT are blocked from here on: ``wait`` takes them.
        """
        sys.setswitchinterval(_SWITCH_INTERVAL)
        gc.set_threshold(*_GC_THRESHOLDS)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        started = bool(self._channel) or self._first_upkeep()
        self._due = time.monotonic() + (self._options.upkeep_every if started else 0.0)
        self._grow()

    def _first_upkeep(self) -> bool:
        """Finish interrupted requests, for a bounded time; return whether the upkeep has started."""
        started = self._upkeep()
        if self._upkeep_lock.acquire(timeout=_START):
            self._upkeep_lock.release()
        return started

    def wait(self) -> None:
        """Do the periodic work until SIGTERM or SIGINT comes; then accept no more connections.

        No error of the periodic work ends the server.
        """
        while not _is_stop_signalled():
            self._guarded(self._tick)
            if time.monotonic() >= self._due and self._upkeep():
                self._due = time.monotonic() + self._options.upkeep_every
        self._stopping = True
        self._connections.stop()
        for worker in tuple(self._workers):  # a thread may drop one that has ended
            worker.stop()

    def finish(self) -> None:
        """Wait for the running requests, the workers and the upkeep, and close everything."""
        while self._threads:
            time.sleep(0.005)
        for worker in self._workers:
            worker.join()
        self._upkeep_lock.acquire(timeout=_LAST)
        self._connections.close()
        descriptors.close(self._host_netns)

    def _tick(self) -> None:
        self._grow()
        self._drop_ended_workers()
        self._connections.listen()
        if number := self._connections.expire():
            self._log.warning("closed connections that sent no whole request in time", number=number)

    def _guarded(self, work: Callable[[], object]) -> None:
        """Call a function and log its error: it must not end the thread."""
        try:
            work()
        except BaseException as error:
            self._unexpected(error)

    def _unexpected(self, error: BaseException) -> None:
        with suppress(BaseException):  # there may be no memory for the log line
            trace = "".join(traceback.format_exception(error))
            self._log.error("unexpected error", why=repr(error), trace=trace)

    # --- threads

    def _grow(self) -> None:
        """Start a thread if none waits. If the system refuses one, the others go on."""
        with self._count_lock:
            if self._waiting or self._threads >= self._options.threads or self._stopping:
                return
            self._threads += 1
            self._waiting += 1
        started = False
        try:
            started = self._started(self._work)
        finally:
            if not started:
                with self._count_lock:
                    self._threads -= 1
                    self._waiting -= 1

    def _started(self, work: Callable[[], None]) -> bool:
        """Start a thread; return whether it started. A pids cgroup (TasksMax=) or memory may be full."""
        try:
            _thread.start_new_thread(work, ())
        except (RuntimeError, MemoryError) as error:
            if not self._is_out_of_threads:
                self._log.error("cannot start a thread", threads=self._threads, why=error)
            self._is_out_of_threads = True
            return False
        self._is_out_of_threads = False
        return True

    def _work(self) -> None:
        """Serve requests until the server stops."""
        try:
            while not self._stopping:
                self._serve_one()
        finally:
            with self._count_lock:
                self._threads -= 1
                self._waiting -= 1

    def _serve_one(self) -> None:
        """Wait for an event and serve its connection."""
        try:
            event = self._connections.wait()
            if self._stopping:
                return  # the clients in the backlog run the plugin in-process
            with self._count_lock:
                self._waiting -= 1
            try:
                self._guarded(self._grow)
                worker = self._less_busy_worker() if INTERPRETER.take() else None
                if worker and self._connections.is_new(event):
                    self._pass_on(event, worker)
                else:
                    self._serve_event(event)
            finally:
                INTERPRETER.release()
                with self._count_lock:
                    self._waiting += 1
        except BaseException as error:
            self._unexpected(error)
            time.sleep(_PAUSE)

    def _less_busy_worker(self) -> Worker | None:
        """Return the worker with the fewest requests, if it has fewer than this process."""
        worker = min(self._workers, key=lambda worker: worker.load(), default=None)
        return worker if worker and worker.load() < self.running() else None

    def _pass_on(self, event: int, worker: Worker) -> None:
        """Pass a connection on. If that fails, its client runs the plugin in-process."""
        try:
            self._connections.pass_on(event, worker.take)
        except OSError as error:
            self._log.warning("a connection could not be passed on", worker=worker.pid, why=error)
            self._drop_ended_workers()

    def _drop_ended_workers(self) -> None:
        """Go on without the workers that have ended, such as a killed one."""
        with self._count_lock:
            ended = [worker for worker in self._workers if worker.has_ended()]
            for worker in ended:
                self._workers.remove(worker)
        for worker in ended:
            self._log.error("a worker has ended; the server goes on without it", worker=worker.pid)

    def _serve_event(self, event: int) -> None:
        begin = time.monotonic_ns()
        try:
            received = self._connections.take(event)
        except (protocol.BrokenRequestError, OSError) as error:
            self._log.warning("a connection without a request", why=error)
            return
        if received:
            client, wire_request = received
            with client, self._channel or nullcontext():
                self._serve(client, wire_request, begin)

    def running(self) -> int:
        """Return the number of requests that are being served."""
        return self._threads - self._waiting

    def _is_alone(self) -> bool:
        """Return whether one request is served. With more than one, pinning does not pay (``cpu``)."""
        return self.running() == 1

    def _waits_for_a_move(self, command: str | None) -> bool:
        """Return whether the request moves a device before the reply."""
        return command == "ADD" or (command == "DEL" and not self._options.defer_release)

    # --- requests

    def _serve(self, client: protocol.Incoming, wire_request: protocol.WireRequest, begin: int) -> None:
        if not (self._is_alone() and self._waits_for_a_move(wire_request.environ.get("CNI_COMMAND"))):
            self._handle(client, wire_request, begin)
            return
        try:
            cpu.stay(wire_request.cpu)
            self._handle(client, wire_request, begin)
        finally:
            cpu.roam()

    def _handle(self, client: protocol.Incoming, wire_request: protocol.WireRequest, begin: int) -> None:
        """Run the request, send the reply, then do the work that follows it."""
        log_fd = client.open_log(wire_request.stderr_fd)
        streams = [log_fd, _STDERR] if log_fd >= 0 else [_STDERR]
        steps = _steps(wire_request.environ, begin, measured=self.counts is not None)
        try:
            status, output, reply = self._answer(wire_request, streams, steps)
        finally:
            # before the reply: a runtime also waits for the end of its plugin's stderr
            streams[:] = [_STDERR]
            client.close_files(log_fd, wire_request.stderr_fd)
        delivered = False
        try:
            delivered = self._delivered(client, status, output)
        finally:
            self._follow_up(reply.let_go)
            if self.counts and steps:
                verb, served = wire_request.environ.get("CNI_COMMAND", ""), self.counts.served
                self._guarded(lambda: served(verb, status, output, steps))
            if reply.undelivered and not delivered:
                self._follow_up(reply.undelivered)
            else:
                client.connection.close()
                self._follow_up(reply.afterwards)

    def _delivered(self, client: protocol.Incoming, status: int, output: bytes) -> bool:
        """Send the reply; return whether the client received it."""
        try:
            protocol.answer(client.connection, status, output)
        except OSError as error:
            self._log.warning("the client did not read the reply", why=error)
            return False
        os.sched_yield()  # to the client, which may run on the same CPU
        return True

    def _follow_up(self, work: Callable[[], object] | None) -> None:
        """Call a function after the reply, if there is one; log its error."""
        try:
            if work:
                work()
        except (SriovError, OSError) as error:
            self._log.warning("the work after a reply failed", why=error)
        except BaseException as error:
            self._unexpected(error)

    def _answer(
        self, wire_request: protocol.WireRequest, streams: list[int], steps: Steps | None
    ) -> tuple[int, bytes, Reply]:
        """Run the request; return exit status, output, and the reply with the work that follows."""
        context = Context(
            environ=wire_request.environ,
            stderr=streams,
            plugins_stderr=wire_request.stderr_fd if wire_request.stderr_fd >= 0 else _STDERR,
            netns_fd=wire_request.netns_fd,
            host_fd=self._host_netns,
            token=wire_request.token,
            threads=True,
            defer_release=self._options.defer_release,
            timeout=self._options.timeout,
            steps=steps,
        )
        try:
            parsed = request.read(wire_request.environ, wire_request.stdin)
            if steps:
                steps.verb = parsed.command
            reply = run.run(parsed, self._roots, context)
        except Exception as error:
            if response.is_internal(error):
                self._unexpected(error)
            return 1, response.error(error, response.spoken_version(wire_request.stdin)), Reply()
        finally:
            if steps:
                self._guarded(steps.write)
        return 0, reply.output, reply

    # --- upkeep

    def _repair(self) -> None:
        """Finish the interrupted requests of this server and of other processes."""
        try:
            finished = recovery.repair(self._roots, self._log)
        except (SriovError, OSError) as error:
            self._log.error("interrupted requests could not be finished", why=error)
            return
        if finished:
            self._log.info("finished interrupted requests", number=finished)

    def _upkeep(self) -> bool:
        """Start an upkeep in a thread, since it may wait for a service; return False if none starts."""
        if not self._upkeep_lock.acquire(blocking=False):
            return True  # the one before it still runs
        started = False
        try:
            started = self._started(self._keep)
        finally:
            if not started:
                self._upkeep_lock.release()
        return started

    def _keep(self) -> None:
        try:
            if not self._channel:
                self._guarded(self._repair)
                self._guarded(self._flush_outbox)
            self._guarded(self._collect_garbage)
        finally:
            self._upkeep_lock.release()

    def _flush_outbox(self) -> None:
        """Repeat the releases of addresses that an address service did not answer."""
        try:
            if not is_there(f"{self._roots.state}/pending"):
                return
            from sriov_fast.ipam.txipam import outbox  # late: most nodes never need it

            outbox.flush(self._roots.state, self._log, time.monotonic() + self._options.upkeep_every / 2)
        except (SriovError, OSError) as error:
            self._log.error("pending releases of addresses failed", why=error)

    def _collect_garbage(self) -> None:
        if self._waiting == self._threads:
            gc.collect()


def _is_stop_signalled() -> bool:
    """Wait for a signal, for a tick at most; return whether one came.

    If the call is interrupted (a debugger attaches, a cgroup thaws) and the time is over by then, CPython
    returns a struct with undefined values.
    """
    info = signal.sigtimedwait(_SIGNALS, _TICK)
    return info is not None and info.si_signo in _SIGNALS


def _steps(environ: dict[str, str], begin: int, *, measured: bool) -> Steps | None:
    path = environ.get("SRIOV_FAST_TRACE", "")
    if not (path or measured):
        return None
    from sriov_fast.common.trace import Steps

    return Steps(path, "resident", begin)


def warm_up(state: str) -> None:
    """Import the modules that requests import late, and exempt all loaded objects from garbage collection.

    The modules of txipam are imported if this node has used it: importing HTTPS takes long.
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
        import orjson  # noqa: F401 (common.json uses it if it is loaded)
    except ImportError:
        pass
    gc.collect()
    gc.freeze()
