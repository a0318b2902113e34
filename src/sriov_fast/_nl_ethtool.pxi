# ethtool's ioctl.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport ENODEV, errno
from libc.stdint cimport uint8_t
from libc.string cimport memset


cdef union NamedValue:
    int index
    void *data
    uint8_t padding[24]


cdef struct NamedRequest:
    # struct ifreq (linux/if.h): SIOCGIFNAME fills the name of an index, SIOCETHTOOL takes name and data.
    char name[16]
    NamedValue value


cdef int ethtool_once(int fd, int index, uint8_t *data) noexcept nogil:
    # SIOCETHTOOL takes a name, so the device's current name is read just before.
    cdef NamedRequest asked
    memset(&asked, 0, sizeof(asked))
    asked.value.index = index
    if c_ioctl(fd, SIOCGIFNAME, &asked) != 0:
        return -1
    asked.value.data = data
    return c_ioctl(fd, SIOCETHTOOL, &asked)


def ethtool(int socket_fd, index, bytes request not None):
    """Do one ``ioctl(SIOCETHTOOL)`` for a device in the namespace of a socket; return the struct it leaves.

    ``request`` is the command's struct (linux/ethtool.h), with the size that the command fills. Raises
    OSError: EOPNOTSUPP where the driver has no such command, ENODEV where there is no such device.
    """
    cdef bytes answer = PyBytes_FromStringAndSize(PyBytes_AS_STRING(request), PyBytes_GET_SIZE(request))
    cdef uint8_t *data = <uint8_t *>PyBytes_AS_STRING(answer)
    cdef int which = <int>number(index, "index", 1, INT_MAX)
    cdef int failed
    if PyBytes_GET_SIZE(request) < 4:
        raise ValueError(f"ethtool request of {PyBytes_GET_SIZE(request)} bytes: has no command")
    with nogil:
        failed = ethtool_once(socket_fd, which, data)
        if failed and errno == ENODEV:
            failed = ethtool_once(socket_fd, which, data)  # a rename in between
    if failed:
        PyErr_SetFromErrno(OSError)
    return answer
