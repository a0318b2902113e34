"""The built-in host-local: ranges, order, requests, results, and the store, also after a kill."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.descriptors import open_files
from sriov_fast.common.errors import (
    BusyError,
    CheckError,
    ConfigError,
    IpamError,
    SriovError,
    UnavailableError,
)
from sriov_fast.ipam.host_local import ranges, store
from sriov_fast.ipam.host_local.plugin import HostLocal
from sriov_fast.ipam.keys import Keys, parse_ip, show_ip
from sriov_fast.ipam.kinds import builtin

SUBNET = "10.1.2.0/29"  # .2 to .6; .1 is the gateway
LEGACY = {"subnet": SUBNET}


class Net:
    """A network with a store of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = root / "nets/n"

    def conf(self, ipam: dict[str, Any], version: str = "1.1.0", **more: Any) -> dict[str, Any]:
        ipam = {"type": "host-local", "dataDir": str(self.root / "nets")} | ipam
        return {"cniVersion": version, "name": "n", "type": "sriov", "ipam": ipam} | more

    def ipam(self, pod: str, conf: dict[str, Any], args: str = "", ifname: str = "eth0") -> HostLocal:
        return HostLocal(keys=Keys(conf), container_id=pod, ifname=ifname, args=args)

    def add(self, pod: str, ipam: dict[str, Any] = LEGACY, cni_args: str = "", **more: Any) -> list[str]:
        found = self.ipam(pod, self.conf(ipam, **more), cni_args).run("ADD", 1.0)
        assert found
        return [item["address"] for item in found["ips"]]

    def delete(self, pod: str, ipam: dict[str, Any] = LEGACY) -> None:
        assert self.ipam(pod, self.conf(ipam)).run("DEL", 1.0) is None

    def fails(self, pod: str, ipam: dict[str, Any] = LEGACY, cni_args: str = "", **more: Any) -> SriovError:
        before = self.files()
        with pytest.raises(SriovError) as caught:
            self.add(pod, ipam, cni_args, **more)
        assert self.files() == before
        assert caught.value.details
        return caught.value

    def files(self) -> dict[str, str]:
        """Return the content of every file of the store, except those of the lock and the last addresses."""
        if not self.store.exists():
            return {}
        others = ("lock", "last_reserved_ip.")
        found = (path for path in self.store.iterdir() if not path.name.startswith(others))
        return {path.name: path.read_bytes().decode() for path in found}

    def put(self, address: str, content: str) -> None:
        """Write a file of the store as another process would."""
        self.store.mkdir(parents=True, exist_ok=True)
        (self.store / address).write_text(content, newline="")


@pytest.fixture
def net(tmp_path: Path) -> Net:
    return Net(tmp_path)


# --- addresses as numbers


@given(st.one_of(st.integers(0, 2**128 - 1), st.integers(0, 2**40), st.integers(0xFFFE << 32, 0x10000 << 32)))
def test_ipv6_texts(value: int) -> None:
    text = show_ip((128, value))
    if value >> 32 == 0xFFFF:
        assert parse_ip(text) == (32, value & 0xFFFFFFFF)
    else:
        assert parse_ip(text) == (128, value)
        assert "." not in text  # Go writes no dots, and file names have Go's form


@pytest.mark.parametrize(
    "text", ["", "10.0.0", "10.0.0.01", "10.0.0.1 ", "a", "::1%eth0", "10.0.0.1\0", "\udcff"]
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (callers write the message)
        parse_ip(text)


# --- ranges


def read(ipam: dict[str, Any], **more: Any) -> list[str]:
    found = ranges.read(Keys({"ipam": ipam} | more, ""))
    return [f"{ranges.show(item)} gw {show_ip((item[0].bits, item[0].gateway))}" for item in found]


def test_the_runtimes_ranges_come_first() -> None:
    runtime = {"ipRanges": [[{"subnet": "10.7.0.0/24"}]]}
    found = read({"subnet": "10.8.0.0/24", "ranges": [[{"subnet": "10.9.0.0/24"}]]}, runtimeConfig=runtime)
    assert [text[:4] for text in found] == ["10.7", "10.8", "10.9"]


@pytest.mark.parametrize(
    ("ipam", "words"),
    [
        ({}, "ipam.ranges is missing"),
        ({"ranges": []}, "ipam.ranges is missing"),
        ({"ranges": {}}, "ipam.ranges = {}: not a list"),
        ({"ranges": [[]]}, "ipam.ranges[0] = []: not a list of ranges"),
        ({"ranges": [{"subnet": SUBNET}]}, "ipam.ranges[0] = "),
        ({"ranges": [[3]]}, "ipam.ranges[0][0] = 3: not an object"),
        ({"ranges": [[{}]]}, "ipam.ranges[0][0].subnet is missing"),
        ({"subnet": 5}, "ipam.subnet = 5: not a string"),
        ({"subnet": ""}, "ipam.ranges is missing"),
        ({"subnet": "10.1.2.0"}, 'ipam.subnet = "10.1.2.0": not an address with a prefix length'),
        ({"subnet": "10.1.2.0/33"}, "not an address with a prefix length"),
        ({"subnet": "10.1.2.0/-1"}, "not an address with a prefix length"),
        ({"subnet": "::ffff:10.1.2.0/120"}, "not an address with a prefix length"),
        ({"subnet": "10.1.2.0/31"}, 'ipam.subnet = "10.1.2.0/31": too small'),
        ({"subnet": "fd00::/127"}, "too small"),
        ({"subnet": "10.1.2.3/24"}, 'ipam.subnet = "10.1.2.3/24": has host bits set'),
        ({"subnet": SUBNET, "gateway": "x"}, 'ipam.gateway = "x": not an IP address'),
        ({"subnet": SUBNET, "gateway": "fd00::1"}, 'ipam.gateway = "fd00::1": of another IP version'),
        ({"subnet": SUBNET, "rangeStart": "10.1.3.1"}, 'ipam.rangeStart = "10.1.3.1": not in 10.1.2.0/29'),
        ({"subnet": SUBNET, "rangeEnd": "fd00::1"}, 'ipam.rangeEnd = "fd00::1": not in 10.1.2.0/29'),
        ({"subnet": SUBNET, "rangeStart": "10.1.2.5", "rangeEnd": "10.1.2.4"}, "runs backwards"),
        ({"subnet": SUBNET, "rangeStart": "10.1.2.7"}, "runs backwards"),  # above the last, .6
        ({"subnet": SUBNET, "rangeEnd": "10.1.2.0"}, "runs backwards"),
        ({"ranges": [[{"subnet": SUBNET}, {"subnet": "fd00::/64"}]]}, "IPv4 and IPv6 in one set"),
        ({"ranges": [[{"subnet": SUBNET}], [{"subnet": "10.1.0.0/16"}]]}, "overlap"),
        ({"ranges": [[{"subnet": "10.1.0.0/16"}, {"subnet": SUBNET}]]}, "overlap"),
    ],
)
def test_bad_ranges(net: Net, ipam: dict[str, Any], words: str) -> None:
    error = net.fails("a", ipam)
    assert isinstance(error, ConfigError)
    assert words in error.msg
    assert not net.store.exists()  # the configuration is verified before any change


@pytest.mark.parametrize(
    ("ipam", "more", "words"),
    [
        ({"dataDir": 1}, {}, "ipam.dataDir = 1"),
        ({"resolvConf": "/nowhere/resolv.conf"}, {}, "ipam.resolvConf = '/nowhere/resolv.conf'"),
        ({"routes": [{}]}, {}, "ipam.routes[0].dst is missing"),
        ({"routes": [{"dst": "x"}]}, {}, 'ipam.routes[0].dst = "x"'),
        (
            {"routes": [{"dst": "::/0", "gw": "10.1.2.1"}]},
            {},
            'ipam.routes[0].gw = "10.1.2.1": of another IP',
        ),
        ({"routes": [{"dst": "::/0", "mtu": "9"}]}, {}, 'ipam.routes[0].mtu = "9"'),
        ({}, {"name": "../x"}, 'name = "../x"'),
        ({}, {"name": ""}, 'name = ""'),
        ({}, {"args": {"cni": {"ips": ["x"]}}}, 'args.cni.ips[0] = "x"'),
        ({}, {"args": {"cni": {"ips": [""]}}}, 'args.cni.ips[0] = ""'),
        ({}, {"args": 1}, "args = 1: not an object"),
        ({}, {"runtimeConfig": {"ips": "10.1.2.3"}}, 'runtimeConfig.ips = "10.1.2.3": not a list'),
    ],
)
def test_other_bad_values(net: Net, ipam: dict[str, Any], more: dict[str, Any], words: str) -> None:
    error = net.fails("a", LEGACY | ipam, **more)
    assert words in error.msg
    assert error.code in (7, 102)


# --- the order


def test_where_the_round_robin_stands(net: Net) -> None:
    """The file has the last address and nothing else, since the reference plugin reads the whole file."""
    ipam = {"subnet": "10.1.0.0/16"}
    for last, wanted in (("10.1.0.9", "10.1.0.10"), ("10.1.99.255", "10.1.100.0"), ("x" * 30, "10.1.0.2")):
        net.put("last_reserved_ip.0", last)
        assert net.add(f"p{wanted}", ipam) == [f"{wanted}/16"]
        assert (net.store / "last_reserved_ip.0").read_text() == wanted


# --- results


DUAL = {"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00::/64", "gateway": "fd00::9"}]]}


def test_resolv_conf(net: Net, tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# comment\n;nameserver 9.9.9.9\n\nnameserver 10.0.0.1\n nameserver\tfd00::1 \nnameserver\n"
        "domain a.example\ndomain b.example\nsearch a b\nsearch c\noptions ndots:5\nsortlist x\n"
    )
    found = net.ipam("a", net.conf(LEGACY | {"resolvConf": str(file)})).run("ADD")
    assert found
    assert found["dns"] == {
        "nameservers": ["10.0.0.1", "fd00::1"],
        "domain": "b.example",
        "search": ["a", "b", "c"],
        "options": ["ndots:5"],
    }


# --- requests


@pytest.mark.parametrize(
    ("args", "more"),
    [
        ("IP=10.1.2.5", {}),
        ("IgnoreUnknown=1;ip=10.1.2.5/24;K8S_POD_NAME=x", {}),
        ("", {"args": {"cni": {"ips": ["10.1.2.5"]}}}),
        ("", {"runtimeConfig": {"ips": ["10.1.2.5/29"]}}),
        ("IP=10.1.2.5", {"runtimeConfig": {"ips": ["::ffff:10.1.2.5"]}}),  # the same address twice
        ("IP=", {"args": {"cni": {"ips": ["10.1.2.5"]}}, "runtimeConfig": None}),
    ],
)
def test_a_requested_address(net: Net, args: str, more: dict[str, Any]) -> None:
    assert net.add("a", LEGACY, args, **more) == ["10.1.2.5/29"]
    assert (net.store / "last_reserved_ip.0").read_text() == "10.1.2.5"
    assert net.fails("b", LEGACY, args, **more).code == BusyError.code
    assert net.add("b") == ["10.1.2.6/29"]


def test_requests_in_several_sets(net: Net) -> None:
    wishes = {"runtimeConfig": {"ips": ["fd00::77", "10.1.2.9"]}}
    assert net.add("a", DUAL, **wishes) == ["10.1.2.9/24", "fd00::77/64"]
    assert net.add("b", DUAL, "IP=fd00::99") == ["10.1.2.10/24", "fd00::99/64"]


@pytest.mark.parametrize("wishes", [["10.9.9.9"], ["10.1.2.1"], ["10.1.2.7"], ["10.1.2.3", "10.1.2.4"]])
def test_requests_that_cannot_be_met(net: Net, wishes: list[str]) -> None:
    net.add("other")
    error = net.fails("a", runtimeConfig={"ips": wishes})
    assert isinstance(error, ConfigError)
    assert wishes[-1] in error.msg


def test_a_second_address_must_be_asked_for(net: Net) -> None:
    net.add("a")
    assert net.fails("a").code == BusyError.code
    assert net.add("a", LEGACY, "IP=10.1.2.5") == ["10.1.2.5/29"]
    assert net.ipam("a", net.conf(LEGACY), ifname="eth1").run("ADD")
    net.delete("a")
    assert net.files() == {"10.1.2.6": "a\r\neth1"}


def test_one_set_full_takes_nothing_of_the_other(net: Net) -> None:
    dual = {"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00::/126", "rangeEnd": "fd00::2"}]]}
    assert net.add("a", dual) == ["10.1.2.2/24", "fd00::2/126"]
    error = net.fails("b", dual)
    assert (error.code, "range set 1" in error.msg) == (11, True)


# --- DEL, CHECK, STATUS, GC


def test_verbs_without_a_store_make_none(net: Net) -> None:
    net.delete("a")
    net.ipam("", gc_conf(net)).run("GC")
    assert not net.store.exists()
    net.add("b")
    net.delete("a")
    net.delete("b")
    net.delete("b")
    assert net.files() == {}


def test_del_needs_no_good_ranges(net: Net) -> None:
    net.add("a")
    net.delete("a", {"ranges": "what"})
    assert net.files() == {}


def test_addresses_of_others_are_found(net: Net) -> None:
    """Addresses that another host-local plugin gave are found, in each form of its files."""
    net.put("10.1.2.4", "a\r\neth0")
    net.put("10.1.2.5", " a\r\neth0\n")
    net.put("10.1.2.6", "a\r\neth1")
    net.put("10.1.2.7", "b")
    net.ipam("a", net.conf(LEGACY)).run("CHECK")
    net.delete("a")
    assert set(net.files()) == {"10.1.2.6", "10.1.2.7"}
    net.ipam("b", net.conf(LEGACY)).run("CHECK")
    net.delete("b")  # an old file, without the interface name
    assert set(net.files()) == {"10.1.2.6"}


def test_a_second_address_is_refused_whoever_gave_the_first(net: Net) -> None:
    net.add("z")
    net.put("10.1.2.6", "a\r\neth0")
    assert net.fails("a").code == BusyError.code
    (net.store / "10.1.2.6").unlink()
    assert net.add("a") == ["10.1.2.3/29"]
    net.put("10.1.2.6", "b")
    assert net.fails("b").code == BusyError.code


def reads(net: Net, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the name of every file of the store that is opened for reading from now on."""
    found: list[str] = []
    opened = os.open

    def noted(path: str, flags: int, *args: Any, **more: Any) -> int:
        directory, name = os.path.split(path)
        if directory == str(net.store) and not flags & (os.O_WRONLY | os.O_CREAT):
            found.append(name)
        return opened(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", noted)
    return found


def test_recorded_addresses_are_read_first(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """CHECK and DEL read no other file if the record is right."""
    for pod in "abc":
        net.add(pod)
    found = reads(net, monkeypatch)
    ipam = net.ipam("b", net.conf(LEGACY)).replace(recorded=("10.1.2.3/29",))
    ipam.run("CHECK")
    ipam.run("DEL")
    assert found == ["10.1.2.3", "10.1.2.3"]
    assert set(net.files()) == {"10.1.2.2", "10.1.2.4"}


@pytest.mark.parametrize("recorded", ["10.1.2.6/29", "10.1.2.2/29", "fd00::1/64"])
def test_a_wrong_record_does_no_harm(net: Net, recorded: str) -> None:
    """CHECK and DEL ignore a record that has a free address or the address of another pod."""
    net.add("other")
    net.add("a")
    ipam = net.ipam("a", net.conf(LEGACY)).replace(recorded=(recorded,))
    ipam.run("CHECK")
    ipam.run("DEL")
    assert net.files() == {"10.1.2.2": "other\r\neth0"}
    with pytest.raises(CheckError):
        ipam.run("CHECK")


def test_a_recorded_address_that_cannot_be_read(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """DEL and CHECK fail if the file of an address cannot be read, and the address stays taken."""
    net.add("a")
    opened = os.open

    def broken(path: str, *args: Any, **more: Any) -> int:
        if path.endswith("/10.1.2.2"):
            raise OSError(5, "Input/output error", path)
        return opened(path, *args, **more)

    monkeypatch.setattr(os, "open", broken)
    for recorded in ((), ("10.1.2.2/29",)):
        for verb in ("CHECK", "DEL"):
            with pytest.raises(IpamError) as caught:
                net.ipam("a", net.conf(LEGACY)).replace(recorded=recorded).run(verb)
            assert (caught.value.code, caught.value.errno) == (5, 5)
    assert set(net.files()) == {"10.1.2.2"}


def test_a_large_store_is_not_read_by_add(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ADD does not search a large store for an address of the interface; a DEL without a record does."""
    for octet in range(10, 50):
        net.put(f"10.1.2.{octet}", f"p{octet}\r\neth0")
    found = reads(net, monkeypatch)
    assert net.add("p10") == ["10.1.2.2/29"]
    assert found == ["last_reserved_ip.0"]
    net.delete("p10")
    assert set(net.files()) == {f"10.1.2.{octet}" for octet in range(11, 50)}


def test_check(net: Net) -> None:
    check = net.ipam("a", net.conf(LEGACY))
    for _ in range(2):
        with pytest.raises(CheckError, match="container a has no address for eth0"):
            check.run("CHECK")
        net.add("b")
        net.delete("b")
    net.add("a")
    assert check.run("CHECK") is None
    with pytest.raises(CheckError):
        net.ipam("a", net.conf(LEGACY), ifname="eth1").run("CHECK")


def test_status(net: Net) -> None:
    for pod in "abcde":
        net.add(pod)
    assert net.ipam("", net.conf(LEGACY)).run("STATUS") is None  # a full range is no fault of the node
    with pytest.raises(ConfigError):
        net.ipam("", net.conf({"subnet": "x"})).run("STATUS")


def test_status_where_nothing_can_be_written(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        os, "access", lambda path, mode: asked.append((path, mode))
    )  # root may write everywhere
    with pytest.raises(UnavailableError, match=re.escape(f"ipam.dataDir: {net.root} cannot be written to")):
        net.ipam("", net.conf(LEGACY)).run("STATUS")
    assert asked == [(str(net.root), os.W_OK | os.X_OK)]


def gc_conf(net: Net, *valid: tuple[str, str], key: str = "cni.dev/valid-attachments") -> dict[str, Any]:
    listed = [{"containerID": pod, "ifname": ifname} for pod, ifname in valid]
    return net.conf(LEGACY) | {key: listed}


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
def test_gc(net: Net, key: str) -> None:
    net.add("a")
    net.add("b")
    net.put("10.1.2.4", "")  # another process was killed between create and write
    net.put("10.1.2.5", "a")
    net.put("10.1.2.6", "old")
    net.put("10.1.2.99", "b\r\neth1")
    net.put("README", "keep me")
    net.put("cafe", "keep me")
    net.put("sriov-fast.new", "b\r\neth0")
    net.ipam("", gc_conf(net, ("a", "eth0"), key=key)).run("GC")
    assert set(net.files()) == {"10.1.2.2", "10.1.2.5", "README", "cafe"}
    net.ipam("", gc_conf(net)).run("GC")
    assert set(net.files()) == {"README", "cafe"}


@pytest.mark.parametrize(
    "listed", ["missing", 3, [{"containerID": "a"}], [{"containerID": "a", "ifname": 3}]]
)
def test_gc_is_strict(net: Net, listed: object) -> None:
    net.add("a")
    conf = net.conf(LEGACY) | ({} if listed == "missing" else {"cni.dev/valid-attachments": listed})
    with pytest.raises(ConfigError, match="valid-attachments"):
        net.ipam("", conf).run("GC")
    assert len(net.files()) == 1


# --- large ranges


def test_a_large_range(net: Net) -> None:
    """The next free address after many taken ones is found, and the only free one of a range."""
    ipam = {"subnet": "10.1.0.0/21"}
    for value in range(2, 1500):
        net.put(f"10.1.{value >> 8}.{value & 255}", "x\r\neth0")
    for value in (1500, 1501, 1502):
        (net.store / "last_reserved_ip.0").write_text("10.1.0.1")
        assert net.add(f"p{value}", ipam) == [f"10.1.5.{value & 255}/21"]
    for value in range(1503, 2047):
        net.put(f"10.1.{value >> 8}.{value & 255}", "x\r\neth0")
    assert net.fails("b", ipam).code == 11
    (net.store / "10.1.3.77").unlink()
    assert net.add("b", ipam) == ["10.1.3.77/21"]


def test_the_whole_of_ipv6(net: Net) -> None:
    assert net.add("a", {"subnet": "::/1"}, "IP=7fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
    assert net.add("b", {"subnet": "::/1"}) == ["::2/1"]


# --- the lock


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_the_umask_opens_no_directory(net: Net, umask: int) -> None:
    """A request accepts the parent of the store that the previous request has created with any umask."""
    before = os.umask(umask)
    try:
        assert [net.add("a"), net.add("b")] == [["10.1.2.2/29"], ["10.1.2.3/29"]]
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (net.store, net.store.parent)}
    assert modes == {0o755 & ~umask}


def test_it_waits_for_the_lock_and_gives_up(net: Net) -> None:
    """The request waits for the lock until its deadline, and then fails without a change."""
    net.add("a")
    late = HostLocal(
        keys=Keys(net.conf(LEGACY)), container_id="b", ifname="eth0", ends=time.monotonic() + 0.1
    )
    with store.Store(str(net.store)):
        before, files = len(open_files()), net.files()
        with pytest.raises(IpamError, match="lock") as caught:
            late.run("ADD")
        assert caught.value.code == 11
        assert time.monotonic() >= late.ends
        assert (len(open_files()), net.files()) == (before, files)
    assert net.add("b") == ["10.1.2.3/29"]


def test_somebody_who_takes_no_lock(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that a process without the lock takes before link(2) is skipped."""
    link = os.link

    def raced(source: str, target: str) -> None:
        monkeypatch.setattr(os, "link", link)
        net.put(os.path.basename(target), "thief\r\neth0")
        link(source, target)

    monkeypatch.setattr(os, "link", raced)
    assert net.add("a") == ["10.1.2.3/29"]
    assert net.files() == {"10.1.2.2": "thief\r\neth0", "10.1.2.3": "a\r\neth0"}


# --- faults


def test_a_lock_whose_close_fails_keeps_the_address(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ADD succeeds, since the address is taken before the lock is closed."""
    close = os.close

    def refuse(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        close(fd)
        if path.endswith("/lock"):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "close", refuse)
    assert net.add("a") == ["10.1.2.2/29"]


def test_a_full_disk_takes_nothing(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    net.add("z")
    write = os.write
    for name in ("sriov-fast.new", "last_reserved_ip.0", "last_reserved_ip.1"):

        def full(fd: int, data: bytes, name: str = name) -> int:
            if os.readlink(f"/proc/self/fd/{fd}") == f"{net.store}/{name}":
                raise OSError(28, "No space left on device")
            return write(fd, data)

        monkeypatch.setattr(os, "write", full)
        error = net.fails("a", DUAL)
        assert (type(error), error.code, error.errno) == (IpamError, 5, 28), name
        monkeypatch.undo()
    unlink = os.unlink

    def broken(path: str) -> None:
        if "fd00::1" in net.files():  # both addresses are taken
            monkeypatch.undo()
            raise OSError(5, "Input/output error", path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", broken)
    assert net.fails("a", DUAL).errno == 5
    assert set(net.files()) == {"10.1.2.2"}
    assert net.add("a") == ["10.1.2.5/29"]  # the first range gave two addresses before the second one failed


@pytest.fixture(autouse=True)
def leaves_no_file_open() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() == before


# --- kill -9


CALLS = (
    *("open", "write", "close", "link", "unlink", "fstat", "ftruncate", "access", "read", "listdir", "stat"),
)


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a child that is killed before its system call ``number``; return whether it was."""
    child = os.fork()
    if child == 0:
        left = [number]

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **more: Any) -> Any:
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return real(*args, **more)

            return call

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("repair", ["DEL", "GC"])
def test_killed_while_adding(net: Net, repair: str) -> None:
    """After a kill at any system call, every address has an owner, and DEL or GC frees the addresses."""
    net.add("first", DUAL | {"ranges": DUAL["ranges"][:1]})
    number, was_killed = 0, True
    while was_killed:
        was_killed = killed_at(number, lambda: net.add("a", DUAL))
        owners = {name: owner for name, owner in net.files().items() if name != "sriov-fast.new"}
        assert all(owners.values()), owners
        if repair == "GC":
            net.ipam("", gc_conf(net, ("first", "eth0"))).run("GC")
        else:
            net.delete("a", DUAL)
        assert set(net.files()) == {"10.1.2.2"}, number
        number += 2
    assert number > 15


# --- built-in kinds


def test_which_kinds_are_built_in() -> None:
    assert builtin("host-local", {"type": "host-local"}) is HostLocal
    assert builtin("host-local", {"delegate": False}) is HostLocal
    assert builtin("host-local", {"delegate": True}) is None
    assert builtin("dhcp", {}) is None
    assert getattr(builtin("static", None), "kind", "") == "static"
    with pytest.raises(ConfigError, match=r"ipam\.delegate = 1"):
        builtin("host-local", {"delegate": 1})
