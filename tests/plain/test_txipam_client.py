"""txipam with a service over TLS: its requests, its results, and its handling of every fault."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from txipam_service import AUTHORITY, Client, FakeService, Reply, problem

from harness.waiting import wait_for
from sriov_fast.ipam.txipam import outbox
from sriov_fast.ipam.txipam.client import ServiceError
from sriov_fast.ipam.txipam.pool import pool

FIRST = {"address": "10.55.206.46/26", "gateway": "10.55.206.1"}
HEAD = b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
Serve = Callable[..., FakeService]


@pytest.fixture(scope="module")
def ca_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A function that starts services, which end with the test."""
    with ExitStack() as services:
        yield lambda *names, **options: services.enter_context(closing(FakeService(*names, **options)))


@pytest.fixture
def service(serve: Serve) -> FakeService:
    return serve()


@pytest.fixture
def node(service: FakeService, ca_file: str, tmp_path: Path) -> Client:
    return Client(tmp_path, remote=service.url, ca=ca_file, retries=1, timeout=5)


def url(listener: socket.socket) -> str:
    return f"https://127.0.0.1:{listener.getsockname()[1]}"


def released_while_down(node: Client, service: FakeService, **more: Any) -> None:
    """Run a DEL while the service is down, then start the service again."""
    service.stop_listening()
    node.delete(**more)
    service.listen_again()


# --- success


def test_add_says_who_asks(node: Client, service: FakeService) -> None:
    assert node.add() == {"ips": [FIRST], "dns": {}}
    (seen,) = service.seen
    assert (seen.method, seen.path) == ("POST", "/v1/networks/net1/allocations")
    assert seen.body == {
        "container_id": "a",
        "ifname": "eth0",
        "pod_id": "pod-a",
        "host_ip": "10.55.206.20",
    }
    assert seen.fields["idempotency-key"] == "net1/a/eth0/pod-a"
    assert seen.fields["host"] == f"127.0.0.1:{service.port}"
    assert "authorization" not in seen.fields


def test_everything_that_a_service_may_give(node: Client, service: FakeService) -> None:
    service.more = {
        "ips": [FIRST, {"address": "fd00::5/64"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.55.206.1"}, {"dst": "fd01::/64", "gw": "fd00::1"}],
        "dns": {"nameservers": ["10.0.0.1"], "domain": "", "search": ["a"], "options": []},
        "extra": {"vf": 0, "vlan": 100, "mac": "02:00:00:00:00:01", "colour": "red"},
        "later": "versions may add keys",
    }
    assert node.add() == {
        "ips": [FIRST, {"address": "fd00::5/64"}],
        "routes": service.more["routes"],
        "dns": {"nameservers": ["10.0.0.1"], "search": ["a"]},
        "extra": {"vf": 0, "vlan": 100, "mac": "02:00:00:00:00:01"},
    }


@pytest.mark.parametrize(
    ("extra", "found"), [({}, None), (None, None), ({"vf": None}, None), ({"vlan": 0}, {"vlan": 0})]
)
def test_only_what_was_given_is_in_extra(
    node: Client, service: FakeService, extra: object, found: object
) -> None:
    service.more = {"extra": extra, "routes": None, "dns": None}
    assert node.add().get("extra") == found


def test_del(node: Client, service: FakeService) -> None:
    node.add()
    service.allocations.clear()  # an operator released it
    node.add()
    node.delete()
    assert service.allocations == {}
    assert service.methods() == ["POST", "POST", "DELETE"]
    assert service.seen[-1].query == {"host_ip": "10.55.206.20", "pod_id": "pod-a", "lease": "l2"}
    assert {seen.fields["idempotency-key"] for seen in service.seen} == {"net1/a/eth0/pod-a"}
    node.delete()  # a second DEL succeeds
    assert node.owed() == []
    assert list(node.runtime.glob("leases/*/*")) == []


def test_check(node: Client, service: FakeService) -> None:
    found = node.add()
    node.run("CHECK", prevResult=found)
    more = {"ips": [FIRST | {"interface": 0}, {"address": "192.0.2.1/24"}]}
    node.run("CHECK", prevResult=more)
    assert service.seen[-1].query == {"host_ip": "10.55.206.20"}
    before = {"ips": [{"address": "10.55.206.47/26"}]}
    other = node.fails(103, "lacks 10.55.206.46/26", prevResult=before, verb="CHECK")
    assert service.url in other.msg
    node.fails(103, "never heard of it", "b", prevResult=found, verb="CHECK")
    node.fails(7, "prevResult is missing", verb="CHECK")


def test_status(node: Client, service: FakeService) -> None:
    node.run("STATUS", args="")
    assert [seen.path for seen in service.seen] == ["/readyz"]  # no host is known yet
    node.add()
    node.run("STATUS", args="")
    assert service.seen[-1].path == "/v1/networks/net1/status"
    assert service.seen[-1].query == {"host_ip": "10.55.206.20"}
    node.run("STATUS", args="", hostIP="10.0.0.9")
    assert service.seen[-1].query == {"host_ip": "10.0.0.9"}


@pytest.mark.parametrize(
    ("at", "fault", "code", "words"),
    [
        (0, problem(503, "unavailable", "no database"), 50, "no database"),
        (0, Reply(500), 50, "500"),
        (0, "refuse", 50, "closed the connection"),
        (1, problem(409, "exhausted", "pool a is full"), 51, "pool a is full"),
        (1, problem(404, "unknown-host"), 50, "unknown-host"),
    ],
)
def test_status_of_a_service_that_cannot(
    node: Client, service: FakeService, at: int, fault: Any, code: int, words: str
) -> None:
    node.add()
    service.drop_connections()
    service.faults.extend([None] * at + [fault])
    node.fails(code, words, args="", verb="STATUS")


def test_one_host_with_room_is_enough(node: Client, service: FakeService) -> None:
    for host in ("10.0.0.1", "10.0.0.2"):
        node.add(host, args=f"PodID=1;HostIP={host}")
    service.faults.extend([None, problem(404, "unknown-host")])
    node.run("STATUS", args="")


def valid(*containers: str) -> dict[str, Any]:
    return {"cni.dev/valid-attachments": [{"containerID": name, "ifname": "eth0"} for name in containers]}


def test_gc(node: Client, service: FakeService) -> None:
    for name in ("a", "b", "c"):
        node.add(name)
    node.add("elsewhere", name="net2")
    node.add("d", args="PodID=9;HostIP=10.55.206.21")
    other_node = service.allocations["net1", "d", "eth0"] | {"host_ip": "10.55.206.99"}
    service.allocations["net1", "d", "eth0"] = other_node
    node.run("GC", "", args="", **valid("b"))
    assert sorted(owner[1] for owner in service.allocations) == ["b", "d", "elsewhere"]
    remembered = sorted(path.name for path in node.runtime.glob("leases/*/*"))
    assert remembered == ["b~eth0", "elsewhere~eth0"]
    asked = [seen.query for seen in service.seen if seen.method != "POST"]
    pages = [query.get("lease", query.get("after", "")) for query in asked[:5]]
    assert pages == ["", "l1", "b/eth0", "l3", "c/eth0"]
    assert {query["host_ip"] for query in asked} == {"10.55.206.20", "10.55.206.21"}
    node.run("GC", "", args="", hostIP="10.55.206.99", **valid("b"))
    assert sorted(owner[1] for owner in service.allocations) == ["b", "elsewhere"]


def test_gc_without_a_list_or_a_host(node: Client, service: FakeService) -> None:
    node.fails(7, "valid-attachments is missing", "", args="", verb="GC")
    node.run("GC", "", args="", **valid())
    assert service.seen == []


def test_gc_tells_what_failed_and_does_the_rest(node: Client, service: FakeService) -> None:
    for host in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        node.add(host, args=f"PodID=1;HostIP={host}")
    service.faults.extend([problem(404, "unknown-network"), Reply(500)])
    node.fails(11, "", "", args="", **valid(), verb="GC")
    assert sorted(owner[1] for owner in service.allocations) == ["10.0.0.1", "10.0.0.2"]


# --- configuration


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"remote": None}, "ipam.remote is missing"),
        ({"remote": []}, "ipam.remote is missing"),
        ({"remote": 3}, "ipam.remote = 3: not a string"),
        ({"remote": ["https://127.0.0.1:1", 3]}, "ipam.remote[1] = 3: not a string"),
        ({"remote": "http://127.0.0.1:10000"}, "http:// is refused"),
        ({"remote": "127.0.0.1:10000"}, "not an https:// URL"),
        ({"remote": "https://user:secret@h"}, "not an https:// URL"),
        ({"remote": "https://h/?x=1"}, "not an https:// URL"),
        ({"remote": "https://h/\r\nX: y"}, "not an https:// URL"),
        ({"remote": "https://"}, "no host's name"),
        ({"remote": "https://:10000"}, "no host's name"),
        ({"remote": "https://fd00::1:10000"}, "no host's name"),
        ({"remote": "https://[fd00::zz]:1"}, "no IPv6 address"),
        ({"remote": "https://[10.0.0.1]:1"}, "no IPv6 address"),
        ({"remote": "https://h:0"}, "no port"),
        ({"remote": "https://h:65536"}, "no port"),
        ({"remote": "https://h:"}, "no port"),
        ({"ca": 3}, "ipam.ca = 3: not a string"),
        ({"ca": "ca.pem"}, "not an absolute path"),
        ({"ca": "TOP/none.pem"}, "none.pem': No such file"),
        ({"ca": "TOP/empty"}, "empty': no certificate or crl found"),
        ({"cert": "TOP/none.pem"}, "none.pem': No such file"),
        ({"key": "/nowhere/key.pem"}, "there is no ipam.cert"),
        ({"ca": "TOP/ca.pem", "tokenFile": "TOP/none"}, "none': No such file"),
        ({"ca": "TOP/ca.pem", "tokenFile": "TOP/empty"}, "holds no token"),
        ({"timeout": 0}, "ipam.timeout = 0"),
        ({"timeout": 51}, "ipam.timeout = 51"),
        ({"timeout": True}, "ipam.timeout"),
        ({"retries": -1}, "ipam.retries = -1"),
        ({"retries": 1.5}, "ipam.retries = 1.5"),
        ({"hostIP": "x", "args": "PodID=1"}, 'ipam.hostIP = "x"'),
        ({"args": "HostIP=10.0.0.1"}, "CNI_ARGS PodID is missing"),
        ({"args": "PodID=1"}, "CNI_ARGS HostIP is missing"),
        ({"args": "PodID=1;HostIP=10.0.0.300"}, 'CNI_ARGS HostIP = "10.0.0.300"'),
        ({"args": "PodID=" + "x" * 254 + ";HostIP=10.0.0.1"}, "CNI_ARGS PodID"),
        ({"args": "PodID=a\x1b[0m;HostIP=10.0.0.1"}, "CNI_ARGS PodID"),
        ({"name": ""}, "no network's name"),
        ({"name": "../.."}, "no network's name"),
    ],
)
def test_what_cannot_be_asked(
    node: Client,
    service: FakeService,
    tmp_path: Path,
    ca_file: str,
    more: dict[str, Any],
    words: str,
) -> None:
    (tmp_path / "empty").touch()
    shutil.copy(ca_file, tmp_path / "ca.pem")
    more = {
        key: value.replace("TOP", str(tmp_path)) if isinstance(value, str) else value
        for key, value in more.items()
    }
    node.fails(7, words, **more)
    assert service.seen == []
    assert node.owed() == []


def test_keys_of_cni_args_in_any_case(node: Client, service: FakeService) -> None:
    node.add(args="podid=p1;HOSTIP=fd00:0:0::1")
    assert (service.seen[-1].body["pod_id"], service.seen[-1].body["host_ip"]) == ("p1", "fd00::1")
    node.add("b", args="K8S_POD_UID=u1;HostIP=10.0.0.1")
    assert service.seen[-1].body["pod_id"] == "u1"
    node.add("c", args="K8S_POD_UID=u1;PodID=p2", hostIP="10.0.0.2")
    assert (service.seen[-1].body["pod_id"], service.seen[-1].body["host_ip"]) == ("p2", "10.0.0.2")


def test_long_and_foreign_identifiers(node: Client, service: FakeService) -> None:
    pod = "ü" * 253
    node.add(args=f"PodID={pod};HostIP=10.0.0.1")
    assert service.seen[-1].body["pod_id"] == pod
    key = service.seen[-1].fields["idempotency-key"]
    assert len(key) <= 200
    node.delete(args=f"PodID={pod[:-1]}u;HostIP=10.0.0.1")
    node.add(args=f"PodID={pod[:-1]}u;HostIP=10.0.0.1")
    assert service.seen[-1].fields["idempotency-key"] != key


def test_a_path_before_the_interface(node: Client, service: FakeService) -> None:
    service.faults.append(Reply(201, {"ips": [FIRST]}))
    node.add(remote=f"{service.url}/some/where/")
    assert service.seen[-1].path == "/some/where/v1/networks/net1/allocations"


def test_del_without_arguments_uses_what_was_remembered(node: Client, service: FakeService) -> None:
    node.delete(args="")
    assert [(seen.method, seen.query) for seen in service.seen] == [("GET", {})]  # nothing is remembered
    node.add()
    node.delete(args="")
    assert service.allocations == {}
    assert service.seen[-1].query == {"host_ip": "10.55.206.20", "lease": "l1"}


@pytest.mark.parametrize("lease", ["l1", ""])
def test_del_asks_for_a_lease_that_is_not_remembered(node: Client, service: FakeService, lease: str) -> None:
    """A DEL asks for the lease if the node has lost it or the service gave none."""
    service.more = {"lease": lease}
    node.add()
    if lease:
        shutil.rmtree(node.runtime)
    node.delete()
    assert service.methods() == ["POST", "GET", "DELETE"]
    assert service.seen[-1].query.get("lease", "") == lease
    assert service.allocations == {}


def test_del_with_a_lease_that_is_not_current_any_more(node: Client, service: FakeService) -> None:
    """A DEL also releases the owner's current lease if the remembered one is outdated.

    The operator has released the remembered lease, and the node could not write down the next one.
    """
    node.add()
    service.allocations.clear()
    leases = node.runtime / "leases/net1"
    leases.rename(node.state / "away")
    leases.write_text("no directory")
    node.add()
    leases.unlink()
    (node.state / "away").rename(leases)
    node.delete()
    assert [seen.query.get("lease") for seen in service.seen if seen.method == "DELETE"] == ["l1", "l2"]
    assert service.allocations == {}


def test_a_token(node: Client, service: FakeService, ca_file: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    ca = shutil.copy(ca_file, tmp_path / "ca.pem")
    for text in ("first", "second"):
        token.write_text(f"{text}\n")
        node.add(tokenFile=str(token), ca=str(ca))
        assert service.seen[-1].fields["authorization"] == f"Bearer {text}"
    token.write_text("two words\r\nX-Header: 1")
    node.fails(7, "holds no token", tokenFile=str(token), ca=str(ca))


# --- TLS


def test_client_certificate(node: Client, serve: Serve, tmp_path: Path) -> None:
    service = serve(clients=AUTHORITY)
    pair = AUTHORITY.issue_cert("10.55.206.20")
    cert, key, both, other = (
        str(tmp_path / name) for name in ("cert.pem", "key.pem", "both.pem", "other.pem")
    )
    pair.cert_chain_pems[0].write_to_path(cert)
    pair.private_key_pem.write_to_path(key)
    pair.private_key_and_cert_chain_pem.write_to_path(both)
    trustme.CA().issue_cert("10.55.206.20").private_key_and_cert_chain_pem.write_to_path(other)
    node.add(remote=service.url, cert=cert, key=key)
    node.add("b", remote=service.url, cert=both)
    for more in ({}, {"cert": other}):
        refused = node.fails(7, "refused our certificate", "c", remote=service.url, **more)
        assert "ipam.cert" in refused.details
    node.fails(7, "key values mismatch", remote=service.url, cert=other, key=key)


@pytest.mark.parametrize(
    ("names", "days", "words"),
    [
        (("127.0.0.1",), -1, "has expired"),
        (("127.0.0.2", "localhost"), 1, "is not for 127.0.0.1"),
    ],
)
def test_certificates_that_are_not_good(
    node: Client, serve: Serve, names: tuple[str, ...], days: int, words: str
) -> None:
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    service = serve(*names, not_after=until)
    error = node.fails(111, words, remote=service.url)
    assert service.url in error.msg
    assert service.seen == []
    assert service.connections == 1  # a retry would not help
    assert node.owed() == []


def test_a_certificate_for_a_name(node: Client, serve: Serve) -> None:
    node.add(remote=f"https://localhost:{serve('localhost').port}")


def test_another_authority(node: Client, serve: Serve) -> None:
    service = serve(authority=trustme.CA())
    for more in ({}, {"ca": None}):  # the configured CA, and the system's CAs
        node.fails(111, "certificate", remote=service.url, **more)
    assert service.seen == []


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_tls_1_2_is_the_oldest(node: Client, serve: Serve) -> None:
    node.fails(111, "TLS 1.2", remote=serve(newest=ssl.TLSVersion.TLSv1_1).url)
    node.add(remote=serve(newest=ssl.TLSVersion.TLSv1_2).url)


def test_a_new_ca_file_is_read(node: Client, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    node.fails(111, "", ca=str(path))
    path.unlink()
    AUTHORITY.cert_pem.write_to_path(str(path))
    node.add(ca=str(path))
    path.unlink()
    trustme.CA().cert_pem.write_to_path(str(path))
    node.fails(111, "", "b", ca=str(path))  # despite the open connection


def plain_server(answer: bytes) -> socket.socket:
    """Start a server that sends ``answer`` without TLS, and return its listening socket."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        try:
            while True:
                peer = listener.accept()[0]
                peer.recv(1024)
                peer.sendall(answer)
                peer.close()
        except OSError:
            pass

    threading.Thread(target=serve, daemon=True).start()
    return listener


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 111, "does not speak TLS"),
        (b"SSH-2.0-OpenSSH_9\r\n", 111, "does not speak TLS"),
        (b"\0" * 64, 111, "does not speak TLS"),
        (b"", 11, "during the TLS handshake"),
    ],
)
def test_no_tls_at_all(node: Client, answer: bytes, code: int, words: str) -> None:
    with plain_server(answer) as listener:
        error = node.fails(code, words, remote=url(listener))
    assert ("tried 2 times" in error.details) == (code == 11)


# --- faults of the service


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_slow(node: Client, service: FakeService, fault: str) -> None:
    service.always = fault
    start = time.monotonic()
    node.fails(11, "has not answered within", timeout=0.4)
    assert time.monotonic() - start < 20
    assert node.owed() == ["a~eth0"]  # the service may have allocated an address


def test_nobody_answers_at_all(node: Client) -> None:
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as listener:  # only the kernel accepts connections
        node.fails(11, "TLS handshake within", remote=url(listener), timeout=0.4)
    assert time.monotonic() - start < 20


def test_an_unknown_name(node: Client) -> None:
    node.fails(11, "could not be looked up", remote="https://nowhere.invalid")


@pytest.mark.parametrize("fault", ["lose", "cut", "refuse"])
@pytest.mark.parametrize("kept", [False, True])
def test_a_lost_reply_costs_no_address(node: Client, service: FakeService, fault: str, kept: bool) -> None:
    if kept:
        node.run("STATUS", "before")
    before = service.given
    service.faults.append(fault)
    found = node.add()
    keys = {seen.fields["idempotency-key"] for seen in service.seen if seen.method == "POST"}
    assert (service.given - before, len(keys), service.methods().count("POST")) == (1, 1, 2)
    assert found["ips"][0]["address"] == service.addresses()[0]
    assert node.owed() == []


@pytest.mark.parametrize("fault", ["lose", "cut"])
def test_replies_that_never_come_leave_nothing(
    node: Client, service: FakeService, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "IN_FLIGHT", 1.0)
    service.faults.extend([fault, fault])
    node.fails(11, "closed the connection before")
    assert service.methods() == ["POST", "POST", "GET", "DELETE"]
    assert service.allocations == {}
    service.act(service.seen[0])  # the request was still on its way
    assert node.owed() == ["a~eth0"]
    wait_for(lambda: node.flush() == 0, "it is still awaited")
    assert service.allocations == {}


def test_what_may_be_on_its_way_is_awaited(node: Client, service: FakeService) -> None:
    service.faults.extend(["lose", "lose"])
    node.fails(11, "closed the connection")
    assert node.flush() == 1  # not due yet
    node.delete()
    assert node.owed() == ["a~eth0"]  # the DEL may overtake the ADD's requests
    node.add()
    assert node.owed() == []
    assert len(service.allocations) == 1
    assert node.flush() == 0
    assert len(service.allocations) == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "no HTTP: 'SSH-2.0-OpenSSH_9'"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "no HTTP: the header field"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "no HTTP: its length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n", "more than 1048576 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "two different"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "the transfer coding"),
        (CHUNKED + b"xyz\r\n", "a chunk's size"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (1 << 20) + b"x", "more than 1048576 bytes"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Y: z\r\n" * 20000 + b"\r\n", "more than 100 headers"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 100000, "more than 1048576 bytes"),
        (CHUNKED + b"80000\r\n" + b"x" * 0x80000 + b"\r\n80001\r\n" + b"x" * 0x80001, "more than 1048576"),
        (CHUNKED + b"ffffffffffffffff\r\n" + b"x" * (1 << 21), "more than 1048576 bytes"),
        (CHUNKED + b"0\r\n" + b"X-Y: z\r\n" * 200000, "more than 1048576 bytes"),
        (b"HTTP/2 200 OK\r\n\r\n", "no HTTP: 'HTTP/2'"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\n{}", "no HTTP: the header fields"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n{}", "no HTTP: its length"),
        (b"x" * 100000, "more than 65536 bytes"),
        (Reply(200, "hello", "text/html"), "text/html content where JSON belongs"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "no content where JSON belongs"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n{",
            "cannot be decoded",
        ),
        (Reply(200, []), "not an object"),
        (Reply(204), "answered with status (204)"),
        (Reply(302), "answered with status (302)"),
        (Reply(418, {}), "answered with status (418)"),
        (problem(404, "exhausted"), "answered with status (404)"),  # a 404 has no such kind
    ],
)
def test_what_no_service_answers(node: Client, service: FakeService, fault: Any, words: str) -> None:
    service.faults.append(fault)
    error = node.fails(112, words)
    assert service.url in error.msg
    assert service.allocations == {}


@pytest.mark.parametrize("share", [0.02, 0.2, 0.4, 0.6, 0.98])
def test_a_reply_that_ends_early_is_lost(node: Client, service: FakeService, share: float) -> None:
    """A reply that is cut in its header, a chunk or the trailer is lost, even if TLS is closed in order."""
    body = json.dumps({"ips": [FIRST]}).encode()
    chunked = CHUNKED + b"%x\r\n" % len(body) + body + b"\r\n0\r\nX-Trailer: 1\r\n\r\n"
    framed = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    for whole in (chunked, framed):
        service.faults.append(whole[: int(len(whole) * share)])
        pool.clear()  # a request that is cut off on a kept connection is repeated
        node.fails(11, "before its answer was complete", f"a{len(service.seen)}", retries=0)
        service.faults.append(whole)
        node.add(f"a{len(service.seen)}")


def test_a_body_up_to_the_end_of_the_connection(node: Client, service: FakeService) -> None:
    service.faults.append(HEAD + b"\r\n" + json.dumps({"ips": [FIRST]}).encode())
    node.add()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from([b"", HEAD, CHUNKED]))
def test_any_bytes_are_an_error(node: Client, service: FakeService, octets: bytes, begin: bytes) -> None:
    pool.clear()  # a request that is cut off on a kept connection is repeated
    service.faults.append(begin + octets)
    with pytest.raises(ServiceError) as caught:
        node.add(f"a{len(service.seen)}", retries=0)
    assert caught.value.code in (11, 112)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"ips": []}, "ips = []: no address"),
        ({"ips": None}, "no address"),
        ({"ips": [{}]}, "ips[0].address is missing"),
        ({"ips": [{"address": "10.0.0.1"}]}, "ips[0].address"),
        ({"ips": [FIRST | {"gateway": "fd00::1"}]}, "of another IP version"),
        ({"routes": [{"dst": "x"}]}, "routes[0].dst"),
        ({"dns": []}, "dns = []: not an object"),
        ({"extra": {"vf": "0"}}, "extra.vf"),
        ({"extra": {"vlan": 4095}}, "extra.vlan = 4095"),
        ({"extra": {"mac": 1}}, "extra.mac = 1"),
        ({"container_id": "other"}, "container_id"),
        ({"pod_id": "other"}, "pod_id"),
        ({"lease": "../x"}, "lease"),
        ({"lease": "x" * 65}, "lease"),
        ({"lease": 7}, "lease"),
    ],
)
def test_allocations_that_cannot_be(
    node: Client, service: FakeService, more: dict[str, Any], words: str
) -> None:
    service.more = more
    node.fails(112, words)
    if "lease" in more:  # without a valid lease, a release cannot name the address
        assert node.owed() == ["a~eth0"]
    else:
        assert service.allocations == {}  # the address was released


def test_more_than_a_legacy_version_holds(node: Client, service: FakeService) -> None:
    service.more = {"ips": [FIRST, FIRST | {"address": "10.55.206.47/26"}]}
    node.fails(112, "no more than one address", cniVersion="0.2.0")
    node.add(cniVersion="0.3.1")


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (problem(422, "invalid", "ifname = x: too long"), 7, "ifname = x: too long"),
        (problem(401, "unauthorized"), 7, "unauthorized"),
        (Reply(401), 7, "401"),
        (problem(403, "forbidden", "not your host"), 7, "not your host"),
        (problem(404, "unknown-network"), 7, "unknown-network"),
        (problem(404, "unknown-host"), 7, "unknown-host"),
        (problem(409, "exhausted", "pool a is full"), 11, "pool a is full"),
        (problem(409, "conflict"), 110, "conflict"),
        (Reply(429), 11, "429"),
        (Reply(404, "<html>", "text/html"), 112, "404"),
    ],
)
def test_refusals_are_not_repeated(
    node: Client, service: FakeService, fault: Reply, code: int, words: str
) -> None:
    service.always = fault
    error = node.fails(code, words)
    assert service.url in error.msg
    assert service.methods() == ["POST"]
    assert node.owed() == []


@pytest.mark.parametrize(("status", "tries"), [(500, 1), (501, 1), (502, 2), (503, 2), (504, 2)])
def test_server_errors(node: Client, service: FakeService, status: int, tries: int) -> None:
    service.always = problem(status, "unavailable", "no database") if status == 503 else Reply(status)
    error = node.fails(11, str(status))
    assert service.methods().count("POST") == tries
    assert status != 503 or "no database" in error.msg


def test_service_that_comes_back(node: Client, service: FakeService) -> None:
    service.faults.extend([problem(503, "unavailable"), Reply(502), "refuse"])
    node.add(retries=3)


# --- several remotes


def test_the_next_remote_serves(node: Client, service: FakeService) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dead = url(listener)
    node.add(remote=[dead, service.url], retries=0)
    node.add("b", remote=[service.url, dead], retries=0)


def test_a_remote_that_hangs_leaves_time_for_the_next(
    node: Client, service: FakeService, serve: Serve
) -> None:
    slow = serve()
    slow.always = "hang"
    node.add(remote=[slow.url, service.url], timeout=1, retries=0)


def test_all_remotes_are_named(node: Client, service: FakeService, serve: Serve) -> None:
    stranger = serve(authority=trustme.CA())
    service.stop_listening()
    error = node.fails(11, f"{service.url} refuses connections", remote=[service.url, stranger.url])
    assert f"{stranger.url} showed a certificate" in error.details
    assert "tried 3 times" in error.details  # the first remote twice, the second one once
    assert stranger.connections == 1  # its certificate will not change
    assert node.owed() == []  # no remote can have allocated an address


# --- kept connections


def test_one_connection_serves_many(node: Client, service: FakeService) -> None:
    for name in "abc":
        node.add(name)
        node.delete(name)
    assert service.connections == 1


def test_a_stale_connection_is_replaced(node: Client, service: FakeService) -> None:
    service.faults.append("close")
    node.add("a")
    node.add("b", retries=0)
    service.drop_connections()
    node.add("c", retries=0)
    service.faults.append("refuse")  # closed between the check and the request
    node.add("d", retries=0)
    assert service.connections == 4
    assert len(service.allocations) == 4


def test_what_nobody_asked_for_is_no_reply(node: Client, service: FakeService) -> None:
    service.faults.append("repeat")
    node.add("a")
    found = node.add("b")
    assert found["ips"][0]["address"] == service.addresses()[1]


def test_threads_share_the_pool(node: Client, service: FakeService) -> None:
    names = [f"c{number}" for number in range(40)]

    def work(name: str) -> None:
        found = node.add(name)
        node.run("CHECK", name, prevResult=found)
        node.delete(name)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, names))
    assert (service.given, service.allocations) == (40, {})
    assert service.connections <= 8


def test_a_child_has_no_part_in_the_connections(node: Client, service: FakeService) -> None:
    node.add("a")
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if node.add("b") else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    node.add("c")
    assert service.connections == 2
    assert {seen.connection for seen in service.seen if seen.body["container_id"] in "ac"} == {1}


# --- queued releases


@pytest.mark.parametrize(
    "fault",
    ["hang", "lose", "cut", b"garbage\r\n\r\n", Reply(500), Reply(503), Reply(401), Reply(403), Reply(404)],
)
def test_del_with_every_fault_loses_nothing(node: Client, service: FakeService, fault: Any) -> None:
    node.add()
    service.always = fault
    node.delete(timeout=0.5)
    assert node.owed() == ["a~eth0"]
    service.always = None
    node.delete("b")  # the next verb with a successful reply sends the release
    assert (service.allocations, node.owed()) == ({}, [])


def test_del_with_untrusted_service_is_owed(node: Client, service: FakeService, tmp_path: Path) -> None:
    node.add()
    gone = str(tmp_path / "gone.pem")
    node.delete(ca=gone)
    assert node.owed() == ["a~eth0"]
    node.delete()
    assert (service.allocations, node.owed()) == ({}, [])


@pytest.mark.parametrize(
    "fault", [problem(404, "unknown-network"), problem(404, "unknown-host"), problem(422, "invalid")]
)
def test_what_the_service_will_never_take_back_is_not_owed(
    node: Client, service: FakeService, fault: Reply
) -> None:
    service.always = fault
    node.delete()
    assert node.owed() == []
    released_while_down(node, service)
    assert node.owed() == ["a~eth0"]
    assert node.flush() == 0
    assert node.owed() == []


def test_what_a_node_notes_is_for_root_alone(node: Client, service: FakeService) -> None:
    node.add()
    service.stop_listening()
    node.delete()
    (path,) = node.debts()
    assert path.stat().st_mode & 0o777 == 0o600
    directories = [each for each in node.state.parent.rglob("*") if each.is_dir()]
    assert {each.name for each in directories} == {"run", "leases", "state", "hosts", "pending", "net1"}
    assert {each.stat().st_mode & 0o777 for each in directories} == {0o700}
    assert json.loads(path.read_text())["owner"]["container_id"] == "a"
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_what_is_owed_reaches_the_disk(
    node: Client, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    service.stop_listening()
    node.delete()
    assert synced[:3] == [str(node.state.parent), str(node.state), str(node.state / "pending")]
    assert synced[3].startswith(str(node.state / "pending/net1/."))
    assert synced[4] == str(node.state / "pending/net1")


def test_an_add_pays_before_it_asks(node: Client, service: FakeService) -> None:
    """An ADD first sends the queued release of its container, even for another pod.

    Otherwise the service would refuse the other pod, since the address still counts as in use.
    """
    node.add()
    released_while_down(node, service)
    service.faults.append(Reply(500))
    node.fails(11, "(500)")
    assert node.owed() == ["a~eth0"]
    assert service.methods() == ["POST", "DELETE"]
    node.add(args="PodID=another;HostIP=10.55.206.20")
    assert service.methods() == ["POST", "DELETE", "DELETE", "POST"]
    assert node.owed() == []
    assert node.flush() == 0
    assert len(service.allocations) == 1


def test_an_add_waits_for_who_is_paying(node: Client, service: FakeService) -> None:
    node.add()
    released_while_down(node, service)
    (path,) = node.debts()
    with outbox.OutboxEntry(path):
        node.fails(11, "is in use", timeout=0.3)
        assert node.flush() == 1  # skips an entry that is locked
    thread = threading.Thread(target=lambda: node.add(timeout=5))
    with outbox.OutboxEntry(path) as entry:
        thread.start()
        time.sleep(0.1)
        assert service.methods() == ["POST"]
        entry.send("DEL", 5.0)
    thread.join()
    assert service.methods() == ["POST", "DELETE", "POST"]
    assert len(service.allocations) == 1


def test_what_comes_after_the_end_is_given_back(
    node: Client, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address is released if the first request of an ADD arrives after the DEL."""
    monkeypatch.setattr(outbox, "IN_FLIGHT", 0.6)
    pool.clear()
    service.faults.append("refuse")
    node.add()
    assert (node.owed(), node.flush()) == ([], 0)  # its owner is attached
    node.delete()
    assert node.flush() == 1
    service.act(service.seen[0])
    assert len(service.allocations) == 1
    time.sleep(0.6)
    assert (node.flush(), service.allocations) == (0, {})


def test_who_lives_on_keeps_the_address(
    node: Client, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "IN_FLIGHT", 0.1)
    pool.clear()
    service.faults.append("refuse")
    assert node.add() == node.add()
    time.sleep(0.1)
    assert node.flush() == 0
    assert list(node.debts()) == []
    assert len(service.allocations) == 1


def test_a_del_that_fails_forgets_nothing(node: Client, service: FakeService) -> None:
    """A DEL that fails keeps the due time of the release that a failed ADD has queued."""
    service.faults.extend(["lose", "lose"])
    node.fails(11, "closed the connection")
    released_while_down(node, service)
    assert node.flush() == 1
    assert node.owed() == ["a~eth0"]


def test_a_new_ca_leaves_other_connections_alone(node: Client, service: FakeService, tmp_path: Path) -> None:
    node.add("a")
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "same.pem"))
    node.add("b", ca=str(tmp_path / "same.pem"))
    node.add("c")
    assert service.connections == 2


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("remembered", [True, False])
def test_a_late_release_takes_no_new_address(
    node: Client, service: FakeService, retries: int, remembered: bool
) -> None:
    """A late DEL request does not release the address of the next ADD, which has another lease."""
    node.add()
    if not remembered:
        shutil.rmtree(node.runtime)
    pool.clear()  # on a kept connection that closes, the request counts as unread
    service.faults.extend(["refuse"] if remembered else [None, "refuse", "refuse"])
    node.delete(retries=retries)
    assert node.owed() == ([] if retries else ["a~eth0"])
    node.add()
    assert node.owed() == []
    before = dict(service.allocations)
    for late in [seen for seen in service.seen if seen.method == "DELETE"]:
        service.act(late)
    assert service.allocations == before
    assert len(before) == 1


def test_a_debt_elsewhere_is_void_when_its_address_is_in_use_again(
    node: Client, service: FakeService
) -> None:
    """A queued release is dropped when its owner gets the same lease again from another remote.

    Both remotes lead to one service, and the configuration has lost the first one.
    """
    node.add()
    service.stop_listening()
    replica = service.url.replace("127.0.0.1", "localhost")
    node.delete(remote=replica)
    assert node.owed() == ["a~eth0"]
    service.listen_again()
    assert node.add() == node.add()
    assert node.owed() == []
    assert node.flush() == 0
    assert len(service.allocations) == 1


def test_another_interface_owes_for_itself(node: Client, service: FakeService) -> None:
    service.stop_listening()
    node.plugin().replace(ifname="eth0~x").run("DEL", 10.0)
    node.plugin("a").replace(ifname="eth1").run("DEL", 10.0)
    service.listen_again()
    node.add()
    assert node.owed() == ["a~eth0~x", "a~eth1"]


def test_a_debt_elsewhere_keeps_nobody(node: Client, service: FakeService) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        elsewhere = url(listener)
    node.delete(remote=elsewhere)
    node.add()
    node.delete()
    assert node.owed() == ["a~eth0"]


def test_a_dead_service_is_asked_once(node: Client, service: FakeService, serve: Serve) -> None:
    other = serve()
    other.always = "refuse"
    for name in ("a", "b", "c"):
        node.delete(name, remote=other.url, retries=0)
    before = other.connections
    released_while_down(node, service, container="d")
    assert node.flush() == 3
    assert other.connections == before + 1
    assert service.methods() == ["GET"]


@pytest.mark.parametrize(
    ("verb", "more"),
    [("GC", {"name": "net2", "cni.dev/valid-attachments": []}), ("STATUS", {})],
)
def test_another_verb_pays(node: Client, service: FakeService, verb: str, more: dict[str, Any]) -> None:
    node.add()
    released_while_down(node, service)
    node.run(verb, "", **more)
    assert (service.allocations, node.owed()) == ({}, [])


def test_records_that_cannot_be_read(
    node: Client, service: FakeService, capfd: pytest.CaptureFixture[str]
) -> None:
    released_while_down(node, service)
    (path,) = node.debts()
    path.write_text('{"owner": {}')
    node.add()
    path.write_text("[]")
    assert node.flush("warning") == 0
    assert f"file={path}" in capfd.readouterr().err
    assert node.owed() == []
    assert Client(node.state).flush() == 0  # the directory does not exist


def test_a_state_directory_that_cannot_be_written_to(
    node: Client, service: FakeService, capfd: pytest.CaptureFixture[str]
) -> None:
    """An ADD warns; a DEL during an outage fails, since no queued release would return the address."""
    node.state.write_text("no directory")
    node.add()
    assert "HostIP cannot be remembered" in capfd.readouterr().err
    service.stop_listening()
    error = node.fails(11, "refuses connections", verb="DEL")
    assert "cannot be noted for later" in error.details


def test_nothing_is_kept_open(node: Client, service: FakeService) -> None:
    """No connection stays open after a fault or after ``pool.clear``."""
    pool.clear()
    before = len(os.listdir("/proc/self/fd"))
    for number, fault in enumerate(("cut", "lose", b"garbage\r\n\r\n", Reply(500), "repeat")):
        service.faults.append(fault)
        with suppress(ServiceError):
            node.add(str(number), retries=0)
    service.stop_listening()
    pool.clear()
    service.open.clear()
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before, "a descriptor stays open")


def test_a_debt_that_cannot_be_read_stays(
    node: Client, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    released_while_down(node, service)
    opening = open

    def no_descriptors(path: str, *words: Any, **more: Any) -> Any:
        if str(path).startswith(f"{node.state}/pending"):
            raise OSError(24, "Too many open files")
        return opening(path, *words, **more)

    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", no_descriptors)
        assert node.flush() == 1
        assert node.fails(5, "Too many open files").errno == 24
    assert node.owed() == ["a~eth0"]
