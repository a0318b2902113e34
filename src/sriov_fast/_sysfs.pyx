# cython: language_level=3
"""The VFs in sysfs, read with few system calls.

See the kernel's Documentation/ABI/testing/sysfs-bus-pci (``virtfnN``, ``physfn``, ``sriov_totalvfs``,
``numa_node``) and sysfs-class-net (``device``). ``kernel/_sysfs_py.py`` is the plain implementation.
"""

from libc.errno cimport EINVAL, ENODEV, errno
from libc.stdio cimport snprintf
from libc.string cimport strstr

from sriov_fast._fs cimport *

from sriov_fast.common.record import Vf


cdef extern from "<errno.h>":
    const int ENOTSUP


cdef enum:
    PATH_SIZE = 64  # "virtfn<9 digits>/driver" needs less
    NODE_SIZE = 31
    MAX_LISTINGS = 4  # of drivers' directories
    LISTING = 4  # system calls to list one directory; a link's target takes one


cdef object _new = tuple.__new__  # Record.__new__ takes as long as reading the VF


cdef class Directory:
    """An open directory, by its path below another one; ``fd`` is -1 if it does not exist."""

    cdef int fd
    cdef bytes path

    def __cinit__(self, bytes path not None, Directory above=None):
        self.path = path if above is None else above.path + b"/" + path
        self.fd = openat(AT_FDCWD if above is None else above.fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        if self.fd < 0 and not is_absent(errno):
            raise os_error(errno, self.path)

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)

    cdef list names(self, ssize_t most=SSIZE_MAX):
        """Return the names in it; of more than ``most`` some may be missing."""
        return names_of(self.fd, self.path, most)

    cdef bytes link(self, const char *name):
        """Return the last part of a link's target, b"" without a link. Raises OSError."""
        cdef char target[PATH_MAX]
        cdef ssize_t length = readlinkat(self.fd, name, target, PATH_MAX)
        if length >= 0:
            return last_part(target, length)
        if self.fd < 0 or is_absent(errno):
            return b""
        raise os_error(errno, self.path + b"/" + name)

    cdef bint has(self, const char *name) except -1:
        """Return whether a path exists. Raises OSError if that is unknown."""
        if faccessat(self.fd, name, F_OK, 0) == 0:
            return True
        if is_absent(errno):
            return False
        raise os_error(errno, self.path + b"/" + name)


def scan(str pf not None, str root not None="/sys"):
    """List the VFs of a PF in the order of their indices, without those that disappear during the scan.

    ``pf`` is the netdev's name. The NUMA node is that of the PF. Raises OSError with errno and filename:
    ENOENT (no such netdev), ENOTSUP (not the netdev of an SR-IOV PF), or the kernel's error; ValueError for a
    ``pf`` that cannot be a name.
    """
    check_part(pf, "PF")
    cdef bytes netdev = path_bytes(f"{root}/class/net/{pf}")
    cdef Directory device = Directory(netdev + b"/device")
    cdef list names = device.names()
    cdef list indices = numbers_in(names, b"virtfn")
    cdef list links
    if not indices:
        if b"sriov_totalvfs" in names:
            return []
        need(netdev)
        raise os_error(ENOTSUP, device.path, "no SR-IOV PF")
    links = [(index, pci) for index in indices if (pci := device.link(virtfn(index)))]
    return vfs_of(device, links, netdevs_of(path_bytes(f"{root}/class/net"), LISTING * len(links)))


def first_vf(str pf not None, skipped not None, int index=0, str root not None="/sys"):
    """Return the first VF of a PF from an index on, except those at the addresses in ``skipped``.

    Return None if there is none; a missing index ends the search, and a device that is no PF has none.
    ``pf`` and the errors are those of ``scan``.
    """
    check_part(pf, "PF")
    cdef Directory device = Directory(path_bytes(f"{root}/class/net/{pf}/device"))
    while pci := device.link(virtfn(index)):
        found = [] if text(pci) in skipped else vfs_of(device, [(index, pci)], None)
        if found:
            return found[0]
        index += 1
    return None


def vf_index(str pci not None, str root not None="/sys"):
    """Return the index of the VF at a PCI address on its PF.

    Raises OSError with errno and filename: ENOENT (no such device), ENODEV (not a VF), or the kernel's error;
    ValueError for a ``pci`` that cannot be an address.
    """
    check_part(pci, "PCI address")
    cdef bytes device = path_bytes(f"{root}/bus/pci/devices/{pci}"), wanted = path_bytes(pci)
    cdef Directory physfn = Directory(device + b"/physfn")
    if physfn.fd < 0:
        need(device)
        raise os_error(ENODEV, device, "not a VF")
    for index in numbers_in(physfn.names(), b"virtfn"):
        if physfn.link(virtfn(index)) == wanted:
            return index
    raise os_error(ENODEV, device, "not among the VFs of its PF")


cdef bytes last_part(const char *path, ssize_t length):
    cdef const char *slash = <const char *>memrchr(path, c"/", length)
    return path[slash + 1 - path if slash != NULL else 0:length]


cdef bytes virtfn(int index, const char *tail=b""):
    """Return the name of a VF's link, or of a file behind the link."""
    cdef char path[PATH_SIZE]
    snprintf(path, PATH_SIZE, "virtfn%d%s", index, tail)
    return path


cdef str text(bytes name):
    return PyUnicode_DecodeFSDefault(name)


cdef list vfs_of(Directory pf, list links, dict netdevs):
    """Return the VFs with these indices and addresses of a PF, except those that are gone.

    A driver's directory names all devices that it is bound to: one listing replaces the other VFs' links.
    ``netdevs`` has the network devices by address; with None the directory of each VF is listed.
    """
    cdef list found = []
    cdef dict drivers = {}
    cdef Py_ssize_t left = len(links)
    cdef int index, listings = MAX_LISTINGS
    cdef bytes pci, netdev
    cdef str driver
    cdef Directory bound, own
    node = numa_node(pf)
    for index, pci in links:
        driver = drivers.get(pci)
        if driver is None:
            driver = text(pf.link(virtfn(index, "/driver")))
            if driver and listings and left > LISTING:
                listings -= 1
                bound = Directory(virtfn(index, "/driver"), pf)
                drivers.update(dict.fromkeys(bound.names(), driver))
        left -= 1
        # Without a driver, either the VF has none or only the link to the VF exists.
        if not driver and not pf.has(virtfn(index)):
            continue
        if netdevs is None:
            own = Directory(virtfn(index, "/net"), pf)
            netdev = min(own.names(), default=b"")
        else:
            netdev = netdevs.get(pci, b"")
        found.append(_new(Vf, (index, text(pci), driver, text(netdev), node)))
    return found


cdef dict netdevs_of(bytes path, ssize_t most):
    """Return the netdevs of a namespace by the address of their device; None if there are more than ``most``.

    ``/sys/class/net`` has a link for every netdev, and the link's target names the device: that is one call
    for each netdev, whereas listing the ``net/`` of a VF takes four.
    """
    cdef char target[PATH_MAX]
    cdef ssize_t length
    cdef const char *end
    cdef bytes name, pci
    cdef dict found = {}
    cdef Directory here = Directory(path)
    cdef list names = here.names(most)
    if len(names) > most:
        return None
    for name in names:
        length = readlinkat(here.fd, name, target, PATH_MAX - 1)  # such as ".../0000:01:10.0/net/eth2"
        if length >= 0:
            target[length] = 0
            end = strstr(target, "/net/")
            pci = last_part(target, end - target if end != NULL else 0)
            if pci not in found or name < found[pci]:
                found[pci] = name
        elif errno != EINVAL:  # a file, such as bonding_masters
            return None
    return found


cdef object numa_node(Directory pf):
    """Return the PF's NUMA node, -1 without one."""
    cdef char number[NODE_SIZE]
    cdef ssize_t length = read_at(pf.fd, "numa_node", number, NODE_SIZE)
    if length < 0 and not is_absent(-length):
        raise os_error(-length, pf.path + b"/numa_node")
    try:
        return int(number[:max(length, 0)])
    except ValueError:
        return -1
