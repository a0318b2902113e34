# cython: language_level=3
"""Interrupts and their CPU masks, with few system calls.

See the kernel's Documentation/core-api/irq/irq-affinity.rst (``smp_affinity``) and
Documentation/ABI/testing/sysfs-bus-pci (``msi_irqs``). A mask is the text of ``smp_affinity``: groups of
32 bits in hexadecimal, the highest CPUs first, with commas between. ``kernel/_irq_py.py`` is the plain
implementation.
"""

from libc.errno cimport EINVAL, EIO, errno

from sriov_fast._fs cimport *


cdef enum:
    MASK_SIZE = 2304  # 9 characters for each of the 256 groups of 8192 CPUs, the most that Linux supports
    MAX_IRQ = 2147483647


cdef str _BLANKS = " \t\r\n"


def irqs(str pci not None, str root not None="/sys"):
    """List the IRQs of a PCI device, ascending: its ``msi_irqs``, [] until its driver has requested some.

    The legacy ``irq`` file is ignored: a VF has no INTx. Raises OSError with errno and filename (ENOENT: no
    such device); ValueError for a ``pci`` that cannot be an address.
    """
    check_part(pci, "PCI address")
    cdef bytes device = path_bytes(f"{root}/bus/pci/devices/{pci}")
    cdef bytes path = device + b"/msi_irqs"
    cdef int fd = openat(AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    if fd < 0:
        if not is_absent(errno):
            raise os_error(errno, path)
        need(device)
        return []
    try:
        return numbers_in(names_of(fd, path), b"")
    finally:
        close(fd)


def read_masks(irqs not None, str root not None="/proc"):
    """Return the mask of each IRQ in the kernel's form, without the newline; "" for an IRQ that is gone.

    Raises OSError with errno and filename for any other failure; ValueError for a number that is no IRQ.
    """
    check_irqs(irqs)
    return [read_mask(path_bytes(f"{root}/irq/{irq}/smp_affinity")) for irq in irqs]


def write_masks(masks not None, str root not None="/proc"):
    """Write the mask of each IRQ; return the errno of each, 0 for a mask that the kernel accepted.

    ENOENT: the IRQ is gone. EIO, or EPERM (newer kernels): the kernel manages the affinity of this IRQ, or
    cannot set it. EINVAL: no online CPU in the mask, no mask, or "". Raises ValueError for a number that is
    no IRQ, before any mask is written.
    """
    check_irqs([irq for irq, _ in masks])
    return [write_mask(path_bytes(f"{root}/irq/{irq}/smp_affinity"), mask) for irq, mask in masks]


cdef int check_irqs(irqs) except -1:
    for irq in irqs:
        if not 0 <= irq <= MAX_IRQ:
            raise ValueError(f"IRQ {irq}: not in 0 to {MAX_IRQ}")
    return 0


cdef str read_mask(bytes path):
    cdef char text[MASK_SIZE]
    cdef ssize_t length = read_at(AT_FDCWD, path, text, MASK_SIZE)
    # procfs returns EIO for an IRQ that was removed between open and read.
    if is_absent(-length) or length == -EIO:
        return ""
    if length < 0:
        raise os_error(-length, path)
    return text[:length].decode("ascii", "replace").strip(_BLANKS)


cdef int write_mask(bytes path, str mask) except -1:
    """Write a mask; return 0 or the errno. Letters beyond ASCII become "?", which the kernel refuses."""
    cdef bytes line = mask.encode("ascii", "replace") + b"\n"
    cdef const char *text = line
    cdef size_t size = len(line) if mask else 0
    # O_TRUNC is for trees of ordinary files; procfs ignores it.
    cdef int fd = openat(AT_FDCWD, path, O_WRONLY | O_TRUNC | O_CLOEXEC)
    cdef int error = EINVAL
    if fd < 0:
        return errno
    if size:
        with nogil:  # the kernel writes to the device
            error = 0 if write(fd, text, size) >= 0 else errno
    close(fd)
    return error
