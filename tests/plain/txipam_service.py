"""A simulated address service and its clients: real TLS on a real socket, and faults on demand."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import trustme

from harness import pod
from sriov_fast.common.errors import SriovError
from sriov_fast.common.log import Logger
from sriov_fast.ipam.keys import Keys
from sriov_fast.ipam.txipam import outbox
from sriov_fast.ipam.txipam.plugin import TxIpam

AUTHORITY = trustme.CA()
HOST = "10.55.206.20"
TOP = ("cniVersion", "name", "prevResult", "cni.dev/valid-attachments")
REASONS = {200: "OK", 201: "Created", 204: "No Content"}


def listen(port: int, netns: str = "") -> socket.socket:
    """Listen on the loopback device, in the network namespace ``netns`` if one is given."""
    with pod.inside(netns):
        return socket.create_server(("127.0.0.1", port))


class Seen(NamedTuple):
    """A request that has arrived."""

    method: str
    path: str
    query: dict[str, str]
    fields: dict[str, str]
    body: Any
    connection: int


class Reply(NamedTuple):
    status: int
    body: Any = None
    kind: str = "application/json"

    def octets(self, more: str = "") -> bytes:
        body = b"" if self.body is None else json.dumps(self.body).encode()
        head = f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Status')}\r\n{more}"
        if self.status != 204:
            head += f"Content-Type: {self.kind}\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"\r\n" + body


def problem(status: int, kind: str, detail: str = "") -> Reply:
    body = {"type": "about:blank", "title": "no", "status": status, "detail": detail, "kind": kind}
    return Reply(status, body, "application/problem+json")


class FakeService:
    """An address service in threads, until ``close``; each request takes one entry of ``faults``.

    "hang" (not carried out, no reply), "drip" (the reply byte by byte), "lose" (carried out, no reply),
    "refuse" (not carried out, connection closed), "cut" (half a reply), "repeat" (the reply twice), "close"
    (the connection is closed after the reply, without notice), or a Reply or bytes that are sent instead.
    """

    def __init__(
        self,
        *names: str,
        authority: trustme.CA = AUTHORITY,
        clients: trustme.CA | None = None,
        not_after: datetime | None = None,
        newest: ssl.TLSVersion | None = None,
        netns: str = "",
    ) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*(names or ("127.0.0.1",)), not_after=not_after).configure_cert(self.context)
        if clients:
            clients.configure_trust(self.context)
            self.context.verify_mode = ssl.CERT_REQUIRED
        if newest:
            self.context.minimum_version = ssl.TLSVersion.TLSv1
            self.context.set_ciphers("ALL:@SECLEVEL=0")
            self.context.maximum_version = newest
        self.faults: deque[Any] = deque()
        self.always: Any = None
        self.seen: list[Seen] = []
        self.allocations: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.more: dict[str, Any] = {}
        self.given = 0
        self.connections = 0
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self.open: list[socket.socket] = []
        self.netns = netns
        self.listener = listen(0, netns)
        self.port: int = self.listener.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def methods(self) -> list[str]:
        return [seen.method for seen in self.seen]

    def addresses(self) -> list[str]:
        return [item["ips"][0]["address"] for item in self.allocations.values()]

    def stop_listening(self) -> None:
        """Close the listening socket and all connections."""
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.drop_connections()

    def drop_connections(self) -> None:
        while self.open:
            with suppress(OSError):
                self.open.pop().shutdown(socket.SHUT_RDWR)

    def listen_again(self) -> None:
        self.listener = listen(self.port, self.netns)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.stopped.set()
        self.stop_listening()

    # --- connections

    def _accept(self) -> None:
        listener = self.listener
        with suppress(OSError):
            while True:
                plain = listener.accept()[0]
                self.open.append(plain)
                self.connections += 1
                threading.Thread(target=self._serve, args=(plain, self.connections), daemon=True).start()

    def _serve(self, plain: socket.socket, number: int) -> None:
        with suppress(OSError), plain, self.context.wrap_socket(plain, server_side=True) as tls:
            self.open.append(tls)
            for seen in requests(tls, number):
                if not self._answer(tls, seen):
                    return

    def _answer(self, tls: ssl.SSLSocket, seen: Seen) -> bool:
        """Answer a request; return whether the connection stays open."""
        with self.lock:
            self.seen.append(seen)
            fault = self.faults.popleft() if self.faults else self.always
            reply = Reply(500) if fault in ("refuse", "hang") or isinstance(fault, Reply) else self.act(seen)
        if isinstance(fault, bytes):
            with suppress(OSError, ValueError):  # ValueError: the client has closed meanwhile
                tls.sendall(fault)
                tls.unwrap()
            return False
        octets = (fault if isinstance(fault, Reply) else reply).octets()
        if fault in ("hang", "refuse", "lose"):
            if fault == "hang":
                self.stopped.wait()
            return False
        if fault == "drip":
            return self._drip(tls, octets)
        tls.sendall(
            octets[: len(octets) // 2] if fault == "cut" else octets * (2 if fault == "repeat" else 1)
        )
        return fault not in ("cut", "close")

    def _drip(self, tls: ssl.SSLSocket, octets: bytes) -> bool:
        for at in range(len(octets)):
            if self.stopped.wait(0.05):
                break
            tls.sendall(octets[at : at + 1])
        return False

    # --- the service's functions

    def act(self, seen: Seen) -> Reply:
        parts = [unquote(part) for part in seen.path.strip("/").split("/")]
        if parts == ["readyz"]:
            return Reply(200, {})
        network, what = parts[2], parts[3]
        if what == "allocations" and seen.method == "POST":
            return self.allocate(network, seen.body)
        if what == "allocations":
            return self.look_up(seen.method, (network, parts[4], parts[5]), seen.query.get("lease"))
        if what == "owners":
            return self.owners(network, seen.query)
        return Reply(200, {"pools": []})

    def allocate(self, network: str, body: dict[str, Any]) -> Reply:
        owner = network, body["container_id"], body["ifname"]
        known = self.allocations.get(owner)
        if known:
            same = all(known[key] == body[key] for key in ("pod_id", "host_ip"))
            return Reply(200, known) if same else problem(409, "conflict", "another pod has it")
        self.given += 1
        ips = [{"address": f"10.55.206.{45 + self.given}/26", "gateway": "10.55.206.1"}]
        lease = f"l{self.given}"
        self.allocations[owner] = {"network": network, **body, "lease": lease, "ips": ips, **self.more}
        return Reply(201, self.allocations[owner])

    def owners(self, network: str, query: dict[str, str]) -> Reply:
        """Return the owners of a host's allocations, two per page."""
        after = tuple(query.get("after", "").split("/"))
        rows = [
            {"container_id": owner[1], "ifname": owner[2], "lease": item["lease"]}
            for owner, item in sorted(self.allocations.items())
            if owner[0] == network and item["host_ip"] == query["host_ip"] and owner[1:] > after
        ]
        return Reply(200, {"owners": rows[:2]})

    def look_up(self, method: str, owner: tuple[str, str, str], lease: str | None) -> Reply:
        known = self.allocations.get(owner)
        if method == "DELETE":
            mine = known is not None and lease in (None, known["lease"])
            if mine:
                del self.allocations[owner]
            return Reply(204) if lease is None else Reply(200, {"released": int(mine)})
        return Reply(200, known) if known else problem(404, "not-found", "never heard of it")


def requests(tls: ssl.SSLSocket, number: int) -> Iterator[Seen]:
    """Yield the requests of a connection."""
    file = tls.makefile("rb")
    while line := file.readline():
        method, target, version = line.decode().split()
        assert version == "HTTP/1.1"
        fields = {}
        while (line := file.readline()) != b"\r\n":
            name, _, value = line.decode().partition(":")
            fields[name.lower()] = value.strip()
        body = file.read(int(fields.get("content-length", 0)))
        url = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        yield Seen(method, url.path, query, fields, json.loads(body) if body else None, number)


class Client:
    """txipam of one node, with its files below ``root``; ``ipam`` has the keys of every configuration."""

    def __init__(self, root: Path, **ipam: Any) -> None:
        self.runtime = root / "run"
        self.state = root / "state"
        self._ipam = {"type": "txipam"} | ipam

    def plugin(
        self, container: str = "a", *, ifname: str = "eth0", args: str | None = None, **more: Any
    ) -> TxIpam:
        """Make the plugin of one request; ``more`` has keys of ``ipam``, and of the network those in TOP."""
        top = {key: more.pop(key) for key in TOP if key in more}
        conf = {"cniVersion": "1.1.0", "name": "net1", "type": "sriov", "ipam": self._ipam | more} | top
        return TxIpam(
            keys=Keys(conf),
            container_id=container,
            ifname=ifname,
            args=f"IgnoreUnknown=1;PodID=pod-{container};HostIP={HOST}" if args is None else args,
            runtime_dir=str(self.runtime),
            state_dir=str(self.state),
        )

    def run(self, verb: str, container: str = "a", **more: Any) -> dict[str, Any] | None:
        return self.plugin(container, **more).run(verb, 60.0)

    def add(self, container: str = "a", **more: Any) -> dict[str, Any]:
        found = self.run("ADD", container, **more)
        assert found
        return found

    def delete(self, container: str = "a", **more: Any) -> None:
        assert self.run("DEL", container, **more) is None

    def fails(
        self, code: int, words: str, container: str = "a", *, verb: str = "ADD", **more: Any
    ) -> SriovError:
        """Run a verb that must fail with this code and with ``words`` in its message; return the error."""
        with pytest.raises(SriovError) as caught:
            self.run(verb, container, **more)
        assert (caught.value.code, words in caught.value.msg) == (code, True), caught.value.msg
        assert caught.value.details
        return caught.value

    def debts(self) -> list[Path]:
        return list(map(Path, outbox.entries(str(self.state))))

    def owed(self) -> list[str]:
        """Return the owners with a queued release that is sent even without a DEL."""
        return [
            path.name.rpartition("~")[0] for path in self.debts() if not json.loads(path.read_text())["live"]
        ]

    def flush(self, level: str = "error") -> int:
        return outbox.flush(str(self.state), Logger(level), time.monotonic() + 5)
