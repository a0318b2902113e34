"""``sriov-fast demo --netns``: an ADD and a DEL on this machine's kernel, without a card.

Two network namespaces stand for the host and the pod, and veth pairs for a PF and its VFs. A directory has
the files of sysfs that describe them. The plugin, its server and the netlink messages are the real ones. All
of it is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from sriov_fast.cli import install
from sriov_fast.common.errors import EnvError, SriovError

PF = "pf0"
PF_PCI = "0000:01:00.0"
# The addresses of VFs as on an Intel 82576: the first VF is 128 functions behind the PF.
VFS = {"pf0v0": "0000:01:10.0", "pf0v1": "0000:01:10.1"}
SUBNET = "10.99.0.0/24"
IFNAME = "eth0"
_STOPPING = (signal.SIGINT, signal.SIGTERM)  # blocked while namespaces are half made
_PATIENCE = 20.0  # seconds, for the server's start


class Stage(NamedTuple):
    """The directory of all files, and the names of two network namespaces."""

    root: Path
    host: str
    pod: str


SUMMARY = "play an ADD and a DEL on veth pairs, without a card; needs root and leaves nothing"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--netns",
        action="store_true",
        required=True,
        help="use network namespaces of this machine, with veth pairs in place of VFs",
    )


def run(_: argparse.Namespace) -> None:
    """Set up the node, execute an ADD and a DEL, and remove everything."""
    if os.geteuid() != 0:
        raise EnvError("needs root, because it makes network namespaces")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as undo:
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        stage = _set_up(undo)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        _play(stage, undo)


def _play(stage: Stage, undo: ExitStack) -> None:
    """Execute the verbs as a runtime does, and show the changes of each."""
    _serve(stage, undo)
    print(f"node: PF {PF} with the VFs {', '.join(VFS)} (veth pairs); pod: a network namespace")
    result = json.loads(_execute(stage, "ADD"))
    print(json.dumps(result, indent=2))
    print(f"pod:  {_shown(stage.pod)}")
    _execute(stage, "DEL")
    print(f"node: {_shown(stage.host)}")
    if missing := set(VFS) - {link["ifname"] for link in _links(stage.host)}:
        raise SriovError(f"the DEL did not bring back {', '.join(missing)}")


def _execute(stage: Stage, verb: str) -> bytes:
    """Execute the plugin for one verb, print its time, and return its output."""
    environ = _roots(stage) | {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": stage.pod,
        "CNI_NETNS": f"/run/netns/{stage.pod}",
        "CNI_IFNAME": IFNAME,
        "CNI_PATH": str(stage.root / "bin"),
    }
    ipam = {"type": "host-local", "subnet": SUBNET, "dataDir": str(stage.root / "ipam")}
    conf = {"cniVersion": "1.1.0", "name": "demo", "type": "sriov", "master": PF, "ipam": ipam}
    begin = time.monotonic()
    command = _inside(stage, "sriov")
    done = subprocess.run(
        command, env=environ, input=json.dumps(conf).encode(), capture_output=True, check=False
    )
    spent = time.monotonic() - begin
    if done.returncode:
        raise SriovError(f"{verb} failed: {done.stdout.decode()}{done.stderr.decode()}")
    print(f"\n$ CNI_COMMAND={verb} sriov    # {spent * 1e3:.1f} ms")
    return done.stdout


# --- the stage


def _set_up(undo: ExitStack) -> Stage:
    """Make directory, namespaces and devices; leave their removal with ``undo``."""
    root = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="sriov-fast-demo-")))
    stage = Stage(root, *(f"sriov-fast-demo-{os.getpid()}-{name}" for name in ("host", "pod")))
    for name in (stage.host, stage.pod):
        _ip("netns", "add", name)
        undo.callback(_ip, "netns", "delete", name)
    _describe(root / "sys", _make_devices(stage.host))
    _write(root / "proc/irq/default_smp_affinity", "1")
    _write(root / "etc/plugin.toml", f"[allow]\ndataDir = {json.dumps([str(root)])}")
    (root / "bin").mkdir()
    for program in ("sriov", "sriov-fast"):
        install.write_executable(root / "bin" / program, install.executable(install.PROGRAMS[program]))
    return stage


def _make_devices(namespace: str) -> dict[str, int]:
    """Make a veth pair for the PF and for each VF; return their interface indices."""
    for number, name in enumerate((PF, *VFS)):
        _ip("-n", namespace, "link", "add", name, "type", "veth", "peer", "name", f"peer{number}")
        _ip("-n", namespace, "link", "set", f"peer{number}", "up")
    return {link["ifname"]: link["ifindex"] for link in _links(namespace) if link["ifname"] in (PF, *VFS)}


def _ip(*words: str) -> str:
    """Execute ip(8) and return its output."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SriovError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def _describe(sysfs: Path, indices: dict[str, int]) -> None:
    """Write the sysfs tree of the PF and its VFs, with its links."""
    _write(sysfs / "devices/system/cpu/online", "0")
    _describe_device(sysfs, PF_PCI, PF, indices[PF])
    pf = _device(sysfs, PF_PCI)
    for attribute in ("sriov_totalvfs", "sriov_numvfs"):
        _write(pf / attribute, len(VFS))
    for number, (name, pci) in enumerate(VFS.items()):
        _describe_device(sysfs, pci, name, indices[name])
        _link(_device(sysfs, pci) / "physfn", pf)
        _link(pf / f"virtfn{number}", _device(sysfs, pci))


def _describe_device(sysfs: Path, pci: str, name: str, index: int) -> None:
    device = _device(sysfs, pci)
    for attribute, value in {"vendor": "0x8086", "class": "0x020000", "numa_node": 0}.items():
        _write(device / attribute, value)
    _write(device / "net" / name / "ifindex", index)
    driver = sysfs / "bus/pci/drivers" / ("igb" if name == PF else "igbvf")
    driver.mkdir(parents=True, exist_ok=True)
    _link(device / "driver", driver)
    _link(sysfs / "bus/pci/devices" / pci, device)
    _link(device / "net" / name / "device", device)
    _link(sysfs / "class/net" / name, device / "net" / name)


def _device(sysfs: Path, pci: str) -> Path:
    return sysfs / "devices/pci0000:00" / pci


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")


def _link(path: Path, target: Path) -> None:
    """Link as sysfs does: relative."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))


def _roots(stage: Stage) -> dict[str, str]:
    """Return the environment that keeps the plugin and the server to the stage's directory."""
    roots = {
        f"SRIOV_FAST_{name.upper()}": str(stage.root / name)
        for name in ("sys", "proc", "run", "state", "etc")
    }
    return roots | {"PATH": os.environ.get("PATH", os.defpath)}


def _inside(stage: Stage, program: str) -> list[str]:
    """Return the command that executes a program of ours in the host's namespace."""
    return ["ip", "netns", "exec", stage.host, str(stage.root / "bin" / program)]


def _serve(stage: Stage, undo: ExitStack) -> None:
    """Start the resident server and wait until it accepts connections."""
    log = undo.enter_context((stage.root / "server.log").open("w+"))
    command = [*_inside(stage, "sriov-fast"), "serve"]
    server = undo.enter_context(subprocess.Popen(command, env=_roots(stage), stdout=log, stderr=log))
    undo.callback(server.terminate)
    deadline = time.monotonic() + _PATIENCE
    while not (stage.root / "run/sriov.sock").exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise SriovError(f"the server does not start: {(stage.root / 'server.log').read_text()}")
        time.sleep(0.01)


# --- output


def _links(namespace: str) -> list[dict[str, Any]]:
    """Return the devices of a namespace with their addresses."""
    found: list[dict[str, Any]] = json.loads(_ip("-j", "-n", namespace, "address", "show"))
    return found


def _shown(namespace: str) -> str:
    """Return one line about the pod's interface, or about the VFs that are in the host."""
    return "; ".join(_line(link) for link in _links(namespace) if link["ifname"] in (IFNAME, *VFS))


def _line(link: dict[str, Any]) -> str:
    state = "up" if "UP" in link["flags"] else "down"
    addresses = [f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"]]
    return " ".join([link["ifname"], state, *addresses])
