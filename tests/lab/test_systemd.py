"""The units as ``sriov-fast install`` writes them, under a real systemd."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.card import IN_LAB, RECORDS, SOCKET, Card, Node, differences
from harness.lab_fixtures import Resident
from harness.waiting import wait_for
from sriov_fast.cli import units
from sriov_fast.cli.node import SECOND_SOCKET

pytestmark = pytest.mark.modes("own")

SYSTEMD = Path("/usr/lib/systemd/systemd")
UNITS = Path("/run/systemd/system")
SECOND = Path(SECOND_SOCKET)
GROUP = Path("/sys/fs/cgroup/systemd-of-the-test")
# Masked rules: the unit of warm VFs needs the devices in udev's database, but udev must not rename them.
LEFT_OUT = ("80-net-setup-link.rules", "80-drivers.rules")
RULES = Path("/run/udev/rules.d")
GENERATORS = Path("/usr/lib/systemd/system-generators")  # each reload would execute all of them
# Units that sysinit.target, a dependency of our units, would start. One of them would add all devices again.
UNNEEDED = Path("/usr/lib/systemd/system/sysinit.target.wants")
NEEDED = ("systemd-journald", "systemd-udevd")
# The guest has another init, so systemd runs as process 1 of new namespaces.
BOOT = f"""
echo 0 >{GROUP}/cgroup.procs
exec unshare --fork --kill-child --pid --mount --cgroup --uts sh -c '
mount -t proc proc /proc && umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit
exec env -i container=lab PATH="$PATH" {SYSTEMD} --system --unit=idle.target --show-status=no'
"""


class Systemd:
    """A systemd that boots to an empty target."""

    def __init__(self, top: Path) -> None:
        self.bin = top / "bin"
        log = top / "log"
        GROUP.mkdir(exist_ok=True)
        UNITS.mkdir(parents=True, exist_ok=True)
        RULES.mkdir(parents=True, exist_ok=True)
        for name in LEFT_OUT:
            (RULES / name).symlink_to("/dev/null")
        masked = UNITS.with_name(GENERATORS.name)
        masked.mkdir()
        for path in GENERATORS.iterdir():
            (masked / path.name).symlink_to("/dev/null")
        for unit in UNNEEDED.iterdir():
            if not unit.name.startswith(NEEDED):
                (UNITS / unit.name).symlink_to("/dev/null")
        (UNITS / "idle.target").write_text("[Unit]\nDescription=What is started by hand\n")
        with log.open("wb") as out:
            self._boot = subprocess.Popen(
                ["sh", "-c", BOOT], stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        wait_for(lambda: self._is_up(log), "systemd")

    def _is_up(self, log: Path) -> bool:
        assert self._boot.poll() is None, log.read_text()
        return bool(self._children()) and self.ctl("is-system-running", check=False) == "running"

    def _children(self) -> list[str]:
        return Path(f"/proc/{self._boot.pid}/task/{self._boot.pid}/children").read_text().split()

    def run(self, *words: str, check: bool = True) -> str:
        """Run a program in the namespaces of systemd; return its output."""
        enter = ["nsenter", "--target", self._children()[0], "--pid", "--mount", "--cgroup"]
        done = subprocess.run([*enter, *words], check=False, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def ctl(self, *words: str, check: bool = True) -> str:
        """Run ``systemctl`` in the namespaces of systemd; return its output."""
        return self.run("systemctl", *words, check=check)

    def command(self, name: str) -> None:
        """Run ``sriov-fast install`` or ``uninstall``."""
        self.run(sys.executable, "-m", "sriov_fast.cli", name, "--bin-dir", str(self.bin))

    def show(self, name: str) -> str:
        """Return a property of the service."""
        return self.ctl("show", units.SERVICE, "--property", name, "--value")

    def close(self) -> None:
        self._boot.kill()  # --kill-child ends all processes of the namespace
        self._boot.wait()
        wait_for(lambda: "populated 0" in (GROUP / "cgroup.events").read_text(), "an empty control group")
        for path in ("/run/systemd", "/run/udev"):
            shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory, resident: Resident) -> Iterator[Systemd]:
    """A systemd with the units of the installed plugin."""
    if not IN_LAB:
        pytest.skip("starts a systemd: only in the lab")
    if not SYSTEMD.exists():
        pytest.skip("needs systemd")
    resident.stop()
    running = Systemd(tmp_path_factory.mktemp("systemd"))
    try:
        running.command("install")
        yield running
    finally:
        running.close()


@pytest.fixture
def node(node: Node, systemd: Systemd) -> Node:
    node.plugin = systemd.bin / "sriov"
    return node


def served_by(node: Node, command: str, conf: dict[str, object], pod: str, **env: str) -> str:
    """Run a verb; return the mode in its trace, "resident" or "in-process"."""
    trace = node.root / "trace"
    done = node.run(command, conf, pod, env={"SRIOV_FAST_TRACE": str(trace), **env})
    assert done.status == 0, done
    mode: str = json.loads(trace.read_text())["mode"]
    return mode


def test_the_units(node: Node, systemd: Systemd) -> None:
    conf, pod = node.conf(vf=0, vlan=100, ipam=None), node.pod()
    assert systemd.ctl("is-enabled", units.SOCKET, units.SERVICE).split() == ["enabled", "enabled"]
    assert systemd.show("SubState") == "running"

    # the socket alone: the first call starts the service
    systemd.ctl("stop", units.SERVICE)
    assert (systemd.show("Result"), systemd.show("ExecMainStatus")) == ("success", "0")
    assert (SOCKET.stat().st_mode & 0o777, SOCKET.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert systemd.show("ActiveState") == "inactive"
    assert served_by(node, "ADD", conf, pod) == "resident"
    assert (systemd.show("ActiveState"), systemd.show("SubState")) == ("active", "running")

    # the second socket of the same server
    assert (SECOND.stat().st_mode & 0o777, SECOND.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    check = conf | {"prevResult": {"cniVersion": "1.0.0"}}
    assert served_by(node, "CHECK", check, pod, SRIOV_FAST_SOCKET=str(SECOND)) == "resident"

    # systemd restarts a killed service; a call during the restart waits in the socket
    first = systemd.show("MainPID")
    systemd.ctl("kill", "--signal", signal.SIGKILL.name, units.SERVICE)
    assert served_by(node, "CHECK", conf | {"prevResult": {"cniVersion": "1.0.0"}}, pod) == "resident"
    assert systemd.show("NRestarts") == "1"
    assert systemd.show("MainPID") not in (first, "0")

    # `systemctl start` returns after the server has notified systemd that it is ready
    systemd.ctl("stop", units.SERVICE)
    systemd.ctl("start", units.SERVICE)
    assert (systemd.show("SubState"), systemd.show("NotifyAccess")) == ("running", "main")

    # records remain when both units are stopped, and a DEL does not need the units
    systemd.ctl("stop", units.SERVICE, units.SOCKET)
    assert not SOCKET.exists()
    assert not SECOND.exists()
    assert [name for name in os.listdir(RECORDS) if pod in name]
    assert served_by(node, "DEL", conf, pod) == "in-process"


def test_the_unit_of_warm_vfs(node: Node, card: Card, systemd: Systemd) -> None:
    """The started unit sets the VFs of its PF up with NOARP; the stopped unit restores them."""
    before, unit = card.state(), units.WARM.replace("@.", f"@{card.pf}.")
    names = [vf.netdev for vf in card.vfs()]
    systemd.ctl("start", "systemd-udevd")
    systemd.run("udevadm", "trigger", "--settle", "--action=add", "--subsystem-match=net")
    systemd.ctl("start", unit)
    assert systemd.ctl("is-active", unit) == "active"
    assert all(is_warm(name) for name in names)
    systemd.ctl("stop", unit)
    assert not differences(before, card.state())


def is_warm(name: str) -> bool:
    """Return whether a device is up with NOARP."""
    flags = int(Path(f"/sys/class/net/{name}/flags").read_text(), 16)
    return flags & (0x1 | 0x80) == 0x1 | 0x80  # IFF_UP, IFF_NOARP


def test_uninstall_removes_all(systemd: Systemd) -> None:
    systemd.command("uninstall")
    assert systemd.show("LoadState") == "not-found"
    assert not SOCKET.exists()
    assert not (systemd.bin / "sriov").exists()
    assert not list(units.DIRECTORY.glob("sriov-fast*"))
