# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, auto_pickle=False
"""rtnetlink, compiled: encode a batch into one buffer, send it once, check every answer, decode what is used.

A batch is plain bytes in a C buffer until it is sent; Python objects appear only as arguments and as
results. The wire structs are in ``_nl_wire.pxd``; ``kernel/_nl_py.py`` is the plain implementation;
``_nl.pyi`` is the interface of both.

Namespaces belong to threads. What needs another one (a socket, a file below /proc/sys/net) enters it, does
that one system call and returns, all in C and without the interpreter lock, so that no Python code ever runs
in there. A thread that cannot return ends the process: going on would configure the wrong namespace.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno, PyErr_SetFromErrnoWithFilenameObject
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.errno cimport EAGAIN, EINTR, EIO, EMSGSIZE, ENOBUFS, ENODEV, EPROTO, ETIMEDOUT, errno
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport abort
from libc.string cimport memchr, memcmp, memcpy, memset

from sriov_fast._nl_wire cimport *

from sriov_fast.common.errors import NetlinkError
from sriov_fast.common.record import Link, LinkSettings, Route, VfSettings


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
    """
    void set_errno "sf_set_errno"(int error)
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    struct timeval:
        long tv_sec
        long tv_usec
    enum:
        AF_UNSPEC
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
    ssize_t c_write "write"(int fd, const void *buffer, size_t size)


cdef int RECEIVE_TIMEOUT = 30      # seconds without an answer; a large PF may hold the kernel's lock for some
cdef int DUMP_TRIES = 10
cdef size_t FIRST_ROOM = 1024      # bytes of a new batch: the messages of a whole ADD
cdef size_t ANSWER_SPACE = 2048    # what one queued answer may cost of the socket's receive buffer
cdef size_t VF_LIST_SPACE = 262144  # and one with a list of VFs
cdef size_t MOST_SENT = 65536      # bytes of one send; the kernel takes what fits in net.core.wmem_default
cdef size_t USUAL_SPACE = 131072   # what every socket has (net.core.rmem_default is 212992)

# VfWish.given
cdef enum:
    HAS_MAC = 1
    HAS_VLAN = 2
    HAS_MIN = 4
    HAS_MAX = 8
    HAS_SPOOFCHK = 16
    HAS_LINK_STATE = 32
    HAS_TRUST = 64

cdef object UNANSWERED = object()


cdef struct Item:
    # One message of a batch: where it starts, and what is wanted of its answer (for a link the VF, -1: none;
    # for a dump of addresses or routes the interface index). ``mac``: whose other holder is looked for.
    size_t at
    int wanted
    bint has_mac
    uint8_t mac[6]


cdef struct Cidr:
    int family
    int size    # bytes of address: 4 or 16
    int prefix  # bits
    uint8_t address[16]


cdef struct VfWish:
    # VfSettings, checked; ``given`` says which of the fields count.
    int given
    uint8_t mac[6]
    uint32_t vlan
    uint32_t qos
    uint32_t proto
    uint32_t min_rate
    uint32_t max_rate
    uint32_t spoofchk
    uint32_t link_state
    uint32_t trust


cdef union NamedValue:
    int index
    void *data
    uint8_t room[24]


cdef struct NamedRequest:
    # struct ifreq (linux/if.h): SIOCGIFNAME fills the name of an index, SIOCETHTOOL takes name and data.
    char name[16]
    NamedValue value


cdef struct Span:
    # Bytes still to be read.
    const uint8_t *at
    const uint8_t *end


# --- arguments ----------------------------------------------------------------------------------------

cdef uint32_t number(object value, str what, uint32_t low, uint32_t high) except? 0xffffffff:
    if not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{what} {value!r}: not a number from {low} to {high}")
    return value


cdef int hex_digit(int char) noexcept:
    if 48 <= char <= 57:
        return char - 48
    char |= 32
    if 97 <= char <= 102:
        return char - 87
    return -1


cdef int parse_mac(object value, uint8_t *mac) except -1:
    cdef bytes text = value.encode() if isinstance(value, str) else b""
    cdef const uint8_t *at = <const uint8_t *>PyBytes_AS_STRING(text)
    cdef int i, high, low
    cdef bint good = PyBytes_GET_SIZE(text) == 17
    for i in range(6):
        if not good:
            break
        high = hex_digit(at[3 * i])
        low = hex_digit(at[3 * i + 1])
        good = high >= 0 and low >= 0 and (i == 5 or at[3 * i + 2] == 58)  # ':'
        mac[i] = <uint8_t>(high << 4 | low)
    if not good:
        raise ValueError(f"mac {value!r}: not six bytes in hexadecimal with colons")
    return 0


cdef bytes interface_name(object value, int room=IFNAMSIZ):
    # As dev_valid_name() in net/core/dev.c, whose isspace() is Latin-1's; and nothing that cannot be printed.
    cdef bint readable = isinstance(value, str) and value.isprintable()
    cdef bytes text = value.encode("utf-8", "replace") if readable else b""
    cdef uint8_t char
    cdef bint good = 0 < PyBytes_GET_SIZE(text) < room and text not in (b".", b"..")
    for char in text:
        if char in (32, 47, 58, 160):  # space, '/', ':'
            good = False
    if not good:
        raise ValueError(
            f"interface name {value!r}: not 1 to {room - 1} bytes without white space, '/' and ':'"
        )
    return text


cdef bytes alternative_name(object value):
    # Whatever the kernel shows: a pod may have chosen the name, and it must be possible to remove it.
    cdef bytes text = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else b""
    if not 0 < PyBytes_GET_SIZE(text) < ALTIFNAMSIZ or b"\0" in text:
        raise ValueError(f"alternative name {value!r}: not 1 to {ALTIFNAMSIZ - 1} bytes")
    return text


cdef int parse_ip(bytes text, Cidr *out) noexcept:
    # inet_pton() stops at a NUL byte, so one inside would hide what follows.
    cdef const char *at = PyBytes_AS_STRING(text)
    cdef size_t size = PyBytes_GET_SIZE(text)
    if memchr(at, 0, size) != NULL:
        return 0
    out.family = AF_INET6 if memchr(at, 58, size) != NULL else AF_INET
    out.size = 16 if out.family == AF_INET6 else 4
    return inet_pton(out.family, at, out.address)


cdef int parse_cidr(object value, Cidr *out) except -1:
    cdef bytes text = value.encode("utf-8", "replace") if isinstance(value, str) else b""
    cdef bytes ip, bits
    ip, _, bits = text.partition(b"/")
    if not (0 < len(bits) <= 3 and bits.isdigit()) or parse_ip(ip, out) != 1:
        raise ValueError(f"address {value!r}: not an IP address with a prefix length")
    out.prefix = int(bits)
    if out.prefix > 8 * out.size:
        raise ValueError(f"address {value!r}: prefix length beyond {8 * out.size}")
    return 0


cdef int parse_gateway(object value, int family, Cidr *out) except -1:
    cdef bytes text = value.encode("utf-8", "replace") if isinstance(value, str) else b""
    if parse_ip(text, out) != 1 or out.family != family:
        raise ValueError(f"gateway {value!r}: not an {'IPv6' if family == AF_INET6 else 'IPv4'} address")
    return 0


cdef uint32_t link_state_number(object value) except? 0xffffffff:
    if value == "auto":
        return VF_LINK_STATE_AUTO
    if value == "enable":
        return VF_LINK_STATE_ENABLE
    if value == "disable":
        return VF_LINK_STATE_DISABLE
    raise ValueError(f"link_state {value!r}: not one of auto, enable, disable")


cdef uint32_t vlan_proto_number(object value) except? 0xffffffff:
    if value is None or value == "802.1Q":
        return ETH_P_8021Q
    if value == "802.1ad":
        return ETH_P_8021AD
    raise ValueError(f"proto {value!r}: not one of 802.1Q, 802.1ad")


cdef int read_vlan(object settings, VfWish *wish) except -1:
    if settings.vlan is None:
        if settings.qos is not None or settings.proto is not None:
            raise ValueError(f"qos {settings.qos!r}, proto {settings.proto!r}: they go with a vlan")
        return 0
    wish.given |= HAS_VLAN
    wish.vlan = number(settings.vlan, "vlan", 0, 4094)
    wish.qos = 0 if settings.qos is None else number(settings.qos, "qos", 0, 7)
    wish.proto = vlan_proto_number(settings.proto)
    return 0


cdef int read_rates(object settings, VfWish *wish) except -1:
    if settings.min_tx_rate is not None:
        wish.given |= HAS_MIN
        wish.min_rate = number(settings.min_tx_rate, "min_tx_rate", 0, INT_MAX)
    if settings.max_tx_rate is not None:
        wish.given |= HAS_MAX
        wish.max_rate = number(settings.max_tx_rate, "max_tx_rate", 0, INT_MAX)
    return 0


cdef int read_settings(object settings, VfWish *wish) except -1:
    memset(wish, 0, sizeof(VfWish))
    if settings.mac is not None:
        wish.given |= HAS_MAC
        parse_mac(settings.mac, wish.mac)
    read_vlan(settings, wish)
    read_rates(settings, wish)
    if settings.spoofchk is not None:
        wish.given |= HAS_SPOOFCHK
        wish.spoofchk = 1 if settings.spoofchk else 0
    if settings.link_state is not None:
        wish.given |= HAS_LINK_STATE
        wish.link_state = link_state_number(settings.link_state)
    if settings.trust is not None:
        wish.given |= HAS_TRUST
        wish.trust = 1 if settings.trust else 0
    if not wish.given:
        raise ValueError(f"{settings!r}: asks for nothing")
    return 0


# --- encoding -----------------------------------------------------------------------------------------

cdef inline size_t aligned(size_t size) noexcept nogil:
    return (size + 3) & ~<size_t>3


cdef class Batch:
    """Messages that go to the kernel in one send. Each method appends one, or raises and appends none.

    A value that cannot be meant raises ValueError, which names it. Messages are numbered from 0.
    """

    cdef uint8_t *data
    cdef size_t room, size, end   # bytes: allocated; written; written by complete messages
    cdef Item *items
    cdef Py_ssize_t item_room, count
    cdef bint busy

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

    def get_link(self, *, index=0, name="", vf=-1, mac=""):
        """Append ``RTM_GETLINK`` of one device, by index or by name: ``ip link show dev $name``.

        A name may be an alternative one. The answer is a ``Link``. With ``vf`` it also carries what the PF
        holds for that one VF (and the number of VFs); that makes many drivers ask their firmware about every
        VF, so ask once. With ``mac`` it carries which other VF has that MAC.
        """
        cdef uint32_t wanted = number(vf, "vf", 0, 65535) if vf != -1 else 0
        cdef bytes text = None
        cdef ifinfomsg info
        cdef uint8_t address[6]
        memset(&info, 0, sizeof(info))
        if bool(name) == (index != 0):
            raise ValueError(f"index {index!r}, name {name!r}: give one of them")
        if name:
            text = interface_name(name, ALTIFNAMSIZ)
        else:
            info.ifi_index = number(index, "index", 1, INT_MAX)
        if mac:
            parse_mac(mac, address)
        # No NLM_F_ACK: the link itself, or an error, is the answer.
        self.start(RTM_GETLINK, NLM_F_REQUEST, &info, sizeof(info))
        if text is not None:
            self.put_text(IFLA_IFNAME if PyBytes_GET_SIZE(text) < IFNAMSIZ else IFLA_ALT_IFNAME, text)
        self.put_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS | (RTEXT_FILTER_VF if vf != -1 else 0))
        self.finish(<int>wanted if vf != -1 else -1)
        if mac:
            self.items[self.count - 1].has_mac = True
            memcpy(self.items[self.count - 1].mac, address, 6)

    def set_vf(self, pf_index, vf, settings):
        """Append one ``RTM_SETLINK`` that sets what ``settings`` gives of one VF, through its PF.

        ``ip link set $pf vf $vf mac $mac vlan $vlan qos $qos proto $proto min_tx_rate $min max_tx_rate $max
        spoofchk on link-state auto trust on``, in one request with one ``IFLA_VF_INFO``. The kernel applies
        them in its own order (MAC, VLAN, rates, spoof check, link state, trust), stops at the first that
        the driver refuses and keeps those before it.

        Rates are in Mbit/s. ``max_tx_rate`` alone goes as ``IFLA_VF_TX_RATE``, and the kernel keeps the
        minimum as it is; with ``min_tx_rate`` both go as ``IFLA_VF_RATE``, which has no "unchanged": a
        maximum not given is 0, no limit. ``vlan`` without ``qos`` and ``proto`` means 0 and 802.1Q.
        """
        cdef ifinfomsg info
        cdef VfWish wish
        cdef uint32_t n = number(vf, "vf", 0, 65535)
        cdef size_t vf_list, vf_info
        memset(&info, 0, sizeof(info))
        info.ifi_index = number(pf_index, "pf_index", 1, INT_MAX)
        read_settings(settings, &wish)
        self.start(RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, &info, sizeof(info))
        vf_list = self.open_nest(IFLA_VFINFO_LIST)
        vf_info = self.open_nest(IFLA_VF_INFO)
        self.put_vf_mac(n, &wish)
        self.put_vf_vlan(n, &wish)
        self.put_vf_rates(n, &wish)
        if wish.given & HAS_SPOOFCHK:
            self.put_vf_setting(IFLA_VF_SPOOFCHK, n, wish.spoofchk)
        if wish.given & HAS_LINK_STATE:
            self.put_vf_setting(IFLA_VF_LINK_STATE, n, wish.link_state)
        if wish.given & HAS_TRUST:
            self.put_vf_setting(IFLA_VF_TRUST, n, wish.trust)
        self.close_nest(vf_info)
        self.close_nest(vf_list)
        self.finish(-1)

    def set_link(
        self, index, *, netns_fd=-1, name="", mac="", mtu=0, up=None, master=-1, settings=None
    ):
        """Append one ``RTM_SETLINK`` of one device, with whatever is given.

        ``ip link set dev $if netns $ns name $name address $mac mtu $mtu up master $master``, in one request:
        the kernel moves the device first, then sets MAC and MTU (bytes), renames it, brings it up or down
        and at last gives it to a master, by index (0: takes it from its master).
        It stops at the first step that fails and undoes none: a name that is taken in the namespace is
        EEXIST, with the device in there already under its old name (or, where that is taken too, not moved).

        Of ``settings`` (a ``LinkSettings``) those that are not None are set:
        ``ip link set dev $if promisc off txqueuelen 1000 alias "" group 0 ...``.
        """
        cdef ifinfomsg info
        cdef uint8_t address[6]
        cdef uint32_t fd = number(netns_fd, "netns_fd", 0, INT_MAX) if netns_fd != -1 else 0
        cdef uint32_t size = number(mtu, "mtu", 1, INT_MAX) if mtu != 0 else 0
        cdef uint32_t above = number(master, "master", 0, INT_MAX) if master != -1 else 0
        cdef bytes text = interface_name(name) if name else None
        memset(&info, 0, sizeof(info))
        info.ifi_index = number(index, "index", 0 if name else 1, INT_MAX)
        if mac:
            parse_mac(mac, address)
        if up is not None:
            info.ifi_change = IFF_UP
            info.ifi_flags = IFF_UP if up else 0
        elif netns_fd == -1 and not mtu and not mac and text is None and master == -1 \
                and settings in (None, LinkSettings()):
            raise ValueError(f"set_link of index {index}: asks for nothing")
        if settings is not None and settings.flags is not None:
            info.ifi_change |= SETTABLE_FLAGS
            info.ifi_flags |= number(settings.flags, "flags", 0, INT_MAX) & SETTABLE_FLAGS
        self.start(RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, &info, sizeof(info))
        if netns_fd != -1:
            self.put_u32(IFLA_NET_NS_FD, fd)
        if text is not None:
            self.put_text(IFLA_IFNAME, text)
        if mac:
            self.put(IFLA_ADDRESS, address, 6)
        if mtu:
            self.put_u32(IFLA_MTU, size)
        if master != -1:
            self.put_u32(IFLA_MASTER, above)
        if settings is not None:
            self.put_settings(settings)
        self.finish(-1)

    def del_link(self, index):
        """Append ``RTM_DELLINK``: ``ip link delete dev $if``; EOPNOTSUPP for what cannot be deleted."""
        cdef ifinfomsg info
        memset(&info, 0, sizeof(info))
        info.ifi_index = number(index, "index", 1, INT_MAX)
        self.start(RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK, &info, sizeof(info))
        self.finish(-1)

    def add_altname(self, index, name, *more):
        """Append ``RTM_NEWLINKPROP``: ``ip link property add dev $if altname $name altname ...``.

        EEXIST where a name is taken; those before it are added, those after it are not.
        """
        self.change_altnames(RTM_NEWLINKPROP, NLM_F_CREATE | NLM_F_EXCL, index, (name, *more))

    def del_altname(self, index, name, *more):
        """Append ``RTM_DELLINKPROP``: ``ip link property del dev $if altname $name altname ...``."""
        self.change_altnames(RTM_DELLINKPROP, 0, index, (name, *more))

    cdef int change_altnames(self, uint16_t kind, uint16_t flags, object index, tuple given) except -1:
        cdef ifinfomsg info
        cdef size_t names
        cdef list texts = [alternative_name(name) for name in given]
        memset(&info, 0, sizeof(info))
        info.ifi_index = number(index, "index", 1, INT_MAX)
        self.start(kind, NLM_F_REQUEST | NLM_F_ACK | flags, &info, sizeof(info))
        names = self.open_nest(NLA_F_NESTED | IFLA_PROP_LIST)
        for text in texts:
            self.put_text(IFLA_ALT_IFNAME, text)
        self.close_nest(names)
        return self.finish(-1)

    def drop_xdp(self, index, mode):
        """Append one ``RTM_SETLINK`` that detaches one mode's XDP program: ``ip link set $if xdpdrv off``.

        ``mode`` is its place in ``Link.xdp``: 0 generic, 1 driver, 2 offload. A program that a bpf_link holds
        is EBUSY.
        """
        cdef ifinfomsg info
        cdef int32_t none = -1
        cdef uint32_t flags = XDP_FLAGS_SKB_MODE << number(mode, "mode", 0, 2)
        cdef size_t nest
        memset(&info, 0, sizeof(info))
        info.ifi_index = number(index, "index", 1, INT_MAX)
        self.start(RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, &info, sizeof(info))
        nest = self.open_nest(IFLA_XDP)
        self.put(IFLA_XDP_FD, &none, sizeof(none))
        self.put_u32(IFLA_XDP_FLAGS, flags)
        self.close_nest(nest)
        self.finish(-1)

    def add_address(self, index, cidr):
        """Append ``RTM_NEWADDR``: ``ip address add $cidr [brd +] dev $if [nodad]``.

        IPv4 gets the broadcast address of its network where that has one (prefix below 31), as CNI's own
        plugins do. IPv6 gets no duplicate address detection (IFA_F_NODAD): the address comes from an
        allocator that gives it once, and would otherwise be unusable for a second or two. An address that
        is there is EEXIST.
        """
        cdef ifaddrmsg head
        cdef Cidr ip
        cdef uint8_t broadcast[4]
        memset(&head, 0, sizeof(head))
        head.ifa_index = number(index, "index", 1, INT_MAX)
        parse_cidr(cidr, &ip)
        head.ifa_family = <uint8_t>ip.family
        head.ifa_prefixlen = <uint8_t>ip.prefix
        head.ifa_flags = IFA_F_NODAD if ip.family == AF_INET6 else 0
        self.start(RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &head, sizeof(head))
        self.put(IFA_LOCAL, ip.address, ip.size)
        self.put(IFA_ADDRESS, ip.address, ip.size)
        if ip.family == AF_INET and ip.prefix < 31:
            broadcast_of(&ip, broadcast)
            self.put(IFA_BROADCAST, broadcast, 4)
        self.finish(-1)

    def add_route(self, index, route):
        """Append ``RTM_NEWROUTE`` of one route out of a device.

        ``ip route prepend $dst via $gw dev $if metric $n table $t scope $s mtu $bytes advmss $bytes``, and
        ``onlink``.

        Type unicast, protocol boot, and CREATE without EXCL, all as CNI's own plugins do: a second gateway
        for one destination is no error (IPv6 balances over both, in IPv4 the later one wins); the very same
        route is EEXIST. Without a scope, one with a gateway is universe and one without is link, as ``ip``
        has it. ``onlink`` has the kernel take a gateway that no address of the device reaches.
        """
        cdef rtmsg head
        cdef Cidr dst, gw
        cdef uint32_t oif = number(index, "index", 1, INT_MAX)
        cdef uint32_t table = number(route.table, "table", 0, 0xffffffff)
        cdef uint32_t priority = number(route.priority, "priority", 0, 0xffffffff)
        cdef uint32_t mtu = number(route.mtu, "mtu", 0, INT_MAX)
        cdef uint32_t advmss = number(route.advmss, "advmss", 0, INT_MAX)
        cdef bint has_gw = bool(route.gw)
        memset(&head, 0, sizeof(head))
        parse_cidr(route.dst, &dst)
        if has_gw:
            parse_gateway(route.gw, dst.family, &gw)
        head.rtm_family = <uint8_t>dst.family
        head.rtm_dst_len = <uint8_t>dst.prefix
        head.rtm_table = <uint8_t>((table or RT_TABLE_MAIN) if table < 256 else 0)
        head.rtm_protocol = RTPROT_BOOT
        head.rtm_type = RTN_UNICAST
        head.rtm_scope = RT_SCOPE_UNIVERSE if has_gw else RT_SCOPE_LINK
        if route.scope is not None:
            head.rtm_scope = <uint8_t>number(route.scope, "scope", 0, 255)
        if has_gw and route.onlink:
            head.rtm_flags = RTNH_F_ONLINK
        self.start(RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE, &head, sizeof(head))
        if dst.prefix:
            self.put(RTA_DST, dst.address, dst.size)
        if has_gw:
            self.put(RTA_GATEWAY, gw.address, gw.size)
        self.put_u32(RTA_OIF, oif)
        if priority:
            self.put_u32(RTA_PRIORITY, priority)
        if table > 255:
            self.put_u32(RTA_TABLE, table)
        self.put_metrics(mtu, advmss)
        self.finish(-1)

    # Dumps, for Socket alone: one can go at a time, and one that was interrupted has to be asked for again.

    def _dump_links(self):
        cdef ifinfomsg info
        memset(&info, 0, sizeof(info))
        self.start(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, &info, sizeof(info))
        self.put_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        self.finish(-1)

    def _dump_addresses(self, int index):
        cdef ifaddrmsg head
        memset(&head, 0, sizeof(head))
        head.ifa_index = index
        self.start(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, &head, sizeof(head))
        self.finish(index)

    def _dump_routes(self, int family, int index):
        cdef rtmsg head
        memset(&head, 0, sizeof(head))
        head.rtm_family = <uint8_t>family
        self.start(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, &head, sizeof(head))
        self.put_u32(RTA_OIF, index)
        self.finish(index)

    # The buffer. A message that was started and not finished is dropped by the next start.

    cdef uint8_t *reserve(self, size_t size) except NULL:
        # Zeroed space for ``size`` bytes and their padding, at the end; it moves with the next call.
        cdef size_t wanted = self.size + aligned(size)
        cdef size_t room = self.room or FIRST_ROOM
        cdef uint8_t *data
        if self.busy:
            raise RuntimeError("a batch cannot change while it is being sent")
        while room < wanted:
            room *= 2
        if room != self.room:
            data = <uint8_t *>PyMem_Realloc(self.data, room)
            if data == NULL:
                raise MemoryError
            self.data = data
            self.room = room
        data = self.data + self.size
        memset(data, 0, aligned(size))
        self.size = wanted
        return data

    cdef int start(self, uint16_t kind, uint16_t flags, const void *body, size_t size) except -1:
        cdef nlmsghdr *head
        self.size = self.end
        head = <nlmsghdr *>self.reserve(sizeof(nlmsghdr) + size)
        head.nlmsg_type = kind
        head.nlmsg_flags = flags
        memcpy(<uint8_t *>head + sizeof(nlmsghdr), body, size)
        return 0

    cdef int finish(self, int wanted) except -1:
        cdef Item *items
        cdef Py_ssize_t room
        if self.count == self.item_room:
            room = self.item_room * 2 or 16
            items = <Item *>PyMem_Realloc(self.items, room * sizeof(Item))
            if items == NULL:
                raise MemoryError
            self.items = items
            self.item_room = room
        (<nlmsghdr *>(self.data + self.end)).nlmsg_len = <uint32_t>(self.size - self.end)
        self.items[self.count].at = self.end
        self.items[self.count].wanted = wanted
        self.items[self.count].has_mac = False
        self.count += 1
        self.end = self.size
        return 0

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

    cdef int put_text(self, uint16_t kind, bytes text) except -1:
        return self.put(kind, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text) + 1)

    cdef size_t open_nest(self, uint16_t kind) except 0:
        cdef size_t at = self.size
        self.put(kind, NULL, 0)
        return at

    cdef void close_nest(self, size_t at) noexcept:
        (<nlattr *>(self.data + at)).nla_len = <uint16_t>(self.size - at)

    cdef int put_settings(self, object settings) except -1:
        cdef uint8_t address[6]
        cdef bytes alias
        if settings.broadcast is not None:
            parse_mac(settings.broadcast, address)
            self.put(IFLA_BROADCAST, address, 6)
        self.put_setting(IFLA_TXQLEN, "txqlen", settings.txqlen)
        if settings.mode is not None:
            self.put_u8(IFLA_LINKMODE, number(settings.mode, "mode", 0, 255))
        if settings.alias is not None:
            alias = settings.alias.encode("utf-8", "surrogateescape")
            self.put(IFLA_IFALIAS, PyBytes_AS_STRING(alias), PyBytes_GET_SIZE(alias))
        self.put_setting(IFLA_GROUP, "group", settings.group)
        self.put_setting(IFLA_GSO_MAX_SEGS, "gso_max_segs", settings.gso_max_segs)
        self.put_setting(IFLA_GSO_MAX_SIZE, "gso_max_size", settings.gso_max_size)
        self.put_setting(IFLA_GRO_MAX_SIZE, "gro_max_size", settings.gro_max_size)
        self.put_setting(IFLA_GSO_IPV4_MAX_SIZE, "gso_ipv4_max_size", settings.gso_ipv4_max_size)
        self.put_setting(IFLA_GRO_IPV4_MAX_SIZE, "gro_ipv4_max_size", settings.gro_ipv4_max_size)
        return self.put_addrgenmode(settings.addrgenmode)

    cdef int put_setting(self, uint16_t kind, str what, object value) except -1:
        return 0 if value is None else self.put_u32(kind, number(value, what, 0, 0xfffffffe))

    cdef int put_addrgenmode(self, object mode) except -1:
        cdef size_t families, inet6
        if mode is None:
            return 0
        families = self.open_nest(IFLA_AF_SPEC)
        inet6 = self.open_nest(AF_INET6)
        self.put_u8(IFLA_INET6_ADDR_GEN_MODE, number(mode, "addrgenmode", 0, 255))
        self.close_nest(inet6)
        self.close_nest(families)
        return 0

    cdef int put_vf_mac(self, uint32_t vf, const VfWish *wish) except -1:
        cdef ifla_vf_mac mac
        if not wish.given & HAS_MAC:
            return 0
        memset(&mac, 0, sizeof(mac))
        mac.vf = vf
        memcpy(mac.mac, wish.mac, 6)
        return self.put(IFLA_VF_MAC, &mac, sizeof(mac))

    cdef int put_vf_vlan(self, uint32_t vf, const VfWish *wish) except -1:
        # IFLA_VF_VLAN is 802.1Q and is understood by every kernel; the list came with 4.10, for 802.1ad.
        cdef ifla_vf_vlan_info info
        cdef size_t nest
        if not wish.given & HAS_VLAN:
            return 0
        memset(&info, 0, sizeof(info))
        info.vf = vf
        info.vlan = wish.vlan
        info.qos = wish.qos
        if wish.proto == ETH_P_8021Q:
            return self.put(IFLA_VF_VLAN, &info, sizeof(ifla_vf_vlan))
        info.vlan_proto = htons(<uint16_t>wish.proto)
        nest = self.open_nest(IFLA_VF_VLAN_LIST)
        self.put(IFLA_VF_VLAN_INFO, &info, sizeof(info))
        self.close_nest(nest)
        return 0

    cdef int put_vf_rates(self, uint32_t vf, const VfWish *wish) except -1:
        cdef ifla_vf_rate rate
        cdef ifla_vf_tx_rate tx_rate
        if wish.given & HAS_MIN:
            rate.vf = vf
            rate.min_tx_rate = wish.min_rate
            rate.max_tx_rate = wish.max_rate
            return self.put(IFLA_VF_RATE, &rate, sizeof(rate))
        if wish.given & HAS_MAX:
            tx_rate.vf = vf
            tx_rate.rate = wish.max_rate
            return self.put(IFLA_VF_TX_RATE, &tx_rate, sizeof(tx_rate))
        return 0

    cdef int put_vf_setting(self, uint16_t kind, uint32_t vf, uint32_t value) except -1:
        cdef ifla_vf_setting setting
        setting.vf = vf
        setting.setting = value
        return self.put(kind, &setting, sizeof(setting))

    cdef int put_metrics(self, uint32_t mtu, uint32_t advmss) except -1:
        cdef size_t nest
        if not mtu and not advmss:
            return 0
        nest = self.open_nest(RTA_METRICS)
        if mtu:
            self.put_u32(RTAX_MTU, mtu)
        if advmss:
            self.put_u32(RTAX_ADVMSS, advmss)
        self.close_nest(nest)
        return 0


cdef void broadcast_of(const Cidr *ip, uint8_t *out) noexcept:
    cdef int i, bits
    for i in range(4):
        bits = min(max(ip.prefix - 8 * i, 0), 8)
        out[i] = ip.address[i] | <uint8_t>(0xff >> bits)


cdef void number_messages(uint8_t *data, Batch batch, uint32_t first) noexcept:
    cdef Py_ssize_t i
    for i in range(batch.count):
        (<nlmsghdr *>(data + batch.items[i].at)).nlmsg_seq = first + <uint32_t>i


cdef Py_ssize_t end_of_part(Batch batch, Py_ssize_t first) noexcept:
    # The messages from ``first`` on that one send takes end here: at the batch's end, but for a large one.
    cdef size_t limit = batch.items[first].at + MOST_SENT
    cdef Py_ssize_t end = first + 1
    if batch.end <= limit:
        return batch.count
    while end + 1 < batch.count and batch.items[end + 1].at <= limit:
        end += 1
    return end


# --- decoding -----------------------------------------------------------------------------------------

cdef const nlattr *next_attr(Span *span) noexcept nogil:
    # The next attribute, or NULL where none is left that fits.
    cdef size_t left = span.end - span.at
    cdef const nlattr *attr = <const nlattr *>span.at
    if left < sizeof(nlattr) or attr.nla_len < sizeof(nlattr) or attr.nla_len > left:
        return NULL
    span.at += min(aligned(attr.nla_len), left)
    return attr


cdef inline Span inside(const nlattr *attr) noexcept nogil:
    cdef Span span
    span.at = <const uint8_t *>attr + sizeof(nlattr)
    span.end = <const uint8_t *>attr + attr.nla_len
    return span


cdef inline int kind_of(const nlattr *attr) noexcept nogil:
    return attr.nla_type & NLA_TYPE_MASK


cdef inline const uint8_t *payload(const nlattr *attr, size_t size) noexcept nogil:
    # The payload, or NULL where it is shorter than ``size``.
    return <const uint8_t *>attr + sizeof(nlattr) if attr.nla_len >= sizeof(nlattr) + size else NULL


cdef inline uint32_t u32_of(const nlattr *attr) noexcept nogil:
    cdef uint32_t value = 0
    if payload(attr, sizeof(value)) != NULL:
        memcpy(&value, payload(attr, sizeof(value)), sizeof(value))
    return value


cdef inline uint32_t u8_of(const nlattr *attr) noexcept nogil:
    return payload(attr, 1)[0] if payload(attr, 1) != NULL else 0


cdef str text_of(const nlattr *attr):
    cdef const char *at = <const char *>attr + sizeof(nlattr)
    cdef size_t size = attr.nla_len - sizeof(nlattr)
    cdef const char *nul = <const char *>memchr(at, 0, size)
    return at[:nul - at if nul != NULL else size].decode("utf-8", "surrogateescape")


cdef str mac_text(const uint8_t *mac, Py_ssize_t size):
    cdef char text[96]
    cdef const char *digits = b"0123456789abcdef"
    cdef Py_ssize_t i
    if size < 1 or size > 32:
        return ""
    for i in range(size):
        text[3 * i] = digits[mac[i] >> 4]
        text[3 * i + 1] = digits[mac[i] & 15]
        text[3 * i + 2] = 58  # ':'
    return text[:3 * size - 1].decode("ascii")


cdef str ip_text(int family, const nlattr *attr):
    # "" where there is no such attribute, or where it is no address of the family.
    cdef char text[64]
    cdef const uint8_t *raw = payload(attr, 4 if family == AF_INET else 16) if attr != NULL else NULL
    if raw == NULL or inet_ntop(family, raw, text, 64) == NULL:
        return ""
    return text.decode("ascii")


cdef inline object yes_no(const nlattr *attr):
    # The kernel presets -1; a driver that does not know the setting leaves it there.
    cdef uint32_t value
    if payload(attr, sizeof(ifla_vf_setting)) == NULL:
        return None
    value = (<const ifla_vf_setting *>payload(attr, sizeof(ifla_vf_setting))).setting
    return None if value == 0xffffffff else value != 0


cdef object link_state_name(const nlattr *attr):
    cdef uint32_t value
    if payload(attr, sizeof(ifla_vf_setting)) == NULL:
        return None
    value = (<const ifla_vf_setting *>payload(attr, sizeof(ifla_vf_setting))).setting
    if value == VF_LINK_STATE_AUTO:
        return "auto"
    if value == VF_LINK_STATE_ENABLE:
        return "enable"
    return "disable" if value == VF_LINK_STATE_DISABLE else None


cdef int read_vf_vlan(const nlattr *attr, dict found) except -1:
    cdef const ifla_vf_vlan *vlan = <const ifla_vf_vlan *>payload(attr, sizeof(ifla_vf_vlan))
    if vlan != NULL:
        found["vlan"] = vlan.vlan
        found["qos"] = vlan.qos
    return 0


cdef int read_vf_vlan_list(const nlattr *attr, dict found) except -1:
    # The kernel sends one entry (MAX_VLAN_LIST_LEN); vlan_proto ends 14 bytes into it.
    cdef Span span = inside(attr)
    cdef const nlattr *entry = next_attr(&span)
    cdef const ifla_vf_vlan_info *info
    cdef int proto
    if entry == NULL or payload(entry, 14) == NULL:
        return 0
    info = <const ifla_vf_vlan_info *>payload(entry, 14)
    proto = ntohs(info.vlan_proto)
    found["vlan"] = info.vlan
    found["qos"] = info.qos
    if proto == ETH_P_8021Q:
        found["proto"] = "802.1Q"
    elif proto == ETH_P_8021AD:
        found["proto"] = "802.1ad"
    return 0


cdef int read_vf_attr(const nlattr *attr, dict found) except -1:
    cdef int kind = kind_of(attr)
    cdef const ifla_vf_rate *rate
    if kind == IFLA_VF_MAC and payload(attr, sizeof(ifla_vf_mac)) != NULL:
        found["mac"] = mac_text((<const ifla_vf_mac *>payload(attr, sizeof(ifla_vf_mac))).mac, 6)
    elif kind == IFLA_VF_VLAN:
        read_vf_vlan(attr, found)
    elif kind == IFLA_VF_VLAN_LIST:
        read_vf_vlan_list(attr, found)
    elif kind == IFLA_VF_RATE and payload(attr, sizeof(ifla_vf_rate)) != NULL:
        rate = <const ifla_vf_rate *>payload(attr, sizeof(ifla_vf_rate))
        found["min_tx_rate"] = rate.min_tx_rate
        found["max_tx_rate"] = rate.max_tx_rate
    elif kind == IFLA_VF_SPOOFCHK:
        found["spoofchk"] = yes_no(attr)
    elif kind == IFLA_VF_LINK_STATE:
        found["link_state"] = link_state_name(attr)
    elif kind == IFLA_VF_TRUST:
        found["trust"] = yes_no(attr)
    return 0


cdef object vf_settings(const nlattr *info):
    cdef Span span = inside(info)
    cdef dict found = {}
    cdef const nlattr *attr = next_attr(&span)
    while attr != NULL:
        read_vf_attr(attr, found)
        attr = next_attr(&span)
    return VfSettings(**found)


cdef long vf_number(const nlattr *info) noexcept nogil:
    # Whose IFLA_VF_INFO this is, or -1 where it is none: each begins with an IFLA_VF_MAC, which names the VF.
    cdef Span span = inside(info)
    cdef const nlattr *mac = next_attr(&span)
    if kind_of(info) != IFLA_VF_INFO or mac == NULL or kind_of(mac) != IFLA_VF_MAC:
        return -1
    return u32_of(mac)


cdef bint has_mac(const nlattr *info, const uint8_t *mac) noexcept nogil:
    # Whether the first attribute of an IFLA_VF_INFO, its IFLA_VF_MAC, says this MAC.
    cdef Span span = inside(info)
    cdef const ifla_vf_mac *held = <const ifla_vf_mac *>payload(next_attr(&span), sizeof(ifla_vf_mac))
    return held != NULL and memcmp(held.mac, mac, 6) == 0


cdef const nlattr *find_vf(
    Span *message, const nlattr *vf_list, uint32_t num_vf, const Item *asked, int *holder
) noexcept nogil:
    # The IFLA_VF_INFO of the VF that was asked for, or NULL; ``holder`` becomes the first other VF with the
    # MAC that was asked about. Leaves ``message`` behind the list.
    #
    # The 16 bits of the list's length overflow with some 300 VFs (200 bytes each without statistics), while
    # its entries are all there. So they are counted, and the length is what they add up to.
    cdef Span span
    cdef const nlattr *info
    cdef const nlattr *found = NULL
    cdef uint32_t seen = 0
    span.at = <const uint8_t *>vf_list + sizeof(nlattr)
    span.end = message.end
    while seen < num_vf:
        message.at = span.at
        info = next_attr(&span)
        if info == NULL or vf_number(info) < 0:
            break
        seen += 1
        if vf_number(info) == asked.wanted:
            found = info
        elif asked.has_mac and holder[0] < 0 and has_mac(info, asked.mac):
            holder[0] = <int>vf_number(info)
        message.at = span.at
    return found


cdef const nlattr *inner(const nlattr *nest, int kind) noexcept nogil:
    # The attribute of one kind in a nest, or NULL; a NULL nest has none.
    cdef Span span
    cdef const nlattr *attr
    if nest == NULL:
        return NULL
    span = inside(nest)
    attr = next_attr(&span)
    while attr != NULL and kind_of(attr) != kind:
        attr = next_attr(&span)
    return attr


cdef tuple alternative_names(const nlattr *properties):
    # IFLA_PROP_LIST: a row of IFLA_ALT_IFNAME.
    cdef Span span = inside(properties)
    cdef list found = []
    cdef const nlattr *attr = next_attr(&span)
    while attr != NULL:
        if kind_of(attr) == IFLA_ALT_IFNAME:
            found.append(text_of(attr))
        attr = next_attr(&span)
    return tuple(found)


cdef uint32_t xdp_program(const nlattr *xdp, int kind) noexcept nogil:
    cdef const nlattr *attr = inner(xdp, kind)
    return u32_of(attr) if attr != NULL else 0


cdef int read_setting(const nlattr *attr, dict found) except -1:
    cdef int kind = kind_of(attr)
    cdef const nlattr *mode
    if kind == IFLA_BROADCAST and attr.nla_len == sizeof(nlattr) + 6:
        found["broadcast"] = mac_text(payload(attr, 6), 6)
    elif kind == IFLA_TXQLEN:
        found["txqlen"] = u32_of(attr)
    elif kind == IFLA_LINKMODE:
        found["mode"] = u8_of(attr)
    elif kind == IFLA_IFALIAS:
        found["alias"] = text_of(attr)
    elif kind == IFLA_GROUP:
        found["group"] = u32_of(attr)
    elif kind == IFLA_GSO_MAX_SEGS:
        found["gso_max_segs"] = u32_of(attr)
    elif kind == IFLA_GSO_MAX_SIZE:
        found["gso_max_size"] = u32_of(attr)
    elif kind == IFLA_GRO_MAX_SIZE:
        found["gro_max_size"] = u32_of(attr)
    elif kind == IFLA_GSO_IPV4_MAX_SIZE:
        found["gso_ipv4_max_size"] = u32_of(attr)
    elif kind == IFLA_GRO_IPV4_MAX_SIZE:
        found["gro_ipv4_max_size"] = u32_of(attr)
    elif kind == IFLA_AF_SPEC:
        mode = inner(inner(attr, AF_INET6), IFLA_INET6_ADDR_GEN_MODE)
        if mode != NULL:
            found["addrgenmode"] = u8_of(mode)
    return 0


cdef object decode_link(const uint8_t *body, size_t size, const Item *asked):
    cdef const ifinfomsg *info = <const ifinfomsg *>body
    cdef Span span
    cdef const nlattr *attr
    cdef const nlattr *vf_info = NULL
    cdef const nlattr *xdp = NULL
    cdef str name = "", mac = "", parent = "", perm = ""
    cdef tuple altnames = ()
    cdef dict found = {"flags": info.ifi_flags & SETTABLE_FLAGS, "alias": ""}
    cdef uint32_t mtu = 0, num_vf = 0, lower = 0, master = 0
    cdef bint is_lower_here = True
    cdef int kind, holder = -1
    span.at = body + sizeof(ifinfomsg)
    span.end = body + size
    attr = next_attr(&span)
    while attr != NULL:
        kind = kind_of(attr)
        if kind == IFLA_IFNAME:
            name = text_of(attr)
        elif kind == IFLA_ADDRESS:
            mac = mac_text(payload(attr, 0), attr.nla_len - sizeof(nlattr))
        elif kind == IFLA_MTU:
            mtu = u32_of(attr)
        elif kind == IFLA_LINK:
            lower = u32_of(attr)
        elif kind == IFLA_LINK_NETNSID:
            is_lower_here = False
        elif kind == IFLA_MASTER:
            master = u32_of(attr)
        elif kind == IFLA_PROP_LIST:
            altnames = alternative_names(attr)
        elif kind == IFLA_NUM_VF:
            num_vf = u32_of(attr)
        elif kind == IFLA_VFINFO_LIST:
            vf_info = find_vf(&span, attr, num_vf, asked, &holder)
        elif kind == IFLA_PERM_ADDRESS:
            perm = mac_text(payload(attr, 0), attr.nla_len - sizeof(nlattr))
        elif kind == IFLA_PARENT_DEV_NAME:
            parent = text_of(attr)
        elif kind == IFLA_XDP:
            xdp = attr
        else:
            read_setting(attr, found)
        attr = next_attr(&span)
    return Link(
        index=info.ifi_index,
        name=name,
        mac=mac,
        mtu=mtu,
        up=(info.ifi_flags & IFF_UP) != 0,
        carrier=(info.ifi_flags & IFF_LOWER_UP) != 0,
        parent=parent,
        perm=perm,
        lower=lower if is_lower_here else 0,
        master=master,
        altnames=altnames,
        num_vf=num_vf,
        vf=vf_settings(vf_info) if vf_info != NULL else None,
        settings=LinkSettings(**found),
        xdp=(
            xdp_program(xdp, IFLA_XDP_SKB_PROG_ID),
            xdp_program(xdp, IFLA_XDP_DRV_PROG_ID),
            xdp_program(xdp, IFLA_XDP_HW_PROG_ID),
        ),
        holder=holder,
    )


cdef object decode_address(const uint8_t *body, size_t size):
    # "ip/prefix"; of a point-to-point address the local end.
    cdef const ifaddrmsg *head = <const ifaddrmsg *>body
    cdef Span span
    cdef const nlattr *attr
    cdef const nlattr *local = NULL
    span.at = body + sizeof(ifaddrmsg)
    span.end = body + size
    attr = next_attr(&span)
    while attr != NULL:
        if kind_of(attr) == IFA_LOCAL or (kind_of(attr) == IFA_ADDRESS and local == NULL):
            local = attr
        attr = next_attr(&span)
    return f"{ip_text(head.ifa_family, local)}/{head.ifa_prefixlen}"


cdef struct Path:
    # Attributes of a route, those of the one next hop that is looked at among them.
    const nlattr *dst
    const nlattr *gateway
    const nlattr *via
    const nlattr *metrics
    const nlattr *multipath
    int oif
    uint32_t priority
    uint32_t table


cdef void read_path(Span span, Path *path) noexcept nogil:
    cdef const nlattr *attr = next_attr(&span)
    cdef int kind
    while attr != NULL:
        kind = kind_of(attr)
        if kind == RTA_DST:
            path.dst = attr
        elif kind == RTA_GATEWAY:
            path.gateway = attr
        elif kind == RTA_VIA:
            path.via = attr
        elif kind == RTA_METRICS:
            path.metrics = attr
        elif kind == RTA_MULTIPATH:
            path.multipath = attr
        elif kind == RTA_OIF:
            path.oif = <int>u32_of(attr)
        elif kind == RTA_PRIORITY:
            path.priority = u32_of(attr)
        elif kind == RTA_TABLE:
            path.table = u32_of(attr)
        attr = next_attr(&span)


cdef uint32_t metric(const nlattr *metrics, int wanted) noexcept nogil:
    cdef Span span
    cdef const nlattr *attr
    if metrics == NULL:
        return 0
    span = inside(metrics)
    attr = next_attr(&span)
    while attr != NULL and kind_of(attr) != wanted:
        attr = next_attr(&span)
    return u32_of(attr) if attr != NULL else 0


cdef str via_text(const nlattr *via):
    # struct rtvia (linux/rtnetlink.h): __kernel_sa_family_t rtvia_family; __u8 rtvia_addr[].
    cdef char text[64]
    cdef const uint8_t *at = payload(via, 2)
    cdef uint16_t family
    if at == NULL:
        return ""
    memcpy(&family, at, 2)
    if payload(via, 6 if family == AF_INET else 18) == NULL or inet_ntop(family, at + 2, text, 64) == NULL:
        return ""
    return text.decode("ascii")


cdef object route_of(const rtmsg *head, const Path *path, uint32_t flags):
    cdef str dst = ip_text(head.rtm_family, path.dst)
    cdef str gateway = ip_text(head.rtm_family, path.gateway)
    if path.via != NULL:
        gateway = via_text(path.via)
    if not dst:
        dst = "0.0.0.0" if head.rtm_family == AF_INET else "::"
    return Route(
        dst=f"{dst}/{head.rtm_dst_len}",
        gw=gateway,
        mtu=metric(path.metrics, RTAX_MTU),
        advmss=metric(path.metrics, RTAX_ADVMSS),
        priority=path.priority,
        table=path.table,
        scope=head.rtm_scope,
        onlink=flags & RTNH_F_ONLINK != 0,
    )


cdef int read_next_hops(const rtmsg *head, const Path *path, int index, list out) except -1:
    # RTA_MULTIPATH: a row of struct rtnexthop, each followed by its own attributes.
    cdef Span span = inside(path.multipath)
    cdef Span attrs
    cdef const rtnexthop *hop
    cdef size_t left
    cdef Path one
    while True:
        left = span.end - span.at
        hop = <const rtnexthop *>span.at
        if left < sizeof(rtnexthop) or hop.rtnh_len < sizeof(rtnexthop) or hop.rtnh_len > left:
            return 0
        if hop.rtnh_ifindex == index:
            one = path[0]
            attrs.at = span.at + sizeof(rtnexthop)
            attrs.end = span.at + hop.rtnh_len
            read_path(attrs, &one)
            out.append(route_of(head, &one, hop.rtnh_flags))
        span.at += min(aligned(hop.rtnh_len), left)


cdef int decode_routes(const uint8_t *body, size_t size, int family, int index, list out) except -1:
    # Appends the unicast routes out of one interface; of a multipath route, one for each of its hops there.
    cdef const rtmsg *head = <const rtmsg *>body
    cdef Path path
    cdef Span span
    if head.rtm_type != RTN_UNICAST or head.rtm_flags & RTM_F_CLONED or head.rtm_family != family:
        return 0
    memset(&path, 0, sizeof(path))
    path.table = head.rtm_table
    span.at = body + sizeof(rtmsg)
    span.end = body + size
    read_path(span, &path)
    if path.table == RT_TABLE_LOCAL:
        return 0
    if path.multipath != NULL:
        return read_next_hops(head, &path, index, out)
    if path.oif == index:
        out.append(route_of(head, &path, head.rtm_flags))
    return 0


cdef const nlattr *find_attr(const nlmsghdr *message, size_t body, int kind) noexcept nogil:
    # An attribute of a message of ours, so of one that is well-formed.
    cdef Span span
    cdef const nlattr *attr
    span.at = <const uint8_t *>message + sizeof(nlmsghdr) + body
    span.end = <const uint8_t *>message + message.nlmsg_len
    attr = next_attr(&span)
    while attr != NULL and kind_of(attr) != kind:
        attr = next_attr(&span)
    return attr


cdef str set_operation(const nlmsghdr *message, int index):
    cdef const nlattr *name
    if index == 0:
        name = find_attr(message, sizeof(ifinfomsg), IFLA_IFNAME)
        return f"set link of {text_of(name)}"
    return vf_operation(message, index)


cdef str vf_operation(const nlmsghdr *message, int index):
    cdef const nlattr *vf_list = find_attr(message, sizeof(ifinfomsg), IFLA_VFINFO_LIST)
    cdef Span span
    cdef const nlattr *info
    if vf_list == NULL:
        return f"set link of ifindex {index}"
    # Whichever setting comes first: every one begins with the VF, and 802.1ad has it one level deeper.
    span = inside(vf_list)
    info = next_attr(&span)
    span = inside(info)
    info = next_attr(&span)
    if kind_of(info) == IFLA_VF_VLAN_LIST:
        span = inside(info)
        info = next_attr(&span)
    return f"set vf {u32_of(info)} of ifindex {index}"


cdef str altname_operation(const nlmsghdr *message, int index):
    cdef Span span = inside(find_attr(message, sizeof(ifinfomsg), IFLA_PROP_LIST))
    cdef str name = text_of(next_attr(&span))
    if message.nlmsg_type == RTM_NEWLINKPROP:
        return f"add altname {name} to ifindex {index}"
    return f"delete altname {name} of ifindex {index}"


cdef str link_operation(const nlmsghdr *message, int wanted):
    cdef const ifinfomsg *info = <const ifinfomsg *>(<const uint8_t *>message + sizeof(nlmsghdr))
    cdef const nlattr *name
    cdef str which = f"ifindex {info.ifi_index}"
    if message.nlmsg_type == RTM_SETLINK:
        return set_operation(message, info.ifi_index)
    if message.nlmsg_type == RTM_DELLINK:
        return f"delete link of ifindex {info.ifi_index}"
    if message.nlmsg_type in (RTM_NEWLINKPROP, RTM_DELLINKPROP):
        return altname_operation(message, info.ifi_index)
    if message.nlmsg_flags & NLM_F_DUMP:
        return "list links"
    name = find_attr(message, sizeof(ifinfomsg), IFLA_IFNAME)
    if name == NULL:
        name = find_attr(message, sizeof(ifinfomsg), IFLA_ALT_IFNAME)
    if name != NULL:
        which = text_of(name)
    return f"get vf {wanted} of {which}" if wanted >= 0 else f"get link {which}"


cdef str address_operation(const nlmsghdr *message):
    cdef const ifaddrmsg *head = <const ifaddrmsg *>(<const uint8_t *>message + sizeof(nlmsghdr))
    cdef const nlattr *local
    if message.nlmsg_type == RTM_GETADDR:
        return f"list addresses of ifindex {head.ifa_index}"
    local = find_attr(message, sizeof(ifaddrmsg), IFA_LOCAL)
    return f"add address {ip_text(head.ifa_family, local)}/{head.ifa_prefixlen} to ifindex {head.ifa_index}"


cdef str route_operation(const nlmsghdr *message):
    cdef const rtmsg *head = <const rtmsg *>(<const uint8_t *>message + sizeof(nlmsghdr))
    cdef uint32_t oif = u32_of(find_attr(message, sizeof(rtmsg), RTA_OIF))
    cdef str dst = ip_text(head.rtm_family, find_attr(message, sizeof(rtmsg), RTA_DST))
    cdef str gateway = ip_text(head.rtm_family, find_attr(message, sizeof(rtmsg), RTA_GATEWAY))
    if message.nlmsg_type == RTM_GETROUTE:
        return f"list routes of ifindex {oif}"
    if not dst:
        dst = "0.0.0.0" if head.rtm_family == AF_INET else "::"
    return f"add route {dst}/{head.rtm_dst_len}{' via ' if gateway else ''}{gateway} to ifindex {oif}"


cdef str operation_of(Batch batch, Py_ssize_t position):
    # What a message asks for, in words, for the error that it was answered with.
    cdef const nlmsghdr *message = <const nlmsghdr *>(batch.data + batch.items[position].at)
    if message.nlmsg_type in (RTM_GETLINK, RTM_SETLINK, RTM_DELLINK, RTM_NEWLINKPROP, RTM_DELLINKPROP):
        return link_operation(message, batch.items[position].wanted)
    if message.nlmsg_type in (RTM_GETADDR, RTM_NEWADDR):
        return address_operation(message)
    return route_operation(message)


# --- answers ------------------------------------------------------------------------------------------

cdef class Replies:
    """What a batch that was sent with sequence numbers from ``first`` on is answered with.

    ``port`` is the port id of the socket that sent it. ``feed`` takes one datagram; every message in it is
    checked in one place. ``pending`` counts the messages without an answer, ``results`` holds one entry for
    each message.
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
        """A list: ``Link``, ``NetlinkError`` or, for an ACK and for what has no answer yet, None."""
        return [None if item is UNANSWERED else item for item in self.found]

    def feed(self, bytes datagram not None, *, uint32_t sender=0, bint truncated=False):
        """Take one datagram from port id ``sender``.

        Raises NetlinkError (EPROTO, EMSGSIZE, ENOBUFS) where it cannot be what the kernel answers.
        """
        self.take(<const uint8_t *>PyBytes_AS_STRING(datagram), PyBytes_GET_SIZE(datagram), sender, truncated)

    cdef int take(self, const uint8_t *data, size_t size, uint32_t sender, bint truncated) except -1:
        cdef const nlmsghdr *head
        if sender != 0:
            return 0  # some process's doing; only the kernel answers
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
        # NLMSG_ERROR, an ACK too, and NLMSG_DONE: both begin with an int that is 0 or a negative errno.
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
        cdef str operation = operation_of(self.batch, position)
        cdef object refused = NetlinkError(error, extack_of(head), position, operation)
        if operation.startswith(("set vf ", "get vf ")):
            refused.vf = int(operation.split(" ", 3)[2])
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
        cdef int wanted = self.batch.items[position].wanted
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
            decode_routes(body, size, family, wanted, self.found[position])
        elif self.is_address_of(<const ifaddrmsg *>body, wanted):
            self.found[position].append(decode_address(body, size))
        return 0

    cdef bint is_address_of(self, const ifaddrmsg *head, int index) noexcept:
        return head.ifa_index == <uint32_t>index and head.ifa_family in (AF_INET, AF_INET6)


cdef str extack_of(const nlmsghdr *head):
    # The kernel's own words: NLMSGERR_ATTR_MSG behind the verdict and whatever it repeats of the request.
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
    attr = next_attr(&span)
    while attr != NULL and kind_of(attr) != NLMSGERR_ATTR_MSG:
        attr = next_attr(&span)
    return text_of(attr) if attr != NULL else ""


# --- namespaces ---------------------------------------------------------------------------------------

cdef int enter_netns(int netns_fd, int *home) noexcept nogil:
    # Takes the calling thread into a namespace; ``home`` is for leave_netns. 0, or -1 with errno and unmoved.
    cdef int error
    home[0] = -1
    if netns_fd < 0:
        return 0
    home[0] = c_open(b"/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)
    if home[0] < 0:
        return -1
    if setns(netns_fd, CLONE_NEWNET) == 0:
        return 0
    error = errno
    close(home[0])
    set_errno(error)
    return -1


cdef void leave_netns(int home) noexcept nogil:
    # Takes the calling thread back, or ends the process. setns(2) fails while the kernel has no memory, so
    # it is repeated for a second. Keeps errno.
    cdef int error = errno
    cdef int tries = 1000
    cdef const char *text = b"sriov-fast: cannot return from a network namespace, giving up\n"
    if home < 0:
        return
    while setns(home, CLONE_NEWNET) != 0:
        tries -= 1
        if tries == 0:
            c_write(2, text, 62)
            abort()
        usleep(1000)
    close(home)
    set_errno(error)


cdef int socket_in(int netns_fd, int family, int kind, int protocol) noexcept nogil:
    cdef int home, fd
    if enter_netns(netns_fd, &home) != 0:
        return -1
    fd = c_socket(family, kind | SOCK_CLOEXEC, protocol)
    leave_netns(home)
    return fd


cdef int write_in(int netns_fd, const char *path, const char *text, size_t size) noexcept nogil:
    # The kernel looks /proc/sys/net up in the namespace of the thread that opens it.
    cdef int home, fd, error
    cdef ssize_t written
    if enter_netns(netns_fd, &home) != 0:
        return -1
    fd = c_open(path, O_WRONLY | O_CLOEXEC)
    leave_netns(home)
    if fd < 0:
        return -1
    written = c_write(fd, text, size)
    error = errno
    close(fd)
    set_errno(EIO if written >= 0 else error)
    return 0 if written == <ssize_t>size else -1


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


def netns_write(netns_fd, str path not None, str text not None):
    """Write a file below /proc/sys/net of a namespace (-1: this one): ``sysctl -w $path=$text`` in there.

    Raises OSError with the path; the thread is back in its own namespace either way.
    """
    cdef bytes name = path.encode("utf-8", "surrogateescape")
    cdef bytes content = text.encode()
    cdef const char *at = PyBytes_AS_STRING(name)
    cdef const char *what = PyBytes_AS_STRING(content)
    cdef size_t size = PyBytes_GET_SIZE(content)
    cdef int failed, where = namespace_fd(netns_fd)
    if not path.startswith("/proc/sys/net/") or "/../" in path or "\0" in path:
        raise ValueError(f"path {path!r}: not below /proc/sys/net")
    with nogil:
        failed = write_in(where, at, what, size)
    if failed:
        PyErr_SetFromErrnoWithFilenameObject(OSError, path)


# --- ethtool ------------------------------------------------------------------------------------------

cdef int ethtool_once(int fd, int index, uint8_t *data) noexcept nogil:
    # SIOCETHTOOL takes a name, so the name that the device has now is asked for just before.
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
            failed = ethtool_once(socket_fd, which, data)  # it may have been renamed in between
    if failed:
        PyErr_SetFromErrno(OSError)
    return answer


# --- bpf ----------------------------------------------------------------------------------------------

def bpf(int command, bytearray attributes not None, dict buffers=None):
    """Do one ``bpf(command)`` (bpf(2)), in the namespace that the thread is in; return what it returns.

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


# --- the socket ---------------------------------------------------------------------------------------

cdef int bind_port(int fd, uint32_t *port) noexcept nogil:
    # Has the kernel choose a port id, and says which.
    cdef sockaddr_nl own
    cdef socklen_t size = sizeof(own)
    memset(&own, 0, sizeof(own))
    own.nl_family = AF_NETLINK
    if bind(fd, <const sockaddr *>&own, sizeof(own)) != 0 or getsockname(fd, <sockaddr *>&own, &size) != 0:
        return -1
    port[0] = own.nl_pid
    return 0


cdef int netlink_socket(int netns_fd, int seconds, uint32_t *port) noexcept nogil:
    cdef int error, one = 1
    cdef timeval limit
    cdef int fd = socket_in(netns_fd, AF_NETLINK, SOCK_RAW, NETLINK_ROUTE)
    if fd < 0:
        return -1
    limit.tv_sec = seconds
    limit.tv_usec = 0
    # Kernels before 4.12 have no extack: errors come without text then.
    setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof(one))
    setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof(one))
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit))
    if bind_port(fd, port) == 0:
        return fd
    error = errno
    close(fd)
    set_errno(error)
    return -1


cdef class Socket:
    """A rtnetlink socket, opened in the namespace that ``netns_fd`` refers to (-1: the thread's own).

    It stays in that namespace for good, whichever thread uses it, one at a time. Raises OSError.
    """

    cdef int fd
    cdef uint32_t port, next_seq
    cdef uint8_t *data
    cdef size_t room, space   # bytes: of ``data``; asked for as the socket's receive buffer
    cdef bint busy, strict

    def __cinit__(self, netns_fd=-1):
        cdef int where
        cdef uint32_t port = 0
        cdef int fd
        self.fd = -1
        self.next_seq = 1
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
        PyMem_Free(self.data)

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

        A result is a ``Link`` for ``get_link``, None for what was done and a NetlinkError for what was
        refused; later messages are carried out all the same. With ``check`` the first refusal is raised
        instead, after all answers are in; its ``results`` is the whole list. OSError where sending or
        receiving fails, NetlinkError with ETIMEDOUT when no answer comes for 30 seconds.
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

    def addresses(self, index):
        """Return the addresses of one device as "ip/prefix", both families: ``ip address show dev $if``."""
        cdef Batch batch = Batch()
        batch._dump_addresses(number(index, "index", 1, INT_MAX))
        return self.dump(batch)[0]

    def routes(self, index):
        """Return the unicast routes out of one device, both families: ``ip route show table all dev $if``.

        Without those of the local table. ``table``, ``scope`` and ``priority`` are what the kernel says
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
        # A dump that was interrupted by a change may lack something: again, some times.
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
        raise NetlinkError(EAGAIN, "", 0, f"{operation_of(batch, 0)}: changed while read, {DUMP_TRIES} times")

    cdef void be_strict(self) noexcept:
        # Has the kernel (from 4.20 on) filter dumps by what the request says; an older one sends all.
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
        # The kernel queues all answers before the send returns, and drops what has no room.
        cdef size_t wanted = 0
        cdef Py_ssize_t i
        cdef int size
        for i in range(first, end):
            wanted += VF_LIST_SPACE if (
                (<nlmsghdr *>(batch.data + batch.items[i].at)).nlmsg_type == RTM_GETLINK
                and batch.items[i].wanted >= 0
            ) else ANSWER_SPACE
        if wanted <= self.space or end - first == 1:
            return 0
        size = <int>min(wanted, <size_t>(INT_MAX // 2))
        if setsockopt(self.fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) != 0:
            setsockopt(self.fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size))
        self.space = wanted
        return 0

    cdef Py_ssize_t send(self, Batch batch, Py_ssize_t first) except -1:
        # Sends the messages from ``first`` on that fit; returns where the rest begins.
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
        # One datagram, however large: its size is asked for first.
        cdef sockaddr_nl sender
        cdef ssize_t size = self.receive_once(replies, &sender, MSG_PEEK | MSG_TRUNC)
        self.grow(size)
        size = self.receive_once(replies, &sender, MSG_TRUNC)
        replies.take(self.data, min(<size_t>size, self.room), sender.nl_pid, <size_t>size > self.room)
        return 0

    cdef ssize_t receive_once(self, Replies replies, sockaddr_nl *sender, int flags) except -1:
        # The size of the next datagram; it is read into ``data`` unless only peeked at.
        cdef socklen_t sender_size
        cdef size_t room = 0 if flags & MSG_PEEK else self.room
        cdef ssize_t size
        while True:
            sender_size = sizeof(sockaddr_nl)
            with nogil:
                size = recvfrom(self.fd, self.data, room, flags, <sockaddr *>sender, &sender_size)
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
            f"{operation_of(replies.batch, position)}: no answer in {RECEIVE_TIMEOUT} seconds",
        )

    cdef int grow(self, size_t wanted) except -1:
        # Dumps come in datagrams as large as the buffer that asks for them, up to 32 KiB.
        cdef uint8_t *data
        cdef size_t room = self.room or 32768
        while room < wanted:
            room *= 2
        if room == self.room:
            return 0
        data = <uint8_t *>PyMem_Realloc(self.data, room)
        if data == NULL:
            raise MemoryError
        self.data = data
        self.room = room
        return 0
