"""A proxy between a client and a service that terminates TLS on both sides and injects faults."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from harness.waiting import wait_for

PATIENCE = 30.0  # seconds; a longer wait is a failure of the test


class Fault(NamedTuple):
    """A fault of one exchange.

    "delay": the reply is ``at`` seconds late. "cut": only the fraction ``at`` (0 to 1) of the reply arrives.
    "lose": the request is carried out, and no reply arrives. "late": the request reaches the service ``at``
    seconds after the client's connection is closed. "half": only the fraction ``at`` of the request arrives,
    then both connections are closed. "twice": the request arrives twice. "again": the reply arrives twice.
    "drop": neither request nor reply arrives.
    """

    what: str
    at: float = 0.0


class Proxy:
    """A proxy, until ``close``; each request takes the next one of ``faults``, if any, else of ``choose``."""

    def __init__(self, upstream: int, cert: Path, key: Path, ca: Path) -> None:
        self.upstream = upstream
        self.faults: deque[Fault] = deque()
        self.choose: Callable[[], Fault | None] = lambda: None
        self.busy = 0
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.load_cert_chain(cert, key)
        self._client = ssl.create_default_context(cafile=str(ca))
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def settle(self) -> None:
        """Wait for the end of every exchange."""
        wait_for(lambda: not self.busy, "something is still on its way")

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                peer = self._listener.accept()[0]
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        peer.settimeout(PATIENCE)
        with suppress(OSError), peer, self._server.wrap_socket(peer, server_side=True) as client:
            while request := read_message(client):
                with self._lock:
                    self.busy += 1
                    fault = (self.faults.popleft() if self.faults else self.choose()) or Fault("")
                try:
                    if not self._exchange(client, request, fault):
                        return
                finally:
                    with self._lock:
                        self.busy -= 1

    def _exchange(self, client: ssl.SSLSocket, request: bytes, fault: Fault) -> bool:
        """Relay one request and its reply; return whether the connection stays open."""
        if fault.what == "drop":
            return False
        if fault.what == "half":
            self._ask(request[: int(len(request) * fault.at)])
            return False
        if fault.what == "late":
            client.shutdown(socket.SHUT_RDWR)
            time.sleep(fault.at)
        reply = self._ask(request)
        if fault.what == "twice":
            reply = self._ask(request)
        if fault.what == "delay":
            time.sleep(fault.at)
        if fault.what in ("lose", "late"):
            return False
        sent = {"cut": reply[: int(len(reply) * fault.at)], "again": reply * 2}.get(fault.what, reply)
        client.sendall(sent)
        return fault.what != "cut"

    def _ask(self, request: bytes) -> bytes:
        plain = socket.create_connection(("127.0.0.1", self.upstream), timeout=PATIENCE)
        with plain, self._client.wrap_socket(plain, server_hostname="127.0.0.1") as service:
            service.sendall(request)
            if is_whole(request):
                return read_message(service)
        return b""


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def is_whole(message: bytes) -> bool:
    head, blank, body = message.partition(b"\r\n\r\n")
    return bool(blank) and len(body) >= _length(head)


def read_message(source: ssl.SSLSocket) -> bytes:
    """Read one request or reply, with a body by Content-Length; return b"" at the end of the connection."""
    message = b""
    while not is_whole(message):
        chunk = source.recv(65536)
        if not chunk:
            return b""
        message += chunk
    return message
