# The routes of RTM_NEWROUTE, and the decoding of RTM_NEWADDR and RTM_NEWROUTE.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from sriov_fast.common.record import Route


cdef void broadcast_of(const Cidr *ip, uint8_t *out) noexcept:
    cdef int i, bits
    for i in range(4):
        bits = min(max(ip.prefix - 8 * i, 0), 8)
        out[i] = ip.address[i] | <uint8_t>(0xff >> bits)


cdef int fill_route_head(rtmsg *head, object route, const Cidr *dst, uint32_t table) except -1:
    memset(head, 0, sizeof(rtmsg))
    head.rtm_family = <uint8_t>dst.family
    head.rtm_dst_len = <uint8_t>dst.prefix
    head.rtm_table = <uint8_t>((table or RT_TABLE_MAIN) if table < 256 else 0)
    head.rtm_protocol = RTPROT_BOOT
    head.rtm_type = RTN_UNICAST
    head.rtm_scope = RT_SCOPE_UNIVERSE if route.gw else RT_SCOPE_LINK
    if route.scope is not None:
        head.rtm_scope = <uint8_t>number(route.scope, "scope", 0, 255)
    if route.gw and route.onlink:
        head.rtm_flags = RTNH_F_ONLINK
    return 0


cdef int put_metrics(Buffer out, object mtu, object advmss) except -1:
    cdef size_t nest
    if mtu == 0 and advmss == 0:
        return 0
    nest = out.open_nest(RTA_METRICS)
    if mtu != 0:
        out.put_u32(RTAX_MTU, number(mtu, "mtu", 0, INT_MAX))
    if advmss != 0:
        out.put_u32(RTAX_ADVMSS, number(advmss, "advmss", 0, INT_MAX))
    out.close_nest(nest)
    return 0


cdef object decode_address(const uint8_t *body, size_t size):
    # Return "ip/prefix"; of a point-to-point address the local end.
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
    # The attributes of a route and of one of its next hops.
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
        mtu=inner_u32(path.metrics, RTAX_MTU),
        advmss=inner_u32(path.metrics, RTAX_ADVMSS),
        priority=path.priority,
        table=path.table,
        scope=head.rtm_scope,
        onlink=flags & RTNH_F_ONLINK != 0,
    )


cdef int read_next_hops(const rtmsg *head, const Path *path, int index, list out) except -1:
    # RTA_MULTIPATH contains struct rtnexthop, each followed by its own attributes.
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
    # Append the unicast routes out of one device; a multipath route counts once for each hop there.
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
