"""The structs and numbers of rtnetlink, each with its kernel header.

They are not taken from the build machine's headers, which are often older than the running kernel (manylinux
has 3.10: no extack, no VLAN lists). They are ABI and do not change. Integers are in host order except those
that the kernel declares ``__be``; every struct and attribute starts on a multiple of 4 bytes.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t

# --- linux/netlink.h ----------------------------------------------------------------------------------

cdef struct sockaddr_nl:
    uint16_t nl_family  # __kernel_sa_family_t nl_family: AF_NETLINK
    uint16_t nl_pad     # unsigned short nl_pad: zero
    uint32_t nl_pid     # __u32 nl_pid: port id, 0 is the kernel
    uint32_t nl_groups  # __u32 nl_groups: multicast groups mask

cdef struct nlmsghdr:
    uint32_t nlmsg_len    # __u32: length of the message including this header
    uint16_t nlmsg_type   # __u16
    uint16_t nlmsg_flags  # __u16: NLM_F_*
    uint32_t nlmsg_seq    # __u32
    uint32_t nlmsg_pid    # __u32: port id of the socket that asked

cdef struct nlmsgerr:
    int32_t error  # int: 0 or a negative errno; the request follows, or its header only (NETLINK_CAP_ACK)
    nlmsghdr msg

cdef struct nlattr:
    uint16_t nla_len   # __u16: header and payload, without the padding that follows
    uint16_t nla_type  # __u16: two flag bits and 14 bits of type

cdef enum:
    NETLINK_ROUTE = 0
    AF_NETLINK = 16       # linux/socket.h
    SOL_NETLINK = 270     # linux/socket.h

    NETLINK_CAP_ACK = 10
    NETLINK_EXT_ACK = 11
    NETLINK_GET_STRICT_CHK = 12

    NLM_F_REQUEST = 0x01
    NLM_F_ACK = 0x04
    NLM_F_DUMP_INTR = 0x10
    NLM_F_DUMP = 0x300    # NLM_F_ROOT | NLM_F_MATCH
    NLM_F_EXCL = 0x200
    NLM_F_CREATE = 0x400
    NLM_F_CAPPED = 0x100
    NLM_F_ACK_TLVS = 0x200

    NLMSG_NOOP = 1
    NLMSG_ERROR = 2
    NLMSG_DONE = 3
    NLMSG_OVERRUN = 4

    NLMSGERR_ATTR_MSG = 1

    NLA_F_NESTED = 0x8000
    NLA_TYPE_MASK = 0x3fff  # ~(NLA_F_NESTED | NLA_F_NET_BYTEORDER)

# --- linux/rtnetlink.h --------------------------------------------------------------------------------

cdef struct ifinfomsg:
    uint8_t ifi_family    # unsigned char
    uint8_t ifi_pad       # unsigned char __ifi_pad
    uint16_t ifi_type     # unsigned short: ARPHRD_*
    int32_t ifi_index     # int
    uint32_t ifi_flags    # unsigned: IFF_*
    uint32_t ifi_change   # unsigned: mask of ifi_flags

cdef struct rtmsg:
    uint8_t rtm_family    # unsigned char, as all up to rtm_type
    uint8_t rtm_dst_len   # bits
    uint8_t rtm_src_len
    uint8_t rtm_tos
    uint8_t rtm_table     # 0 with RTA_TABLE
    uint8_t rtm_protocol
    uint8_t rtm_scope
    uint8_t rtm_type
    uint32_t rtm_flags    # unsigned

cdef struct rtnexthop:
    uint16_t rtnh_len     # unsigned short: this header and the attributes that follow it
    uint8_t rtnh_flags    # unsigned char
    uint8_t rtnh_hops     # unsigned char
    int32_t rtnh_ifindex  # int

cdef enum:
    RTM_NEWLINK = 16
    RTM_DELLINK = 17
    RTM_GETLINK = 18
    RTM_SETLINK = 19
    RTM_NEWADDR = 20
    RTM_GETADDR = 22
    RTM_NEWROUTE = 24
    RTM_GETROUTE = 26
    RTM_NEWLINKPROP = 108
    RTM_DELLINKPROP = 109

    RTN_UNICAST = 1
    RTPROT_BOOT = 3
    RT_SCOPE_UNIVERSE = 0
    RT_SCOPE_LINK = 253
    RT_TABLE_MAIN = 254
    RT_TABLE_LOCAL = 255
    RTM_F_CLONED = 0x200
    RTNH_F_ONLINK = 4

    RTA_DST = 1
    RTA_OIF = 4
    RTA_GATEWAY = 5
    RTA_PRIORITY = 6
    RTA_METRICS = 8
    RTA_MULTIPATH = 9
    RTA_TABLE = 15
    RTA_VIA = 18

    RTAX_MTU = 2
    RTAX_ADVMSS = 8

    RTEXT_FILTER_VF = 1
    RTEXT_FILTER_SKIP_STATS = 8

# --- linux/if_addr.h ----------------------------------------------------------------------------------

cdef struct ifaddrmsg:
    uint8_t ifa_family     # __u8
    uint8_t ifa_prefixlen  # __u8: bits
    uint8_t ifa_flags      # __u8: IFA_F_*
    uint8_t ifa_scope      # __u8
    uint32_t ifa_index     # __u32

cdef enum:
    IFA_ADDRESS = 1
    IFA_LOCAL = 2
    IFA_BROADCAST = 4
    IFA_F_NODAD = 0x02

# --- linux/if.h ---------------------------------------------------------------------------------------

cdef enum:
    IFF_UP = 0x1
    IFF_LOWER_UP = 0x10000
    # The flags that dev_change_flags() lets a user set (net/core/dev.c), without IFF_UP: DEBUG, NOTRAILERS,
    # NOARP, PROMISC, ALLMULTI, MULTICAST, PORTSEL, AUTOMEDIA, DYNAMIC.
    SETTABLE_FLAGS = 0xf3a4
    IFNAMSIZ = 16
    ALTIFNAMSIZ = 128

# --- linux/if_link.h ----------------------------------------------------------------------------------

cdef struct ifla_vf_mac:
    uint32_t vf
    uint8_t mac[32]  # __u8 mac[32]: MAX_ADDR_LEN; six bytes are used

cdef struct ifla_vf_vlan:
    uint32_t vf
    uint32_t vlan  # 0 disables the filter
    uint32_t qos

cdef struct ifla_vf_vlan_info:
    uint32_t vf
    uint32_t vlan
    uint32_t qos
    uint16_t vlan_proto  # __be16: ETH_P_8021Q or ETH_P_8021AD
    uint16_t pad         # the C compiler's tail padding; the kernel refuses the attribute without it

cdef struct ifla_vf_tx_rate:
    uint32_t vf
    uint32_t rate  # Mbit/s, 0 is no limit

cdef struct ifla_vf_rate:
    uint32_t vf
    uint32_t min_tx_rate  # Mbit/s
    uint32_t max_tx_rate  # Mbit/s, 0 is no limit

cdef struct ifla_vf_setting:
    uint32_t vf       # struct ifla_vf_spoofchk, ifla_vf_link_state and ifla_vf_trust are alike
    uint32_t setting  # -1 in an answer: unknown to the driver

cdef enum:
    IFLA_ADDRESS = 1
    IFLA_BROADCAST = 2
    IFLA_IFNAME = 3
    IFLA_MTU = 4
    IFLA_LINK = 5
    IFLA_MASTER = 10
    IFLA_TXQLEN = 13
    IFLA_LINKMODE = 17        # __u8
    IFLA_LINKINFO = 18
    IFLA_IFALIAS = 20
    IFLA_NUM_VF = 21
    IFLA_VFINFO_LIST = 22
    IFLA_AF_SPEC = 26         # settings of address families such as AF_INET6
    IFLA_GROUP = 27
    IFLA_NET_NS_FD = 28
    IFLA_EXT_MASK = 29
    IFLA_LINK_NETNSID = 37
    IFLA_GSO_MAX_SEGS = 40
    IFLA_GSO_MAX_SIZE = 41
    IFLA_XDP = 43
    IFLA_PROP_LIST = 52
    IFLA_ALT_IFNAME = 53
    IFLA_PERM_ADDRESS = 54
    IFLA_PARENT_DEV_NAME = 56
    IFLA_GRO_MAX_SIZE = 58
    IFLA_GSO_IPV4_MAX_SIZE = 63
    IFLA_GRO_IPV4_MAX_SIZE = 64

    IFLA_INFO_KIND = 1
    IFLA_INFO_DATA = 2

    IFLA_MACVLAN_MODE = 1
    IFLA_MACVLAN_FLAGS = 2    # __u16
    MACVLAN_MODE_PASSTHRU = 8
    MACVLAN_FLAG_NOPROMISC = 1

    IFLA_INET6_CONF = 2           # __s32 for each DEVCONF_*
    DEVCONF_DISABLE_IPV6 = 26     # linux/ipv6.h
    IFLA_INET6_ADDR_GEN_MODE = 8  # __u8

    IFLA_XDP_FD = 1           # __s32, -1 detaches
    IFLA_XDP_FLAGS = 3
    IFLA_XDP_DRV_PROG_ID = 5
    IFLA_XDP_SKB_PROG_ID = 6
    IFLA_XDP_HW_PROG_ID = 7
    XDP_FLAGS_SKB_MODE = 2    # 1 << 1, and driver and hardware mode are the next two bits

    IFLA_VF_INFO = 1

    IFLA_VF_MAC = 1
    IFLA_VF_VLAN = 2
    IFLA_VF_TX_RATE = 3
    IFLA_VF_SPOOFCHK = 4
    IFLA_VF_LINK_STATE = 5
    IFLA_VF_RATE = 6
    IFLA_VF_TRUST = 9
    IFLA_VF_VLAN_LIST = 12

    IFLA_VF_VLAN_INFO = 1

# --- linux/if_ether.h ---------------------------------------------------------------------------------

cdef enum:
    ETH_P_8021Q = 0x8100
    ETH_P_8021AD = 0x88a8

# --- linux/sockios.h, linux/ethtool.h -----------------------------------------------------------------

cdef enum:
    SIOCGIFNAME = 0x8910
    SIOCETHTOOL = 0x8946
