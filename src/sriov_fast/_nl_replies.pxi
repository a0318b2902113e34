# The answers to a batch, checked message by message.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EMSGSIZE, ENOBUFS, EPROTO
from libc.stdint cimport int32_t, uint8_t, uint32_t

from sriov_fast.common.errors import NetlinkError


cdef object UNANSWERED = object()


cdef class Replies:
    """The answers to a batch that was sent with sequence numbers from ``first`` on.

    ``port`` is the port id of the socket that sent it. ``feed`` takes one datagram and checks every message
    in it. ``pending`` counts the messages without an answer, ``results`` has one entry for each message.
    """

    cdef Batch batch
    cdef uint32_t first, port
    cdef Py_ssize_t count
    cdef readonly Py_ssize_t pending
    cdef readonly bint interrupted
    cdef list found

    def __cinit__(self, Batch batch not None, uint32_t first, uint32_t port):
        self.batch = batch
        self.first = first
        self.port = port
        self.count = self.pending = batch.count
        self.found = [UNANSWERED] * batch.count

    @property
    def results(self):
        """A list: ``Link``, ``NetlinkError`` or, for an ACK and for a missing answer, None."""
        return [None if item is UNANSWERED else item for item in self.found]

    def feed(self, bytes datagram not None, *, uint32_t sender=0, bint truncated=False):
        """Take one datagram from port id ``sender``.

        Raises NetlinkError (EPROTO, EMSGSIZE, ENOBUFS) for one that the kernel cannot have sent.
        """
        self.take(<const uint8_t *>PyBytes_AS_STRING(datagram), PyBytes_GET_SIZE(datagram), sender, truncated)

    cdef int take(self, const uint8_t *data, size_t size, uint32_t sender, bint truncated) except -1:
        cdef const nlmsghdr *head
        if sender != 0:
            return 0  # from another process; only the kernel answers
        if truncated:
            raise NetlinkError(EMSGSIZE, "", 0, "rtnetlink answer is truncated")
        while size:
            head = <const nlmsghdr *>data
            if size < sizeof(nlmsghdr) or head.nlmsg_len < sizeof(nlmsghdr) or head.nlmsg_len > size:
                raise NetlinkError(EPROTO, "", 0, f"rtnetlink answer with a broken header, {size} bytes left")
            if self.is_mine(head):
                self.take_message(head, head.nlmsg_seq - self.first)
            data += min(aligned(head.nlmsg_len), size)
            size -= min(aligned(head.nlmsg_len), size)
        return 0

    cdef bint is_mine(self, const nlmsghdr *head) except -1:
        # A lower sequence number belongs to a request that was given up; a higher one was never sent.
        cdef uint32_t ahead = head.nlmsg_seq - self.first
        if head.nlmsg_pid != self.port:
            raise NetlinkError(EPROTO, "", 0, f"rtnetlink answer to port {head.nlmsg_pid}, not {self.port}")
        if ahead < <uint32_t>self.count:
            return True
        if <int32_t>ahead < 0:
            return False
        raise NetlinkError(EPROTO, "", 0, f"rtnetlink answer to request {head.nlmsg_seq}, never sent")

    cdef int take_message(self, const nlmsghdr *head, Py_ssize_t position) except -1:
        cdef const nlmsghdr *asked = <const nlmsghdr *>(self.batch.data + self.batch.items[position].at)
        cdef bint dump = asked.nlmsg_type in (RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE) \
            and asked.nlmsg_flags & NLM_F_DUMP == NLM_F_DUMP
        if dump and head.nlmsg_flags & NLM_F_DUMP_INTR:
            self.interrupted = True
        if head.nlmsg_type == NLMSG_NOOP:
            return 0
        if head.nlmsg_type == NLMSG_OVERRUN:
            raise NetlinkError(ENOBUFS, "", position, "rtnetlink answers were lost")
        if head.nlmsg_type == NLMSG_ERROR or (dump and head.nlmsg_type == NLMSG_DONE):
            return self.take_verdict(head, position)
        # RTM_NEWx answers RTM_GETx, which is 2 above it.
        if head.nlmsg_type != asked.nlmsg_type - 2 or asked.nlmsg_flags & NLM_F_ACK:
            raise NetlinkError(EPROTO, "", position, f"rtnetlink answer of unexpected type {head.nlmsg_type}")
        return self.take_data(head, asked, position, dump)

    cdef int take_verdict(self, const nlmsghdr *head, Py_ssize_t position) except -1:
        # NLMSG_ERROR (also as an ACK) and NLMSG_DONE begin with an int: 0 or a negative errno.
        cdef const nlmsgerr *said = <const nlmsgerr *>(<const uint8_t *>head + sizeof(nlmsghdr))
        cdef bint is_error = head.nlmsg_type == NLMSG_ERROR
        if head.nlmsg_len < sizeof(nlmsghdr) + (sizeof(nlmsgerr) if is_error else sizeof(int32_t)):
            raise NetlinkError(EPROTO, "", position, "rtnetlink verdict is too short")
        if said.error != 0:
            self.answer(position, self.refusal(head, -said.error, position))
        elif self.found[position] is UNANSWERED:
            self.answer(position, None if is_error else [])
        else:
            self.pending -= 1
        return 0

    cdef object refusal(self, const nlmsghdr *head, int error, Py_ssize_t position):
        cdef object refused = NetlinkError(
            error, extack_of(head), position, self.batch.operations[position]
        )
        if self.batch.items[position].vf >= 0:
            refused.vf = self.batch.items[position].vf
        return refused

    cdef int answer(self, Py_ssize_t position, object result) except -1:
        self.found[position] = result
        self.pending -= 1
        return 0

    cdef int take_data(
        self, const nlmsghdr *head, const nlmsghdr *asked, Py_ssize_t position, bint dump
    ) except -1:
        cdef const uint8_t *body = <const uint8_t *>head + sizeof(nlmsghdr)
        cdef size_t size = head.nlmsg_len - sizeof(nlmsghdr)
        cdef int index = self.batch.items[position].index
        if size < (sizeof(ifinfomsg) if head.nlmsg_type == RTM_NEWLINK
                   else sizeof(rtmsg) if head.nlmsg_type == RTM_NEWROUTE else sizeof(ifaddrmsg)):
            raise NetlinkError(EPROTO, "", position, f"rtnetlink answer with a body of {size} bytes")
        if not dump:
            return self.answer(position, decode_link(body, size, &self.batch.items[position]))
        if self.found[position] is UNANSWERED:
            self.found[position] = []
        if head.nlmsg_type == RTM_NEWLINK:
            self.found[position].append(decode_link(body, size, &self.batch.items[position]))
        elif head.nlmsg_type == RTM_NEWROUTE:
            family = (<const rtmsg *>(<const uint8_t *>asked + sizeof(nlmsghdr))).rtm_family
            decode_routes(body, size, family, index, self.found[position])
        else:
            self.take_address(body, size, &self.batch.items[position], self.found[position])
        return 0

    cdef int take_address(self, const uint8_t *body, size_t size, const Item *asked, list found) except -1:
        # Append the address if it is of the asked device, and with its ifindex if all devices were asked for.
        cdef const ifaddrmsg *head = <const ifaddrmsg *>body
        if head.ifa_family not in (AF_INET, AF_INET6) or head.ifa_flags & asked.flags != asked.flags:
            return 0
        if asked.index == ALL_DEVICES:
            found.append((head.ifa_index, decode_address(body, size)))
        elif head.ifa_index == <uint32_t>asked.index:
            found.append(decode_address(body, size))
        return 0


cdef str extack_of(const nlmsghdr *head):
    # Return the kernel's message, NLMSGERR_ATTR_MSG, which follows the repeated request.
    cdef const nlmsgerr *said = <const nlmsgerr *>(<const uint8_t *>head + sizeof(nlmsghdr))
    cdef Span span
    cdef const nlattr *attr
    cdef size_t skip = sizeof(nlmsghdr) + sizeof(int32_t)
    if not head.nlmsg_flags & NLM_F_ACK_TLVS:
        return ""
    if head.nlmsg_type == NLMSG_ERROR:
        skip += sizeof(nlmsghdr) if head.nlmsg_flags & NLM_F_CAPPED else aligned(said.msg.nlmsg_len)
    if skip > head.nlmsg_len:
        return ""
    span.at = <const uint8_t *>head + skip
    span.end = <const uint8_t *>head + head.nlmsg_len
    attr = find(span, NLMSGERR_ATTR_MSG)
    return text_of(attr) if attr != NULL else ""
