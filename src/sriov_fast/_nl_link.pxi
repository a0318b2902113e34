# The settings of a RTM_SETLINK, and the decoding of RTM_NEWLINK.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t

from sriov_fast.common.record import Link, LinkSettings


cdef int set_flags(ifinfomsg *info, object up, object settings) except -1:
    # Set the flags to change: IFF_UP unless ``up`` is None, and the settable ones of ``settings``.
    if up is not None:
        info.ifi_change = IFF_UP
        info.ifi_flags = IFF_UP if up else 0
    if settings is not None and settings.flags is not None:
        info.ifi_change |= SETTABLE_FLAGS
        info.ifi_flags |= number(settings.flags, "flags", 0, INT_MAX) & SETTABLE_FLAGS
    return 0


cdef int put_settings(Buffer out, object settings) except -1:
    cdef bytes alias
    if settings.broadcast is not None:
        out.put_mac(IFLA_BROADCAST, settings.broadcast)
    put_setting(out, IFLA_TXQLEN, "txqlen", settings.txqlen)
    if settings.mode is not None:
        out.put_u8(IFLA_LINKMODE, number(settings.mode, "mode", 0, 255))
    if settings.alias is not None:
        alias = settings.alias.encode("utf-8", "surrogateescape")
        out.put(IFLA_IFALIAS, PyBytes_AS_STRING(alias), PyBytes_GET_SIZE(alias))
    put_setting(out, IFLA_GROUP, "group", settings.group)
    put_setting(out, IFLA_GSO_MAX_SEGS, "gso_max_segs", settings.gso_max_segs)
    put_setting(out, IFLA_GSO_MAX_SIZE, "gso_max_size", settings.gso_max_size)
    put_setting(out, IFLA_GRO_MAX_SIZE, "gro_max_size", settings.gro_max_size)
    put_setting(out, IFLA_GSO_IPV4_MAX_SIZE, "gso_ipv4_max_size", settings.gso_ipv4_max_size)
    put_setting(out, IFLA_GRO_IPV4_MAX_SIZE, "gro_ipv4_max_size", settings.gro_ipv4_max_size)
    return put_addrgenmode(out, settings.addrgenmode)


cdef int put_setting(Buffer out, uint16_t kind, str what, object value) except -1:
    return 0 if value is None else out.put_u32(kind, number(value, what, 0, 0xfffffffe))


cdef int put_addrgenmode(Buffer out, object mode) except -1:
    cdef size_t families, inet6
    if mode is None:
        return 0
    families = out.open_nest(IFLA_AF_SPEC)
    inet6 = out.open_nest(AF_INET6)
    out.put_u8(IFLA_INET6_ADDR_GEN_MODE, number(mode, "addrgenmode", 0, 255))
    out.close_nest(inet6)
    out.close_nest(families)
    return 0


cdef tuple alternative_names(const nlattr *properties):
    # IFLA_PROP_LIST contains IFLA_ALT_IFNAME, one for each name.
    cdef Span span = inside(properties)
    cdef list found = []
    cdef const nlattr *attr = next_attr(&span)
    while attr != NULL:
        if kind_of(attr) == IFLA_ALT_IFNAME:
            found.append(text_of(attr))
        attr = next_attr(&span)
    return tuple(found)


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


cdef object is_ipv6_disabled(const nlattr *families):
    # Return the device's sysctl disable_ipv6, None if the kernel does not report it.
    cdef const nlattr *conf = inner(inner(families, AF_INET6), IFLA_INET6_CONF)
    cdef const uint8_t *values = payload(conf, 4 * (DEVCONF_DISABLE_IPV6 + 1)) if conf != NULL else NULL
    return None if values == NULL else (<const int32_t *>values)[DEVCONF_DISABLE_IPV6] != 0


cdef int put_macvlan(Buffer out) except -1:
    # Append the attributes of a macvlan: mode passthru, without promiscuous mode of the device under it.
    cdef uint16_t flags = MACVLAN_FLAG_NOPROMISC
    cdef size_t info, data
    info = out.open_nest(IFLA_LINKINFO)
    out.put_text(IFLA_INFO_KIND, b"macvlan")
    data = out.open_nest(IFLA_INFO_DATA)
    out.put_u32(IFLA_MACVLAN_MODE, MACVLAN_MODE_PASSTHRU)
    out.put(IFLA_MACVLAN_FLAGS, &flags, sizeof(flags))
    out.close_nest(data)
    out.close_nest(info)
    return 0


cdef bint read_link_attr(const nlattr *attr, dict found) except -1:
    # Store an attribute of a ``Link``; return False for any other one.
    cdef int kind = kind_of(attr)
    cdef const nlattr *driver
    if kind == IFLA_IFNAME:
        found["name"] = text_of(attr)
    elif kind == IFLA_ADDRESS:
        found["mac"] = mac_text(payload(attr, 0), attr.nla_len - sizeof(nlattr))
    elif kind == IFLA_MTU:
        found["mtu"] = u32_of(attr)
    elif kind == IFLA_LINK:
        found["lower"] = u32_of(attr)
    elif kind == IFLA_MASTER:
        found["master"] = u32_of(attr)
    elif kind == IFLA_PROP_LIST:
        found["altnames"] = alternative_names(attr)
    elif kind == IFLA_PERM_ADDRESS:
        found["perm"] = mac_text(payload(attr, 0), attr.nla_len - sizeof(nlattr))
    elif kind == IFLA_PARENT_DEV_NAME:
        found["parent"] = text_of(attr)
    elif kind == IFLA_XDP:
        found["xdp"] = (
            inner_u32(attr, IFLA_XDP_SKB_PROG_ID),
            inner_u32(attr, IFLA_XDP_DRV_PROG_ID),
            inner_u32(attr, IFLA_XDP_HW_PROG_ID),
        )
    elif kind == IFLA_LINKINFO:
        driver = inner(attr, IFLA_INFO_KIND)
        found["kind"] = text_of(driver) if driver != NULL else ""
    else:
        return False
    return True


cdef object decode_link(const uint8_t *body, size_t size, const Item *asked):
    cdef const ifinfomsg *info = <const ifinfomsg *>body
    cdef Span span
    cdef const nlattr *attr
    cdef const nlattr *vf_info = NULL
    cdef dict found = {"name": "", "mac": "", "mtu": 0}
    cdef dict settings = {"flags": info.ifi_flags & SETTABLE_FLAGS, "alias": ""}
    cdef uint32_t num_vf = 0
    cdef bint is_lower_here = True
    cdef int holder = -1
    span.at = body + sizeof(ifinfomsg)
    span.end = body + size
    attr = next_attr(&span)
    while attr != NULL:
        if kind_of(attr) == IFLA_NUM_VF:
            num_vf = u32_of(attr)
        elif kind_of(attr) == IFLA_VFINFO_LIST:
            vf_info = find_vf(&span, attr, num_vf, asked, &holder)
        elif kind_of(attr) == IFLA_LINK_NETNSID:
            is_lower_here = False
        elif kind_of(attr) == IFLA_AF_SPEC:
            found["disable_ipv6"] = is_ipv6_disabled(attr)
            read_setting(attr, settings)
        elif not read_link_attr(attr, found):
            read_setting(attr, settings)
        attr = next_attr(&span)
    if not is_lower_here:
        found["outer_lower"] = found.pop("lower", 0)
    return Link(
        index=info.ifi_index,
        up=(info.ifi_flags & IFF_UP) != 0,
        carrier=(info.ifi_flags & IFF_LOWER_UP) != 0,
        num_vf=num_vf,
        vf=vf_settings(vf_info) if vf_info != NULL else None,
        holder=holder,
        settings=LinkSettings(**settings),
        **found,
    )
