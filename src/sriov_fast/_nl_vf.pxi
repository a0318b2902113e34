# The PF's settings of a VF, IFLA_VF_INFO: encoding and decoding.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memset

from sriov_fast.common.record import VfSettings


cdef tuple LINK_STATES = ("auto", "enable", "disable")  # IFLA_VF_LINK_STATE_*


cdef int put_vf(Buffer out, uint32_t vf, object settings) except -1:
    # Append one IFLA_VF_INFO with the values of a VfSettings that are not None.
    cdef size_t vf_list = out.open_nest(IFLA_VFINFO_LIST)
    cdef size_t vf_info = out.open_nest(IFLA_VF_INFO)
    put_vf_mac(out, vf, settings.mac)
    put_vf_vlan(out, vf, settings)
    put_vf_rates(out, vf, settings.min_tx_rate, settings.max_tx_rate)
    if settings.spoofchk is not None:
        put_vf_setting(out, IFLA_VF_SPOOFCHK, vf, 1 if settings.spoofchk else 0)
    if settings.link_state is not None:
        put_vf_setting(out, IFLA_VF_LINK_STATE, vf, link_state_number(settings.link_state))
    if settings.trust is not None:
        put_vf_setting(out, IFLA_VF_TRUST, vf, 1 if settings.trust else 0)
    if out.size == vf_info + sizeof(nlattr):
        raise ValueError(f"{settings!r}: asks for nothing")
    out.close_nest(vf_info)
    out.close_nest(vf_list)
    return 0


cdef int put_vf_mac(Buffer out, uint32_t vf, object value) except -1:
    cdef ifla_vf_mac mac
    if value is None:
        return 0
    memset(&mac, 0, sizeof(mac))
    mac.vf = vf
    parse_mac(value, mac.mac)
    return out.put(IFLA_VF_MAC, &mac, sizeof(mac))


cdef int put_vf_vlan(Buffer out, uint32_t vf, object settings) except -1:
    # IFLA_VF_VLAN is 802.1Q and is understood by every kernel; the list came with 4.10, for 802.1ad.
    cdef ifla_vf_vlan_info info
    cdef size_t nest
    if settings.vlan is None:
        if settings.qos is not None or settings.proto is not None:
            raise ValueError(f"qos {settings.qos!r}, proto {settings.proto!r}: they go with a vlan")
        return 0
    memset(&info, 0, sizeof(info))
    info.vf = vf
    info.vlan = number(settings.vlan, "vlan", 0, 4094)
    info.qos = 0 if settings.qos is None else number(settings.qos, "qos", 0, 7)
    if settings.proto in (None, "802.1Q"):
        return out.put(IFLA_VF_VLAN, &info, sizeof(ifla_vf_vlan))
    if settings.proto != "802.1ad":
        raise ValueError(f"proto {settings.proto!r}: not one of 802.1Q, 802.1ad")
    info.vlan_proto = htons(ETH_P_8021AD)
    nest = out.open_nest(IFLA_VF_VLAN_LIST)
    out.put(IFLA_VF_VLAN_INFO, &info, sizeof(info))
    out.close_nest(nest)
    return 0


cdef int put_vf_rates(Buffer out, uint32_t vf, object least, object most) except -1:
    cdef ifla_vf_rate rate
    cdef ifla_vf_tx_rate tx_rate
    if least is not None:
        rate.vf = vf
        rate.min_tx_rate = number(least, "min_tx_rate", 0, INT_MAX)
        rate.max_tx_rate = 0 if most is None else number(most, "max_tx_rate", 0, INT_MAX)
        return out.put(IFLA_VF_RATE, &rate, sizeof(rate))
    if most is not None:
        tx_rate.vf = vf
        tx_rate.rate = number(most, "max_tx_rate", 0, INT_MAX)
        return out.put(IFLA_VF_TX_RATE, &tx_rate, sizeof(tx_rate))
    return 0


cdef int put_vf_setting(Buffer out, uint16_t kind, uint32_t vf, uint32_t value) except -1:
    cdef ifla_vf_setting setting
    setting.vf = vf
    setting.setting = value
    return out.put(kind, &setting, sizeof(setting))


cdef uint32_t link_state_number(object value) except? 0xffffffff:
    if value not in LINK_STATES:
        raise ValueError(f"link_state {value!r}: not one of auto, enable, disable")
    return LINK_STATES.index(value)


cdef inline object yes_no(const nlattr *attr):
    # The kernel presets -1, which remains if the driver does not know the setting.
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
    return LINK_STATES[value] if value < <uint32_t>len(LINK_STATES) else None


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
    # Return the VF of an IFLA_VF_INFO, which begins with an IFLA_VF_MAC that has its number; otherwise -1.
    cdef Span span = inside(info)
    cdef const nlattr *mac = next_attr(&span)
    if kind_of(info) != IFLA_VF_INFO or mac == NULL or kind_of(mac) != IFLA_VF_MAC:
        return -1
    return u32_of(mac)


cdef bint has_mac(const nlattr *info, const uint8_t *mac) noexcept nogil:
    # Return whether the first attribute of an IFLA_VF_INFO, its IFLA_VF_MAC, has this MAC.
    cdef Span span = inside(info)
    cdef const ifla_vf_mac *held = <const ifla_vf_mac *>payload(next_attr(&span), sizeof(ifla_vf_mac))
    return held != NULL and memcmp(held.mac, mac, 6) == 0


cdef const nlattr *find_vf(
    Span *message, const nlattr *vf_list, uint32_t num_vf, const Item *asked, int *holder
) noexcept nogil:
    # Return the IFLA_VF_INFO of the requested VF, or NULL; ``holder`` becomes the first other VF with the
    # requested MAC. ``message`` is advanced beyond the list.
    #
    # The 16 bits of the list's length overflow with some 300 VFs (200 bytes each without statistics), while
    # its entries are all there. So the entries are counted, and their sizes are added.
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
        if vf_number(info) == asked.vf:
            found = info
        elif asked.has_mac and holder[0] < 0 and has_mac(info, asked.mac):
            holder[0] = <int>vf_number(info)
        message.at = span.at
    return found
