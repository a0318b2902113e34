# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Interrupts and their CPU masks, read and written in one pass without the GIL.

See the kernel's Documentation/core-api/irq/irq-affinity.rst (``smp_affinity``) and
Documentation/ABI/testing/sysfs-bus-pci (``msi_irqs``). A mask is the text of ``smp_affinity``: groups of
32 bits in hexadecimal, the highest CPUs first, with commas between. ``kernel/_irq_py.py`` is the plain
implementation.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.number cimport PyNumber_Index
from libc.errno cimport EINVAL, EIO, ENAMETOOLONG, errno
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
    MASK_SIZE = 2305  # 9 characters for each of the 256 groups of 8192 CPUs, the most that Linux supports
    MAX_IRQ = 2147483647


cdef struct Job:
    # One IRQ and its mask. ``length`` is the number of bytes in ``mask``, or -errno.
    int irq
    char *mask
    ssize_t length


cdef str _BLANKS = " \t\r\n"


def irqs(str pci not None, str root not None="/sys"):
    """List the IRQs of a PCI device, ascending: its ``msi_irqs``, [] until its driver has requested some.

    The legacy ``irq`` file is ignored: a VF has no INTx. Raises OSError with errno and filename (ENOENT: no
    such device); ValueError for a ``pci`` that cannot be an address.
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


def read_masks(irqs not None, str root not None="/proc"):
    """Return the mask of each IRQ in the kernel's form, without the newline; "" for an IRQ that is gone.

    Raises OSError with errno and filename for any other failure; ValueError for a number that is no IRQ.
    """
    cdef list wanted = list(irqs)
    cdef bytes raw = path_bytes(root)
    cdef const char *proc = PyBytes_AS_STRING(raw)
    cdef size_t i, count = len(wanted)
    cdef Job *jobs = NULL
    cdef char *text = NULL
    try:
        jobs = _jobs(wanted)
        text = <char *>malloc(count * MASK_SIZE + 1)
        if text == NULL:
            raise MemoryError
        with nogil:
            for i in range(count):
                jobs[i].mask = text + i * MASK_SIZE
                _read_mask(proc, &jobs[i])
        return [_mask_text(&jobs[i], root) for i in range(count)]
    finally:
        free(text)
        free(jobs)


def write_masks(masks not None, str root not None="/proc"):
    """Write the mask of each IRQ; return the errno of each, 0 for a mask that the kernel accepted.

    ENOENT: the IRQ is gone. EIO, or EPERM (newer kernels): the kernel manages the affinity of this IRQ, or
    cannot set it. EINVAL: no online CPU in the mask, no mask, or "". Raises ValueError for a number that is
    no IRQ, before any mask is written.
    """
    cdef list wanted = []
    cdef list lines = []  # owns the bytes that the jobs point to
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


cdef bytes _line(str mask):
    """Return the line to write. Letters beyond ASCII become "?", which the kernel refuses."""
    return mask.encode("ascii", "replace") + b"\n" if mask else b""


cdef Job *_jobs(list irqs) except NULL:
    """Return a job for each IRQ, to be freed. Raises ValueError for a number that is no IRQ."""
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
    """Put the path of an IRQ's mask into ``path`` (PATH_MAX); return whether it fits."""
    return snprintf(path, PATH_MAX, "%s/irq/%d/smp_affinity", proc, irq) < PATH_MAX


cdef void _read_mask(const char *proc, Job *job) noexcept nogil:
    cdef char path[PATH_MAX]
    job.length = -ENAMETOOLONG
    if _mask_path(proc, job.irq, path):
        job.length = read_at(AT_FDCWD, path, job.mask, MASK_SIZE)


cdef str _mask_text(Job *job, str root):
    """Return the text of a mask. Raises OSError."""
    # procfs returns EIO for an IRQ that was removed between open and read.
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
    # O_TRUNC is for trees of ordinary files; procfs ignores it.
    fd = openat(AT_FDCWD, path, O_WRONLY | O_TRUNC | O_CLOEXEC)
    if fd < 0:
        job.length = -errno
        return
    if length == 0:
        job.length = -EINVAL
    else:
        job.length = 0 if write(fd, job.mask, length) >= 0 else -errno
    close(fd)
