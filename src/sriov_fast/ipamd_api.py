"""What the address service and its client ``txipam`` have agreed on: paths, headers, kinds of errors.

HTTP/1.1 over TLS, JSON in UTF-8. Errors are problem documents (RFC 9457) with a member ``kind`` more. An
allocation belongs to its owner: network, container ID and ifname. Its lease is a name that no other one ever
has: a release that names it takes nothing else, however late it arrives. This imports nothing: an ADD passes
here.
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

# The most that either side reads of a body, in bytes.
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

# --- what the client makes of them: CNI's codes (SPEC, "Error"), from 100 on ours

BAD_CONFIG = 7
TRY_AGAIN = 11
NOT_AVAILABLE = 50  # STATUS: no ADD can be served
LIMITED = 51  # STATUS: no ADD can be served, and what exists may not get all that it needs
TAKEN = 110  # the allocation is another pod's
UNTRUSTED = 111  # the service's certificate, or its TLS, is not what the configuration asks for
UNEXPECTED = 112  # an answer that this contract does not know

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
    """Return where an allocation is asked for (POST)."""
    return f"{ROOT}/networks/{quote(network)}/allocations"


def allocation(network: str, container_id: str, ifname: str) -> str:
    """Return where an owner's allocation is (GET, DELETE)."""
    return f"{allocations(network)}/{quote(container_id)}/{quote(ifname)}"


def owners(network: str) -> str:
    """Return where a host's owners are listed, a page at a time (GET)."""
    return f"{ROOT}/networks/{quote(network)}/owners"


def status(network: str) -> str:
    """Return where a host's pools are counted (GET)."""
    return f"{ROOT}/networks/{quote(network)}/status"
