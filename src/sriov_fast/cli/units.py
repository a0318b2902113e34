"""The systemd units of the resident server: write, start, stop and remove them.

systemd makes the socket and passes it (sd_listen_fds), so calls wait in the socket while the server starts or
restarts. The server notifies systemd when it is ready and when it stops (sd_notify).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from sriov_fast.common.errors import EnvError, SriovError
from sriov_fast.common.replace import replace_file

DIRECTORY = Path("/etc/systemd/system")
_RUNNING = Path("/run/systemd/system")  # sd_booted(3)
_LIBRARIES = tuple(Path(top, "lib/systemd/system") for top in ("/usr/local", "/usr", "/"))  # of packages
_MARK = "# Written by sriov-fast install"
SOCKET = "sriov-fast.socket"
SERVICE = "sriov-fast.service"
WARM = "sriov-fast-warm@.service"

# No RuntimeDirectory= in the service: at a stop systemd would empty /run/sriov-fast, which has the journal.
_SOCKET_UNIT = """\
# Written by sriov-fast install.
[Unit]
Description=Calls to the SR-IOV CNI plugin

[Socket]
ListenStream=/run/sriov-fast/sriov.sock
# For plugins that are executed in a pod, which mounts /var/lib/cni.
ListenStream=/var/lib/cni/sriov-fast/sriov.sock
SocketMode=0600
DirectoryMode=0700
Backlog=4096
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""

# IPAM plugins are children of the server, and the server enters network namespaces. Hence it has no
# namespaces of its own, no read-only file systems, and all capabilities that may concern networks.
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
# At a stop the server finishes the running calls, which may wait for locks and for IPAM.
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

# %i is the network device of a PF. Its VFs must exist when the unit starts.
_WARM_UNIT = """\
# Written by sriov-fast install.
[Unit]
Description=Warm VFs of %I for the SR-IOV CNI plugin
BindsTo=sys-subsystem-net-devices-%i.device
After=sys-subsystem-net-devices-%i.device

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={command} warm %I
ExecStop={command} warm --off %I

[Install]
WantedBy=multi-user.target
"""

_TEXTS = {SOCKET: _SOCKET_UNIT, SERVICE: _SERVICE_UNIT, WARM: _WARM_UNIT}


def is_systemd_running() -> bool:
    """Return whether systemd is this machine's init (sd_booted(3))."""
    return _RUNNING.is_dir()


def demand_ours(directory: Path) -> None:
    """Raise EnvError if a unit in a directory is an administrator's, or masked."""
    for path in (directory / name for name in _TEXTS):
        if os.path.lexists(path) and not is_ours(path):
            raise EnvError(f"{path} is not of sriov-fast install", "move it away, or use --no-server")


def write(directory: Path) -> None:
    """Write the units of the socket, of the service, and of warm VFs."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in _TEXTS:
        replace_file(directory / name, os.fsencode(text(name)), 0o644)
        print(f"wrote {directory / name}")


def start() -> None:
    """Enable both units and start the server of this installation, in place of an older one.

    Calls wait in the socket meanwhile. Raises SriovError if systemctl fails.
    """
    _systemctl("--no-reload", "enable", SOCKET, SERVICE)
    _systemctl("daemon-reload")
    _systemctl("start", SOCKET)
    _systemctl("restart", SERVICE)
    print(f"started {SOCKET} and {SERVICE}")


def remove(directory: Path) -> None:
    """Remove the units that ``install`` wrote to ``directory``; stop and disable them if systemd reads it."""
    ours = [name for name in (SERVICE, SOCKET, WARM) if is_ours(directory / name)]
    if not ours:
        return
    are_loaded = is_systemd_running() and directory in (DIRECTORY, *_LIBRARIES)  # not those of an image
    if are_loaded:
        _systemctl("stop", *(name.replace("@.", "@*.") for name in ours))
        _systemctl("--no-reload", "disable", *ours)
    for name in ours:
        (directory / name).unlink()
        print(f"removed {directory / name}")
    if are_loaded:
        _systemctl("daemon-reload")


def is_ours(unit: Path) -> bool:
    """Return whether ``install`` wrote this unit, and not an administrator."""
    return unit.is_file() and unit.read_text(errors="replace").startswith(_MARK)


def _systemctl(*arguments: str) -> None:
    argv = ["systemctl", "--quiet", *arguments]
    if subprocess.run(argv, check=False, stdin=subprocess.DEVNULL).returncode:
        raise SriovError(f"{shlex.join(argv)} failed", "see journalctl -xe")


def text(name: str) -> str:
    """Return the text of a unit, with the command of this installation."""
    return _TEXTS[name].format(command=" ".join(map(_quoted, _command())))


def _command() -> list[str]:
    """Return the argv of ``sriov-fast`` in this environment."""
    script = Path(sys.executable).with_name("sriov-fast")
    return [str(script)] if script.exists() else [sys.executable, "-IXutf8", "-m", "sriov_fast.cli"]


def _quoted(argument: str) -> str:
    """Quote an argument of ExecStart= (systemd.service(5), "Command lines").

    Only the program's path can have special characters, and systemd takes a "$" there as it is.
    """
    if "\n" in argument:
        raise ValueError(f"a path has a line break: {argument!r}")
    escaped = argument.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if escaped != argument or any(char in argument for char in " \t';") else argument
