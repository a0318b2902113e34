"""The HTTP endpoint of the metrics: ``GET /metrics`` on a unix socket or a TCP address."""

from __future__ import annotations

import _thread
import os
import socket
import socketserver
import stat
from http.server import BaseHTTPRequestHandler

from sriov_fast.common.errors import ConfigError, FileError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sriov_fast.server.metrics import Metrics

_UNIX = "unix:"
_PATIENCE = 5.0  # seconds for a client to send its request and to take the reply


class _Handler(BaseHTTPRequestHandler):
    """Serves one scrape."""

    timeout = _PATIENCE
    metrics: Metrics

    def do_GET(self) -> None:
        """Answer with the metrics."""
        from sriov_fast.server.metrics import CONTENT_TYPE

        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "the metrics are at /metrics")
            return
        body = self.metrics.render()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's name)
        """Log nothing: a scrape every few seconds is no event."""


class _Quiet(socketserver.TCPServer):
    """A server that drops a client which goes away."""

    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the error: the scraper reports it."""


class Endpoint:
    """A listening socket for scrapes. One thread serves them, one after the other."""

    def __init__(self, where: str, metrics: Metrics) -> None:
        handler = type("Handler", (_Handler,), {"metrics": metrics})
        self._path = where.removeprefix(_UNIX) if where.startswith(_UNIX) else ""
        try:
            self._server = _on_unix(self._path, handler) if self._path else _on_tcp(where, handler)
        except OSError as error:
            raise FileError(
                f"cannot listen on {where}: {error.strerror}", "see --metrics", errno=error.errno or 0
            ) from error

    @property
    def address(self) -> Any:
        """The address that it listens on, as the system knows it."""
        return self._server.server_address

    def start(self) -> None:
        """Serve from now on; called when signals are blocked, which the thread inherits."""
        _thread.start_new_thread(self._serve, ())

    def _serve(self) -> None:
        try:
            while self._server.fileno() >= 0:
                self._server.handle_request()
        except ValueError:
            if self._server.fileno() >= 0:  # otherwise it was closed since the comparison
                raise

    def close(self) -> None:
        """Stop listening, and end the thread."""
        try:
            self._server.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        except OSError:
            pass
        self._server.server_close()
        if self._path:
            try:
                os.unlink(self._path)
            except OSError:
                pass


def _on_unix(path: str, handler: type[_Handler]) -> socketserver.TCPServer:
    """Listen on a unix socket for root alone; replace the socket of a server that is gone."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    before = os.umask(0o177)
    try:
        return _server(socket.AF_UNIX, path, handler)
    finally:
        os.umask(before)


def _on_tcp(where: str, handler: type[_Handler]) -> socketserver.TCPServer:
    host, colon, port = where.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ConfigError(
            f"--metrics {where!r} is no address", "give unix:/PATH, ADDRESS:PORT or [ADDRESS]:PORT"
        )
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return _server(family, (host, int(port)), handler)


def _server(family: int, address: Any, handler: type[_Handler]) -> socketserver.TCPServer:
    kind = type("Server", (_Quiet,), {"address_family": family})
    server: socketserver.TCPServer = kind(address, handler)
    return server
