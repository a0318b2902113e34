# The messages, one method for each.

from cpython.bytes cimport PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset


cdef class Batch(Buffer):
    """Messages that go to the kernel in one send. Each method appends one, or raises and appends none.

    A value that the kernel cannot take raises ValueError, which names it. Messages are numbered from 0.
    """

    def pick(self, positions):
        """Return another batch, of the messages at some positions."""
        cdef Batch picked = Batch()
        for position in positions:
            picked.copy(self, number(position, "position", 0, self.count - 1))
        return picked

    def get_link(self, *, index=0, name="", vf=-1, mac=""):
        """Append ``RTM_GETLINK`` of one device, by index or by name: ``ip link show dev $name``.

        A name may be an alternative one. The answer is a ``Link``. With ``vf`` it has the PF's settings of
        that VF, and the number of VFs; many drivers then query their firmware about every VF, so ask once.
        With ``mac`` it has another VF with that MAC.
        """
        cdef int wanted = <int>number(vf, "vf", 0, 65535) if vf != -1 else -1
        cdef bytes text = None
        cdef ifinfomsg info
        cdef uint8_t address[6]
        cdef Item *item
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
        self.put_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS | (RTEXT_FILTER_VF if wanted >= 0 else 0))
        which = name or f"ifindex {index}"
        item = self.finish(f"get vf {vf} of {which}" if wanted >= 0 else f"get link {which}")
        item.vf = wanted
        if mac:
            item.has_mac = True
            memcpy(item.mac, address, 6)

    def set_vf(self, pf_index, vf, settings):
        """Append one ``RTM_SETLINK`` that makes ``settings`` of one VF, through its PF.

        ``ip link set $pf vf $vf mac $mac vlan $vlan qos $qos proto $proto min_tx_rate $min max_tx_rate $max
        spoofchk on link-state auto trust on``, in one request with one ``IFLA_VF_INFO``. The kernel applies
        them in its own order (MAC, VLAN, rates, spoof check, link state, trust), stops at the first one that
        the driver refuses and keeps those before it.

        Rates are in Mbit/s. ``max_tx_rate`` alone goes as ``IFLA_VF_TX_RATE``, and the kernel keeps the
        minimum as it is; with ``min_tx_rate`` both go as ``IFLA_VF_RATE``, which has no "unchanged": a
        maximum not given is 0, no limit. ``vlan`` without ``qos`` and ``proto`` means 0 and 802.1Q.
        """
        cdef uint32_t which = number(vf, "vf", 0, 65535)
        self.start_link(RTM_SETLINK, 0, pf_index, "pf_index")
        put_vf(self, which, settings)
        self.finish(f"set vf {vf} of ifindex {pf_index}").vf = <int>which

    def set_link(
        self, index, *, netns_fd=-1, name="", mac="", mtu=0, up=None, master=-1, settings=None
    ):
        """Append one ``RTM_SETLINK`` of one device, with the arguments that are given.

        ``ip link set dev $if netns $ns name $name address $mac mtu $mtu up master $master``, in one request:
        the kernel moves the device first, then sets MAC and MTU (bytes), renames it, brings it up or down
        and at last attaches it to a master, by index (0: detaches it).
        It stops at the first step that fails and undoes none: if the name exists in the namespace, the error
        is EEXIST, with the device moved under its old name, or not moved if that exists as well.

        The values of ``settings`` (a ``LinkSettings``) that are not None are set:
        ``ip link set dev $if promisc off txqueuelen 1000 alias "" group 0 ...``.
        """
        cdef ifinfomsg info
        memset(&info, 0, sizeof(info))
        info.ifi_index = number(index, "index", 0 if name else 1, INT_MAX)
        set_flags(&info, up, settings)
        self.start(RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, &info, sizeof(info))
        if netns_fd != -1:
            self.put_u32(IFLA_NET_NS_FD, number(netns_fd, "netns_fd", 0, INT_MAX))
        if name:
            self.put_text(IFLA_IFNAME, interface_name(name))
        if mac:
            self.put_mac(IFLA_ADDRESS, mac)
        if mtu != 0:
            self.put_u32(IFLA_MTU, number(mtu, "mtu", 1, INT_MAX))
        if master != -1:
            self.put_u32(IFLA_MASTER, number(master, "master", 0, INT_MAX))
        if settings is not None:
            put_settings(self, settings)
        if not info.ifi_change and self.size == self.end + sizeof(nlmsghdr) + sizeof(info):
            raise ValueError(f"set_link of index {index}: asks for nothing")
        what = "move link" if netns_fd != -1 else "set mac" if mac else "set link"
        self.finish(f"{what} of ifindex {index}" if info.ifi_index else f"{what} of {name}")

    def new_macvlan(self, index, netns_fd, name, *, up=True):
        """Append ``RTM_NEWLINK`` of a macvlan in another namespace, on top of a device in the socket's.

        ``ip link add link $if netns $ns name $name up type macvlan mode passthru nopromisc``. Kernels before
        6.15 answer EEXIST if the socket's namespace has a device of that name as well.
        """
        cdef ifinfomsg info
        memset(&info, 0, sizeof(info))
        set_flags(&info, up or None, None)
        self.start(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &info, sizeof(info))
        self.put_u32(IFLA_NET_NS_FD, number(netns_fd, "netns_fd", 0, INT_MAX))
        self.put_text(IFLA_IFNAME, interface_name(name))
        self.put_u32(IFLA_LINK, number(index, "index", 1, INT_MAX))
        put_macvlan(self)
        self.finish(f"add macvlan {name} to ifindex {index}")

    def del_link(self, index):
        """Append ``RTM_DELLINK``: ``ip link delete dev $if``; EOPNOTSUPP for a physical device."""
        self.start_link(RTM_DELLINK, 0, index)
        self.finish(f"delete link of ifindex {index}")

    def add_altname(self, index, name, *more):
        """Append ``RTM_NEWLINKPROP``: ``ip link property add dev $if altname $name altname ...``.

        EEXIST if a name exists; the names before it are added, those after it are not.
        """
        self.change_altnames(RTM_NEWLINKPROP, NLM_F_CREATE | NLM_F_EXCL, index, (name, *more))
        self.finish(f"add altname {name} to ifindex {index}")

    def del_altname(self, index, name, *more):
        """Append ``RTM_DELLINKPROP``: ``ip link property del dev $if altname $name altname ...``."""
        self.change_altnames(RTM_DELLINKPROP, 0, index, (name, *more))
        self.finish(f"delete altname {name} of ifindex {index}")

    cdef int change_altnames(self, uint16_t kind, uint16_t flags, object index, tuple names) except -1:
        cdef size_t nest
        cdef list texts = [alternative_name(name) for name in names]
        self.start_link(kind, flags, index)
        nest = self.open_nest(NLA_F_NESTED | IFLA_PROP_LIST)
        for text in texts:
            self.put_text(IFLA_ALT_IFNAME, text)
        self.close_nest(nest)
        return 0

    def drop_xdp(self, index, mode):
        """Append one ``RTM_SETLINK`` that detaches one mode's XDP program: ``ip link set $if xdpdrv off``.

        ``mode`` is its place in ``Link.xdp``: 0 generic, 1 driver, 2 offload. The error is EBUSY for a
        program that a bpf_link attached.
        """
        cdef int32_t none = -1
        cdef uint32_t flags = XDP_FLAGS_SKB_MODE << number(mode, "mode", 0, 2)
        cdef size_t nest
        self.start_link(RTM_SETLINK, 0, index)
        nest = self.open_nest(IFLA_XDP)
        self.put(IFLA_XDP_FD, &none, sizeof(none))
        self.put_u32(IFLA_XDP_FLAGS, flags)
        self.close_nest(nest)
        self.finish(f"drop xdp of ifindex {index}")

    def add_address(self, index, cidr, *, bint dad=False):
        """Append ``RTM_NEWADDR``: ``ip address add $cidr [brd +] dev $if [nodad]``.

        IPv4 gets the broadcast address of its network if that has one (prefix below 31), as in CNI's own
        plugins. IPv6 gets duplicate address detection only with ``dad`` (otherwise IFA_F_NODAD): an allocator
        gives each address once, and the detection makes it unusable for a second or two. EEXIST if the
        address exists.
        """
        cdef ifaddrmsg head
        cdef Cidr ip
        cdef uint8_t broadcast[4]
        memset(&head, 0, sizeof(head))
        head.ifa_index = number(index, "index", 1, INT_MAX)
        parse_cidr(cidr, &ip)
        head.ifa_family = <uint8_t>ip.family
        head.ifa_prefixlen = <uint8_t>ip.prefix
        head.ifa_flags = IFA_F_NODAD if ip.family == AF_INET6 and not dad else 0
        self.start(RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &head, sizeof(head))
        self.put(IFA_LOCAL, ip.address, ip.size)
        self.put(IFA_ADDRESS, ip.address, ip.size)
        if ip.family == AF_INET and ip.prefix < 31:
            broadcast_of(&ip, broadcast)
            self.put(IFA_BROADCAST, broadcast, 4)
        self.finish(f"add address {cidr} to ifindex {index}")

    def add_route(self, index, route):
        """Append ``RTM_NEWROUTE`` of one route out of a device.

        ``ip route prepend $dst via $gw dev $if metric $n table $t scope $s mtu $bytes advmss $bytes``, and
        ``onlink``.

        Type unicast, protocol boot, and CREATE without EXCL, as in CNI's own plugins: a second gateway for
        one destination is no error (IPv6 balances over both, in IPv4 the later one is used); EEXIST for an
        identical route. Without a scope, a route with a gateway is universe and one without is link, as with
        ``ip``. ``onlink`` lets the kernel accept a gateway outside the networks of the device's addresses.
        """
        cdef rtmsg head
        cdef Cidr dst, gw
        cdef uint32_t table = number(route.table, "table", 0, 0xffffffff)
        cdef uint32_t priority = number(route.priority, "priority", 0, 0xffffffff)
        cdef uint32_t oif = number(index, "index", 1, INT_MAX)
        parse_cidr(route.dst, &dst)
        if route.gw:
            parse_gateway(route.gw, dst.family, &gw)
        fill_route_head(&head, route, &dst, table)
        self.start(RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE, &head, sizeof(head))
        if dst.prefix:
            self.put(RTA_DST, dst.address, dst.size)
        if route.gw:
            self.put(RTA_GATEWAY, gw.address, gw.size)
        self.put_u32(RTA_OIF, oif)
        if priority:
            self.put_u32(RTA_PRIORITY, priority)
        if table > 255:
            self.put_u32(RTA_TABLE, table)
        put_metrics(self, route.mtu, route.advmss)
        via = f" via {route.gw}" if route.gw else ""
        self.finish(f"add route {route.dst}{via} to ifindex {index}")

    # Dumps, for Socket alone: only one can run at a time, and an interrupted one has to be repeated.

    def _dump_links(self):
        cdef ifinfomsg info
        memset(&info, 0, sizeof(info))
        self.start(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, &info, sizeof(info))
        self.put_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        self.finish("list links")

    def _dump_addresses(self, int index, uint8_t flags=0):
        cdef Item *item
        cdef ifaddrmsg head
        memset(&head, 0, sizeof(head))
        head.ifa_index = index
        self.start(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, &head, sizeof(head))
        item = self.finish(f"list addresses of ifindex {index or '*'}")
        item.index = index
        item.flags = flags

    def _dump_routes(self, int family, int index):
        cdef rtmsg head
        memset(&head, 0, sizeof(head))
        head.rtm_family = <uint8_t>family
        self.start(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, &head, sizeof(head))
        self.put_u32(RTA_OIF, index)
        self.finish(f"list routes of ifindex {index}").index = index
