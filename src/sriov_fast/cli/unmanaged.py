"""Files that keep NetworkManager and systemd-networkd away from the VFs of chosen PFs.

A udev rule marks these VFs. NetworkManager respects the property NM_UNMANAGED, and networkd a ``.network``
file with ``Unmanaged=yes`` that matches SRIOV_FAST_VF (systemd.network(5)).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from sriov_fast.common.errors import ConfigError
from sriov_fast.common.replace import replace_file

RULES = Path("etc/udev/rules.d/85-sriov-fast.rules")
NETWORK = Path("etc/systemd/network/05-sriov-fast.network")
# Directories that exist while the manager runs.
MANAGERS = {"NetworkManager": Path("run/NetworkManager"), "systemd-networkd": Path("run/systemd/netif")}
_MARK = "# Written by sriov-fast install --unmanaged.\n"
_RULE = (
    'ACTION!="remove", SUBSYSTEM=="net", TEST=="device/physfn/net/{}", '
    'ENV{{NM_UNMANAGED}}="1", ENV{{SRIOV_FAST_VF}}="1"\n'
)
_NETWORK_FILE = f"{_MARK}[Match]\nProperty=SRIOV_FAST_VF=1\n\n[Link]\nUnmanaged=yes\n"
_NAME = re.compile(r"[^\s/\"*?\[\]|%$\\]{1,15}")  # a device's name that is no pattern in a rule


def write(pfs: Iterable[str], root: Path = Path("/")) -> None:
    """Add these PFs to the files."""
    names = sorted(covered(root) | set(pfs))
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"--unmanaged: {name!r} cannot be a name in a udev rule")
    for path, text in ((RULES, _MARK + "".join(map(_RULE.format, names))), (NETWORK, _NETWORK_FILE)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        replace_file(root / path, text.encode(), 0o644)
        print(f"wrote {root / path}")
    _apply()


def covered(root: Path = Path("/")) -> set[str]:
    """Return the names of the PFs in the files."""
    try:
        return set(re.findall(r'TEST=="device/physfn/net/([^"]+)"', (root / RULES).read_text()))
    except FileNotFoundError:
        return set()


def managers(root: Path = Path("/")) -> list[str]:
    """Return the names of the network managers that run here."""
    return [name for name, path in MANAGERS.items() if (root / path).exists()]


def remove(root: Path = Path("/")) -> None:
    """Remove both files."""
    for path in (RULES, NETWORK):
        if (root / path).exists():
            (root / path).unlink()
            print(f"removed {root / path}")


def _apply() -> None:
    """Make udev and networkd, if they run, read the files and apply them to existing VFs."""
    if shutil.which("udevadm"):
        subprocess.run(["udevadm", "control", "--reload"], check=False, capture_output=True)
        subprocess.run(
            ["udevadm", "trigger", "--subsystem-match=net", "--action=change"],
            check=False,
            capture_output=True,
        )
    if shutil.which("networkctl"):
        subprocess.run(["networkctl", "reload"], check=False, capture_output=True)
