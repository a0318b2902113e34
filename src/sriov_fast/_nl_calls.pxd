"""The system calls of ``_nl.pyx`` and the constants that they take."""

from libc.stdint cimport uint16_t


cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <arpa/inet.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <limits.h>
    #include <sched.h>
    #include <sys/ioctl.h>
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <sys/time.h>
    #include <unistd.h>

    /* To Cython an assignment would make errno a local variable. */
    static inline void sf_set_errno(int error) { errno = error; }

    static inline void sf_close(int fd)
    {
        int error = errno;
        close(fd);
        errno = error;
    }
    """
    void set_errno "sf_set_errno"(int error)
    void close_keeping_errno "sf_close"(int fd)
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    struct timeval:
        long tv_sec
        long tv_usec
    enum:
        AF_INET
        AF_INET6
        CLONE_NEWNET
        INT_MAX
        MSG_PEEK
        MSG_TRUNC
        O_CLOEXEC
        O_RDONLY
        O_WRONLY
        SOCK_CLOEXEC
        SOCK_RAW
        SOL_SOCKET
        SO_RCVBUF
        SO_RCVBUFFORCE
        SO_RCVTIMEO
    int bind(int fd, const sockaddr *address, socklen_t size)
    int close(int fd)
    int getsockname(int fd, sockaddr *address, socklen_t *size)
    uint16_t htons(uint16_t value)
    const char *inet_ntop(int family, const void *address, char *text, socklen_t size)
    int inet_pton(int family, const char *text, void *address)
    int c_ioctl "ioctl"(int fd, unsigned long request, void *argument)
    uint16_t ntohs(uint16_t value)
    int c_open "open"(const char *path, int flags)
    ssize_t recvfrom(int fd, void *buffer, size_t size, int flags, sockaddr *sender, socklen_t *sender_size)
    ssize_t sendto(int fd, const void *buffer, size_t size, int flags, const sockaddr *to, socklen_t to_size)
    int setns(int fd, int kind)
    int usleep(unsigned int microseconds)
    long SYS_bpf
    long syscall(long number, ...)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
    int c_socket "socket"(int family, int kind, int protocol)
    ssize_t c_read "read"(int fd, void *buffer, size_t size)
    ssize_t c_write "write"(int fd, const void *buffer, size_t size)
