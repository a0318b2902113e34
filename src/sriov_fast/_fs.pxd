# cython: language_level=3
"""Reading of directories and links without Python objects, for ``_sysfs.pyx`` and ``_irq.pyx``.

All functions are inline and compiled into both modules; nothing is imported from here at run time. Functions
marked ``nogil`` return 0 (or a count) or ``-errno``, raise nothing and use no Python object.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EIO, ENODEV, ENOENT, ENOMEM, ENOTDIR, errno
from libc.stdlib cimport free, qsort, realloc
from libc.string cimport memcmp, memcpy, strcmp, strerror, strlen


cdef extern from * nogil:
    """
    #include <dirent.h>
    #include <fcntl.h>
    #include <limits.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* struct linux_dirent64, include/linux/dirent.h */
    struct sf_dirent {
        unsigned long long d_ino;
        long long d_off;
        unsigned short d_reclen;
        unsigned char d_type;
        char d_name[1];
    };

    /* Raw, because a DIR costs an allocation and an fcntl for each of the hundreds of directories. */
    static inline long sf_getdents(int fd, void *buffer, size_t size)
    {
        return syscall(SYS_getdents64, fd, buffer, size);
    }
    """
    ctypedef struct Dirent "struct sf_dirent":
        unsigned short d_reclen
        unsigned char d_type
        char *d_name
    long getdents "sf_getdents"(int fd, void *buffer, size_t size)
    int openat(int fd, const char *path, int flags)
    int close(int fd)
    int faccessat(int fd, const char *path, int mode, int flags)
    ssize_t readlinkat(int fd, const char *path, char *buffer, size_t size)
    ssize_t read(int fd, void *buffer, size_t size)
    ssize_t write(int fd, const void *buffer, size_t size)
    void *memrchr(const void *text, int c, size_t size)
    enum:
        AT_FDCWD
        DT_LNK
        DT_UNKNOWN
        F_OK
        O_CLOEXEC
        O_DIRECTORY
        O_RDONLY
        O_TRUNC
        O_WRONLY
        PATH_MAX


cdef extern from "Python.h":
    object PyUnicode_EncodeFSDefault(object text)


cdef enum:
    DIRENTS = 16384  # bytes of directory entries read at once
    NAME_SIZE = 256  # a file name and its NUL (NAME_MAX is 255)
    NUMBER_DIGITS = 9  # of a VF index or an IRQ number: fits an int


cdef struct Numbers:
    # A growing list. Its owner zeroes it first and frees ``at`` at the end.
    int *at
    size_t used
    size_t capacity


cdef inline bytes path_bytes(str path):
    """Return ``path`` in bytes. Raises ValueError for an embedded NUL."""
    cdef bytes raw = PyUnicode_EncodeFSDefault(path)
    if strlen(PyBytes_AS_STRING(raw)) != <size_t>PyBytes_GET_SIZE(raw):
        raise ValueError("embedded null byte")
    return raw


cdef inline int check_part(str text, str what) except -1:
    """Raise ValueError unless ``text`` can be one part of a path."""
    if text in ("", ".", "..") or "/" in text or "\0" in text:
        raise ValueError(f"{what} {text!r}: cannot be part of a path")
    return 0


cdef inline object os_error(int err, str path, str why=""):
    """Return the OSError of ``err`` (FileNotFoundError and so on) that names ``path``."""
    return OSError(err, why or strerror(err).decode(), path)


cdef inline bint is_absent(int negative) noexcept nogil:
    """Return whether ``-errno`` means that the file does not exist, or no longer exists."""
    return negative == -ENOENT or negative == -ENODEV or negative == -ENOTDIR


cdef inline int decimal(const char *text) noexcept nogil:
    """Return the number in ``text``: no sign, no leading zero, at most 9 digits; otherwise -1."""
    cdef int value = 0
    cdef size_t i = 0
    if text[0] == c"0" and text[1] != 0:
        return -1
    while text[i] != 0:
        if i == NUMBER_DIGITS or not c"0" <= text[i] <= c"9":
            return -1
        value = value * 10 + (text[i] - c"0")
        i += 1
    return value if i else -1


cdef inline int add_number(Numbers *numbers, int value) noexcept nogil:
    """Append. Returns 0 or -ENOMEM."""
    cdef size_t capacity
    cdef int *moved
    if numbers.used == numbers.capacity:
        capacity = numbers.capacity * 2 if numbers.capacity else 64
        moved = <int *>realloc(numbers.at, capacity * sizeof(int))
        if moved == NULL:
            return -ENOMEM
        numbers.at = moved
        numbers.capacity = capacity
    numbers.at[numbers.used] = value
    numbers.used += 1
    return 0


cdef inline int _ascending(const void *a, const void *b) noexcept nogil:
    cdef int left = (<const int *>a)[0]
    cdef int right = (<const int *>b)[0]
    return (left > right) - (left < right)


cdef inline int numbers_in(int fd, const char *prefix, Numbers *numbers) noexcept nogil:
    """Collect the numbers that follow ``prefix`` in the names of the open directory, ascending.

    Returns 0 or -errno.
    """
    cdef char buffer[DIRENTS]
    cdef size_t skip = strlen(prefix)
    cdef long size, at
    cdef int value
    cdef Dirent *entry
    while True:
        size = getdents(fd, buffer, DIRENTS)
        if size <= 0:
            break
        at = 0
        while at < size:
            entry = <Dirent *>(buffer + at)
            at += entry.d_reclen
            # The name is NUL-terminated and padded, so a short one differs before its end.
            if skip and (entry.d_name[0] != prefix[0] or strlen(entry.d_name) < skip
                         or memcmp(entry.d_name, prefix, skip) != 0):
                continue
            value = decimal(entry.d_name + skip)
            if value >= 0 and add_number(numbers, value) < 0:
                return -ENOMEM
    if size < 0:
        return -errno
    if numbers.used > 1:
        qsort(numbers.at, numbers.used, sizeof(int), _ascending)
    return 0


cdef inline int smallest_name(int fd, char *name) noexcept nogil:
    """Put the smallest name of the open directory, by its bytes, into ``name`` (NAME_SIZE; "" if empty).

    Returns 0 or -errno.
    """
    cdef char buffer[DIRENTS]
    cdef long size, at
    cdef Dirent *entry
    name[0] = 0
    while True:
        size = getdents(fd, buffer, DIRENTS)
        if size <= 0:
            return -errno if size < 0 else 0
        at = 0
        while at < size:
            entry = <Dirent *>(buffer + at)
            at += entry.d_reclen
            if strcmp(entry.d_name, ".") == 0 or strcmp(entry.d_name, "..") == 0:
                continue
            if name[0] == 0 or strcmp(entry.d_name, name) < 0:
                memcpy(name, entry.d_name, strlen(entry.d_name) + 1)


cdef inline int open_dir(int fd, const char *path) noexcept nogil:
    """Open a directory to list it. Returns the descriptor or -errno."""
    cdef int opened = openat(fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    return opened if opened >= 0 else -errno


cdef inline ssize_t read_at(int fd, const char *path, char *buffer, size_t capacity) noexcept nogil:
    """Read at most ``capacity`` - 1 bytes of a file, and append NUL. Returns the length or -errno."""
    cdef ssize_t got = 0
    cdef size_t used = 0
    cdef int file = openat(fd, path, O_RDONLY | O_CLOEXEC)
    if file < 0:
        return -errno
    while used < capacity - 1:
        got = read(file, buffer + used, capacity - 1 - used)
        if got <= 0:
            break
        used += got
        if buffer[used - 1] == c"\n":  # such a file has one line, so its end needs no second read
            break
    if got < 0:
        used = 0
        got = -errno
    close(file)
    buffer[used] = 0
    return got if got < 0 else <ssize_t>used
