# The rtnetlink socket.

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, ETIMEDOUT, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from sriov_fast.common.errors import NetlinkError


cdef int RECEIVE_TIMEOUT = 30      # seconds without an answer; a large PF may hold the RTNL lock for some
cdef int DUMP_TRIES = 10
cdef int ALL_DEVICES = 0  # in place of an ifindex
cdef size_t ANSWER_SPACE = 2048    # bytes that one queued answer may take of the socket's receive buffer
cdef size_t VF_LIST_SPACE = 262144  # the same for an answer with a list of VFs
cdef size_t USUAL_SPACE = 131072   # receive buffer that every socket has (net.core.rmem_default is 212992)


cdef int bind_port(int fd, uint32_t *port) noexcept nogil:
    # Bind the socket to a port id that the kernel chooses, and return it.
    cdef sockaddr_nl own
    cdef socklen_t size = sizeof(own)
    memset(&own, 0, sizeof(own))
    own.nl_family = AF_NETLINK
    if bind(fd, <const sockaddr *>&own, sizeof(own)) != 0 or getsockname(fd, <sockaddr *>&own, &size) != 0:
        return -1
    port[0] = own.nl_pid
    return 0


cdef int netlink_socket(int netns_fd, int seconds, uint32_t *port) noexcept nogil:
    cdef int one = 1
    cdef timeval limit
    cdef int fd = socket_in(netns_fd, AF_NETLINK, SOCK_RAW, NETLINK_ROUTE)
    if fd < 0:
        return -1
    limit.tv_sec = seconds
    limit.tv_usec = 0
    # Kernels before 4.12 have no extack, so their errors have no text.
    setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof(one))
    setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof(one))
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit))
    if bind_port(fd, port) == 0:
        return fd
    close_keeping_errno(fd)
    return -1


cdef class Socket:
    """A rtnetlink socket, opened in the namespace that ``netns_fd`` refers to (-1: the thread's own).

    It stays in that namespace for good, whichever thread uses it, one at a time. Raises OSError.
    """

    cdef int fd
    cdef uint32_t port, next_seq
    cdef bytearray data
    cdef size_t space   # bytes of the receive buffer
    cdef bint busy, strict

    def __cinit__(self, netns_fd=-1):
        cdef int where
        cdef uint32_t port = 0
        cdef int fd
        self.fd = -1
        self.next_seq = 1
        # The kernel makes a dump's datagrams as large as the buffer of the last read, at most 32 KiB.
        self.data = bytearray(32768)
        self.space = USUAL_SPACE
        where = namespace_fd(netns_fd)
        with nogil:
            fd = netlink_socket(where, RECEIVE_TIMEOUT, &port)
        if fd < 0:
            PyErr_SetFromErrno(OSError)
        self.fd = fd
        self.port = port

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def fileno(self):
        """Return the descriptor, -1 once closed."""
        return self.fd

    def close(self):
        """Close the socket; a second time does nothing."""
        if self.busy:
            raise RuntimeError("the socket is in use")
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1

    def run(self, Batch batch not None, *, bint check=True):
        """Send the batch, wait for every answer, return one result for each message.

        One system call sends it; only a batch that is larger than a send buffer takes several.

        A result is a ``Link`` for ``get_link``, None for another message that succeeded, and a NetlinkError
        for one that the kernel refused, which does not stop the later ones. With ``check`` the first refusal
        is raised after all answers have arrived; its ``results`` is the whole list. Raises OSError if sending
        or receiving fails, NetlinkError with ETIMEDOUT after 30 seconds without an answer.
        """
        cdef list results = self.exchange(batch).results
        if not check:
            return results
        for item in results:
            if isinstance(item, NetlinkError):
                item.results = results
                raise item
        return results

    def links(self):
        """Return every device of the namespace as a ``Link``: ``ip link show``."""
        cdef Batch batch = Batch()
        batch._dump_links()
        return self.dump(batch)[0]

    def addresses(self, index, *, flags=0):
        """Return the addresses of one device as "ip/prefix", both families: ``ip address show dev $if``.

        ``flags`` are IFA_F_*, up to 0xff: only addresses with all of them.
        """
        cdef Batch batch = Batch()
        batch._dump_addresses(number(index, "index", 1, INT_MAX), number(flags, "flags", 0, 0xff))
        return self.dump(batch)[0]

    def addresses_by_index(self):
        """Return the addresses of all devices by ifindex, read at once: ``ip address show``."""
        cdef Batch batch = Batch()
        cdef dict found = {}
        batch._dump_addresses(ALL_DEVICES)
        for index, cidr in self.dump(batch)[0]:
            found.setdefault(index, []).append(cidr)
        return found

    def routes(self, index):
        """Return the unicast routes out of one device, both families: ``ip route show table all dev $if``.

        Those of the local table are left out. ``table``, ``scope`` and ``priority`` are the kernel's values
        (main is 254, IPv6's default priority is 1024).
        """
        cdef int oif = number(index, "index", 1, INT_MAX)
        cdef list found = []
        cdef Batch batch
        for family in (AF_INET, AF_INET6):
            batch = Batch()
            batch._dump_routes(family, oif)
            found += self.dump(batch)[0]
        return found

    cdef list dump(self, Batch batch):
        # A change may interrupt a dump, which is then incomplete and is repeated.
        cdef Replies replies
        cdef list results
        self.be_strict()
        for _ in range(DUMP_TRIES):
            replies = self.exchange(batch)
            if not replies.interrupted:
                results = replies.results
                if isinstance(results[0], NetlinkError):
                    raise results[0]
                return results
        raise NetlinkError(EAGAIN, "", 0, f"{batch.operations[0]}: changed while read, {DUMP_TRIES} times")

    cdef void be_strict(self) noexcept:
        # Let the kernel (from 4.20 on) filter dumps by the request's attributes; an older one sends all.
        cdef int one = 1
        if not self.strict:
            setsockopt(self.fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &one, sizeof(one))
            self.strict = True

    cdef Replies exchange(self, Batch batch):
        cdef Replies replies = Replies(batch, self.next_seq, self.port)
        cdef Py_ssize_t sent = 0
        if not batch.count:
            return replies
        if self.busy or batch.busy:
            raise RuntimeError("the socket or the batch is in use by another thread")
        self.busy = batch.busy = True
        try:
            number_messages(batch.data, batch, self.next_seq)
            self.next_seq += <uint32_t>batch.count
            while sent < batch.count:
                sent = self.send(batch, sent)
                while replies.pending > batch.count - sent:
                    self.receive(replies)
        finally:
            self.busy = batch.busy = False
        return replies

    cdef int make_space(self, Batch batch, Py_ssize_t first, Py_ssize_t end) except -1:
        # The kernel queues all answers before the send returns, and drops those that do not fit.
        cdef size_t wanted = 0
        cdef Py_ssize_t i
        cdef int size
        for i in range(first, end):
            wanted += VF_LIST_SPACE if (
                (<nlmsghdr *>(batch.data + batch.items[i].at)).nlmsg_type == RTM_GETLINK
                and batch.items[i].vf >= 0
            ) else ANSWER_SPACE
        if wanted <= self.space or end - first == 1:
            return 0
        size = <int>min(wanted, <size_t>(INT_MAX // 2))
        if setsockopt(self.fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) != 0:
            setsockopt(self.fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size))
        self.space = wanted
        return 0

    cdef Py_ssize_t send(self, Batch batch, Py_ssize_t first) except -1:
        # Send the messages from ``first`` on that fit; return the position of the next one.
        cdef Py_ssize_t end = end_of_part(batch, first)
        cdef size_t at = batch.items[first].at
        cdef size_t size = (batch.end if end == batch.count else batch.items[end].at) - at
        cdef ssize_t sent
        cdef sockaddr_nl kernel
        self.make_space(batch, first, end)
        memset(&kernel, 0, sizeof(kernel))
        kernel.nl_family = AF_NETLINK
        while True:
            with nogil:
                sent = sendto(self.fd, batch.data + at, size, 0, <const sockaddr *>&kernel, sizeof(kernel))
            if sent >= 0:
                return end
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
            PyErr_CheckSignals()

    cdef int receive(self, Replies replies) except -1:
        # Take one datagram of any size: the kernel tells the size first.
        cdef sockaddr_nl sender
        cdef const uint8_t *data
        cdef ssize_t size = self.receive_once(replies, &sender, MSG_PEEK | MSG_TRUNC)
        cdef ssize_t capacity = max(size, <ssize_t>len(self.data))
        if capacity > <ssize_t>len(self.data):
            self.data = bytearray(capacity)
        size = self.receive_once(replies, &sender, MSG_TRUNC)
        data = <const uint8_t *>PyByteArray_AS_STRING(self.data)
        replies.take(data, min(size, capacity), sender.nl_pid, size > capacity)
        return 0

    cdef ssize_t receive_once(self, Replies replies, sockaddr_nl *sender, int flags) except -1:
        # Return the size of the next datagram, which is read into ``data`` except with MSG_PEEK.
        cdef socklen_t sender_size
        cdef size_t capacity = 0 if flags & MSG_PEEK else len(self.data)
        cdef char *data = PyByteArray_AS_STRING(self.data)
        cdef ssize_t size
        while True:
            sender_size = sizeof(sockaddr_nl)
            with nogil:
                size = recvfrom(self.fd, data, capacity, flags, <sockaddr *>sender, &sender_size)
            if size >= 0:
                return size
            if errno == EAGAIN:
                self.give_up(replies)
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
            PyErr_CheckSignals()

    cdef int give_up(self, Replies replies) except -1:
        cdef Py_ssize_t position = 0
        while replies.found[position] is not UNANSWERED and position < replies.count - 1:
            position += 1
        raise NetlinkError(
            ETIMEDOUT, "", position,
            f"{replies.batch.operations[position]}: no answer in {RECEIVE_TIMEOUT} seconds",
        )
