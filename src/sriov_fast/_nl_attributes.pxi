# Reading of attributes, within the bounds of the received bytes.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memchr, memcpy


cdef struct Span:
    # The bytes that are not read yet.
    const uint8_t *at
    const uint8_t *end


cdef const nlattr *next_attr(Span *span) noexcept nogil:
    # Return the next attribute, or NULL if no other one fits.
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
    # Return the payload, or NULL if it is shorter than ``size``.
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
    # Return "" for NULL, and for an attribute without an address of the family.
    cdef char text[64]
    cdef const uint8_t *raw = payload(attr, 4 if family == AF_INET else 16) if attr != NULL else NULL
    if raw == NULL or inet_ntop(family, raw, text, 64) == NULL:
        return ""
    return text.decode("ascii")


cdef const nlattr *inner(const nlattr *nest, int kind) noexcept nogil:
    # Return the attribute of one kind in a nest, or NULL; a NULL nest has none.
    return find(inside(nest), kind) if nest != NULL else NULL


cdef const nlattr *find(Span span, int kind) noexcept nogil:
    cdef const nlattr *attr = next_attr(&span)
    while attr != NULL and kind_of(attr) != kind:
        attr = next_attr(&span)
    return attr


cdef uint32_t inner_u32(const nlattr *nest, int kind) noexcept nogil:
    # Return the number of one kind in a nest, 0 without one.
    cdef const nlattr *attr = inner(nest, kind)
    return u32_of(attr) if attr != NULL else 0
