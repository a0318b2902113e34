"""The HTTP API between the address service and its client ``txipam``: paths, headers, kinds of errors.

HTTP/1.1 over TLS, JSON in UTF-8. Errors are problem documents (RFC 9457) with the additional member ``kind``.
The owner of an allocation is (network, container ID, ifname). The lease of an allocation is unique: a release
with a lease frees no other allocation. An ADD loads this module, so it imports nothing.
"""

from __future__ import annotations

# --- paths

ROOT = "/v1"
HEALTH = "/healthz"
READY = "/readyz"
METRICS = "/metrics"
OPENAPI = f"{ROOT}/openapi.json"
CONFIG = f"{ROOT}/config"

# --- headers and media types

IDEMPOTENCY_KEY = "Idempotency-Key"
MAX_KEY = 200  # characters
JSON = "application/json"
PROBLEM = "application/problem+json"

# --- members of a body, and parameters of a query

CONTAINER_ID = "container_id"
IFNAME = "ifname"
POD_ID = "pod_id"
HOST_IP = "host_ip"
LEASE = "lease"
RELEASED = "released"
OWNERS = "owners"

# The longest body that either side reads, in bytes.
MAX_BODY = 1 << 20

# --- kinds of errors

INVALID = "invalid"
UNAUTHORIZED = "unauthorized"
FORBIDDEN = "forbidden"
UNKNOWN_NETWORK = "unknown-network"
UNKNOWN_HOST = "unknown-host"
NOT_FOUND = "not-found"
EXHAUSTED = "exhausted"
CONFLICT = "conflict"
UNAVAILABLE = "unavailable"

STATUS = {
    INVALID: 422,
    UNAUTHORIZED: 401,
    FORBIDDEN: 403,
    UNKNOWN_NETWORK: 404,
    UNKNOWN_HOST: 404,
    NOT_FOUND: 404,
    EXHAUSTED: 409,
    CONFLICT: 409,
    UNAVAILABLE: 503,
}

# --- the client's error codes: those of CNI (SPEC, "Error"), from 100 on those of this plugin

BAD_CONFIG = 7
TRY_AGAIN = 11
NOT_AVAILABLE = 50  # STATUS: no ADD can be served
LIMITED = 51  # STATUS: no ADD can be served, existing containers may have limited connectivity
TAKEN = 110  # the allocation is another pod's
UNTRUSTED = 111  # the service's certificate or TLS version does not match the configuration
UNEXPECTED = 112  # an answer outside of this API

CODES = {
    INVALID: BAD_CONFIG,
    UNAUTHORIZED: BAD_CONFIG,
    FORBIDDEN: BAD_CONFIG,
    UNKNOWN_NETWORK: BAD_CONFIG,
    UNKNOWN_HOST: BAD_CONFIG,
    EXHAUSTED: TRY_AGAIN,
    CONFLICT: TAKEN,
    UNAVAILABLE: TRY_AGAIN,
}

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def quote(text: str) -> str:
    """Return ``text`` as one segment of a path or one value of a query (RFC 3986, 2.1)."""
    octets = text.encode("utf-8", "surrogateescape")
    return "".join(chr(octet) if octet in _UNRESERVED else f"%{octet:02X}" for octet in octets)


def query(path: str, **values: str) -> str:
    """Return ``path`` with a query; empty values are left out."""
    pairs = "&".join(f"{key}={quote(value)}" for key, value in values.items() if value)
    return f"{path}?{pairs}" if pairs else path


def allocations(network: str) -> str:
    """Return the path of allocations (POST)."""
    return f"{ROOT}/networks/{quote(network)}/allocations"


def allocation(network: str, container_id: str, ifname: str) -> str:
    """Return the path of an owner's allocation (GET, DELETE)."""
    return f"{allocations(network)}/{quote(container_id)}/{quote(ifname)}"


def owners(network: str) -> str:
    """Return the path of the pages of a host's owners (GET)."""
    return f"{ROOT}/networks/{quote(network)}/owners"


def status(network: str) -> str:
    """Return the path of the use of a host's pools (GET)."""
    return f"{ROOT}/networks/{quote(network)}/status"
