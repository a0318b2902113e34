"""Network namespaces and their devices, through ip(8) and setns(2); "" is the caller's own namespace."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CLONE_NEWNET = 0x40000000  # linux/sched.h


def ip(*words: str, stdin: str = "") -> str:
    """Run ip(8), which must succeed; return its output."""
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True, input=stdin)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


def try_ip(*words: str) -> bool:
    """Run ip(8); return whether it succeeded."""
    return subprocess.run(["ip", *words], check=False, capture_output=True).returncode == 0


def shown(netns: str, *words: str) -> Any:
    """Return the parsed JSON output of ip(8)."""
    return json.loads(ip("-j", *(("-n", netns) if netns else ()), *words))


def links(netns: str = "") -> list[dict[str, Any]]:
    """Return every device with all details."""
    found: list[dict[str, Any]] = shown(netns, "-d", "addr", "show")
    return found


def link(name: str, netns: str = "") -> dict[str, Any]:
    """Return one device with all details."""
    found: list[dict[str, Any]] = shown(netns, "-d", "addr", "show", "dev", name)
    return found[0]


def addresses(name: str, netns: str = "") -> list[str]:
    """Return the addresses of a device without its link-local ones."""
    found = (item for item in link(name, netns)["addr_info"] if item["scope"] != "link")
    return [f"{item['local']}/{item['prefixlen']}" for item in found]


def read(netns: str, path: str) -> str:
    """Return the content of a file of /proc/sys or /sys in a namespace, without the line's end."""
    return ip("netns", "exec", netns, "cat", path).strip()


def disables_ipv6(name: str, netns: str) -> bool:
    """Return whether IPv6 is disabled on a device."""
    return read(netns, f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6") == "1"


def without_dad(text: str) -> str:
    """Remove the flags of unfinished DAD from the output of ip(8): the kernel clears them later."""
    return text.replace(" tentative", "").replace(" optimistic", "")


def pfs() -> list[str]:
    """Return the PFs for tests: those that SRIOV_FAST_PF names, else all PFs of this machine."""
    named = os.environ.get("SRIOV_FAST_PF", "").replace(",", " ").split()
    return named or sorted(path.parts[4] for path in Path("/sys/class/net").glob("*/device/sriov_totalvfs"))


def path_of(netns: str) -> str:
    """Return the path of a namespace, which is given by its name or by its path."""
    return netns if netns.startswith("/") or not netns else f"/run/netns/{netns}"


def rename(netns: str, name: str) -> None:
    """Give a namespace another name."""
    subprocess.run(["touch", path_of(name)], check=True)
    subprocess.run(["mount", "--bind", path_of(netns), path_of(name)], check=True)
    ip("netns", "del", netns)


def enter(netns: str) -> None:
    """Move the calling thread into a namespace."""
    fd = os.open(path_of(netns), os.O_RDONLY | os.O_CLOEXEC)
    try:
        # os.setns came with Python 3.12
        if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), netns)
    finally:
        os.close(fd)


@contextmanager
def inside(netns: str) -> Iterator[None]:
    """Run in a namespace, and return to the thread's own one afterwards."""
    if not netns:
        yield
        return
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(netns)
        try:
            yield
        finally:
            enter(f"/proc/self/fd/{own}")
    finally:
        os.close(own)
