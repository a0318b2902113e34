"""The example with txipam in the plugin's first README: configuration, ADD and DEL commands, and outputs.

The address service listens at ``https://127.0.0.1:10000``, with a CA for this test.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPResponse, HTTPSConnection
from pathlib import Path

import pytest

from harness.card import IN_LAB, RECORDS, Card, Node, differences, executable
from harness.pod import ip, link, links, try_ip
from harness.waiting import wait_for
from lab import demo_card
from sriov_fast.ipamd.trial_ca import TrialCa

URL = "https://127.0.0.1:10000"
HOST = "10.55.206.20"
MAC = "02:5f:00:00:00:77"
PATIENCE = 180.0  # seconds: the emulated machine needs half a minute for the service's imports
OPERATORS = f"""
[[networks]]
name = "mynet"
grace = 0

[[pools]]
name = "a"
network = "mynet"
subnet = "10.55.206.0/26"
gateway = "10.55.206.1"
ranges = [{{start = "10.55.206.46", end = "10.55.206.62"}}]

[[hosts]]
network = "mynet"
hosts = ["{HOST}"]
pools = ["a"]

[[assignments]]
network = "mynet"
pod_id = "1234"
hosts = ["{HOST}"]
ips = ["10.55.206.46"]

[[assignments]]
network = "mynet"
pod_id = "chosen"
hosts = ["{HOST}"]
ips = ["10.55.206.50"]
mac = "{MAC}"
vlan = 100
vf = 3
"""

# The README's configuration, files and commands, unchanged.
CONF = """{
    "name": "mynet",
    "type": "sriov",
    "master": "eth1",
    "ipam": {
        "type": "txipam",
        "remote": "https://127.0.0.1:10000",
        "ca": "/etc/pki/ca-trust/source/anchors/ca.crt"
    }
}
"""
CONF_FILE = Path("/etc/cni/net.d/txnet.conf")
CA_FILE = Path("/etc/pki/ca-trust/source/anchors/ca.crt")
EXPORT = "CNI_PATH=`pwd`/bin"
ADD = (
    "CNI_PATH=$CNI_PATH CNI_COMMAND=ADD CNI_NETNS=/var/run/netns/1234 CNI_CONTAINERID=1234 CNI_IFNAME=eth1 "
    'CNI_ARGS="IgnoreUnknown=1;PodID=1234;HostIP=10.55.206.20;CORES=1,2,3,4" bin/sriov '
    "< /etc/cni/net.d/txnet.conf"
)
DEL = (
    "CNI_PATH=$CNI_PATH CNI_COMMAND=DEL CNI_NETNS=/var/run/netns/1234 CNI_CONTAINERID=1234 CNI_IFNAME=eth1 "
    'CNI_ARGS="PodID=1234;HostIP=10.55.206.20" bin/sriov < /etc/cni/net.d/txnet.conf'
)
PRINTED = {"ip4": {"ip": "10.55.206.46/26", "gateway": "10.55.206.1"}, "dns": {}}


class AddressService:
    """A running address service with the configuration ``OPERATORS``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = directory / "ca.crt"
        TrialCa(directory).server(["127.0.0.1"], days=1)
        config = directory / "ipam.toml"
        settings = {
            "listen": "127.0.0.1:10000",
            "cert": str(directory / "server.crt"),
            "key": str(directory / "server.key"),
            "auth": "open",
            "storage": f"sqlite://{directory}/ipam.db",
            "tokens": str(directory / "tokens.json"),
            "managed": "file",
            "log_format": "logfmt",
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        config.write_text("\n".join([OPERATORS, "[server]", *lines, ""]))
        with (directory / "log").open("wb") as log:
            argv = [sys.executable, "-m", "sriov_fast.cli", "ipam", "serve", "--config", str(config)]
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(self._is_ready, "the address service", PATIENCE)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, (self.directory / "log").read_text()
        try:
            return self._get("/readyz").status == HTTPStatus.OK
        except OSError:
            return False

    def _get(self, path: str) -> HTTPResponse:
        trust = ssl.create_default_context(cafile=str(self.ca))
        connection = HTTPSConnection(URL.partition("//")[2], context=trust, timeout=30)
        connection.request("GET", path, headers={"Connection": "close"})
        return connection.getresponse()  # reading the response closes the connection

    def held(self) -> set[str]:
        """Return the identifiers of the pods that have addresses from the service."""
        found = json.load(self._get("/v1/allocations"))
        return {item["pod_id"] for item in found["allocations"]}

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0, (self.directory / "log").read_text()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AddressService]:
    running = AddressService(tmp_path_factory.mktemp("service"))
    yield running
    running.stop()


def rename(before: str, after: str) -> None:
    """Rename a device; some kernels allow this only while the device is down."""
    was_up = "UP" in link(before)["flags"]
    ip("link", "set", before, "down")
    ip("link", "set", before, "name", after)
    if was_up:
        ip("link", "set", after, "up")


@pytest.fixture
def eth1(card: Card) -> Iterator[Card]:
    """The first PF, renamed to the README's eth1."""
    names = {card.pf: "eth1"}
    if card.pf != "eth1":
        if any(item["ifname"] == "eth1" for item in links()):
            names = {"eth1": "not-eth1"} | names
        for before, after in names.items():
            rename(before, after)
        yield Card("eth1")
        for before, after in reversed(names.items()):
            rename(after, before)
    else:
        yield card


@pytest.fixture
def readme(service: AddressService, tmp_path: Path) -> Iterator[Path]:
    """The README's working directory; its files are written to the lab's /etc."""
    if not IN_LAB:
        pytest.skip("writes to /etc and renames devices: only in the lab's virtual machine")
    plugin = executable()
    (tmp_path / "bin").mkdir()
    for name in ("sriov", "txipam"):
        (tmp_path / "bin" / name).symlink_to(plugin.with_name(name))
    for path in (CONF_FILE, CA_FILE):
        path.parent.mkdir(parents=True, exist_ok=True)
    CONF_FILE.write_text(CONF)
    shutil.copy(service.ca, CA_FILE)
    ip("netns", "add", "1234")
    yield tmp_path
    try_ip("netns", "del", "1234")
    for path in (CONF_FILE, CA_FILE):
        path.unlink()


def say(line: str, directory: Path) -> bytes:
    """Run ``EXPORT`` and a line of the README in a shell; return the output."""
    command = ["/bin/sh", "-c", f"{EXPORT}\n{line}"]
    # Without the tests' server, which has other rules for files.
    environment = {"PATH": os.environ["PATH"], "SRIOV_FAST_SOCKET": "none"}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done
    return done.stdout


def owned(card: Card) -> int:
    name = next(name for name in os.listdir(RECORDS) if name.endswith("~1234~eth1"))
    return next(vf.number for vf in card.vfs() if name.startswith(vf.pci))


def test_the_readme_word_for_word(card: Card, service: AddressService, readme: Path, eth1: Card) -> None:
    online = demo_card.parse_cpus(Path("/sys/devices/system/cpu/online").read_text())
    assert {1, 2, 3, 4} <= set(online), "start the lab with --cpus 5"
    before = eth1.state()
    printed = say(ADD, readme)
    assert json.loads(printed) == PRINTED
    assert list(json.loads(printed)) == ["ip4", "dns"]

    shown = link("eth1", "1234")
    assert {"BROADCAST", "MULTICAST", "UP"} <= set(shown["flags"])
    assert shown["mtu"] == 1500
    inet = [item for item in shown["addr_info"] if item["family"] == "inet"]
    assert [(item["local"], item["prefixlen"], item["scope"]) for item in inet] == [
        ("10.55.206.46", 26, "global")
    ]
    assert inet[0]["valid_life_time"] == 0xFFFFFFFF  # forever
    wait_for(lambda: link("eth1", "1234")["operstate"] == "UP", "eth1's carrier")

    index = owned(eth1)
    directory = Path(f"/sys/class/net/eth1/device/virtfn{index}/msi_irqs")
    numbers = sorted(int(path.name) for path in directory.iterdir())
    masks = [Path(f"/proc/irq/{number}/smp_affinity").read_text() for number in numbers]
    cores = [demo_card.cpus_of_mask(mask) for mask in masks]
    assert len(cores) > 1
    assert cores == [{1 + i % 4} for i in range(len(cores))]
    assert service.held() == {"1234"}

    assert say(DEL, readme) == b""
    assert [item["ifname"] for item in links("1234")] == ["lo"]
    assert service.held() == set()
    assert not differences(before, eth1.state())


# --- not in the README, on any card


def test_the_service_chooses_vf_vlan_and_mac(node: Node, card: Card, service: AddressService) -> None:
    before, pod = card.state(), node.pod()
    ipam = {"type": "txipam", "remote": URL, "ca": str(service.ca), "timeout": 45}
    conf, args = node.conf(name="mynet", ipam=ipam), f"IgnoreUnknown=1;PodID=chosen;HostIP={HOST}"
    result = node.add(conf, pod, args=args)
    try:
        assert (link("eth0", pod)["address"], card.on_pf(3)["address"], card.vlan(3)) == (MAC, MAC, 100)
        assert result["interfaces"][0]["mac"] == MAC
        assert node.addresses(pod) == {"10.55.206.50/26"}
    finally:
        node.delete(conf, pod, args=args)
    assert not differences(before, card.state())
    assert service.held() == set()
