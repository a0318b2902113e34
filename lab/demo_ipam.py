"""The demo's address service: its own CA, the service itself, and the list of its allocations.

All files are in the demo's directory; the machine's configuration and state do not change.
"""

from __future__ import annotations

import http.client
import json
import shlex
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lab.demo_addresses import (
    FIRST,
    GATEWAY,
    HOST_IP,
    IFNAME,
    NETWORK,
    SUBNET,
    VLAN,
    Addresses,
    Choice,
    Pod,
    add_args,
    call,
    release_args,
)
from lab.demo_card import Card
from lab.demo_stage import Stage, say, wrapped
from lab.errors import LabError

HERE, PORT = "127.0.0.1", 10000
MAC = "02:5a:00:00:12:35"
OTHER_HOST, OTHER_POD, OTHER_SUBNET, OTHER_VLAN = "10.55.207.20", "1236", "10.55.207.0/26", 207
PATIENCE = 300.0  # seconds for the service to start or to stop; emulated, it needs one or two minutes
_NEWS = 20.0  # seconds between two messages while waiting
_CONFIG, _LOG = "ipam.toml", "ipam.log"

Held = tuple[str, str, str]


class TxIpam(Addresses):
    """Addresses, VF, VLAN and MAC from an address service that runs on this machine."""

    title = "The network: the service has all that the configuration leaves out"
    conf = "txnet.conf"
    # as in the users' manual
    before = ("CNI_PATH=$CNI_PATH",)
    called = "bin/sriov"
    pods = (Pod("1234", FIRST), Pod("1235", "10.55.206.50"))

    def __init__(self, stage: Stage, cleanup: ExitStack, plugin: Path, port: int = PORT) -> None:
        super().__init__(stage, cleanup, plugin)
        self.port = port
        self.program = program()
        self.service: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of the service."""
        return f"https://{HERE}:{self.port}"

    @property
    def ca(self) -> Path:
        """The path of the CA certificate that both sides trust."""
        return self.stage.directory / "ca/ca.crt"

    # --- before ADD

    def prepare(self, card: Card) -> None:
        """Make the CA, write the operator's file, start the service."""
        self.choice = Choice(last_free(card), MAC)
        self.stage.step("A certificate authority, made for the occasion")
        self.must(f"{self.program} ipam ca ca --server {HERE}")
        self.stage.step("What the address service may give: two hosts' pools, and what two pods always get")
        document = operators_file(self.pods, self.choice)
        self.stage.write(_CONFIG, document + server_table(self.stage.directory, self.port))
        self.stage.step(f"The address service at {self.url}")
        self.start()
        self.link_plugins()

    def must(self, command: str) -> str:
        """Run a command and return its output; raise LabError if it fails."""
        done = self.stage.run(command)
        if done.status:
            raise LabError(f"`{command}` failed")
        return done.out

    def start(self) -> None:
        """Start the service, and wait until it answers."""
        self.service = self.stage.start(f"{self.program} ipam serve --config {_CONFIG}", _LOG)
        self.cleanup.callback(self.stop)
        say("(Python reads its libraries: some seconds; where the processor is emulated, one minute or two)")
        began = news = time.monotonic()
        while not self.answers():
            now = time.monotonic()
            if self.service.poll() is not None:
                raise LabError(f"the address service ended: {self.log().strip()}")
            if now - began > PATIENCE:
                raise LabError(f"the address service did not answer for {PATIENCE:g} s: {self.log().strip()}")
            if now - news > _NEWS:
                say(f"(still waiting, {now - began:.0f} s)")
                news = now
            time.sleep(0.5)
        self.stage.run(f"cut -d' ' -f2,4- {_LOG}", most=6)
        self.stage.expect("the service answers, with a certificate of that authority", True)

    def log(self) -> str:
        """Return the service's log."""
        return (self.stage.directory / _LOG).read_text(errors="replace")

    def link_plugins(self) -> None:
        """Make the directory of plugins that the commands in the users' manual name."""
        self.stage.step("The plugins: sriov, and txipam for other plugins that want an address")
        self.stage.run(f"mkdir bin && ln -s {self.plugin} bin/sriov")
        beside = self.plugin.with_name("txipam")
        if beside.exists():
            self.stage.run(f"ln -s {beside} bin/txipam")
        else:
            self.must(f"{self.program} install --bin-dir bin --name txipam")

    # --- the network

    def network(self, pf: str) -> dict[str, Any]:
        """Return the configuration of the users' manual, with the CA file and the PF of this machine."""
        ipam = {"type": "txipam", "remote": self.url, "ca": str(self.ca)}
        return {"name": NETWORK, "type": "sriov", "master": pf, "ipam": ipam}

    def export(self) -> None:
        """Set CNI_PATH, and the demo's directories of state and rules; use no resident server."""
        self.stage.export("CNI_PATH", str(self.stage.directory / "bin"))
        self.stage.export("SRIOV_FAST_STATE", str(self.stage.directory / "state"))
        self.stage.run("mkdir etc")
        self.stage.write("etc/plugin.toml", f'[allow]\nca = ["{self.ca.parent}"]')
        self.stage.export("SRIOV_FAST_ETC", str(self.stage.directory / "etc"))
        if Path("/run/sriov-fast/sriov.sock").exists():
            self.stage.export("SRIOV_FAST_SOCKET", "none")

    # --- allocations

    def show(self) -> None:
        """Allocate an address on another host, without a VF, and list all allocations."""
        self.stage.step(
            "A pod of another host gets an address of that host's pool (txipam alone, without a VF)"
        )
        address = self.other_host()
        self.stage.step("What the service has given")
        expected = [self.held(pod) for pod in self.pods]
        if address:
            expected.append((OTHER_POD, OTHER_HOST, address))
        self.compare(expected)
        if address:
            self.stage.step(f"And back: {address} of the other host")
            done = self.stage.run(self.other("DEL", release_args(OTHER_POD, OTHER_HOST)))
            self.stage.expect("DEL succeeds and prints nothing", done == (0, ""))

    @staticmethod
    def held(pod: Pod) -> Held:
        """Return the expected line of a pod in the list."""
        return pod.name, HOST_IP, f"{pod.address}/26"

    def other_host(self) -> str:
        """Execute ``txipam`` alone, as other plugins do; return the address, "" if there is none."""
        done = self.stage.run(self.other("ADD", add_args(OTHER_POD, host_ip=OTHER_HOST)))
        try:
            found = json.loads(done.out)
            address, extra = found["ip4"]["ip"], found.get("extra")
        except (ValueError, KeyError, TypeError):
            address, extra = "", None
        of_pool = address.startswith("10.55.207.") and address.endswith("/26")
        self.stage.expect(f"the address is of {OTHER_SUBNET}", of_pool, address)
        self.stage.expect(f"that pool's VLAN is {OTHER_VLAN}", extra == {"vlan": OTHER_VLAN}, str(extra))
        return address if of_pool else ""

    def other(self, verb: str, args: list[str]) -> str:
        """Return the command that executes ``txipam`` for the pod of the other host."""
        return wrapped([*call(verb, OTHER_POD, args), f"bin/txipam < {self.conf}"])

    def compare(self, expected: Iterable[Held]) -> None:
        """Compare the output of the operator's list command with the expected allocations."""
        done = self.stage.run(
            wrapped([f"{self.program} ipam allocations list", f"--url {self.url}", "--ca ca/ca.crt"])
        )
        wanted, found = sorted(expected), sorted(rows(done.out))
        what = f"exactly these {len(wanted)} addresses are held" if wanted else "no address is held"
        self.stage.expect(what, not done.status and found == wanted, str(found))

    def holds(self, pod: Pod) -> bool:
        """Return whether the service lists an allocation of the pod."""
        answer = self.get(f"/v1/allocations?network={NETWORK}")
        return any(each["container_id"] == pod.name for each in json.loads(answer)["allocations"])

    # --- the end

    def end(self) -> None:
        """Verify that no allocation is left, show the logged requests, and stop the service."""
        self.stage.step("In the end: nothing is held, and the service stops")
        self.compare([])
        self.stage.run(f"grep msg=request {_LOG} | cut -d' ' -f5-8", most=12)
        if self.service is not None:
            self.stage.run(f"kill {self.service.pid}")
            self.stage.expect("the service ends with status 0", self.stop() == 0, self.log()[-500:])
            self.stage.expect(f"nobody listens at {self.url} any more", not self.answers())

    def stop(self) -> int | None:
        """Stop the service if it runs; return its exit status."""
        if self.service is None:
            return None
        if self.service.poll() is None:
            self.service.terminate()
        try:
            return self.service.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.service.kill()
            return self.service.wait()

    def remains(self) -> list[str]:
        """Return the command that stops the service."""
        return [f"kill {self.service.pid}"] if self.service else []

    # --- requests

    def answers(self) -> bool:
        """Return whether the service is ready."""
        try:
            self.get("/readyz", timeout=5)
        except LabError:
            return False
        return True

    def get(self, path: str, timeout: float = 60) -> bytes:
        """Return the answer to GET; raise LabError without one, or with a certificate of another CA."""
        try:
            trust = ssl.create_default_context(cafile=str(self.ca))
            without_proxy = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))
            opener = urllib.request.build_opener(*without_proxy)
            with opener.open(f"{self.url}{path}", timeout=timeout) as answer:
                return bytes(answer.read())
        except (OSError, http.client.HTTPException) as error:  # a status that is no success as well
            raise LabError(f"{self.url}{path}: {error}") from error


# --- functions without a service


def program() -> str:
    """Return the shell command of this environment's ``sriov-fast``."""
    beside = Path(sys.executable).with_name("sriov-fast")
    if not beside.exists():
        return f"{shlex.quote(sys.executable)} -m sriov_fast.cli"
    found = shutil.which("sriov-fast")
    return "sriov-fast" if found and Path(found).samefile(beside) else str(beside)


def last_free(card: Card) -> int:
    """Return the index of the last free VF: without a request for it, the plugin takes the first."""
    return max(vf.number for vf in card.vfs() if vf.netdev)


def operators_file(pods: tuple[Pod, Pod], choice: Choice) -> str:
    """Return the operator's part of the service's file."""
    first, second = pods
    return f"""[[networks]]
name = "{NETWORK}"

[[pools]]
name = "a"
network = "{NETWORK}"
subnet = "{SUBNET}"
gateway = "{GATEWAY}"
vlan = {VLAN}

[[pools]]
name = "b"
network = "{NETWORK}"
subnet = "{OTHER_SUBNET}"
vlan = {OTHER_VLAN}

[[hosts]]
network = "{NETWORK}"
hosts = ["{HOST_IP}"]
pools = ["a"]

[[hosts]]
network = "{NETWORK}"
hosts = ["{OTHER_HOST}"]
pools = ["b"]

[[assignments]]
network = "{NETWORK}"
pod_id = "{first.name}"
hosts = ["{HOST_IP}"]
ips = ["{first.address}"]

[[assignments]]
network = "{NETWORK}"
pod_id = "{second.name}"
hosts = ["{HOST_IP}"]
ips = ["{second.address}"]
mac = "{choice.mac}"
vf = {choice.vf}
"""


def server_table(directory: Path, port: int) -> str:
    """Return the rest of that file: the settings of the server."""
    return f"""
[server]
listen = "{HERE}:{port}"
cert = "ca/server.crt"
key = "ca/server.key"
auth = "open"
storage = "sqlite://{directory}/ipam.db"
log_format = "logfmt\""""


def rows(table: str) -> list[Held]:
    """Return container, host and addresses of this network's allocations from the printed list."""
    found = (line.split() for line in table.splitlines())
    return [
        (words[1], words[4], words[5])
        for words in found
        if len(words) == 6 and (words[0], words[2]) == (NETWORK, IFNAME)
    ]
