# cython: language_level=3, boundscheck=False, wraparound=False
"""The VFs in sysfs, read in one pass of openat, getdents64 and readlinkat without the GIL.

See the kernel's Documentation/ABI/testing/sysfs-bus-pci (``virtfnN``, ``physfn``, ``sriov_totalvfs``,
``numa_node``) and sysfs-class-net (``device``). ``kernel/_sysfs_py.py`` is the plain implementation.
"""

from cpython.bytes cimport PyBytes_AS_STRING

from libc.errno cimport ENODEV, ENOMEM, errno
from libc.stdint cimport SIZE_MAX, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc, realloc, strtol
from libc.string cimport memcmp, memcpy, memmove, memset, strcmp, strcpy, strlen, strncmp

from sriov_fast._fs cimport (
    AT_FDCWD,
    DIRENTS,
    DT_LNK,
    DT_UNKNOWN,
    F_OK,
    NAME_SIZE,
    PATH_MAX,
    Dirent,
    Numbers,
    check_part,
    close,
    faccessat,
    getdents,
    is_absent,
    memrchr,
    numbers_in,
    open_dir,
    os_error,
    path_bytes,
    read_at,
    readlinkat,
    smallest_name,
)

from sriov_fast.common.record import Vf


cdef extern from "Python.h":
    object PyUnicode_DecodeFSDefault(const char *text)


cdef extern from "<errno.h>" nogil:
    const int ENOTSUP


cdef enum:
    PATH_SIZE = 64  # "virtfn<9 digits>/driver" needs less
    NODE_SIZE = 32
    TEXT_SIZE = 32768  # bytes of all texts, at first
    MAX_LISTINGS = 4  # of drivers' directories
    MAX_BOUND = 65536  # VFs of one driver
    DIRENT_SIZE = 40  # with a name of 15 characters, as netdevs have at most
    LISTING = 4  # system calls to list one directory; a link's target takes one


cdef struct Row:
    int index
    size_t pci  # these three: where in Table.text they begin
    size_t driver
    size_t netdev


cdef struct Table:
    # The result of a scan: a row for each VF, and all texts in one buffer that begins with the empty text.
    Row *rows
    size_t used
    int numa
    char *text
    size_t filled
    size_t capacity
    int *slots  # rows by the hash of their PCI address, -1 where free
    size_t mask  # number of slots, a power of two, less one
    char failed[PATH_SIZE + 1]  # the path that an error is about, below the PF's device


cdef object _new = tuple.__new__  # Record.__new__ takes as long as reading the VF


def scan(str pf not None, str root not None="/sys"):
    """List the VFs of a PF in the order of their indices, without those that disappear during the scan.

    ``pf`` is the netdev's name. The NUMA node is that of the PF. Raises OSError with errno and filename:
    ENOENT (no such netdev), ENOTSUP (not the netdev of an SR-IOV PF), or the kernel's error; ValueError for a
    ``pf`` that cannot be a name.
    """
    cdef Table table
    cdef int fd, err = 0
    check_part(pf, "PF")
    cdef str netdevs = f"{root}/class/net"
    cdef str device = f"{netdevs}/{pf}/device"
    cdef bytes raw = path_bytes(device), raw_net = path_bytes(netdevs)
    cdef const char *path = PyBytes_AS_STRING(raw)
    cdef const char *net_path = PyBytes_AS_STRING(raw_net)
    memset(&table, 0, sizeof(table))
    try:
        with nogil:
            fd = open_dir(AT_FDCWD, path)
            if fd >= 0:
                err = _read_pf(fd, net_path, &table)
                close(fd)
        if is_absent(fd):
            _need(f"{netdevs}/{pf}")
            err = -ENOTSUP
        elif fd < 0:
            err = fd
        if err == -ENOTSUP:
            raise os_error(ENOTSUP, device, "no SR-IOV PF")
        if err < 0:
            raise os_error(-err, device + table.failed.decode())
        return _values(&table)
    finally:
        _discard(&table)


def first_vf(str pf not None, skipped not None, int index=0, str root not None="/sys"):
    """Return the first VF of a PF from an index on, except those at the addresses in ``skipped``.

    Return None if there is none; a missing index ends the search, and a device that is no PF has none.
    ``pf`` and the errors are those of ``scan``.
    """
    cdef char link[PATH_SIZE]
    cdef char pci[PATH_MAX]
    cdef int fd, length
    cdef list found
    check_part(pf, "PF")
    cdef str device = f"{root}/class/net/{pf}/device"
    cdef bytes raw = path_bytes(device)
    fd = open_dir(AT_FDCWD, PyBytes_AS_STRING(raw))
    if is_absent(fd):
        return None
    if fd < 0:
        raise os_error(-fd, device)
    try:
        while True:
            snprintf(link, PATH_SIZE, "virtfn%d", index)
            length = _read_link(fd, link, pci)
            if length < 0:
                raise os_error(-length, f"{device}/{link.decode()}")
            if length == 0:
                return None
            if PyUnicode_DecodeFSDefault(pci) not in skipped:
                found = _one(fd, index, device)
                if found:
                    return found[0]
            index += 1
    finally:
        close(fd)


cdef list _one(int fd, int index, str device):
    """Return the VF with this index of the PF whose device directory is open; nothing if it is gone."""
    cdef Table table
    cdef int err
    memset(&table, 0, sizeof(table))
    try:
        err = _prepare(1, &table)
        if err == 0:
            err = _numa(fd, &table)
        if err == 0:
            err = _read_vf(fd, index, &table)
        if err == 0:
            err = _add_drivers(fd, &table)
        if err == 0:
            err = _list_netdevs(fd, &table)
        if err < 0:
            raise os_error(-err, device + table.failed.decode())
        return _values(&table)
    finally:
        _discard(&table)


def vf_index(str pci not None, str root not None="/sys"):
    """Return the index of the VF at a PCI address on its PF.

    Raises OSError with errno and filename: ENOENT (no such device), ENODEV (not a VF), or the kernel's error;
    ValueError for a ``pci`` that cannot be an address.
    """
    cdef int fd, index = 0
    check_part(pci, "PCI address")
    cdef str device = f"{root}/bus/pci/devices/{pci}"
    cdef str physfn = f"{device}/physfn"
    cdef bytes raw = path_bytes(physfn), raw_pci = path_bytes(pci)
    cdef const char *path = PyBytes_AS_STRING(raw)
    cdef const char *wanted = PyBytes_AS_STRING(raw_pci)
    with nogil:
        fd = open_dir(AT_FDCWD, path)
        if fd >= 0:
            index = _index_of(fd, wanted)
            close(fd)
    if fd < 0:
        if not is_absent(fd):
            raise os_error(-fd, physfn)
        _need(device)
        raise os_error(ENODEV, device, "not a VF")
    if index == -ENODEV:
        raise os_error(ENODEV, device, "not among the VFs of its PF")
    if index < 0:
        raise os_error(-index, physfn)
    return index


cdef void _discard(Table *table) noexcept nogil:
    """Free the table's memory."""
    free(table.rows)
    free(table.text)
    free(table.slots)


cdef int _need(str path) except -1:
    """Raise OSError if ``path`` does not exist."""
    cdef bytes raw = path_bytes(path)
    if faccessat(AT_FDCWD, PyBytes_AS_STRING(raw), F_OK, 0) < 0:
        raise os_error(errno, path)
    return 0


cdef list _values(Table *table):
    """Make the Vf values."""
    cdef list found = []
    cdef const char *seen = NULL
    cdef const char *text
    cdef object driver = ""
    cdef object numa = table.numa
    cdef Row *row
    cdef size_t i
    for i in range(table.used):
        row = &table.rows[i]
        if row.pci == 0:
            continue
        text = table.text + row.driver
        if seen == NULL or strcmp(seen, text) != 0:  # usually one driver for all
            driver = PyUnicode_DecodeFSDefault(text)
            seen = text
        found.append(_value(row, table.text, driver, numa))
    return found


cdef object _value(Row *row, const char *text, object driver, object numa):
    cdef str pci = PyUnicode_DecodeFSDefault(text + row.pci)
    return _new(Vf, (row.index, pci, driver, PyUnicode_DecodeFSDefault(text + row.netdev), numa))


cdef int _read_pf(int fd, const char *net_path, Table *table) noexcept nogil:
    """Fill the table from the PF's open device directory. Returns 0, -ENOTSUP (no PF) or -errno."""
    cdef Numbers indices
    cdef size_t i
    cdef int err
    memset(&indices, 0, sizeof(indices))
    err = numbers_in(fd, "virtfn", &indices)
    if err == 0 and indices.used == 0 and faccessat(fd, "sriov_totalvfs", F_OK, 0) < 0:
        err = -ENOTSUP if is_absent(-errno) else -errno
    if err == 0 and indices.used:
        err = _prepare(indices.used, table)
        if err == 0:
            err = _numa(fd, table)
        for i in range(indices.used):
            if err == 0:
                err = _read_vf(fd, indices.at[i], table)
        if err == 0:
            err = _add_drivers(fd, table)
        if err == 0:
            err = _add_netdevs(fd, net_path, table)
    free(indices.at)
    return err


cdef int _prepare(size_t count, Table *table) noexcept nogil:
    """Make an empty table for so many VFs. Returns 0 or -ENOMEM."""
    cdef size_t slots = 16
    while slots < 2 * count:
        slots *= 2
    table.mask = slots - 1
    table.rows = <Row *>malloc(count * sizeof(Row))
    table.slots = <int *>malloc(slots * sizeof(int))
    if table.rows == NULL or table.slots == NULL or _reserve(table, 1) < 0:
        return -ENOMEM
    memset(table.slots, 0xff, slots * sizeof(int))
    table.text[0] = 0
    table.filled = 1
    return 0


cdef int _read_vf(int fd, int index, Table *table) noexcept nogil:
    """Add the row of one VF with its address alone, unless its link is gone. Returns 0 or -errno."""
    cdef char path[PATH_SIZE]
    cdef Row *row = &table.rows[table.used]
    cdef int err
    snprintf(path, PATH_SIZE, "virtfn%d", index)
    row.index = index
    row.driver = row.netdev = 0
    err = _link_name(fd, path, table, &row.pci)
    if err == 0 and row.pci:
        table.slots[_slot(table, table.text + row.pci, strlen(table.text + row.pci))] = table.used
        table.used += 1
    return err


cdef int _add_drivers(int fd, Table *table) noexcept nogil:
    """Find the driver of each VF, and the VFs that are gone. Returns 0 or -errno.

    A driver's directory names all devices that it is bound to: one listing replaces the other VFs' links.
    """
    cdef char path[PATH_SIZE]
    cdef Row *row
    cdef size_t i
    cdef int err
    cdef int listings = MAX_LISTINGS
    for i in range(table.used):
        row = &table.rows[i]
        if row.driver:
            continue
        snprintf(path, PATH_SIZE, "virtfn%d/driver", row.index)
        err = _link_name(fd, path, table, &row.driver)
        if err < 0:
            return err
        if row.driver == 0:
            err = _check_alive(fd, row, table)
            if err < 0:
                return err
        elif listings and table.used - i > LISTING:
            listings -= 1
            _share_driver(fd, path, row.driver, table)
    return 0


cdef int _check_alive(int fd, Row *row, Table *table) noexcept nogil:
    """Mark a VF without a driver as gone if only the link to it exists. Returns 0 or -errno."""
    cdef char path[PATH_SIZE]
    snprintf(path, PATH_SIZE, "virtfn%d", row.index)
    if faccessat(fd, path, F_OK, 0) < 0:
        if not is_absent(-errno):
            return _failed(table, path, -errno)
        row.pci = 0
    return 0


cdef void _share_driver(int fd, const char *path, size_t driver, Table *table) noexcept nogil:
    """Give the driver to all VFs that its directory names. After a failure, each VF's own link is read."""
    cdef size_t begin = table.filled
    cdef size_t at = begin
    cdef size_t length
    cdef int row, bound = open_dir(fd, path)
    if bound < 0:
        return
    if _list(bound, MAX_BOUND, table) > 0:
        while at < table.filled:
            length = strlen(table.text + at)
            row = table.slots[_slot(table, table.text + at, length)]
            if row >= 0:
                table.rows[row].driver = driver
            at += length + 1
    table.filled = begin
    close(bound)


cdef int _failed(Table *table, const char *path, int err) noexcept nogil:
    """Store the path that an error is about. Returns ``err``."""
    table.failed[0] = c"/"
    strcpy(table.failed + 1, path)
    return err


cdef int _reserve(Table *table, size_t size) noexcept nogil:
    """Make space for more text. Returns 0 or -ENOMEM."""
    cdef size_t capacity
    cdef char *moved
    if table.capacity - table.filled >= size:
        return 0
    capacity = table.capacity * 2 + size + TEXT_SIZE
    moved = <char *>realloc(table.text, capacity)
    if moved == NULL:
        return -ENOMEM
    table.text = moved
    table.capacity = capacity
    return 0


cdef size_t _slot(Table *table, const char *pci, size_t length) noexcept nogil:
    """Return the slot of the row with this PCI address, or the free one where it belongs."""
    cdef uint32_t key = 2166136261u  # FNV-1a, then linear probing
    cdef size_t i
    cdef const char *known
    for i in range(length):
        key = (key ^ <unsigned char>pci[i]) * <uint32_t>16777619
    i = key & table.mask
    while table.slots[i] >= 0:
        known = table.text + table.rows[table.slots[i]].pci
        if strncmp(known, pci, length) == 0 and known[length] == 0:
            break
        i = (i + 1) & table.mask
    return i


cdef int _add_netdevs(int fd, const char *net_path, Table *table) noexcept nogil:
    """Find the netdev of each VF with the fewest system calls. Returns 0 or -errno.

    ``/sys/class/net`` has a link for every netdev of the namespace, and the link's target names the device:
    that is one call for each netdev, whereas listing the ``net/`` of a VF takes four.
    """
    cdef size_t names = table.filled
    cdef ssize_t count
    cdef int net = open_dir(AT_FDCWD, net_path)
    cdef bint done = False
    if net >= 0:
        count = _list(net, LISTING * table.used, table)
        if 0 <= count <= <ssize_t>(LISTING * table.used):
            done = _match_netdevs(net, names, table)
        close(net)
    if done:
        return 0
    table.filled = names
    return _list_netdevs(fd, table)


cdef ssize_t _list(int fd, ssize_t most, Table *table) noexcept nogil:
    """Add the names of the links in the open directory to the texts; stop beyond ``most``.

    Returns their number (more than ``most`` if there are others) or -errno.
    """
    cdef char buffer[DIRENTS]
    cdef size_t capacity = min(DIRENTS, (most + 4) * DIRENT_SIZE)
    cdef long size, at
    cdef ssize_t count = 0
    cdef size_t length
    cdef Dirent *entry
    while count <= most:
        size = getdents(fd, buffer, capacity)
        if size <= 0:
            return -errno if size < 0 else count
        if _reserve(table, size) < 0:
            return -ENOMEM
        at = 0
        while at < size:
            entry = <Dirent *>(buffer + at)
            at += entry.d_reclen
            if entry.d_type == DT_LNK or entry.d_type == DT_UNKNOWN:
                length = strlen(entry.d_name) + 1
                memcpy(table.text + table.filled, entry.d_name, length)
                table.filled += length
                count += 1
    return count


cdef bint _match_netdevs(int net, size_t names, Table *table) noexcept nogil:
    """Give the listed netdevs to the VFs that their links point to; return False if one has disappeared."""
    cdef char target[PATH_MAX]
    cdef ssize_t length
    cdef size_t at = names
    cdef size_t row
    while at < table.filled:
        length = readlinkat(net, table.text + at, target, PATH_MAX)
        if length < 0:
            return False
        row = _owner(table, target, length)
        if row < table.used:
            _take_name(table, &table.rows[row], at)
        at += strlen(table.text + at) + 1
    return True


cdef size_t _owner(Table *table, const char *target, ssize_t length) noexcept nogil:
    """Return the row of the VF in a target such as ".../0000:01:10.0/net/eth2", or SIZE_MAX."""
    cdef const char *name = <const char *>memrchr(target, c"/", length)
    cdef const char *pci
    cdef int row
    if name == NULL or name - target < 5 or memcmp(name - 4, "/net", 4) != 0:
        return SIZE_MAX
    name -= 4
    pci = <const char *>memrchr(target, c"/", name - target)
    pci = target if pci == NULL else pci + 1
    row = table.slots[_slot(table, pci, name - pci)]
    return row if row >= 0 else SIZE_MAX


cdef void _take_name(Table *table, Row *row, size_t name) noexcept nogil:
    """Give a VF this netdev, unless it has one with a smaller name."""
    if row.netdev == 0 or strcmp(table.text + name, table.text + row.netdev) < 0:
        row.netdev = name


cdef int _list_netdevs(int fd, Table *table) noexcept nogil:
    """Look for the netdev of each VF in the VF's own directory. Returns 0 or -errno."""
    cdef char path[PATH_SIZE]
    cdef size_t i
    cdef int err
    cdef Row *row
    for i in range(table.used):
        row = &table.rows[i]
        snprintf(path, PATH_SIZE, "virtfn%d/net", row.index)
        err = _reserve(table, NAME_SIZE)
        if err == 0:
            err = _netdev(fd, path, table.text + table.filled)
        if err < 0:
            return _failed(table, path, err)
        row.netdev = table.filled
        table.filled += strlen(table.text + table.filled) + 1
    return 0


cdef int _link_name(int fd, const char *path, Table *table, size_t *where) noexcept nogil:
    """Add the last part of a link's target to the texts (``where`` 0: no link). Returns 0 or -errno."""
    cdef int length
    where[0] = 0
    if _reserve(table, PATH_MAX) < 0:
        return -ENOMEM
    length = _read_link(fd, path, table.text + table.filled)
    if length < 0:
        return _failed(table, path, length)
    if length > 0:
        where[0] = table.filled
        table.filled += length + 1
    return 0


cdef int _read_link(int fd, const char *path, char *name) noexcept nogil:
    """Put the last part of a link's target into ``name`` (PATH_MAX; "" without a link).

    Returns its length or -errno.
    """
    cdef ssize_t length = readlinkat(fd, path, name, PATH_MAX - 1)
    cdef char *slash
    name[0 if length < 0 else length] = 0
    if length < 0:
        return 0 if is_absent(-errno) else -errno
    slash = <char *>memrchr(name, c"/", length)
    if slash == NULL:
        return length
    length -= slash + 1 - name
    memmove(name, slash + 1, length + 1)
    return length


cdef int _netdev(int fd, const char *path, char *name) noexcept nogil:
    """Put the first netdev of a device into ``name`` (NAME_SIZE; "" where none is visible).

    Returns 0 or -errno.
    """
    cdef int net = open_dir(fd, path)
    cdef int err
    name[0] = 0
    if net < 0:
        return 0 if is_absent(net) else net
    err = smallest_name(net, name)
    close(net)
    return 0 if is_absent(err) else err


cdef int _numa(int fd, Table *table) noexcept nogil:
    """Read the PF's NUMA node, -1 without one. Returns 0 or -errno."""
    cdef char text[NODE_SIZE]
    cdef char *end
    cdef ssize_t length = read_at(fd, "numa_node", text, NODE_SIZE)
    cdef long node
    table.numa = -1
    if length < 0:
        return 0 if is_absent(length) else _failed(table, "numa_node", length)
    node = strtol(text, &end, 10)
    if end != text and (end[0] == 0 or end[0] == c"\n"):
        table.numa = node
    return 0


cdef int _index_of(int fd, const char *pci) noexcept nogil:
    """Find the VF with this address in a PF's open device directory. Returns its index, -ENODEV or -errno."""
    cdef Numbers indices
    cdef size_t i
    cdef int err, found = -ENODEV
    memset(&indices, 0, sizeof(indices))
    err = numbers_in(fd, "virtfn", &indices)
    for i in range(indices.used):
        if err < 0 or found >= 0:
            break
        err = _links_to(fd, indices.at[i], pci)
        if err > 0:
            found = indices.at[i]
    free(indices.at)
    return err if err < 0 else found


cdef int _links_to(int fd, int index, const char *pci) noexcept nogil:
    """Return 1 if ``virtfn<index>`` is the VF at ``pci``, otherwise 0 or -errno."""
    cdef char path[PATH_SIZE]
    cdef char name[PATH_MAX]
    cdef int length
    snprintf(path, PATH_SIZE, "virtfn%d", index)
    length = _read_link(fd, path, name)
    return length if length < 0 else strcmp(name, pci) == 0
