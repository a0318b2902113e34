# System calls in another network namespace.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno, PyErr_SetFromErrnoWithFilenameObject
from libc.errno cimport EIO, errno
from libc.stdlib cimport abort


cdef enum:
    SYS_fsopen = 430  # asm-generic/unistd.h, the same on all architectures
    SYS_fsconfig = 431
    SYS_fsmount = 432
    FSOPEN_CLOEXEC = 1  # linux/mount.h
    FSMOUNT_CLOEXEC = 1
    FSCONFIG_CMD_CREATE = 6


cdef int enter_netns(int netns_fd, int *own) noexcept nogil:
    # Move the calling thread to a namespace; ``own`` is for leave_netns. Return 0, or -1 with errno, unmoved.
    own[0] = -1
    if netns_fd < 0:
        return 0
    own[0] = c_open(b"/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)
    if own[0] < 0:
        return -1
    if setns(netns_fd, CLONE_NEWNET) == 0:
        return 0
    close_keeping_errno(own[0])
    return -1


cdef void leave_netns(int own) noexcept nogil:
    # Return the calling thread to its own namespace, or end the process. setns(2) fails while the kernel has
    # no memory, so it is repeated for a second. Keeps errno.
    cdef int error = errno
    cdef int tries = 1000
    cdef const char *text = b"sriov-fast: cannot return from a network namespace, giving up\n"
    if own < 0:
        return
    while setns(own, CLONE_NEWNET) != 0:
        tries -= 1
        if tries == 0:
            c_write(2, text, 62)
            abort()
        usleep(1000)
    close(own)
    set_errno(error)


cdef int socket_in(int netns_fd, int family, int kind, int protocol) noexcept nogil:
    cdef int own, fd
    if enter_netns(netns_fd, &own) != 0:
        return -1
    fd = c_socket(family, kind | SOCK_CLOEXEC, protocol)
    leave_netns(own)
    return fd


cdef int open_in(int netns_fd, const char *path, int flags) noexcept nogil:
    # The kernel resolves /proc/sys/net in the namespace of the thread that opens it.
    cdef int own, fd
    if enter_netns(netns_fd, &own) != 0:
        return -1
    fd = c_open(path, flags | O_CLOEXEC)
    leave_netns(own)
    return fd


cdef int require_sysctl(str path) except -1:
    # A container has a read-only /proc/sys, and the host's at another place.
    if "/sys/net/" not in path or "/../" in path or "\0" in path:
        raise ValueError(f"path {path!r}: not below /proc/sys/net")
    return 0


cdef int namespace_fd(object netns_fd) except -2:
    return <int>number(netns_fd, "netns_fd", 0, INT_MAX) if netns_fd != -1 else -1


def raw_socket(netns_fd, int family, int kind, int protocol):
    """Open ``socket(family, kind | SOCK_CLOEXEC, protocol)`` in a namespace (-1: this one).

    Returns the descriptor. Raises OSError; the thread is back in its own namespace either way.
    """
    cdef int fd, where = namespace_fd(netns_fd)
    with nogil:
        fd = socket_in(where, family, kind, protocol)
    if fd < 0:
        PyErr_SetFromErrno(OSError)
    return fd


cdef long open_sysfs(int netns_fd) noexcept nogil:
    # Return a descriptor, or -1 with errno. fsopen(2) takes the namespace of the thread.
    cdef int own
    cdef long context, mounted = -1
    if enter_netns(netns_fd, &own) != 0:
        return -1
    context = syscall(SYS_fsopen, b"sysfs", FSOPEN_CLOEXEC)
    leave_netns(own)
    if context < 0:
        return -1
    if syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0:
        mounted = syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0)
    close_keeping_errno(<int>context)
    return mounted


def sysfs_mount(netns_fd):
    """Return a descriptor of a new sysfs of a namespace (-1: this one), which is mounted nowhere.

    Raises OSError; ENOSYS before Linux 5.2.
    """
    cdef long fd
    cdef int where = namespace_fd(netns_fd)
    with nogil:
        fd = open_sysfs(where)
    if fd < 0:
        PyErr_SetFromErrno(OSError)
    return fd


def netns_read(netns_fd, str path not None):
    """Read a file below /proc/sys/net of a namespace (-1: this one): ``sysctl -n $path`` in there.

    Returns the text without white space around it. Raises OSError with the path.
    """
    cdef bytes name = path.encode("utf-8", "surrogateescape")
    cdef const char *at = PyBytes_AS_STRING(name)
    cdef char text[4096]
    cdef ssize_t length = -1
    cdef int fd, where = namespace_fd(netns_fd)
    require_sysctl(path)
    with nogil:
        fd = open_in(where, at, O_RDONLY)
        if fd >= 0:
            length = c_read(fd, text, sizeof(text))
            close_keeping_errno(fd)
    if length < 0:
        PyErr_SetFromErrnoWithFilenameObject(OSError, path)
    return text[:length].decode("ascii", "replace").strip()


def netns_write(netns_fd, str path not None, str text not None):
    """Write a file below /proc/sys/net of a namespace (-1: this one): ``sysctl -w $path=$text`` in there.

    Raises OSError with the path; the thread is back in its own namespace either way.
    """
    cdef bytes name = path.encode("utf-8", "surrogateescape")
    cdef bytes content = text.encode()
    cdef const char *at = PyBytes_AS_STRING(name)
    cdef const char *what = PyBytes_AS_STRING(content)
    cdef ssize_t written = -1, size = PyBytes_GET_SIZE(content)
    cdef int fd, where = namespace_fd(netns_fd)
    require_sysctl(path)
    with nogil:
        fd = open_in(where, at, O_WRONLY)
        if fd >= 0:
            written = c_write(fd, what, size)
            close_keeping_errno(fd)
    if 0 <= written < size:
        set_errno(EIO)
    if written < size:
        PyErr_SetFromErrnoWithFilenameObject(OSError, path)
