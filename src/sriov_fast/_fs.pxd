# cython: language_level=3
"""Reading of directories, links and files, for ``_sysfs.pyx`` and ``_irq.pyx``.

All functions are inline and compiled into both modules; nothing is imported from here at run time. They keep
the interpreter's lock, since these files are in memory.
"""

from libc.errno cimport ENODEV, ENOENT, ENOTDIR, errno
from libc.string cimport strcmp, strerror, strlen, strncmp


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
        F_OK
        O_CLOEXEC
        O_DIRECTORY
        O_RDONLY
        O_TRUNC
        O_WRONLY
        PATH_MAX
        SSIZE_MAX


cdef extern from "Python.h":
    object PyUnicode_DecodeFSDefault(const char *text)
    object PyUnicode_EncodeFSDefault(object text)


cdef enum:
    DIRENTS = 16384  # bytes of directory entries read at once
    DIRENT_SIZE = 40  # bytes of one with a name of 15 characters, as netdevs have at most
    NUMBER_DIGITS = 9  # of a VF index or an IRQ number: fits an int


cdef inline bytes path_bytes(str path):
    """Return ``path`` in bytes. Raises ValueError for an embedded NUL."""
    cdef bytes raw = PyUnicode_EncodeFSDefault(path)
    if strlen(raw) != <size_t>len(raw):
        raise ValueError("embedded null byte")
    return raw


cdef inline int check_part(str text, str what) except -1:
    """Raise ValueError unless ``text`` can be one part of a path."""
    if text in ("", ".", "..") or "/" in text or "\0" in text:
        raise ValueError(f"{what} {text!r}: cannot be part of a path")
    return 0


cdef inline object os_error(int err, bytes path, str why=""):
    """Return the OSError of ``err`` (FileNotFoundError and so on) that names ``path``."""
    return OSError(err, why or strerror(err).decode(), PyUnicode_DecodeFSDefault(path))


cdef inline bint is_absent(int err) noexcept:
    """Return whether an errno means that the file does not exist, or no longer exists."""
    return err == ENOENT or err == ENODEV or err == ENOTDIR


cdef inline int need(bytes path) except -1:
    """Raise OSError unless a path exists."""
    if faccessat(AT_FDCWD, path, F_OK, 0) < 0:
        raise os_error(errno, path)
    return 0


cdef inline list names_of(int fd, bytes path, ssize_t most=SSIZE_MAX):
    """Return the names in an open directory, [] without one (fd -1). Raises OSError that names ``path``.

    Of more than ``most`` names some may be missing.
    """
    cdef char buffer[DIRENTS]
    cdef size_t capacity = DIRENTS if most >= DIRENTS // DIRENT_SIZE else (most + 4) * DIRENT_SIZE
    cdef list found = []
    cdef long size, at
    cdef Dirent *entry
    while fd >= 0 and len(found) <= most:
        size = getdents(fd, buffer, capacity)
        if size < 0 and not is_absent(errno):
            raise os_error(errno, path)
        if size <= 0:
            break
        at = 0
        while at < size:
            entry = <Dirent *>(buffer + at)
            at += entry.d_reclen
            if strcmp(entry.d_name, ".") != 0 and strcmp(entry.d_name, "..") != 0:
                found.append(<bytes>entry.d_name)
    return found


cdef inline list numbers_in(list names, const char *prefix):
    """Return the numbers that follow ``prefix`` in some names, ascending."""
    cdef size_t skip = strlen(prefix)
    cdef list found = []
    cdef bytes name
    cdef int number
    for name in names:
        if strncmp(name, prefix, skip) == 0:
            number = decimal(<const char *>name + skip)
            if number >= 0:
                found.append(number)
    found.sort()
    return found


cdef inline int decimal(const char *text) noexcept:
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


cdef inline ssize_t read_at(int fd, const char *path, char *text, size_t capacity) noexcept:
    """Read at most ``capacity`` bytes of a file of the kernel, which come at once.

    Returns their number or -errno.
    """
    cdef ssize_t length
    cdef int file = openat(fd, path, O_RDONLY | O_CLOEXEC)
    if file < 0:
        return -errno
    length = read(file, text, capacity)
    if length < 0:
        length = -errno
    close(file)
    return length
