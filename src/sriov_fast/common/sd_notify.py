"""Notifications to systemd (sd_notify(3))."""

from __future__ import annotations

import socket
from contextlib import suppress


def notify(address: str, state: str) -> None:
    """Send a state such as ``READY=1`` to systemd.

    ``address`` is the value of NOTIFY_SOCKET; nothing is sent if it is empty or names no Unix socket.
    A failure is ignored: systemd reports a service that does not become ready.
    """
    if address[:1] not in ("/", "@"):
        return
    if address[0] == "@":  # an abstract socket
        address = f"\0{address[1:]}"
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as client:
        client.sendto(state.encode(), address)
