# The bytes of a batch, and the positions of its messages.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset


cdef size_t FIRST_CAPACITY = 1024   # bytes of a new batch: the messages of a whole ADD
cdef size_t MOST_SENT = 65536   # bytes of one send; the kernel takes what fits in net.core.wmem_default


cdef struct Item:
    # One message of a batch.
    size_t at         # bytes before it
    int vf            # the VF that is read or set, or -1
    int index         # of a dump of addresses or routes: the device
    uint8_t flags     # of a dump of addresses: IFA_F_* that each must have
    bint has_mac
    uint8_t mac[6]    # of RTM_GETLINK: find another VF with this MAC


cdef inline size_t aligned(size_t size) noexcept nogil:
    return (size + 3) & ~<size_t>3


cdef class Buffer:
    """Encoded messages in one block of memory. A message that was started and not finished is dropped."""

    cdef uint8_t *data
    cdef size_t capacity, size, end   # bytes: allocated; written; written by complete messages
    cdef Item *items
    cdef Py_ssize_t item_capacity, count
    cdef readonly list operations   # a description of each message
    cdef bint busy

    def __cinit__(self):
        self.operations = []

    def __dealloc__(self):
        PyMem_Free(self.data)
        PyMem_Free(self.items)

    def __len__(self):
        return self.count

    def tobytes(self):
        """Return the encoded messages, with sequence numbers 1, 2, ... and port id 0."""
        cdef bytes copy = PyBytes_FromStringAndSize(<char *>self.data, self.end)
        number_messages(<uint8_t *>PyBytes_AS_STRING(copy), self, 1)
        return copy

    cdef uint8_t *reserve(self, size_t size) except NULL:
        # Return zeroed space for ``size`` bytes and their padding, at the end; it moves with the next call.
        cdef size_t wanted = self.size + aligned(size)
        cdef size_t capacity = self.capacity or FIRST_CAPACITY
        cdef uint8_t *data
        if self.busy:
            raise RuntimeError("a batch cannot change while it is being sent")
        while capacity < wanted:
            capacity *= 2
        if capacity != self.capacity:
            data = <uint8_t *>PyMem_Realloc(self.data, capacity)
            if data == NULL:
                raise MemoryError
            self.data = data
            self.capacity = capacity
        data = self.data + self.size
        memset(data, 0, aligned(size))
        self.size = wanted
        return data

    cdef int start_link(self, uint16_t kind, uint16_t flags, object index, str what="index") except -1:
        # Start a message about one device, with an acknowledgement as its answer.
        cdef ifinfomsg info
        memset(&info, 0, sizeof(info))
        info.ifi_index = number(index, what, 1, INT_MAX)
        return self.start(kind, NLM_F_REQUEST | NLM_F_ACK | flags, &info, sizeof(info))

    cdef int start(self, uint16_t kind, uint16_t flags, const void *body, size_t size) except -1:
        cdef nlmsghdr *head
        self.size = self.end
        head = <nlmsghdr *>self.reserve(sizeof(nlmsghdr) + size)
        head.nlmsg_type = kind
        head.nlmsg_flags = flags
        memcpy(<uint8_t *>head + sizeof(nlmsghdr), body, size)
        return 0

    cdef Item *finish(self, str operation) except NULL:
        # End the message that was started. ``operation`` describes the request, for errors.
        cdef Item *item = self.next_item()
        self.operations.append(operation)
        (<nlmsghdr *>(self.data + self.end)).nlmsg_len = <uint32_t>(self.size - self.end)
        memset(item, 0, sizeof(Item))
        item.at = self.end
        item.vf = -1
        self.count += 1
        self.end = self.size
        return item

    cdef int copy(self, Buffer other, Py_ssize_t position) except -1:
        # Append a message of another batch.
        cdef Item *theirs = &other.items[position]
        cdef size_t at, end = other.end if position + 1 == other.count else other.items[position + 1].at
        cdef Item *item
        self.size = self.end
        memcpy(self.reserve(end - theirs.at), other.data + theirs.at, end - theirs.at)
        item = self.finish(other.operations[position])
        at = item.at
        item[0] = theirs[0]
        item.at = at
        return 0

    cdef Item *next_item(self) except NULL:
        cdef Item *items
        cdef Py_ssize_t capacity
        if self.count == self.item_capacity:
            capacity = self.item_capacity * 2 or 16
            items = <Item *>PyMem_Realloc(self.items, capacity * sizeof(Item))
            if items == NULL:
                raise MemoryError
            self.items = items
            self.item_capacity = capacity
        return &self.items[self.count]

    cdef int put(self, uint16_t kind, const void *payload, size_t size) except -1:
        cdef nlattr *attr = <nlattr *>self.reserve(sizeof(nlattr) + size)
        attr.nla_len = <uint16_t>(sizeof(nlattr) + size)
        attr.nla_type = kind
        memcpy(<uint8_t *>attr + sizeof(nlattr), payload, size)
        return 0

    cdef int put_u32(self, uint16_t kind, uint32_t value) except -1:
        return self.put(kind, &value, sizeof(value))

    cdef int put_u8(self, uint16_t kind, uint32_t value) except -1:
        cdef uint8_t byte = <uint8_t>value
        return self.put(kind, &byte, 1)

    cdef int put_mac(self, uint16_t kind, object mac) except -1:
        cdef uint8_t address[6]
        parse_mac(mac, address)
        return self.put(kind, address, 6)

    cdef int put_text(self, uint16_t kind, bytes text) except -1:
        return self.put(kind, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text) + 1)

    cdef size_t open_nest(self, uint16_t kind) except 0:
        cdef size_t at = self.size
        self.put(kind, NULL, 0)
        return at

    cdef void close_nest(self, size_t at) noexcept:
        (<nlattr *>(self.data + at)).nla_len = <uint16_t>(self.size - at)


cdef void number_messages(uint8_t *data, Buffer batch, uint32_t first) noexcept:
    cdef Py_ssize_t i
    for i in range(batch.count):
        (<nlmsghdr *>(data + batch.items[i].at)).nlmsg_seq = first + <uint32_t>i


cdef Py_ssize_t end_of_part(Buffer batch, Py_ssize_t first) noexcept:
    # Return the end of the messages from ``first`` on that one send takes; all of them, if they fit.
    cdef size_t limit = batch.items[first].at + MOST_SENT
    cdef Py_ssize_t end = first + 1
    if batch.end <= limit:
        return batch.count
    while end + 1 < batch.count and batch.items[end + 1].at <= limit:
        end += 1
    return end
