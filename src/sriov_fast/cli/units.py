"""The systemd units of the resident server: write, start, stop and remove them.

systemd makes the socket and hands it over (sd_listen_fds), so calls wait there while the server starts or
restarts. The server notifies systemd when it is ready and when it stops (sd_notify).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DIRECTORY = Path("/etc/systemd/system")
_RUNNING = Path("/run/systemd/system")  # sd_booted(3)
_MARK = "# Written by sriov-fast install"
SOCKET = "sriov-fast.socket"
SERVICE = "sriov-fast.service"

# No RuntimeDirectory= in the service: with it systemd would empty /run/sriov-fast at each stop, which has the
# journal.
_SOCKET_UNIT = """\
# Written by sriov-fast install.
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
# Written by sriov-fast install.
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


def is_systemd_running() -> bool:
    """Return whether systemd is this machine's init (sd_booted(3))."""
    return _RUNNING.is_dir()


def write(directory: Path) -> None:
    """Write the socket's and the service's unit."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in ((SOCKET, _SOCKET_UNIT), (SERVICE, service())):
        _replace(directory / name, text)
        print(f"wrote {directory / name}")


def start() -> None:
    """Enable both units and start the server of this installation, in place of an older one.

    Calls wait in the socket meanwhile. Raises subprocess.CalledProcessError where systemctl fails.
    """
    _systemctl("daemon-reload")
    _systemctl("enable", "--now", SOCKET)
    _systemctl("enable", SERVICE)
    _systemctl("restart", SERVICE)
    print(f"started {SOCKET} and {SERVICE}")


def remove(directory: Path) -> None:
    """Stop and disable the units of ours in ``directory``, and remove their files."""
    ours = [name for name in (SERVICE, SOCKET) if is_ours(directory / name)]
    if not ours:
        return
    if is_systemd_running():
        _systemctl("disable", "--now", *ours)
    for name in ours:
        (directory / name).unlink()
        print(f"removed {directory / name}")
    if is_systemd_running():
        _systemctl("daemon-reload")


def is_ours(unit: Path) -> bool:
    """Return whether ``install`` wrote this unit; an administrator's own file of that name is not ours."""
    return unit.is_file() and unit.read_text(errors="replace").startswith(_MARK)


def _systemctl(*words: str) -> None:
    subprocess.run(["systemctl", "--quiet", *words], check=True, stdin=subprocess.DEVNULL)


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
