# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Interrupts and the CPUs that serve them: masks read and written in one pass without the GIL.

The kernel's side is described in Documentation/core-api/irq/irq-affinity.rst (``smp_affinity``) and
Documentation/ABI/testing/sysfs-bus-pci (``msi_irqs``). A mask is the text of ``smp_affinity``: groups of
32 bits in hexadecimal, the highest CPUs first, with commas between. ``_irq_py.py`` does the same in
plain Python.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.number cimport PyNumber_Index
from libc.errno cimport EINVAL, EIO, ENAMETOOLONG, errno
from libc.stdint cimport uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from sriov_fast._fs cimport (
    AT_FDCWD,
    F_OK,
    O_CLOEXEC,
    O_TRUNC,
    O_WRONLY,
    PATH_MAX,
    Numbers,
    check_part,
    close,
    faccessat,
    is_absent,
    numbers_in,
    open_dir,
    openat,
    os_error,
    path_bytes,
    read_at,
    write,
)


cdef enum:
    CPUS = 8192  # the most that Linux can be built for
    GROUPS = 256  # of 32 CPUs
    MASK_ROOM = 2305  # 9 characters for each group
    LIST_ROOM = 4096  # a page: the longest text of a sysfs file
    MAX_IRQ = 2147483647


cdef struct Job:
    # One IRQ and its mask. ``length`` is that of ``mask``: what to write, or what was read; or -errno.
    int irq
    char *mask
    ssize_t length


cdef str _BLANKS = " \t\r\n"


def irqs(str pci not None, str root not None="/sys"):
    """List the IRQs of a PCI device, ascending: its ``msi_irqs``, [] while its driver has asked for none.

    The legacy ``irq`` file is left aside: a VF has no INTx. Raises OSError with errno and filename (ENOENT:
    no such device); ValueError for a ``pci`` that cannot be an address.
    """
    check_part(pci, "PCI address")
    cdef str device = f"{root}/bus/pci/devices/{pci}"
    cdef bytes raw = path_bytes(device), raw_irqs = path_bytes(f"{device}/msi_irqs")
    cdef const char *path = PyBytes_AS_STRING(raw_irqs)
    cdef Numbers numbers
    cdef size_t i
    cdef int fd, err
    memset(&numbers, 0, sizeof(numbers))
    with nogil:
        fd = err = open_dir(AT_FDCWD, path)
        if fd >= 0:
            err = numbers_in(fd, "", &numbers)
            close(fd)
    try:
        if is_absent(err):
            if faccessat(AT_FDCWD, PyBytes_AS_STRING(raw), F_OK, 0) < 0:
                raise os_error(errno, device)
            return []
        if err < 0:
            raise os_error(-err, f"{device}/msi_irqs")
        return [numbers.at[i] for i in range(numbers.used)]
    finally:
        free(numbers.at)


def parse_cpus(str text not None):
    """Return the CPUs of a list such as "1-4,8": in the order given, repetition kept.

    Blanks around the parts are allowed. Raises ValueError that names the bad part: not a number or an
    ascending range, a CPU beyond 8191, more than 8192 CPUs in all.
    """
    cdef list cpus = []
    cdef list more
    cdef str part
    for part in text.split(","):
        part = part.strip(_BLANKS)
        more = _cpu_range(part, text)
        if len(cpus) + len(more) > CPUS:
            raise ValueError(f"CPU list: more than {CPUS} CPUs from {part!r} on")
        cpus += more
    return cpus


def cpu_mask(cpus not None):
    """Return the mask of these CPUs, as many groups as the highest needs, each of eight lower-case digits.

    No CPUs give "00000000". Raises ValueError for a CPU that is not in 0 to 8191.
    """
    cdef uint32_t bits[GROUPS]
    cdef char text[MASK_ROOM]
    cdef int cpu, group, top = 0
    cdef char *at = text
    memset(bits, 0, sizeof(bits))
    for given in cpus:
        if not 0 <= given < CPUS:
            raise ValueError(f"CPU {given}: not in 0 to {CPUS - 1}")
        cpu = PyNumber_Index(given)
        bits[cpu // 32] |= <uint32_t>1 << (cpu % 32)
        top = max(top, cpu // 32)
    for group in range(top, -1, -1):
        snprintf(at, 10, "%08x,", bits[group])
        at += 9
    return text[:9 * (top + 1) - 1].decode("ascii")


def parse_mask(str text not None):
    """Return the CPUs of a mask, ascending. Raises ValueError for what is no mask, or beyond CPU 8191."""
    cdef list groups = text.strip(_BLANKS).split(",")
    cdef list cpus = []
    cdef uint32_t bits[GROUPS]
    cdef int group, cpu
    cdef int count = len(groups)
    if count > GROUPS:
        raise ValueError(f"CPU mask of {count} groups: more than {GROUPS}")
    for group in range(count):
        bits[count - 1 - group] = _group(groups[group], text)
    for cpu in range(count * 32):
        if bits[cpu // 32] >> (cpu % 32) & 1:
            cpus.append(cpu)
    return cpus


def online(str root not None="/sys"):
    """Return the CPUs that are online, ascending. Raises OSError with errno and filename."""
    cdef str name = f"{root}/devices/system/cpu/online"
    cdef bytes raw = path_bytes(name)
    cdef const char *path = PyBytes_AS_STRING(raw)
    cdef char text[LIST_ROOM]
    cdef ssize_t length
    with nogil:
        length = read_at(AT_FDCWD, path, text, LIST_ROOM)
    if length < 0:
        raise os_error(-length, name)
    return parse_cpus(text[:length].decode("utf-8", "replace"))


def read_masks(irqs not None, str root not None="/proc"):
    """Return each IRQ's mask as the kernel writes it, without the newline; "" for an IRQ that is gone.

    Raises OSError with errno and filename for any other failure; ValueError for what can be no IRQ.
    """
    cdef list wanted = list(irqs)
    cdef bytes raw = path_bytes(root)
    cdef const char *proc = PyBytes_AS_STRING(raw)
    cdef size_t i, count = len(wanted)
    cdef Job *jobs = NULL
    cdef char *text = NULL
    try:
        jobs = _jobs(wanted)
        text = <char *>malloc(count * MASK_ROOM + 1)
        if text == NULL:
            raise MemoryError
        with nogil:
            for i in range(count):
                jobs[i].mask = text + i * MASK_ROOM
                _read_mask(proc, &jobs[i])
        return [_mask_text(&jobs[i], root) for i in range(count)]
    finally:
        free(text)
        free(jobs)


def write_masks(masks not None, str root not None="/proc"):
    """Write the mask of each IRQ; return the errno of each, 0 where the kernel took it.

    ENOENT: the IRQ is gone. EIO, or EPERM (newer kernels): the kernel manages this one's affinity itself, or
    cannot set it. EINVAL: no online CPU in the mask, no mask, or "". Raises ValueError for what can be no
    IRQ, before any is written.
    """
    cdef list wanted = []
    cdef list lines = []  # holds what the jobs point to
    for irq, mask in masks:
        wanted.append(irq)
        lines.append(_line(mask))
    cdef bytes raw = path_bytes(root)
    cdef const char *proc = PyBytes_AS_STRING(raw)
    cdef size_t i, count = len(wanted)
    cdef Job *jobs = _jobs(wanted)
    try:
        for i in range(count):
            jobs[i].mask = PyBytes_AS_STRING(lines[i])
            jobs[i].length = PyBytes_GET_SIZE(lines[i])
        with nogil:
            for i in range(count):
                _write_mask(proc, &jobs[i])
        return [<int>-jobs[i].length for i in range(count)]
    finally:
        free(jobs)


cdef int _cpu(str text) except -2:
    """Return the CPU that ``text`` is (leading zeros allowed), or -1."""
    cdef int value = 0
    cdef Py_UCS4 digit
    for digit in text:
        if not u"0" <= digit <= u"9":
            return -1
        value = value * 10 + (<int>digit - c"0")
        if value >= CPUS:
            return -1
    return value if text else -1


cdef list _cpu_range(str part, str text):
    """Return the CPUs of one part of a list. Raises ValueError."""
    low, dash, high = part.partition("-")
    cdef int first = _cpu(low)
    cdef int last = _cpu(high) if dash else first
    cdef int cpu
    if first < 0 or last < 0:
        raise ValueError(f"CPU list {text!r}: {part!r} is no CPU (0 to {CPUS - 1}) and no range")
    if last < first:
        raise ValueError(f"CPU list {text!r}: {part!r} descends")
    return [cpu for cpu in range(first, last + 1)]


cdef uint32_t _group(str group, str text) except? 0:
    """Return the 32 bits of one group of a mask. Raises ValueError."""
    cdef uint32_t bits = 0
    cdef Py_UCS4 digit
    for digit in group if 1 <= len(group) <= 8 else "?":
        if u"0" <= digit <= u"9":
            bits = bits << 4 | <uint32_t>(<int>digit - c"0")
        elif u"a" <= digit <= u"f" or u"A" <= digit <= u"F":
            bits = bits << 4 | <uint32_t>((<int>digit | 32) - c"a" + 10)
        else:
            raise ValueError(f"CPU mask {text!r}: {group!r} is not one to eight hexadecimal digits")
    return bits


cdef bytes _line(str mask):
    """Return the line to write; what is not ASCII becomes what the kernel refuses."""
    return mask.encode("ascii", "replace") + b"\n" if mask else b""


cdef Job *_jobs(list irqs) except NULL:
    """Return a job for each IRQ, to be freed. Raises ValueError for what can be no IRQ."""
    cdef Job *jobs = <Job *>calloc(len(irqs) + 1, sizeof(Job))
    cdef size_t i
    if jobs == NULL:
        raise MemoryError
    try:
        for i in range(<size_t>len(irqs)):
            irq = irqs[i]
            if not 0 <= irq <= MAX_IRQ:
                raise ValueError(f"IRQ {irq}: not in 0 to {MAX_IRQ}")
            jobs[i].irq = PyNumber_Index(irq)
    except BaseException:
        free(jobs)
        raise
    return jobs


cdef bint _mask_path(const char *proc, int irq, char *path) noexcept nogil:
    """Put the name of an IRQ's mask into ``path`` (PATH_MAX); tell whether it fits."""
    return snprintf(path, PATH_MAX, "%s/irq/%d/smp_affinity", proc, irq) < PATH_MAX


cdef void _read_mask(const char *proc, Job *job) noexcept nogil:
    cdef char path[PATH_MAX]
    job.length = -ENAMETOOLONG
    if _mask_path(proc, job.irq, path):
        job.length = read_at(AT_FDCWD, path, job.mask, MASK_ROOM)


cdef str _mask_text(Job *job, str root):
    """Return the mask that was read. Raises OSError."""
    # Removed between open and read, procfs says EIO.
    if is_absent(job.length) or job.length == -EIO:
        return ""
    if job.length < 0:
        raise os_error(-job.length, f"{root}/irq/{job.irq}/smp_affinity")
    return job.mask[:job.length].decode("ascii", "replace").strip(_BLANKS)


cdef void _write_mask(const char *proc, Job *job) noexcept nogil:
    """Write one mask; ``length`` becomes 0 or -errno."""
    cdef char path[PATH_MAX]
    cdef int fd
    cdef ssize_t length = job.length
    job.length = -ENAMETOOLONG
    if not _mask_path(proc, job.irq, path):
        return
    # Truncated, for the sake of trees that are ordinary files; procfs takes no notice.
    fd = openat(AT_FDCWD, path, O_WRONLY | O_TRUNC | O_CLOEXEC)
    if fd < 0:
        job.length = -errno
        return
    if length == 0:
        job.length = -EINVAL
    else:
        job.length = 0 if write(fd, job.mask, length) >= 0 else -errno
    close(fd)
