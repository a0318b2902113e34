"""Change a network device as a pod can: by the ioctl of ethtool(8), and by BPF programs.

The module shares no code with the plugin. Its constants are those of linux/ethtool.h and linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from array import array
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.pod import inside

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIOCETHTOOL = 0x8946
# ETHTOOL_GRINGPARAM, _GCOALESCE, _GCHANNELS, _GPFLAGS, _GMSGLVL: command, and length of its struct in __u32
_READABLE = {"rings": (0x10, 9), "coalescing": (0x0E, 23), "channels": (0x3C, 9)}
_READABLE |= {"private flags": (0x27, 2), "message level": (0x07, 2)}
_SYS_BPF = 321  # x86-64
_BPF_PROG_LOAD, _BPF_PROG_ATTACH, _BPF_LINK_CREATE = 5, 8, 28
_ATTACHED = {"ingress": 46, "egress": 47, "xdp": 37}  # BPF_TCX_INGRESS, BPF_TCX_EGRESS, BPF_XDP
_SCHED_CLS, _XDP = 3, 6
_PASS = struct.pack("<BBhi", 0xB7, 0, 0, 2) + struct.pack("<BBhi", 0x95, 0, 0, 0)  # return 2: XDP_PASS


def ethtool(netns: str, name: str, *words: int, size: int = 0) -> list[int]:
    """Execute SIOCETHTOOL with a struct of __u32; return the struct. "" is the caller's own namespace."""
    data = array("I", [*words, *[0] * (size - len(words))])
    with inside(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), data.buffer_info()[0]))
    return data.tolist()


def features(netns: str, name: str) -> tuple[int, ...]:
    """Return the active features as words of 32 bits (ETHTOOL_GFEATURES)."""
    answer = ethtool(netns, name, 0x3A, 4, size=18)
    return tuple(answer[4 : 2 + 4 * answer[1] : 4])


def settings(netns: str, name: str) -> dict[str, object]:
    """Return the settings of ethtool(8) that a device's driver reports, as the numbers of the structs."""
    found: dict[str, object] = {"features": features(netns, name)}
    for kind, (command, size) in _READABLE.items():
        try:
            found[kind] = ethtool(netns, name, command, size=size)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
    return found


def switch(netns: str, name: str, command: int, value: int) -> None:
    """Set an offload by its own command, such as ETHTOOL_SGRO (0x2c) or ETHTOOL_SGSO (0x24)."""
    ethtool(netns, name, command, value)


def _bpf(command: int, attributes: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    done: int = libc.syscall(
        _SYS_BPF, command, ctypes.create_string_buffer(attributes.ljust(128, b"\0")), 128
    )
    if done < 0:
        raise OSError(ctypes.get_errno(), f"bpf {command}: {os.strerror(ctypes.get_errno())}")
    return done


@contextmanager
def _program(kind: int) -> Iterator[int]:
    """Load a BPF program that passes every packet; yield its descriptor."""
    code, license_ = ctypes.create_string_buffer(_PASS), ctypes.create_string_buffer(b"GPL")
    where = ctypes.addressof(code), ctypes.addressof(license_)
    fd = _bpf(_BPF_PROG_LOAD, struct.pack("<IIQQ", kind, len(_PASS) // 8, *where))
    try:
        yield fd
    finally:
        os.close(fd)


def attach_tcx(netns: str, name: str, hook: str) -> None:
    """Attach a tcx program at "ingress" or "egress"; raise OSError (EINVAL) on kernels before 6.6."""
    with _program(_SCHED_CLS) as program, inside(netns):
        index = socket.if_nametoindex(name)
        _bpf(_BPF_PROG_ATTACH, struct.pack("<IIII", index, program, _ATTACHED[hook], 0))


def hold(netns: str, name: str, hook: str) -> int:
    """Attach a program by a bpf_link at "xdp", "ingress" or "egress"; return the link's descriptor."""
    with _program(_XDP if hook == "xdp" else _SCHED_CLS) as program, inside(netns):
        index = socket.if_nametoindex(name)
        return _bpf(_BPF_LINK_CREATE, struct.pack("<IIII", program, index, _ATTACHED[hook], 0))


def tcx(netns: str, name: str) -> list[int]:
    """Return the numbers of tcx programs at ingress and at egress; [] on kernels before 6.6."""
    found: list[int] = []
    with inside(netns):
        index = socket.if_nametoindex(name)
        for hook in ("ingress", "egress"):
            attributes = ctypes.create_string_buffer(struct.pack("<II", index, _ATTACHED[hook]), 64)
            if ctypes.CDLL(None).syscall(_SYS_BPF, 16, attributes, 64) == 0:  # BPF_PROG_QUERY
                found += struct.unpack_from("<I", attributes, 24)
    return found


def attach_xdp(netns: str, name: str, mode: str) -> None:
    """Attach an XDP program by netlink, as ip(8) does; ``mode`` is "generic" or "driver"."""

    def attr(kind: int, payload: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(payload), kind) + payload

    flags = {"generic": 2, "driver": 4}[mode]
    kernel = socket.AF_NETLINK, socket.SOCK_RAW
    with _program(_XDP) as program, inside(netns), socket.socket(*kernel) as sock:
        xdp = attr(43, attr(1, struct.pack("=i", program)) + attr(3, struct.pack("=I", flags)))
        body = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(name), 0, 0) + xdp
        sock.send(struct.pack("=IHHII", 16 + len(body), 19, 0x5, 1, 0) + body)  # RTM_SETLINK, REQUEST | ACK
        (error,) = struct.unpack_from("=i", sock.recv(65536), 16)
    assert error == 0, os.strerror(-error)
