# cython: language_level=3
"""Stands still so that this process can be saved, and knows when it is continued (``park.h``, ``image/``).

What it depends on is x86-64's and glibc's; elsewhere SUPPORTED is false, and nothing is saved.
"""

from libc.errno cimport errno
from libc.stdint cimport uint32_t


cdef extern from "park.h":
    enum:
        CPU_FACTS
        PARK_FAILED
        PARK_SUPPORTED
    int _park "park"(int tell, int wait)
    void image_cpu(uint32_t *facts)
    uint32_t park_personality()
    char **park_environ()
    char **park_arguments()


SUPPORTED = bool(PARK_SUPPORTED)


def park(int tell, int wait):
    """Write where we stand to ``tell`` (8 bytes), and stand still until ``wait`` can be read.

    Returns False then; True in a process that continues this one from its saved memory. Raises OSError.
    """
    cdef int answer = _park(tell, wait)
    if answer == PARK_FAILED:
        raise OSError(errno, "cannot stand still")
    return answer == 1


cdef list _strings(char **entry):
    found = []
    while entry and entry[0]:
        found.append(<bytes>entry[0])
        entry += 1
    return found


def environment():
    """Return the entries of the C library's ``environ``, each ``b"NAME=value"``."""
    return _strings(park_environ())


def arguments():
    """Return the words that a process which was continued was executed with; none in others."""
    return _strings(park_arguments())


def machine():
    """Return what an image depends on: facts of the processor, and personality(2)."""
    cdef uint32_t facts[CPU_FACTS]
    image_cpu(facts)
    return [facts[index] for index in range(CPU_FACTS)], park_personality()
