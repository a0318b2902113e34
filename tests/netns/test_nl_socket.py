"""Both netlink backends against the kernel, in network namespaces of the test, with veth pairs."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.descriptors import open_files
from harness.pod import ip, read
from harness.server import injecting, needs_strace
from sriov_fast.common.errors import NetlinkError
from sriov_fast.common.record import Link, Route, VfSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType


def my_netns() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


class Netns:
    """A named network namespace, with an open descriptor."""

    def __init__(self) -> None:
        self.name = f"sft-{uuid.uuid4().hex[:8]}"
        ip("netns", "add", self.name)
        self.fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.fd)
        ip("netns", "del", self.name)


@pytest.fixture
def netns() -> Iterator[Netns]:
    """The pod's namespace."""
    one = Netns()
    yield one
    one.close()


@pytest.fixture
def host() -> Iterator[Netns]:
    """A namespace in place of the host's, so that a test leaves nothing in the host."""
    one = Netns()
    ip("-n", one.name, "link", "set", "lo", "up")
    yield one
    one.close()


@pytest.fixture(autouse=True)
def stays_home() -> Iterator[None]:
    before = my_netns()
    yield
    assert my_netns() == before


def run(nl: ModuleType, where: Netns, *steps: Callable[[Any], None], check: bool = True) -> list[Any]:
    batch = nl.Batch()
    for step in steps:
        step(batch)
    with nl.Socket(where.fd) as sock:
        results: list[Any] = sock.run(batch, check=check)
    return results


def index_of(nl: ModuleType, where: Netns, name: str) -> int:
    (link,) = run(nl, where, lambda b: b.get_link(name=name))
    index: int = link.index
    return index


@pytest.fixture
def pod(nl: ModuleType, netns: Netns) -> int:
    """The index of a device with carrier in the pod's namespace; its peer is in the same namespace."""
    lines = "link add eth0 type veth peer name peer0\nlink set eth0 up\nlink set peer0 up\n"
    ip("-n", netns.name, "-batch", "-", stdin=lines)
    return index_of(nl, netns, "eth0")


def test_a_link_by_name_and_by_index(nl: ModuleType, host: Netns) -> None:
    ip("-n", host.name, "link", "add", "vf0", "type", "veth", "peer", "name", "peer0")
    ip("-n", host.name, "link", "set", "vf0", "address", "02:00:00:00:00:0a", "mtu", "1400", "up")
    by_name, lo = run(nl, host, lambda b: b.get_link(name="vf0"), lambda b: b.get_link(index=1))
    assert by_name == Link(
        index=by_name.index,
        name="vf0",
        mac="02:00:00:00:00:0a",
        mtu=1400,
        up=True,
        lower=index_of(nl, host, "peer0"),
        settings=by_name.settings,
        kind="veth",
        disable_ipv6=False,
    )
    assert by_name.settings.txqlen == 1000
    assert (lo.name, lo.up, lo.carrier, lo.mtu) == ("lo", True, True, 65536)
    assert run(nl, host, lambda b: b.get_link(index=by_name.index)) == [by_name]


def test_hundreds_of_links_come_in_several_datagrams(nl: ModuleType, host: Netns) -> None:
    lines = "".join(f"link add v{i} type veth peer name w{i}\n" for i in range(100))
    ip("-n", host.name, "-batch", "-", stdin=lines)
    with nl.Socket(host.fd) as sock:
        links = sock.links()
    assert sorted(link.name for link in links) == sorted(
        ["lo"] + [f"{c}{i}" for c in "vw" for i in range(100)]
    )


def test_addresses(nl: ModuleType, netns: Netns, pod: int) -> None:
    given = ["10.1.0.2/24", "10.2.0.2/31", "10.3.0.2/32", "fd00::2/64", "fd01::2/128"]
    run(nl, netns, *(lambda b, cidr=cidr: b.add_address(pod, cidr) for cidr in given))
    with nl.Socket(netns.fd) as sock:
        found = sock.addresses(pod)
        assert sock.addresses(1) == []
        whole = {link.index: known for link in sock.links() if (known := sock.addresses(link.index))}
        assert sock.addresses_by_index() == whole
    assert [cidr for cidr in found if not cidr.startswith("fe80")] == [*given[:3], *found[3:5]]
    assert set(given) <= set(found)
    shown = ip("-n", netns.name, "address", "show", "dev", "eth0")
    assert "inet 10.1.0.2/24 brd 10.1.0.255" in shown
    assert "inet 10.2.0.2/31 scope" in shown
    assert "inet 10.3.0.2/32 scope" in shown
    assert "fd00::2/64 scope global nodad" in shown


def test_a_second_gateway_is_no_error_and_the_same_route_is(nl: ModuleType, netns: Netns, pod: int) -> None:
    ways = [("10.9.0.0/16", "10.1.0.1"), ("10.9.0.0/16", "10.1.0.3")]
    ways += [("fd09::/48", "fd00::1"), ("fd09::/48", "fd00::3"), ways[1]]
    routes = [Route(dst=dst, gw=gw) for dst, gw in ways]
    *fine, again = run(
        nl,
        netns,
        lambda b: b.add_address(pod, "10.1.0.2/24"),
        lambda b: b.add_address(pod, "fd00::2/64"),
        *(lambda b, route=route: b.add_route(pod, route) for route in routes),
        check=False,
    )
    assert fine == [None] * 6
    assert again.errno == errno.EEXIST
    with nl.Socket(netns.fd) as sock:
        gateways = {route.gw for route in sock.routes(pod) if route.dst in ("10.9.0.0/16", "fd09::/48")}
    assert gateways == {"10.1.0.1", "10.1.0.3", "fd00::1", "fd00::3"}


def test_errors_carry_the_kernels_words_and_stand_in_their_places(
    nl: ModuleType, netns: Netns, pod: int
) -> None:
    steps: list[Callable[[Any], None]] = [
        lambda b: b.add_address(pod, "10.1.0.2/24"),
        lambda b: b.add_route(pod, Route(dst="10.5.0.0/16", gw="9.9.9.9")),
        lambda b: b.add_address(pod, "10.1.0.2/24"),
        lambda b: b.set_link(pod, mtu=1_000_000),
        lambda b: b.set_vf(pod, 3, VfSettings(vlan=5)),
        lambda b: b.get_link(index=pod),
    ]
    done, route, address, mtu, vf, link = run(nl, netns, *steps, check=False)
    assert done is None
    assert link.name == "eth0"
    unreachable = (1, errno.ENETUNREACH, "Nexthop has invalid gateway")
    assert (route.position, route.errno, route.extack) == unreachable
    assert (address.position, address.errno) == (2, errno.EEXIST)
    assert (mtu.position, mtu.errno, mtu.extack) == (3, errno.EINVAL, "mtu greater than device maximum")
    refused = (4, errno.EOPNOTSUPP, 3, f"set vf 3 of ifindex {pod}")
    assert (vf.position, vf.errno, vf.vf, vf.operation) == refused
    with pytest.raises(NetlinkError) as caught:
        run(nl, netns, *steps)
    assert caught.value.position == 0  # the address exists now
    assert [type(item) for item in caught.value.results] == [NetlinkError] * 5 + [Link]


def test_a_batch_and_a_socket_can_be_used_again(nl: ModuleType, netns: Netns, pod: int) -> None:
    batch = nl.Batch()
    batch.get_link(index=pod)
    before = batch.tobytes()
    with nl.Socket(netns.fd) as sock:
        first, second = sock.run(batch), sock.run(batch)
    assert first == second
    assert batch.tobytes() == before


def test_an_unknown_device(nl: ModuleType, netns: Netns) -> None:
    with nl.Socket(netns.fd) as sock:
        for ask in (sock.addresses, sock.routes):
            with pytest.raises(NetlinkError, match="of ifindex 4711: No such device"):
                ask(4711)


def test_a_socket_stays_in_its_namespace(nl: ModuleType, netns: Netns, pod: int) -> None:
    with nl.Socket(netns.fd) as sock, ThreadPoolExecutor(1) as pool:
        links = pool.submit(sock.links).result()
    assert {link.name for link in links} == {"lo", "peer0", "eth0"}


def test_close(nl: ModuleType) -> None:
    sock = nl.Socket()
    fd = sock.fileno()
    assert os.get_inheritable(fd) is False
    sock.close()
    sock.close()
    assert sock.fileno() == -1
    batch = nl.Batch()
    batch.get_link(index=1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        sock.run(batch)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


# --- namespaces and threads ---------------------------------------------------------------------------


def test_raw_socket(nl: ModuleType, netns: Netns, pod: int) -> None:
    fd = nl.raw_socket(netns.fd, socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    with socket.socket(fileno=fd) as sock:
        assert not sock.get_inheritable()
        sock.bind(("eth0", 0x0806))
        assert sock.getsockname()[0] == "eth0"
    fd = nl.raw_socket(-1, socket.AF_INET, socket.SOCK_DGRAM, 0)
    os.close(fd)


def test_netns_write_and_read_from_threads(nl: ModuleType, netns: Netns, host: Netns) -> None:
    """/proc/sys/net shows the namespace of the thread that opens it, not of the process."""
    path = "/proc/sys/net/ipv4/ip_default_ttl"
    homes = set()

    def work(where: Netns, value: str) -> None:
        for _ in range(200):
            nl.netns_write(where.fd, path, value)
            homes.add(my_netns())

    before = Path(path).read_text()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, (netns, host, netns, host), ("11", "22", "11", "22")))
    assert homes == {my_netns()}
    for where, value in ((netns, "11"), (host, "22")):
        assert read(where.name, path) == nl.netns_read(where.fd, path) == value
    assert Path(path).read_text() == before


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/proc/sys/net/no/such", errno.ENOENT),
        ("/proc/sys/net/ipv4", errno.EISDIR),
        ("/proc/sys/net/ipv4/ip_default_ttl", errno.EINVAL),
    ],
)
def test_netns_write_keeps_errno_and_path(nl: ModuleType, netns: Netns, path: str, number: int) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        nl.netns_write(netns.fd, path, "no number")
    assert (caught.value.errno, caught.value.filename) == (number, path)
    if number != errno.EINVAL:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            nl.netns_read(netns.fd, path)
        assert (caught.value.errno, caught.value.filename) == (number, path)


@pytest.mark.parametrize("path", ["/etc/hosts", "/proc/sys/net/../kernel/hostname", "/proc/sys/net/a\0b"])
def test_netns_write_writes_nothing_else(nl: ModuleType, path: str) -> None:
    with pytest.raises(ValueError, match="not below /proc/sys/net"):
        nl.netns_write(-1, path, "1")
    with pytest.raises(ValueError, match="not below /proc/sys/net"):
        nl.netns_read(-1, path)


OPENERS: dict[str, Callable[[Any, int], object]] = {
    "Socket": lambda nl, fd: nl.Socket(fd),
    "raw_socket": lambda nl, fd: nl.raw_socket(fd, socket.AF_INET, socket.SOCK_DGRAM, 0),
    "netns_read": lambda nl, fd: nl.netns_read(fd, "/proc/sys/net/ipv4/ip_forward"),
    "netns_write": lambda nl, fd: nl.netns_write(fd, "/proc/sys/net/ipv4/ip_forward", "1"),
}


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_no_descriptor_and_no_namespace(nl: ModuleType, opener: Callable[[Any, int], object]) -> None:
    before = open_files()
    with open("/dev/null") as null:
        for fd, number in ((null.fileno(), errno.EINVAL), (987654, errno.EBADF)):
            with pytest.raises(OSError) as caught:  # noqa: PT011
                opener(nl, fd)
            assert caught.value.errno == number
    with pytest.raises(ValueError, match="netns_fd -2"):
        opener(nl, -2)
    assert open_files() == before


def test_a_socket_that_cannot_be_made_leaves_the_thread_home(nl: ModuleType, netns: Netns) -> None:
    before = open_files()
    with pytest.raises(OSError, match="Invalid argument"):
        nl.raw_socket(netns.fd, socket.AF_INET, 77, 0)
    with pytest.raises(OSError, match="not supported"):
        nl.raw_socket(netns.fd, 4711, socket.SOCK_DGRAM, 0)
    assert open_files() == before


# --- with strace: the number of system calls, and injected faults of the kernel -----------------------


IMPORTS = """
import os, sys, importlib
nl = importlib.import_module(sys.argv[1])
from sriov_fast.common.errors import NetlinkError
from sriov_fast.common.record import Route
fd = os.open(sys.argv[2], os.O_RDONLY)
"""
Traced = Callable[..., tuple[int, str, str]]


@pytest.fixture
def traced(nl: ModuleType, netns: Netns, tmp_path: Path) -> Traced:
    """A function that runs a Python program under strace; it returns status, output and trace."""

    def run(program: str, *options: str) -> tuple[int, str, str]:
        log = tmp_path / "trace"
        args = (sys.executable, "-c", IMPORTS + program, nl.__name__, f"/run/netns/{netns.name}")
        command = ["strace", "-f", "-o", str(log), *options, *args]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=120, check=False
        )
        return done.returncode, done.stdout + done.stderr, log.read_text()

    return run


@needs_strace
def test_one_send_for_a_batch(traced: Traced, pod: int) -> None:
    program = f"""
sock = nl.Socket(fd)
batch = nl.Batch()
batch.set_link({pod}, mtu=1400, up=True)
batch.add_address({pod}, "10.1.0.2/24")
batch.add_route({pod}, Route(dst="0.0.0.0/0", gw="10.1.0.1"))
batch.get_link(index={pod})
print(sock.run(batch)[3].mtu)
"""
    status, said, trace = traced(program, "-e", "trace=sendto,sendmsg,write")
    assert (status, said) == (0, "1400\n")
    assert len(re.findall(r"\bsend(?:to|msg|mmsg)\(", trace)) == 1


@needs_strace
@pytest.mark.parametrize("opener", ["nl.Socket(fd)", "nl.raw_socket(fd, 2, 2, 0)",
                                    "nl.netns_write(fd, '/proc/sys/net/ipv4/ip_forward', '1')"])  # fmt: skip
def test_a_thread_that_cannot_return_ends_the_process(traced: Traced, opener: str) -> None:
    program = f"""
try:
    {opener}
except BaseException:
    pass
print("still here")
"""
    status, said, _ = traced(program, *injecting("setns", "error=EPERM:when=2+"))
    assert status == -signal.SIGABRT or status == 128 + signal.SIGABRT
    assert "cannot return from a network namespace" in said
    assert "still here" not in said


OPENED = """
import errno, gc
def here():
    return os.stat("/proc/thread-self/ns/net").st_ino, len(os.listdir("/proc/self/fd"))
before = here()
try:
    nl.Socket(fd)
    print("opened")
except OSError as error:
    print(errno.errorcode[error.errno])
gc.collect()
assert here() == before
"""
ASKED = """
sock = nl.Socket(fd)
batch = nl.Batch()
batch.set_link(1, up=True)
batch.get_link(index=1)
try:
    sock.run(batch)
except NetlinkError as error:
    print(error, error.errno)
print(sock.run(batch)[1].name)
"""
NO_ANSWER = f"get link ifindex 1: no answer in 30 seconds: Connection timed out {errno.ETIMEDOUT}\nlo"


@needs_strace
@pytest.mark.parametrize(
    ("program", "faults", "wanted"),
    [
        (OPENED, ["socket:error=EMFILE:when=1"], "EMFILE"),
        (OPENED, ["bind:error=EADDRINUSE:when=1"], "EADDRINUSE"),
        (OPENED, ["setns:error=EPERM:when=1"], "EPERM"),
        (OPENED, ["setns:error=ENOMEM:when=2..4"], "opened"),  # the thread repeats the return
        (ASKED, ["recvfrom:error=EAGAIN:when=3"], NO_ANSWER),
        (ASKED, ["recvfrom:error=EINTR:when=1", "sendto:error=EINTR:when=1"], "lo"),
    ],
)
def test_a_fault_of_the_kernel(traced: Traced, program: str, faults: list[str], wanted: str) -> None:
    """After a fault the thread is in its own namespace, and no descriptor is left open."""
    options = ["-e", "trace=" + ",".join(fault.partition(":")[0] for fault in faults)]
    options += [word for fault in faults for word in ("-e", f"inject={fault}")]
    status, said, _ = traced(program, *options)
    assert (status, said) == (0, f"{wanted}\n")
