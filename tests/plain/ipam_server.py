"""Processes of the address service with TLS certificates of a test CA, their tokens and their clients."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import signal
import socket
import ssl
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Literal
from unittest import mock

import httpx
import trustme

from harness.waiting import PATIENCE, wait_for
from sriov_fast import cli
from sriov_fast.cli.ipam import commands
from sriov_fast.ipamd import auth

SRC = Path(__file__).resolve().parents[2] / "src"

HOST, OTHER_HOST = "10.55.206.20", "10.55.206.21"
ADMIN = "CN=ipam-admin"
DOMAIN: dict[str, Any] = {
    "networks": [{"name": "mynet", "grace": 0}],
    "pools": [
        {
            "name": "a",
            "network": "mynet",
            "subnet": "10.55.206.0/26",
            "gateway": "10.55.206.1",
            "ranges": [{"start": "10.55.206.40", "end": "10.55.206.60"}],
            "vlan": 100,
            "routes": [{"dst": "0.0.0.0/0"}],
        }
    ],
    "hosts": [{"network": "mynet", "hosts": ["10.55.206.0/24"], "pools": ["a"]}],
}


def roomy(grace: int = 0) -> dict[str, Any]:
    """Return a configuration with 65,000 addresses, for many clients."""
    return {
        "networks": [{"name": "mynet", "grace": grace}],
        "pools": [{"name": "a", "network": "mynet", "subnet": "10.64.0.0/16", "gateway": "10.64.0.1"}],
        "hosts": [{"network": "mynet", "hosts": ["0.0.0.0/0"], "pools": ["a"]}],
    }


def toml(table: dict[str, Any]) -> str:
    """Return the table ``[server]`` as TOML; its values have the same form in JSON."""
    return "[server]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "sriov_fast.cli", "ipam", *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SRIOV_FAST_IPAM")}
    return clean | {"PYTHONPATH": str(SRC)} | more


def run(*words: object, check: bool = True, stdin: str = "", **env: str) -> CompletedProcess[str]:
    """Run ``sriov-fast ipam ...`` in this process, since an interpreter takes most of a second to start."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, environment(**env), clear=True),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()))),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            status = cli.main(["ipam", *map(str, words)])
        except SystemExit as end:  # raised by argparse
            status = int(end.code or 0)
    assert not check or status == 0, err.getvalue()
    return CompletedProcess(words, status, out.getvalue(), err.getvalue())


class Authority:
    """A CA, and the certificate and key files of its servers and clients."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ca = trustme.CA()
        self.ca = directory / "ca.crt"
        self._ca.cert_pem.write_to_path(str(self.ca))
        self.server = self.issue("server", "127.0.0.1", "::1", "localhost")

    def issue(self, name: str, *identities: str) -> tuple[Path, Path]:
        """Write NAME.crt and NAME.key for addresses and host names; return both paths."""
        made = self._ca.issue_cert(*identities)
        cert, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        made.private_key_pem.write_to_path(str(key))
        cert.write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
        return cert, key

    def trust(self, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """Return a client's TLS context, which trusts this CA and presents ``client``, if any."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if client:
            context.load_cert_chain(*map(str, client))
        return context


class Tokens:
    """The file of the service's tokens, and the token files of an administrator and a host."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "tokens.json"
        auth.write_tokens(self.path, [])
        self.admin = self.make("admin")
        self.host = self.make("host", HOST)
        (directory / "admin.token").write_text(self.admin + "\n")
        (directory / "host.token").write_text(self.host + "\n")

    def make(self, role: Literal["admin", "host"], *hosts: str) -> str:
        secret, kept = auth.new_token(role, hosts)
        auth.write_tokens(self.path, [*auth.read_tokens(self.path), kept])
        return secret


class World:
    """A CA, tokens, and the servers that use them; ``end`` kills the servers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority(directory)
        self.tokens = Tokens(directory)
        self._servers: list[AddressService] = []

    def serve(
        self, name: str, domain: dict[str, Any] | None = None, env: dict[str, str] | None = None, **table: Any
    ) -> AddressService:
        """Start a server with the keys of ``table``; without them, it has TLS and tokens."""
        cert, key = map(str, self.authority.server)
        if not table.get("insecure"):
            table = {"cert": cert, "key": key} | table
        table = {"tokens": str(self.tokens.path)} | table
        server = AddressService(
            self.directory / name, table, DOMAIN if domain is None else domain, **(env or {})
        )
        self._servers.append(server)
        return server

    def admin(self, server: AddressService) -> httpx.Client:
        return server.client(self.authority, self.tokens.admin)

    def host(self, server: AddressService) -> httpx.Client:
        return server.client(self.authority, self.tokens.host)

    def connect(self, server: AddressService) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
        return self.authority.trust().wrap_socket(plain, server_hostname="127.0.0.1")

    def head(self, length: int) -> bytes:
        """Return the header of a host's allocation request with a body of ``length`` bytes."""
        fields = (f"authorization: Bearer {self.tokens.host}", "content-type: application/json")
        lines = (f"POST {ASK} HTTP/1.1", "host: x", *fields, f"content-length: {length}", "\r\n")
        return "\r\n".join(lines).encode()

    def end(self) -> None:
        for server in self._servers:
            if server.process.poll() is None:
                server.kill()


class Fork:
    """The command in a fork of this process, since an interpreter takes most of a second to start.

    The class has the methods of ``subprocess.Popen`` that the tests use.
    """

    def __init__(self, words: Sequence[object], log: Path, env: dict[str, str]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), 2)
            os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            sys.stderr = os.fdopen(2, "w", buffering=1)
            os.environ.clear()
            os.environ.update(env)
            random.seed()
            status = cli.main(["ipam", *map(str, words)])
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, seconds: float) -> int:
        wait_for(lambda: self.poll() is not None, "its end", seconds)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class AddressService:
    """A process of the address service."""

    def __init__(
        self, directory: Path, table: dict[str, Any], domain: dict[str, Any] | None = None, **env: str
    ) -> None:
        self.directory = directory
        self.tls = "cert" in table
        self.config = directory / "ipam.toml"
        self.log = directory / "log"
        self._env = env
        self._begin = 0
        directory.mkdir(parents=True, exist_ok=True)
        defaults = {"listen": "127.0.0.1:0", "storage": f"sqlite://{directory}/ipam.db"}
        self.write(defaults | table, domain)
        self.start()

    def write(self, table: dict[str, Any], domain: dict[str, Any] | None) -> None:
        self.table = table
        self.config.write_text(commands.toml(domain or {}) + toml(table))

    def start(self) -> None:
        self.log.touch()
        self._begin = self.log.stat().st_size
        self.process = Fork(("serve", "--config", self.config), self.log, environment(**self._env))
        try:
            listen = self.wait("serving")["listen"].split(",")[0]
        except BaseException:
            self.kill()
            raise
        self.url = f"{'https' if self.tls else 'http'}://{listen}"
        self.port = int(listen.rpartition(":")[2])

    def restart(self) -> None:
        """Start a new process at the same address and port."""
        self.table["listen"] = f"127.0.0.1:{self.port}"
        head, _, _ = self.config.read_text().partition("[server]\n")
        self.config.write_text(head + toml(self.table))
        self.start()

    def events(self) -> list[dict[str, Any]]:
        """Return the events that the current process has logged."""
        with self.log.open("rb") as log:
            log.seek(self._begin)
            lines = log.read().decode().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def wait(self, message: str) -> dict[str, Any]:
        """Wait for an event with this message, and return the event."""

        def find() -> dict[str, Any] | None:
            found = next((each for each in self.events() if each["msg"] == message), None)
            if found is None and self.process.poll() is not None:
                raise AssertionError(f"it ended with {self.process.returncode}: {self.log.read_text()}")
            return found

        found: dict[str, Any] = wait_for(find, f"event {message!r}")
        return found

    def client(
        self, authority: Authority | None = None, token: str = "", certificate: Any = None
    ) -> httpx.Client:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        verify: Any = authority.trust(certificate) if authority else False
        return httpx.Client(
            base_url=self.url, headers=headers, verify=verify, trust_env=False, timeout=PATIENCE
        )

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """End the process with SIGTERM, as systemd does; return its exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)


def wanted(container: str, host: str = HOST, pod: str = "") -> dict[str, str]:
    """Return the body of an allocation request."""
    return {"container_id": container, "ifname": "eth0", "pod_id": pod or f"pod-{container}", "host_ip": host}


ASK = "/v1/networks/mynet/allocations"


def ask(client: httpx.Client, container: str, **more: str) -> httpx.Response:
    return client.post(ASK, json=wanted(container, **more))


def address(response: httpx.Response) -> str:
    """Return the first address of a successful reply."""
    assert response.status_code in (200, 201), response.text
    found: str = response.json()["ips"][0]["address"]
    return found


def problem(response: httpx.Response, status: int, kind: str) -> str:
    """Assert that a reply is a complete problem document; return its detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found = response.json()
    assert found["type"] == "about:blank"
    assert found["status"] == status
    assert found["kind"] == kind
    assert found["title"]
    detail: str = found["detail"]
    return detail


def release_all(client: httpx.Client) -> None:
    """Release every allocation as an administrator, or those of HOST as a host."""
    params = {} if client.get("/v1/allocations").is_success else {"host_ip": HOST}
    for held in client.get("/v1/allocations", params=params).json()["allocations"]:
        path = f"/v1/networks/{held['network']}/allocations/{held['container_id']}/{held['ifname']}"
        assert client.delete(path, params={"host_ip": held["host_ip"]}).is_success
