"""The shared store for several replicas: etcd through its v3 JSON gateway.

A transaction reads at one revision. One etcd transaction commits it and compares the revisions of all keys
that were read. There are no locks and no etcd leases.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import aiohttp
import orjson

from sriov_fast.ipamd.errors import Invalid, Unavailable
from sriov_fast.ipamd.store import PROVEN, Changes, Rows, Span, Transaction, View

T = TypeVar("T")

PATIENCE = 15.0  # seconds of retries for an operation
CONNECT, REQUEST = 2.0, 5.0  # timeouts in seconds; then the next endpoint is tried
PAUSE, LONGEST = 0.002, 0.1  # seconds: first and longest random pause between retries, doubled each time
TOGETHER = 16  # concurrent transactions of this process: more would conflict with each other
OPS, BYTES = 100, 700_000  # of one request; etcd's own defaults are 128 and 1.5 MiB
WIPED = 5000  # keys in one deletion

# Codes of gRPC: a compacted revision is out of range; an expired token is unauthenticated.
OUT_OF_RANGE, UNAUTHENTICATED = 11, 16
TRANSIENT = {1, 2, 4, 8, 10, 13, 14}  # cancelled, unknown, deadline, busy, aborted, internal, unavailable


class Settings(NamedTuple):
    """The settings in the URL of the store."""

    endpoints: tuple[str, ...]
    prefix: str
    user: str
    password: str
    tls: ssl.SSLContext | None


class _Refused(Exception):  # noqa: N818 - an answer of etcd; the code decides about a retry
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Again(Exception):  # noqa: N818 - restart the transaction
    pass


def _b64(text: str) -> str:
    return b64encode(text.encode()).decode()


class _Client:
    """Sends requests to one endpoint, and after a failure to the next."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._at = random.randrange(len(settings.endpoints))
        self._token = ""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=2 * TOGETHER, ssl=settings.tls or True),
            timeout=aiohttp.ClientTimeout(total=REQUEST, sock_connect=CONNECT),
        )

    async def close(self) -> None:
        await self._session.close()

    async def call(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of the first working endpoint."""
        end, pause, last = time.monotonic() + PATIENCE, PAUSE, ""
        failures = 0
        while time.monotonic() < end:
            at = self._at
            try:
                return await self._call(at, path, body)
            except _Refused as error:
                if error.code == UNAUTHENTICATED and self._settings.user and failures < 3:
                    self._token = ""
                elif error.code == OUT_OF_RANGE:
                    raise _Again from error
                elif error.code not in TRANSIENT:
                    raise Unavailable(f"etcd {self._settings.endpoints[at]!r}: {error}") from error
                last = str(error)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                last = str(error) or type(error).__name__
            failures += 1
            last = f"etcd {self._settings.endpoints[at]!r}: {last}"
            if self._at == at:
                self._at = (at + 1) % len(self._settings.endpoints)
            if failures >= len(self._settings.endpoints):
                await asyncio.sleep(random.uniform(0, pause))
                pause = min(2 * pause, 1.0)
        raise Unavailable(last)

    async def _call(self, at: int, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if self._settings.user and not self._token:
            login = {"name": self._settings.user, "password": self._settings.password}
            self._token = (await self._post(at, "/v3/auth/authenticate", login))["token"]
        return await self._post(at, path, body)

    async def _post(self, at: int, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Authorization": self._token} if self._token else {}
        url = self._settings.endpoints[at] + path
        async with self._session.post(url, data=orjson.dumps(body), headers=headers) as response:
            text = await response.read()
            try:
                answer = orjson.loads(text)
            except orjson.JSONDecodeError:
                raise _Refused(14, f"HTTP {response.status}: {text[:200]!r}") from None
            if response.status != 200 or "error" in answer:
                message = answer.get("message") or answer.get("error") or f"HTTP {response.status}"
                raise _Refused(int(answer.get("code", 14)), str(message))
            found: dict[str, Any] = answer
            return found


class _Transaction:
    """A view at one revision, with its comparisons and changes."""

    def __init__(self, client: _Client, prefix: str, attempt: int) -> None:
        self.changes: Changes = {}
        self._client, self._prefix, self._attempt = client, prefix, attempt
        self._revision = 0
        self._seen: dict[str, int] = {}
        self._quiet: list[tuple[str, str]] = []

    def _key(self, key: str) -> str:
        return _b64(self._prefix + key)

    async def fetch(
        self, keys: Iterable[str], spans: Iterable[Span] = ()
    ) -> tuple[list[bytes | None], list[Rows]]:
        wanted = list(keys)
        ranges: list[dict[str, Any]] = [{"key": self._key(key)} for key in wanted]
        for first, end, most in spans:
            ranges.append({"key": self._key(first), "range_end": self._key(end), "limit": most})
        if self._revision:
            ranges = [{**it, "revision": self._revision} for it in ranges]
        answer = await self._client.call("/v3/kv/txn", {"success": [{"request_range": it} for it in ranges]})
        self._revision = self._revision or int(answer["header"]["revision"])
        found = [it["response_range"].get("kvs", ()) for it in answer["responses"]]
        values: list[bytes | None] = []
        for key, kvs in zip(wanted, found, strict=False):
            self._seen[key] = int(kvs[0]["mod_revision"]) if kvs else 0
            values.append(b64decode(kvs[0].get("value", "")) if kvs else None)
        return values, [list(map(self._row, kvs)) for kvs in found[len(wanted) :]]

    def _row(self, kv: Mapping[str, str]) -> tuple[str, bytes]:
        return b64decode(kv["key"]).decode()[len(self._prefix) :], b64decode(kv.get("value", ""))

    async def absent(self, key: str) -> bool:
        if self._attempt:
            return (await self.fetch([key]))[0][0] is None
        self._seen[key] = 0  # saves a round trip; the commit compares it
        return True

    def unchanged(self, first: str, end: str) -> None:
        self._quiet.append((first, end))

    async def commit(self) -> bool:
        """Write the changes unless a key that was read has changed; say whether it was done."""
        if not self.changes:
            return True
        compare: list[dict[str, Any]] = [
            {"key": self._key(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision}
            for key, revision in self._seen.items()
        ]
        for first, end in self._quiet:
            span = {"key": self._key(first), "range_end": self._key(end)}
            compare.append({**span, "target": "MOD", "result": "LESS", "mod_revision": self._revision + 1})
        answer = await self._client.call(
            "/v3/kv/txn",
            {"compare": compare, "success": [self._operation(key, it) for key, it in self.changes.items()]},
        )
        return bool(answer.get("succeeded"))

    def _operation(self, key: str, value: bytes | None) -> dict[str, Any]:
        if value is None:
            return {"request_delete_range": {"key": self._key(key)}}
        return {"request_put": {"key": self._key(key), "value": b64encode(value).decode()}}


class EtcdStore:
    """Records under a prefix of etcd's keys; etcd is not contacted before the first operation."""

    together = TOGETHER

    def __init__(self, settings: Settings) -> None:
        self._client = _Client(settings)
        self._prefix = settings.prefix
        self._written = -PROVEN  # when a probe was written

    async def run(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run `work` in a transaction; repeat it after a random pause if it conflicts with others."""
        end, pause, attempt = time.monotonic() + PATIENCE, PAUSE, 0
        while time.monotonic() < end:
            tx = _Transaction(self._client, self._prefix, attempt)
            try:
                result = await work(tx)
                if await tx.commit():
                    return result
            except _Again:
                pass
            attempt += 1
            await asyncio.sleep(random.uniform(0, pause))
            pause = min(2 * pause, LONGEST)
        raise Unavailable(
            f"etcd: {attempt} transactions in {PATIENCE:g} seconds, and others were always first"
        )

    async def read(self, work: Callable[[View], Awaitable[T]]) -> T:
        """Return the result of `work` at one revision."""
        for _ in range(10):
            try:
                return await work(_Transaction(self._client, self._prefix, 1))
            except _Again:
                continue
        raise Unavailable("etcd: revisions are compacted faster than they can be read")

    async def write(self, rows: Rows) -> None:
        """Write many keys in batches."""
        batch, size = _Transaction(self._client, self._prefix, 0), 0
        for key, value in rows:
            if batch.changes and (len(batch.changes) == OPS or size + len(value) > BYTES):
                await batch.commit()
                batch, size = _Transaction(self._client, self._prefix, 0), 0
            batch.changes[key] = value
            size += len(key) + len(value)
        await batch.commit()

    async def wipe(self, first: str, end: str) -> None:
        """Delete a span of keys in batches."""
        last = _b64(self._prefix + end)
        while True:
            span = {"key": _b64(self._prefix + first), "range_end": last}
            found = await self._client.call("/v3/kv/range", {**span, "limit": WIPED, "keys_only": True})
            kvs = found.get("kvs", ())
            if not kvs:
                return
            after = b64encode(b64decode(kvs[-1]["key"]) + b"\0").decode()
            await self._client.call("/v3/kv/deleterange", {**span, "range_end": after})

    async def ready(self) -> None:
        """Raise `Unavailable` unless a majority answers, and a write succeeds now or succeeded lately."""
        if time.monotonic() - self._written < PROVEN:
            await self._client.call("/v3/kv/range", {"key": _b64(self._prefix + "root"), "count_only": True})
            return
        await self._client.call("/v3/kv/put", {"key": _b64(self._prefix + "probe"), "value": _b64("x")})
        self._written = time.monotonic()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def read_settings(url: str) -> Settings:
    """Parse `etcd://[user:password@]host:port,...?ca=&cert=&key=&prefix=&tls=`."""
    # newer versions of urlsplit refuse an address in brackets behind another host
    place, _, query = url.partition("://")[2].partition("?")
    given = dict(parse_qsl(query))
    unknown = sorted(given.keys() - {"ca", "cert", "key", "prefix", "tls", "user", "password"})
    if unknown:
        raise Invalid(f"store: etcd has no option {unknown[0]!r}")
    login, _, hosts = place.partition("/")[0].rpartition("@")
    user, _, password = login.partition(":")
    tls = None
    if given.keys() & {"ca", "cert"} or given.get("tls", "") in ("1", "true", "yes"):
        tls = _context(given)
    names = [host for host in hosts.split(",") if host]
    if not names:
        raise Invalid("store: etcd needs at least one host:port")
    return Settings(
        tuple(f"{'https' if tls else 'http'}://{_endpoint(name)}" for name in names),
        given.get("prefix", "sriov-fast/ipam").strip("/") + "/",
        given.get("user", unquote(user)),
        given.get("password", unquote(password)),
        tls,
    )


def _endpoint(name: str) -> str:
    try:
        parts = urlsplit(f"//{name}")
        if parts.hostname:
            return name if parts.port else f"{name}:2379"
    except ValueError:
        pass
    raise Invalid(f"store: {name!r} is no host:port")


def _context(given: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=given.get("ca"))
        if "cert" in given:
            context.load_cert_chain(given["cert"], given.get("key"))
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(f"{key}={given[key]!r}" for key in ("ca", "cert", "key") if key in given)
        raise Invalid(f"store: {files}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
