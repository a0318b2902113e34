# bpf(2).

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.exc cimport PyErr_SetFromErrno
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy


def bpf(int command, bytearray attributes not None, dict buffers=None):
    """Do one ``bpf(command)`` (bpf(2)), in the namespace of the thread; return its result.

    ``attributes`` is the command's part of union bpf_attr. The addresses of ``buffers`` are put into it, each
    at its offset. The kernel writes into both. Raises OSError.
    """
    cdef size_t size = len(attributes)
    cdef uint8_t *data = <uint8_t *>PyByteArray_AS_STRING(attributes)
    cdef uint64_t address
    cdef bytearray buffer
    cdef long done
    for at, buffer in (buffers or {}).items():
        if not 0 <= at <= <Py_ssize_t>size - 8:
            raise ValueError(f"offset {at!r}: outside of {size} bytes")
        address = <uint64_t>PyByteArray_AS_STRING(buffer)
        memcpy(data + <size_t>at, &address, sizeof(address))
    with nogil:
        done = syscall(SYS_bpf, command, data, size)
    if done < 0:
        PyErr_SetFromErrno(OSError)
    return done
