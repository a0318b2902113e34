"""The process of ``sriov-fast ipam serve``: sockets, TLS, signals, and the configuration file."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from cryptography import x509

from sriov_fast import __version__
from sriov_fast.common import sd_notify
from sriov_fast.ipamd import accept, logs, settings
from sriov_fast.ipamd.accept import Bounds
from sriov_fast.ipamd.api import create_app
from sriov_fast.ipamd.auth import Authenticator, Tokens
from sriov_fast.ipamd.config import Config
from sriov_fast.ipamd.errors import OtherRevision, ServiceError
from sriov_fast.ipamd.metrics import Metrics
from sriov_fast.ipamd.middleware import Admit, App, Observe
from sriov_fast.ipamd.protocol import Connection
from sriov_fast.ipamd.service import Service, open_service
from sriov_fast.ipamd.settings import Listen, ServerSettings, Settings, StartError, TlsFiles, parse_config

_BACKLOG = 1024
log = logging.getLogger(logs.LOGGER)


def run(path: Path) -> None:
    """Serve until SIGTERM; raise StartError if the service cannot start."""
    found = settings.read(path)
    config = parse_config(found)
    logs.configure(found.server.log_level, found.server.log_format)
    # Imported objects are never freed: exclude them from garbage collection.
    gc.freeze()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(found, config))


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


# ---------------------------------------------------------------------------------------------- start


async def _serve(found: Settings, config: Config | None) -> None:
    options = found.server
    tls = Tls(options.tls) if options.tls else None
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(_bind(listen)) for listen in options.listen]
        tokens = _open_tokens(options)
        async with _opened(options.storage) as service:
            await apply(found, config, service)
            metrics = Metrics()
            app = create_app(service, metrics, found.path if options.managed == "file" else None)
            reload = Reload(found, service, tls, metrics)
            app.state.apply_file = reload.apply_file
            authenticator = Authenticator(options.auth, tokens, options.admins)
            layers = Observe(Admit(app, authenticator, options), metrics)
            tell_start = functools.partial(_tell_start, found, sockets, tls)
            await _UvicornServer(layers, options, reload, tls, tell_start).serve(sockets)
    log.info("stopped")


def _uvicorn(app: App, options: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(options.keep_alive),
        timeout_graceful_shutdown=int(options.stop_timeout),
    )


def _open_tokens(options: ServerSettings) -> Tokens | None:
    if "token" not in options.auth:
        return None
    try:
        return Tokens(options.tokens)
    except FileNotFoundError:
        raise StartError(
            f"{options.tokens}: no such file; make the first token: sriov-fast ipam token create --admin"
        ) from None
    except (OSError, ValueError) as error:
        raise StartError(f"tokens: {error}") from error


@contextlib.asynccontextmanager
async def _opened(url: str) -> AsyncIterator[Service]:
    try:
        service = await open_service(url)
    except ServiceError as error:
        raise StartError(f"storage: {error}") from error
    try:
        yield service
    finally:
        await service.close()


def _bind(listen: Listen) -> socket.socket:
    """Listen; IPv4 needs its own entry in ``listen``, since a socket of IPv6 accepts no IPv4."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        found = socket.create_server(listen, family=family, backlog=_BACKLOG)
    except OSError as error:
        raise StartError(f"listen: {listen}: {os.strerror(error.errno or 0)}") from error
    found.setblocking(False)
    return found


def _tell_start(found: Settings, sockets: list[socket.socket], tls: Tls | None) -> None:
    options = found.server
    where = [str(Listen(*each.getsockname()[:2])) for each in sockets]
    fields = {"listen": ",".join(where), "tls": tls is not None, "auth": ",".join(options.auth)}
    # The URL may contain a password.
    storage = options.storage.partition("://")[0]
    log.info("serving", extra=fields | {"storage": storage, "version": __version__, "pid": os.getpid()})
    if tls is None:
        log.warning("plain HTTP: whoever is on the network can read and change everything")
    if "open" in options.auth:
        log.warning("auth = open: every caller may act for every host")


# ------------------------------------------------------------------------- configuration from the file


async def apply(found: Settings, config: Config | None, service: Service) -> None:
    """Apply the file's configuration to the store.

    With ``managed = "file"`` it replaces the one in the store. Otherwise it only fills an empty store.
    """
    if config is None:
        return
    try:
        await _apply(found, config, service)
    except ServiceError as error:
        raise StartError(f"{found.path}: the configuration cannot be applied: {error}") from error


async def _apply(found: Settings, config: Config, service: Service) -> None:
    while True:
        held, revision = await service.config()
        if held == config:
            return
        if found.server.managed == "api" and held != Config():
            log.warning(
                "the store has a configuration, which differs from the file's and stays; "
                "to apply the file: sriov-fast ipam config apply",
                extra={"file": str(found.path), "revision": revision},
            )
            return
        try:
            revision = await service.configure(config, revision)
        except OtherRevision:  # another replica was first
            continue
        log.info("configuration applied", extra={"file": str(found.path), "revision": revision})
        return


class Reload:
    """The action of SIGHUP: reload certificates, and the configuration if the file manages it."""

    def __init__(self, found: Settings, service: Service, tls: Tls | None, metrics: Metrics) -> None:
        self._found = found
        self._service = service
        self._tls = tls
        self._metrics = metrics
        self._lock = asyncio.Lock()
        if tls:
            metrics.expiry.set(tls.ends)

    async def __call__(self) -> None:
        """Reload; after an error, which is logged, the previous files stay in use."""
        async with self._lock:
            _notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                if self._tls:
                    self._tls.load()
                    self._metrics.expiry.set(self._tls.ends)
                await self.apply_file()
            except (OSError, ValueError) as error:
                log.error("reload failed, all stays as it was", extra={"error": str(error)})
                self._metrics.reloads.labels("failed").inc()
            else:
                log.info("reloaded")
                self._metrics.reloads.labels("ok").inc()
            _notify("READY=1")

    async def apply_file(self) -> None:
        """Read the file again, and apply its configuration if the file manages it."""
        if self._found.server.managed == "file":
            found = settings.read(self._found.path)
            await apply(self._found, parse_config(found), self._service)


# --------------------------------------------------------------------------------------------------- TLS


class Tls:
    """The TLS context of the server; its files may be replaced at run time."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self.load()
        # The handshake starts with this context and continues with the last loaded one.
        self.context = self._make()
        self.context.sni_callback = self._switch

    def load(self) -> None:
        """Load the files; after an OSError or ValueError the previous ones stay in use."""
        made = self._make()
        certificate = x509.load_pem_x509_certificate(self._files.cert.read_bytes())
        self.ends = certificate.not_valid_after_utc.timestamp()
        self._loaded = made

    def _make(self) -> ssl.SSLContext:
        files = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Clients are short-lived processes and resume no session.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        try:
            context.load_cert_chain(files.cert, files.key)
        except (OSError, ValueError) as error:
            raise StartError(f"cert, key: {files.cert}, {files.key}: {_reason(error)}") from error
        if files.client_ca:
            # Probes and tokens need no certificate; a given one is verified.
            context.verify_mode = ssl.CERT_OPTIONAL
            try:
                context.load_verify_locations(files.client_ca)
            except (OSError, ValueError) as error:
                raise StartError(f"client_ca: {files.client_ca}: {_reason(error)}") from error
        return context

    def _switch(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._loaded


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None)
    return str(reason or str(error) or "is no PEM file")


# ------------------------------------------------------------------------------------------- the process


class _UvicornServer(uvicorn.Server):
    """Uvicorn's server with other signal handlers: SIGTERM and SIGINT stop it gracefully, SIGHUP reloads.

    The module ``accept`` accepts connections: uvicorn counts none before the end of its handshake.
    """

    def __init__(
        self,
        app: App,
        options: ServerSettings,
        reload: Reload,
        tls: Tls | None,
        tell_start: Callable[[], None],
    ) -> None:
        super().__init__(_uvicorn(app, options))
        limits = accept.bounds(Bounds(options.max_connections, options.max_connections_per_address))
        make = functools.partial(Connection, self, options.receive_timeout, limits.connections)
        self._acceptor = accept.Acceptor(limits, make, tls.context if tls else None)
        self._reload = reload
        self._tell_start = tell_start  # when SIGTERM stops the service gracefully
        self._accepting: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections, and notify systemd."""
        await super().startup([])
        loop = asyncio.get_running_loop()
        self._accepting = [loop.create_task(self._acceptor.serve(each)) for each in sockets or []]
        self._tell_start()
        _notify("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting connections, and finish running requests."""
        _notify("STOPPING=1")
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        log.info("stopping", extra={"running": len(self.server_state.tasks)})
        self._acceptor.stop()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving; after SIGTERM the exit status is 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _hang_up(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _notify(state: str) -> None:
    sd_notify.notify(os.environ.get("NOTIFY_SOCKET", ""), state)
