"""The systemd units of the resident server, and ``sriov-fast install --systemd`` that writes them.

systemd makes the socket, so that calls wait there while the server starts or is started anew, and hands it
over (sd_listen_fds); the server says when it is ready and when it stops (sd_notify).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

DIRECTORY = "/etc/systemd/system"
SOCKET = "sriov-fast.socket"
SERVICE = "sriov-fast.service"

# No RuntimeDirectory= in the service: with it systemd would empty /run/sriov-fast at each stop, which has the
# journal.
_SOCKET_UNIT = """\
# Written by sriov-fast install --systemd.
[Unit]
Description=Calls to the SR-IOV CNI plugin

[Socket]
ListenStream=/run/sriov-fast/sriov.sock
SocketMode=0600
DirectoryMode=0700
Backlog=4096
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""

# IPAM plugins are children of the server, and it enters network namespaces: so no namespaces of its own, no
# read-only file systems, and no capabilities withheld but those that have nothing to do with networks.
_SERVICE_UNIT = """\
# Written by sriov-fast install --systemd.
[Unit]
Description=SR-IOV CNI plugin, resident server
Requires=sriov-fast.socket
After=sriov-fast.socket

[Service]
Type=notify
NotifyAccess=main
ExecStart={command} serve
Restart=on-failure
# At a stop the server first ends the calls that it has begun, and they wait for locks and for IPAM.
KillMode=mixed
TimeoutStopSec=90
LimitNOFILE=65536
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
CapabilityBoundingSet=~CAP_AUDIT_CONTROL CAP_MAC_ADMIN CAP_MAC_OVERRIDE CAP_SYS_BOOT CAP_SYS_TIME

[Install]
WantedBy=multi-user.target
Also=sriov-fast.socket
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Register the option of ``install``."""
    parser.add_argument(
        "--systemd",
        nargs="?",
        type=Path,
        const=Path(DIRECTORY),
        metavar="DIR",
        help=f"also write the units of the resident server ({DIRECTORY})",
    )


def install(directory: Path) -> None:
    """Write both units and say what to do with them."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in ((SOCKET, _SOCKET_UNIT), (SERVICE, service())):
        _replace(directory / name, text)
        print(f"wrote {directory / name}")
    print(f"to start the server: systemctl daemon-reload && systemctl enable --now {SOCKET} {SERVICE}")


def service() -> str:
    """Return the service's unit."""
    return _SERVICE_UNIT.format(command=" ".join(map(_quoted, _command())))


def _command() -> list[str]:
    """Return the words that start ``sriov-fast`` of this environment."""
    beside = Path(sys.executable).with_name("sriov-fast")
    return [str(beside)] if beside.exists() else [sys.executable, "-IXutf8", "-m", "sriov_fast.cli"]


def _quoted(word: str) -> str:
    """Quote a word of ExecStart= (systemd.service(5), "Command lines")."""
    if "\n" in word:
        raise ValueError(f"a path has a line break: {word!r}")
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{plain}"' if plain != word or any(char in word for char in " \t';") else word


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(os.fsencode(text))
    temporary.chmod(0o644)  # whatever the umask
    temporary.replace(path)
