"""The server: threads that wait for connections, and carry out what these ask.

Whom the kernel wakes serves the request, so that none is handed from thread to thread. What must outlive a
crash is in the journal and in file locks, as for processes: the two may work side by side.
"""

from __future__ import annotations

import _socket
import _thread
import gc
import os
import signal
import socket
import struct
import sys
import time
import traceback
from contextlib import ExitStack

from sriov_fast import cpu, log, plugin, upkeep
from sriov_fast.beside import beside
from sriov_fast.call import Context, Reply
from sriov_fast.cni import reply, request
from sriov_fast.errors import SriovError
from sriov_fast.resident import frames
from sriov_fast.sriov import netns
from sriov_fast.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sriov_fast.sriov.roots import Roots
    from sriov_fast.steps import Steps

_STDERR = 2
_SIGNALS = {signal.SIGTERM, signal.SIGINT}
# A request makes some hundred objects that last to its end, and hardly ever a cycle: collections, which take
# as long as a step of it, come seldom, and when nobody waits (``_upkeep``).
_COLLECT = (20_000, 10, 10)
# For so long (seconds) a thread that returns from the kernel waits for the interpreter; the default is 5 ms.
_SWITCH = 0.0002
_LOOK_UP = struct.pack("ll", 5, 0)  # struct timeval: how long a thread waits before it looks around


class Options(Value):
    """What the operator chooses: at most ``threads`` requests at a time, and when a DEL answers."""

    threads: int = 64
    defer_release: bool = False
    upkeep_every: float = 30.0  # seconds


class Server:
    """Serves a listening socket until a signal ends it."""

    def __init__(self, listener: socket.socket, roots: Roots, options: Options) -> None:
        listener.setblocking(True)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _LOOK_UP)
        self._listener = listener
        self._roots = roots
        self._options = options
        self._log = log.Logger()
        self._counts = _thread.allocate_lock()
        self._paying = _thread.allocate_lock()
        self._home = netns.own()
        self._threads = 0
        self._waiting = 0
        self._stopping = False

    def run(self, ready: Callable[[], None], stopping: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT; then finish what runs. Must be called in the main thread."""
        sys.setswitchinterval(_SWITCH)
        gc.set_threshold(*_COLLECT)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._repair()
        _warm_up()
        self._add_thread()
        ready()
        self._log.info("serving", threads=self._options.threads, defer_release=self._options.defer_release)
        while signal.sigtimedwait(_SIGNALS, self._options.upkeep_every) is None:
            self._upkeep()
        self._log.info("stopping")
        self._stopping = True
        self._wake_all()
        stopping()
        while self._threads:
            time.sleep(0.005)
        self._listener.close()
        os.close(self._home)

    # --- threads

    def _add_thread(self) -> None:
        self._threads += 1
        self._waiting += 1
        _thread.start_new_thread(self._work, ())

    def _work(self) -> None:
        """Wait for a connection; serve it, and begin again."""
        try:
            while (connection := self._next()) is not None:
                try:
                    self._serve(connection)
                except BaseException:
                    traceback.print_exc()
                finally:
                    connection.close()
                with self._counts:
                    self._waiting += 1
        finally:
            with self._counts:
                self._threads -= 1

    def _next(self) -> _socket.socket | None:
        """Return the next connection, None when the server stops.

        The kernel wakes one of the threads that wait here, so that none is woken for nothing.
        """
        while not self._is_stopping():
            try:
                connection = self._accepted()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:  # no descriptors left: the client waits, as for a thread
                self._log.error("cannot accept", why=error)
                time.sleep(0.05)
                continue
            with self._counts:
                self._waiting -= 1
                if not self._waiting and self._threads < self._options.threads and not self._stopping:
                    self._add_thread()
            if self._is_stopping():
                connection.close()  # its client does the work itself
                return None
            return connection
        return None

    def _accepted(self) -> _socket.socket:
        # not accept(), which makes enums and a socket of socket.py: a tenth of what VERSION takes
        fd = self._listener._accept()[0]  # type: ignore[attr-defined]
        return _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)

    def _is_stopping(self) -> bool:
        return self._stopping

    def _is_alone(self) -> bool:
        """Say whether ours is the only request. Where others are at work, no CPU is quiet (``cpu``)."""
        return self._threads - self._waiting == 1

    def _waits_for_a_move(self, command: str | None) -> bool:
        """Say whether a device will be moved before the reply."""
        return command == "ADD" or (command == "DEL" and not self._options.defer_release)

    def _wake_all(self) -> None:
        """Let every thread that waits for a connection have one, and see that the server stops."""
        for _ in range(self._threads):
            with socket.socket(socket.AF_UNIX) as knock:
                knock.setblocking(False)
                try:
                    knock.connect(self._listener.getsockname())
                except OSError:
                    return  # the socket's file is gone: they look by themselves, now and then

    # --- requests

    def _serve(self, connection: _socket.socket) -> None:
        begin = time.monotonic_ns()
        try:
            if frames.peer_uid(connection) not in (0, os.geteuid()):
                raise frames.BrokenRequestError("the peer is not root")
            asked = frames.receive(connection)
        except (frames.BrokenRequestError, OSError) as error:
            self._log.warning("a connection without a request", why=error)
            return
        with ExitStack() as closing:
            closing.callback(asked.close)
            if self._is_alone() and self._waits_for_a_move(asked.environ.get("CNI_COMMAND")):
                closing.callback(cpu.roam)
                cpu.stay(asked.cpu)
            self._carry_out(connection, asked, begin)

    def _carry_out(self, connection: _socket.socket, asked: frames.Asked, begin: int) -> None:
        """Answer, and only then do what nobody waits for."""
        streams = [asked.stderr_fd, _STDERR] if asked.stderr_fd >= 0 else [_STDERR]
        try:
            status, output, done = self._answer(asked, streams, begin)
        finally:
            if asked.stderr_fd >= 0:
                # first: a runtime waits for the end of its plugin's stderr, too
                streams.remove(asked.stderr_fd)
                os.close(asked.stderr_fd)
        delivered = self._delivered(connection, status, output)
        done.let_go()
        if done.undelivered and not delivered:
            self._follow_up(done.undelivered)
            return
        connection.close()
        if done.afterwards:
            self._follow_up(done.afterwards)

    def _delivered(self, connection: _socket.socket, status: int, output: bytes) -> bool:
        """Send the reply, and say whether it was taken."""
        try:
            frames.answer(connection, status, output)
        except OSError as error:
            self._log.warning("nobody took the reply", why=error)
            return False
        os.sched_yield()  # to the client, which may share our CPU
        return True

    def _follow_up(self, work: Callable[[], object]) -> None:
        """Do what comes after a reply; nobody else would hear of its fault."""
        try:
            work()
        except (SriovError, OSError) as error:
            self._log.warning("what follows a reply failed", why=error)

    def _answer(self, asked: frames.Asked, streams: list[int], begin: int) -> tuple[int, bytes, Reply]:
        """Carry the request out; return exit status, output, and the reply with what comes after it."""
        steps = _steps(asked.environ, begin)
        context = Context(
            environ=asked.environ,
            stderr=streams,
            netns_fd=asked.netns_fd,
            home_fd=self._home,
            token=asked.token,
            beside=beside,
            defer_release=self._options.defer_release,
            steps=steps,
        )
        try:
            wanted = request.read(asked.environ, asked.stdin)
            if steps:
                steps.verb = wanted.command
            done = plugin.run(wanted, self._roots, context)
        except Exception as error:
            if not isinstance(error, (SriovError, OSError)):
                traceback.print_exception(error)
            return 1, reply.error(error, reply.spoken_version(asked.stdin)), Reply()
        finally:
            if steps:
                steps.write()
        return 0, done.output, done

    # --- in between

    def _repair(self) -> None:
        """Finish what was cut short, whoever did it."""
        try:
            found = upkeep.repair(self._roots, self._log)
        except (SriovError, OSError) as error:
            self._log.error("what was cut short could not be finished", why=error)
            return
        if found:
            self._log.info("finished what was cut short", number=found)

    def _upkeep(self) -> None:
        self._repair()
        if os.path.isdir(f"{self._roots.state}/pending") and self._paying.acquire(blocking=False):
            _thread.start_new_thread(self._pay, ())  # it may wait for a service; nobody waits for it
        if self._waiting == self._threads:
            gc.collect()

    def _pay(self) -> None:
        """Give back the addresses that are owed to a service that did not answer."""
        from sriov_fast.ipam import pending  # late: most nodes never owe any

        try:
            pending.retry(self._roots.state, self._log, time.monotonic() + self._options.upkeep_every / 2)
        except (SriovError, OSError) as error:
            self._log.error("addresses that are owed could not be given back", why=error)
        finally:
            self._paying.release()


def _steps(environ: dict[str, str], begin: int) -> Steps | None:
    path = environ.get("SRIOV_FAST_TRACE")
    if not path:
        return None
    from sriov_fast.steps import Steps

    return Steps(path, "resident", begin)


def _warm_up() -> None:
    """Import what requests import late, and take what is here for good out of the collector's sight."""
    import sriov_fast.ipam.delegate
    import sriov_fast.ipam.host_local
    import sriov_fast.ipam.search
    import sriov_fast.ipam.static
    import sriov_fast.sriov.announce  # noqa: F401

    try:
        import orjson  # noqa: F401 (codec takes it where it is loaded)
    except ImportError:
        pass
    gc.collect()
    gc.freeze()
