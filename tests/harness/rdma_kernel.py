"""A simulation of the kernel's RDMA subsystem behind a socket, for machines without an RDMA card.

The plugin's own functions encode and decode the messages. The state is a JSON file, since each call of the
plugin is another process: ``{"shared": false, "refuses": 0, "devices": {"7": ["mlx5_3", 4026531840]}}``. It
has a device's name and the inode of its namespace by the device's index.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sriov_fast.kernel.netlink import constants as c
from sriov_fast.vf import rdma

TESTS = Path(__file__).parents[1]


def prelude(path: Path) -> str:
    """Return a statement for ``Node.prelude`` that installs the simulation."""
    installed = f"from harness import rdma_kernel; rdma_kernel.install({str(path)!r})"
    return f"import sys; sys.path.append({str(TESTS)!r}); {installed}"


def install(path: str) -> None:
    """Replace the socket of ``vf.rdma``."""
    rdma.nl = SimpleNamespace(raw_socket=Kernel(Path(path)).open)  # type: ignore[assignment]


def inode(netns_fd: int) -> int:
    """Return the inode of a namespace; -1 is the thread's own namespace."""
    path = f"/proc/self/fd/{netns_fd}" if netns_fd >= 0 else "/proc/thread-self/ns/net"
    return os.stat(path).st_ino


class Kernel:
    """The simulated subsystem, with its state in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, netns_fd: int, family: int, kind: int, protocol: int) -> int:
        """Return a socket that answers one request from a namespace."""
        assert (family, kind, protocol) == (socket.AF_NETLINK, socket.SOCK_RAW, 20)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        threading.Thread(target=self._serve, args=(theirs, inode(netns_fd)), daemon=True).start()
        return ours.detach()

    def _serve(self, theirs: socket.socket, namespace: int) -> None:
        with theirs:
            request = theirs.recv(1 << 16)
            answers: list[dict[int, bytes]] = []
            assert not rdma.decode(request, answers)
            for datagram in self._answers(int.from_bytes(request[4:6], sys.byteorder), answers[0], namespace):
                theirs.send(datagram)

    def _answers(self, command: int, asked: dict[int, bytes], namespace: int) -> list[bytes]:
        state = json.loads(self._path.read_text())
        if command == rdma.CMD_SYS_GET:
            mode = bytes([state["shared"]])
            return [rdma.request(command, 0, {rdma.NETNS_MODE: mode}), _end(c.NLMSG_ERROR, 0)]
        if command == rdma.CMD_GET:
            found = [
                rdma.request(
                    command, 0, {rdma.DEV_INDEX: _u32(int(index)), rdma.DEV_NAME: name.encode() + b"\0"}
                )
                for index, (name, place) in state["devices"].items()
                if place == namespace
            ]
            return [b"".join(found), _end(c.NLMSG_DONE, 0)] if found else [_end(c.NLMSG_DONE, 0)]
        return [_end(c.NLMSG_ERROR, self._set(state, asked, namespace))]

    def _set(self, state: dict[str, Any], asked: dict[int, bytes], namespace: int) -> int:
        device = state["devices"].get(str(int.from_bytes(asked[rdma.DEV_INDEX], sys.byteorder)))
        if device is None or device[1] != namespace:
            return 19  # ENODEV
        if rdma.DEV_NAME in asked:
            name = asked[rdma.DEV_NAME].rstrip(b"\0").decode()
            if any(known == name for known, _ in state["devices"].values()):
                return 17  # EEXIST: names are unique among all namespaces
            device[0] = name
        elif state["refuses"]:
            return int(state["refuses"])
        else:
            device[1] = inode(int.from_bytes(asked[rdma.NET_NS_FD], sys.byteorder))
        self._path.write_text(json.dumps(state))
        return 0


def _u32(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


def _end(kind: int, error: int) -> bytes:
    """Return a struct nlmsghdr, followed by an errno."""
    head = (20).to_bytes(4, sys.byteorder) + kind.to_bytes(2, sys.byteorder) + bytes(10)
    return head + (-error).to_bytes(4, sys.byteorder, signed=True)
