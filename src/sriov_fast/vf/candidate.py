"""Examines a VF before it goes to a pod: finds its network device, and whether the host uses that device.

A device's name is only a hint. udev may rename the device at any moment and give its name to another one. A
device that was read by name is therefore compared with the PCI address; after that only its index is used.
"""

from __future__ import annotations

import errno
import os

from sriov_fast.common.errors import NetlinkError, TryAgainError, is_absent, is_there
from sriov_fast.common.paths import is_auxiliary
from sriov_fast.common.record import Link, Record, Vf
from sriov_fast.kernel.backend import nl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sriov_fast.common.paths import Roots
    from sriov_fast.common.record import Route

# A rename takes microseconds, so a device that is renamed this often in a row is misconfigured.
RENAMES = 10
_LINK_LOCAL = ("fe80:", "169.254.")  # RFC 4291 section 2.5.6, RFC 3927
_IFA_F_PERMANENT = 0x80  # linux/if_addr.h
_UIO_DRIVERS = ("uio_pci_generic", "igb_uio")
_NETWORK_CONTROLLER = "0x02"  # PCI_BASE_CLASS_NETWORK, linux/pci_ids.h
NO_DEVICE = Link(index=0, name="", mac="", mtu=0, up=False)


class Device(Record):
    """The network device of a VF; ``use`` describes its use by the host, "" if it is unused.

    ``link`` is ``NO_DEVICE`` for a VF with a userspace driver.
    """

    link: Link
    use: str = ""


def has_userspace_driver(vf: Vf) -> bool:
    """Return whether a VF's driver gives it to programs, such as DPDK's, and so makes no network device.

    Some cards have a VFIO driver of their own, such as mlx5_vfio_pci.
    """
    return vf.driver in _UIO_DRIVERS or vf.driver.replace("_", "-").endswith("vfio-pci")


def lone_vf(address: str, roots: Roots) -> Vf | None:
    """Return the VF at an address if no PF makes its settings; its index is -1.

    The PF may be invisible, as in a virtual machine: the VF then looks like a network card without SR-IOV. A
    subfunction of a card, on the auxiliary bus, has no such PF.
    """
    function = roots.device(address)
    try:
        names = os.listdir(function)
        if "physfn" in names or "sriov_totalvfs" in names or not _is_network_card(function, address):
            return None
        driver = os.path.basename(os.readlink(f"{function}/driver")) if "driver" in names else ""
    except OSError as error:
        if not is_absent(error):
            raise
        return None
    return Vf(index=-1, pci=address, driver=driver, netdev=netdev_of(function))


def _is_network_card(function: str, address: str) -> bool:
    """Return whether a device is a network controller; an auxiliary device has no class."""
    if is_auxiliary(address):
        return True
    with open(f"{function}/class", encoding="ascii") as file:
        return file.read(len(_NETWORK_CONTROLLER)) == _NETWORK_CONTROLLER


def examine(host: nl.Socket, vf: Vf, roots: Roots) -> Device | None:
    """Return the VF's device, None if it has none in this namespace any more."""
    if has_userspace_driver(vf):
        return Device(link=NO_DEVICE, use=use_of_others(vf.pci, roots))
    function, name = roots.device(vf.pci), vf.netdev
    for _ in range(RENAMES):
        link = read(host, function, vf.pci, name)
        if link is None:
            return None
        try:
            use = _use(host, link, f"{function}/net/{link.name}") or use_of_others(vf.pci, roots)
            return Device(link=link, use=use)
        except (OSError, NetlinkError) as error:
            if not is_absent(error):
                raise
            name = link.name
    raise _renamed_repeatedly(vf.pci, name)


def read_pf(host: nl.Socket, pf: str, vf: Vf, roots: Roots, mac: str) -> Link:
    """Return the PF of a VF with its settings of the VF, and with the other VF that has ``mac``, if any.

    ``pf`` is the last known name of the PF. An empty ``mac`` is not searched for.
    """
    function = f"{roots.device(vf.pci)}/physfn"
    link = read(host, function, os.path.basename(os.readlink(function)), pf, {"vf": vf.index, "mac": mac})
    if link is None:
        raise NetlinkError(errno.ENODEV, "", 0, f"get vf {vf.index} of {pf}")
    return link


def read(
    host: nl.Socket, function: str, pci: str, name: str, more: dict[str, Any] | None = None
) -> Link | None:
    """Return the network device of the PCI function at ``pci``, None if it has none in this namespace.

    ``function`` is its directory in sysfs, ``name`` the device's last known name, ``more`` further arguments
    of ``nl.Batch.get_link``. Raises TryAgainError if the device is renamed again and again, OSError or
    NetlinkError if it cannot be read.
    """
    for _ in range(RENAMES):
        link = named(host, name, more)
        if link is not None and belongs(link, pci, function):
            return link
        last, name = name, netdev_of(function)
        if not name or (link is None and name == last):  # sysfs still shows a device that is being moved
            return None
    raise _renamed_repeatedly(pci, name)


def _renamed_repeatedly(pci: str, name: str) -> TryAgainError:
    return TryAgainError(
        f"the network device of {pci} is renamed again and again, to {name} at last",
        "see which rules rename network devices (udev)",
        interface=name,
    )


def real_name(host: nl.Socket, name: str) -> str:
    """Return the name of the device with this name or alternative name, "" if there is none."""
    link = named(host, name)
    return link.name if link else ""


def named(host: nl.Socket, name: str, more: dict[str, Any] | None = None) -> Link | None:
    """Return the device that has this name now, None if there is none."""
    batch = nl.Batch()
    batch.get_link(name=name, **(more or {}))
    answer = host.run(batch, check=False)[0]
    if not isinstance(answer, NetlinkError):
        link: Link = answer
        return link
    if not is_absent(answer):
        answer.interface = name
        raise answer
    return None


def at(socket: nl.Socket, index: int) -> Link:
    """Return the device with this index. Raises NetlinkError without one."""
    batch = nl.Batch()
    batch.get_link(index=index)
    link: Link = socket.run(batch)[0]
    return link


def belongs(link: Link, pci: str, function: str) -> bool:
    """Return whether a device is that of a PCI function; ``function`` is its directory in sysfs.

    Kernels before 5.14 do not report a device's parent; sysfs has the index of each device of the function.
    """
    if link.parent:
        return link.parent == pci
    try:
        with open(f"{function}/net/{link.name}/ifindex", "rb", buffering=0) as file:
            return int(file.read(31)) == link.index
    except OSError as error:
        if not is_absent(error):
            raise
        return False


def netdev_of(function: str) -> str:
    """Return the name of a PCI function's network device, "" if it has none in this namespace."""
    names = netdevs(function)
    if len(names) < 2:
        return names[0] if names else ""
    from sriov_fast.vf import uplink  # late: few cards show more than one

    return uplink.of(f"{function}/net", names)


def netdevs(function: str) -> list[str]:
    """Return the names of a PCI function's network devices in this namespace."""
    try:
        return os.listdir(f"{function}/net")
    except OSError as error:
        if not is_absent(error):
            raise
        return []


def _use(host: nl.Socket, link: Link, directory: str) -> str:
    """Describe the host's use of a device, "" if it is unused.

    Not counted are the consequences of being up: link-local addresses, and the addresses and routes from
    router advertisements.
    """
    upper = devices_above(directory)
    if upper:
        return f"{', '.join(upper)} on top of it"
    addresses, advertised = configured(host.addresses(link.index), link.index)
    if addresses:
        return f"address {', '.join(addresses)}"
    routes = host.routes(link.index) if link.up else []
    routes = [route for route in routes if not _is_automatic(route, advertised)]
    return f"route {routes[0].dst}" if routes else ""


def devices_above(directory: str) -> list[str]:
    """Return the bond, bridge, VRF, VLAN and macvlan devices on top of a device; the kernel links to each."""
    return sorted(name.removeprefix("upper_") for name in os.listdir(directory) if name.startswith("upper_"))


def configured(addresses: list[str], index: int) -> tuple[list[str], set[str]]:
    """Return those addresses of a device that somebody gave it, and those from router advertisements."""
    addresses = [cidr for cidr in addresses if not cidr.startswith(_LINK_LOCAL)]
    advertised = _advertised(index) if any(":" in cidr for cidr in addresses) else set()
    return [cidr for cidr in addresses if cidr not in advertised], advertised


def use_of_others(pci: str, roots: Roots) -> str:
    """Describe the use of a VF by the SR-IOV CNI, "" if it is unused."""
    if not is_there(f"{roots.sriov_cni}/pci/{pci}"):
        return ""
    from sriov_fast.vf import sriov_cni  # late: only on nodes that had that plugin

    return sriov_cni.use(pci, roots)


def _advertised(index: int) -> set[str]:
    """Return the addresses that a device has from router advertisements (RFC 4862): /64, with a lifetime.

    A line of /proc/net/if_inet6 has the address in 32 digits, then index, prefix length, scope and flags.
    """
    from _socket import AF_INET6, inet_ntop  # late: most VFs have no IPv6 address but a link-local one

    advertised = set()
    with open("/proc/thread-self/net/if_inet6", encoding="ascii") as file:
        for line in file:
            digits, its_index, length, _, flags, *_ = line.split()
            if (int(its_index, 16), length) == (index, "40") and not int(flags, 16) & _IFA_F_PERMANENT:
                advertised.add(f"{inet_ntop(AF_INET6, bytes.fromhex(digits))}/64")
    return advertised


def _is_automatic(route: Route, advertised: set[str]) -> bool:
    """Return whether a route is to link-local or multicast addresses, or from router advertisements."""
    if route.dst.startswith((*_LINK_LOCAL, "ff00:")):
        return True
    is_default = route.dst == "::/0" and route.gw.startswith(_LINK_LOCAL)
    return bool(advertised) and (is_default or route.dst in map(_network, advertised))


def _network(cidr: str) -> str:
    """Return the network of an IPv6 address with the prefix length 64."""
    from _socket import AF_INET6, inet_ntop, inet_pton

    return f"{inet_ntop(AF_INET6, inet_pton(AF_INET6, cidr.partition('/')[0])[:8] + bytes(8))}/64"
