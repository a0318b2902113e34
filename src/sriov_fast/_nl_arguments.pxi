# Checks of arguments. ValueError names the argument and the value that the kernel cannot take.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memchr, memcpy


cdef struct Cidr:
    int family
    int size    # bytes of address: 4 or 16
    int prefix  # bits
    uint8_t address[16]


cdef uint32_t number(object value, str what, uint32_t low, uint32_t high) except? 0xffffffff:
    if not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{what} {value!r}: not a number from {low} to {high}")
    return value


cdef int parse_mac(object value, uint8_t *mac) except -1:
    cdef bytes raw = b""
    if isinstance(value, str) and len(value) == 17 and value[2::3] == ":::::":
        try:
            raw = bytes.fromhex(value.replace(":", ""))
        except ValueError:
            pass
    if len(raw) != 6:
        raise ValueError(f"mac {value!r}: not six bytes in hexadecimal with colons")
    memcpy(mac, PyBytes_AS_STRING(raw), 6)
    return 0


cdef bytes interface_name(object value, int size=IFNAMSIZ):
    # Accept a printable name that dev_valid_name() takes (net/core/dev.c, isspace() as in Latin-1).
    cdef bint readable = isinstance(value, str) and value.isprintable()
    cdef bytes text = value.encode("utf-8", "replace") if readable else b""
    cdef bint fits = 0 < PyBytes_GET_SIZE(text) < size and text not in (b".", b"..")
    if not fits or text.translate(None, b" /:\xa0") != text:
        raise ValueError(
            f"interface name {value!r}: not 1 to {size - 1} bytes without white space, '/' and ':'"
        )
    return text


cdef bytes alternative_name(object value):
    # Accept any bytes: a pod may have chosen the name, and it must be removable.
    cdef bytes text = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else b""
    if not 0 < PyBytes_GET_SIZE(text) < ALTIFNAMSIZ or b"\0" in text:
        raise ValueError(f"alternative name {value!r}: not 1 to {ALTIFNAMSIZ - 1} bytes")
    return text


cdef int parse_ip(bytes text, Cidr *out) noexcept:
    # inet_pton() stops at a NUL byte and would ignore the bytes behind it.
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
