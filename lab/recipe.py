"""The recipe of the guest. Its hash names the cached tree, so a changed recipe means a new tree."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

REVISION = 2

MACHINE = ("qemu-system-x86", "virtiofsd", "busybox-static")
KERNEL = ("linux-image-amd64", "linux-headers-amd64", "linux-source", "make", "kmod")
CONTAINERS = ("containerd", "runc", "containernetworking-plugins", "iptables")
NETWORK = ("iproute2", "iputils-ping", "iputils-arping", "dnsmasq-base", "ethtool", "tcpdump")
PYTHON = ("python3", "python3-venv", "python3-dev", "gcc", "libc6-dev", "musl-tools", "ca-certificates")
TOOLS = ("strace", "jq", "procps", "psmisc", "less")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Suite, components and packages of the guest."""

    suite: str = "trixie"
    components: tuple[str, ...] = ("main",)
    packages: tuple[str, ...] = MACHINE + KERNEL + CONTAINERS + NETWORK + PYTHON + TOOLS
    # Files without use in a machine that runs for seconds.
    excluded: tuple[str, ...] = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")
    revision: int = REVISION


def key(recipe: Recipe) -> str:
    """Return a short name for exactly this recipe."""
    text = json.dumps(asdict(recipe), sort_keys=True)
    return f"{recipe.suite}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
