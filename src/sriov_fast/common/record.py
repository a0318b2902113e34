"""The value types: frozen, compared by value.

``dataclasses`` would serve, but its import takes longer than a whole ADD's work outside the kernel.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self, dataclass_transform

    _Base = object  # type checkers must not treat a record as a tuple
    _tuplegetter: Callable[[int, str | None], object]
else:
    from _collections import _tuplegetter  # the descriptor of a namedtuple's field

    _Base = tuple

    def dataclass_transform(**_):
        """Replace the decorator of ``typing``, which only type checkers need."""
        return lambda cls: cls


_new: Any = tuple.__new__


class _Meta(type):
    """A metaclass that turns annotations into named places of a tuple, with their defaults."""

    def __new__(mcls, name: str, bases: tuple[type, ...], ns: dict[str, Any]) -> _Meta:
        own = tuple(ns.get("__annotations__", ()))
        defaults = {key: ns.pop(key) for key in own if key in ns}
        inherited = [base for base in bases if isinstance(base, _Meta)]
        fields = sum((base._fields for base in inherited), ()) + own
        places = {key: _tuplegetter(place, None) for place, key in enumerate(fields) if key in own}
        cls = super().__new__(mcls, name, bases, ns | places | {"__slots__": ()})
        cls._fields = fields
        cls._defaults = {k: v for base in inherited for k, v in base._defaults.items()} | defaults
        cls._known = frozenset(fields)
        return cls

    _fields: tuple[str, ...]
    _known: frozenset[str]
    _defaults: dict[str, Any]


@dataclass_transform(kw_only_default=True, frozen_default=True, eq_default=True)
class Record(_Base, metaclass=_Meta):
    """The base class of the value types: keyword arguments only, no change after construction.

    Each is a tuple: an ADD makes some forty values, and a tuple is filled without a step of Python per field.
    """

    def __new__(cls, **given: Any) -> Self:
        """Make a value; TypeError names a missing or an unknown field."""
        values = cls._defaults | given
        if values.keys() != cls._known:
            raise _misfit(cls, given)
        value: Self = _new(cls, map(values.__getitem__, cls._fields))
        return value

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        return (), self.as_dict()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name!r}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and _same(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = _Base.__hash__

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}={v!r}" for k, v in self.as_dict().items())
        return f"{type(self).__name__}({inner})"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, in order, with their values."""
        return dict(zip(type(self)._fields, self, strict=True))  # type: ignore[call-overload]

    def known(self) -> dict[str, Any]:
        """Return the fields that are not None, by name, with their values."""
        return {name: value for name, value in self.as_dict().items() if value is not None}

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        cls = type(self)
        if not changes.keys() <= cls._known:
            raise _misfit(cls, self.as_dict() | changes)
        copy: Self = _new(cls, map(changes.get, cls._fields, self))  # type: ignore[call-overload]
        return copy


_same: Any = tuple.__eq__


def _misfit(cls: type[Record], given: dict[str, Any]) -> TypeError:
    missing = [name for name in cls._fields if name not in given and name not in cls._defaults]
    if missing:
        return TypeError(f"{cls.__name__} needs {missing[0]!r}")
    return TypeError(f"{cls.__name__} has no {', '.join(name for name in given if name not in cls._known)}")


class VfSettings(Record):
    """Settings of a VF that its PF makes (``struct ifla_vf_*``, linux/if_link.h); None leaves one unchanged.

    ``mac`` is lower case with colons. ``vlan`` 0 to 4094 (0: none), ``qos`` 0 to 7, ``proto`` "802.1Q" or
    "802.1ad"; both go with ``vlan``. Rates are in Mbit/s (0: no limit). ``link_state``: auto, enable or
    disable.
    """

    mac: str | None = None
    vlan: int | None = None
    qos: int | None = None
    proto: str | None = None
    min_tx_rate: int | None = None
    max_tx_rate: int | None = None
    spoofchk: bool | None = None
    link_state: str | None = None
    trust: bool | None = None


class LinkSettings(Record):
    """Settings of a network device that ``RTM_SETLINK`` can change in its namespace (linux/if_link.h).

    MAC, MTU, name and IFF_UP are in ``Link`` itself. None means "not reported" in an answer and "unchanged"
    in a request. ``flags`` are the IFF_* bits that dev_change_flags() (net/core/dev.c) takes, without IFF_UP.
    ``mode`` is IFLA_LINKMODE (0 default, 1 dormant); ``alias`` "" is none; sizes are in bytes.
    ``addrgenmode`` is IPv6's IFLA_INET6_ADDR_GEN_MODE.
    """

    flags: int | None = None
    broadcast: str | None = None
    txqlen: int | None = None
    mode: int | None = None
    alias: str | None = None
    group: int | None = None
    gso_max_segs: int | None = None
    gso_max_size: int | None = None
    gro_max_size: int | None = None
    gso_ipv4_max_size: int | None = None
    gro_ipv4_max_size: int | None = None
    addrgenmode: int | None = None


class Link(Record):
    """One network device as in ``RTM_NEWLINK``.

    ``mac`` is lower case with colons; ``up`` is the administrative state (IFF_UP), ``carrier`` IFF_LOWER_UP.
    ``parent`` is the bus address (IFLA_PARENT_DEV_NAME: a PCI address for a VF), "" without one; ``perm`` is
    the MAC of the device's last reset (IFLA_PERM_ADDRESS), "" if unknown.
    ``lower`` is the index of the device under this one (IFLA_LINK), 0 for none or for one in another
    namespace; ``outer_lower`` is its index in that other namespace, otherwise 0. ``kind`` is the type of a
    virtual device (IFLA_INFO_KIND, such as "macvlan"), "" for others. ``master`` is the index of its bond or
    bridge, 0 for none. ``disable_ipv6`` is the device's sysctl, None if it is not reported.
    ``num_vf`` and ``vf`` (the PF's settings of one VF) are set on a PF that was read with ``vf=``. ``holder``
    is the index of another VF with the requested MAC, -1 for none. ``altnames`` are the alternative names;
    ``xdp`` the IDs of the XDP programs in the modes generic, driver and offload, 0 for none.
    """

    index: int
    name: str
    mac: str
    mtu: int
    up: bool
    carrier: bool = False
    parent: str = ""
    perm: str = ""
    lower: int = 0
    master: int = 0
    altnames: tuple[str, ...] = ()
    num_vf: int = 0
    vf: VfSettings | None = None
    settings: LinkSettings = LinkSettings()
    xdp: tuple[int, ...] = (0, 0, 0)
    holder: int = -1
    outer_lower: int = 0
    kind: str = ""
    disable_ipv6: bool | None = None


class Route(Record):
    """One route. ``dst`` is a CIDR; ``gw`` "" means on link; 0 and None mean "not given".

    ``mtu`` in bytes, ``advmss`` in bytes, ``priority`` is the metric, ``table`` a routing table's number,
    ``scope`` as in rtnetlink(7) (0 universe, 253 link). ``onlink``: ``gw`` is on the link even without an
    address of the device in its network.
    """

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int = 0
    scope: int | None = None
    onlink: bool = False


class Vf(Record):
    """One VF as in sysfs, which shows the devices of the namespace that it was mounted in.

    ``driver`` is "" for none; ``netdev`` is "" if none is visible (it is in a pod, or its driver makes none);
    ``numa`` is -1 if unknown.
    """

    index: int
    pci: str
    driver: str = ""
    netdev: str = ""
    numa: int = -1
