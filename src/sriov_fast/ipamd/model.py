"""The documents of the address service: requests, replies and sections of the configuration."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_interface, ip_network
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)

from sriov_fast.ipamd.errors import Invalid
from sriov_fast.ipamd.problems import explain

GRACE = 300  # seconds for which a released address stays reserved for its pod
LOCAL, MULTICAST = 2, 1  # bits of a MAC's first octet

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_MAC_PREFIX = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){0,4}")


def canonical_ip(text: str) -> str:
    """Return an address in canonical form; an IPv4-mapped IPv6 address becomes IPv4."""
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is no IP address") from None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def canonical_network(text: str) -> str:
    """Return a network in CIDR form; host bits are an error."""
    try:
        return str(ip_network(text))
    except ValueError as error:
        raise ValueError(f"{text!r} is no network: {error}") from None


def canonical_host(text: str) -> str:
    """Return a HostIP or a network of HostIPs in CIDR form."""
    return canonical_network(text if "/" in text else canonical_ip(text))


def canonical_interface(text: str) -> str:
    """Return an address with its prefix length."""
    try:
        return str(ip_interface(text))
    except ValueError:
        raise ValueError(f"{text!r} is no address with a prefix length") from None


def canonical_mac(text: str) -> str:
    """Return a unicast MAC in lower case with colons."""
    mac = text.lower().replace("-", ":")
    if not _MAC.fullmatch(mac) or mac == "00:00:00:00:00:00":
        raise ValueError(f"{text!r} is no MAC")
    if int(mac[:2], 16) & MULTICAST:
        raise ValueError(f"{text!r} is a multicast MAC: the last bit of the first octet must be 0")
    return mac


def canonical_mac_prefix(text: str) -> str:
    """Return the first 1 to 5 octets of locally administered unicast MACs."""
    prefix = text.lower().replace("-", ":")
    if not _MAC_PREFIX.fullmatch(prefix):
        raise ValueError(f"{text!r} is no MAC prefix: give 1 to 5 octets, for example 02:5a:00")
    if int(prefix[:2], 16) & (LOCAL | MULTICAST) != LOCAL:
        raise ValueError(
            f"{text!r} is no prefix of locally administered MACs: the first octet must end in 2, 6, a or e"
        )
    return prefix


_IP = [{"format": "ipv4"}, {"format": "ipv6"}]
_CIDR = {"format": "cidr"}  # JSON Schema has no format for a CIDR

Address = Annotated[
    str,
    Field(max_length=64),
    AfterValidator(canonical_ip),
    WithJsonSchema({"type": "string", "anyOf": _IP, "examples": ["10.55.206.20"]}),
]
Cidr = Annotated[
    str,
    Field(max_length=64),
    AfterValidator(canonical_network),
    WithJsonSchema({"type": "string", **_CIDR, "examples": ["10.55.206.0/26"]}),
]
HostCidr = Annotated[
    str,
    Field(max_length=64),
    AfterValidator(canonical_host),
    WithJsonSchema({"type": "string", "anyOf": [*_IP, _CIDR], "examples": ["10.55.206.0/24"]}),
]
Interface = Annotated[
    str,
    Field(max_length=64),
    AfterValidator(canonical_interface),
    WithJsonSchema({"type": "string", "format": "ip-interface", "examples": ["10.55.206.46/26"]}),
]
Mac = Annotated[str, Field(max_length=17), AfterValidator(canonical_mac)]
MacPrefix = Annotated[str, Field(max_length=14), AfterValidator(canonical_mac_prefix)]
Name = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")]
ContainerId = Annotated[str, Field(max_length=256, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")]
# White space is listed explicitly: regular expressions disagree about \\s.
Ifname = Annotated[str, Field(min_length=1, max_length=15, pattern=r"^[^/:\x00-\x20\x7f-\xa0]+$")]
PodId = Annotated[str, Field(max_length=512, pattern=r"^[^\x00-\x1f]*$")]
Lease = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_\-]*$")]
Text = Annotated[str, Field(max_length=256)]
Vlan = Annotated[int, Field(ge=0, le=4094)]
Vf = Annotated[int, Field(ge=0, le=65535)]

T = TypeVar("T")
Some = Annotated[tuple[T, ...], Field(strict=False)]  # JSON and TOML have lists


class Document(BaseModel):
    """The base of all documents: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    def document(self) -> dict[str, Any]:
        """Return plain JSON types without defaults."""
        return self.model_dump(mode="json", exclude_none=True, exclude_defaults=True)


class Ask(Document):
    """A request for addresses; the owner is (network, container_id, ifname)."""

    network: Name
    container_id: ContainerId
    ifname: Ifname
    pod_id: PodId = ""
    host_ip: Address


class Ip(Document):
    """An address of a pod with its prefix length, and its gateway."""

    address: Interface
    gateway: Address | None = None


class Route(Document):
    """A route of a pod; without `gw` through the gateway of the same family."""

    dst: Cidr
    gw: Address | None = None


class Dns(Document):
    """The contents of the pod's resolv.conf."""

    nameservers: Some[Address] = ()
    domain: Text = ""
    search: Some[Text] = ()
    options: Some[Text] = ()


class Extra(Document):
    """Values that override the arguments of the plugin."""

    vf: Vf | None = None
    vlan: Vlan | None = None
    mac: Mac | None = None


class Allocation(Document):
    """The addresses of an owner; `lease` is unique to this allocation."""

    network: Name
    container_id: ContainerId
    ifname: Ifname
    pod_id: PodId
    host_ip: Address
    lease: Lease = ""
    ips: Some[Ip]
    routes: Some[Route] = ()
    dns: Dns = Dns()
    extra: Extra = Extra()


class Leased(Document):
    """An owner within a network, and the lease of its allocation."""

    container_id: ContainerId
    ifname: Ifname
    lease: Lease = ""


class Network(Document):
    """A network; a released address stays reserved for its pod for `grace` seconds."""

    name: Name
    grace: Annotated[int, Field(ge=0, le=10**9)] = GRACE


class Range(Document):
    """Addresses from `start` to `end`, both included."""

    start: Address
    end: Address


class Pool(Document):
    """Addresses of one subnet; without `ranges` all host addresses. The gateway is excluded."""

    name: Name
    network: Name
    subnet: Cidr
    ranges: Some[Range] = ()
    gateway: Address | None = None
    vlan: Vlan | None = None
    routes: Some[Route] = ()
    dns: Dns = Dns()
    mac_prefix: MacPrefix | None = None


class Hosts(Document):
    """The pools of hosts, one for each address family; the longest prefix wins."""

    network: Name
    hosts: Some[HostCidr]
    pools: Some[Name]


class Assignment(Document):
    """Values reserved for one pod; with `hosts`, on these HostIPs only."""

    network: Name
    pod_id: Annotated[PodId, Field(min_length=1)]
    hosts: Some[HostCidr] = ()
    ips: Some[Address] = ()
    mac: Mac | None = None
    vlan: Vlan | None = None
    vf: Vf | None = None


class PoolUse(Document):
    """The use of a pool; addresses of fixed assignments count as used."""

    name: Name
    network: Name = "-"
    total: int
    used: int


M = TypeVar("M", bound=BaseModel)


def parse(kind: type[M], document: object, key: str = "") -> M:
    """Return a document from plain JSON or TOML types; `Invalid` names keys, below `key`, and values."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise Invalid(explain(error.errors(include_url=False), key)) from None
