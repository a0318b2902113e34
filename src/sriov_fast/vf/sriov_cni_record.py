"""The records of the Kubernetes project's SR-IOV CNI as records of the journal.

That plugin's file is its configuration with the original state of the VF (its pkg/types).
"""

from __future__ import annotations

from sriov_fast.common import json
from sriov_fast.common.errors import DecodeError
from sriov_fast.common.json_object import JsonObject, string, whole
from sriov_fast.common.record import VfSettings
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import candidate, sriov_cni
from sriov_fast.vf.journal import ATTACHED, MOVE, USERSPACE, Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sriov_fast.common.paths import Roots

_LINK_STATES = ("auto", "enable", "disable")  # IFLA_VF_LINK_STATE_*, linux/if_link.h
_PROTOCOLS = {0x8100: "802.1Q", 0x88A8: "802.1ad", 0x81: "802.1Q", 0xA888: "802.1ad"}  # linux/if_ether.h
_u32 = whole(0, (1 << 32) - 1)


def find(container_id: str, ifname: str, roots: Roots) -> Attachment | None:
    """Return the attachment of a container's interface, None if there is none.

    Raises DecodeError if the file cannot be understood, OSError if it cannot be read.
    """
    path = f"{roots.sriov_cni}/{container_id}-{ifname}"
    content = sriov_cni.read(path)
    if content is None:
        return None
    conf = JsonObject(json.loads(content, path), f"{path}: ", error=DecodeError)
    pci = conf.take("deviceID", string, "").lower()
    if not pci or "/" in pci:
        raise DecodeError(f"{path}: deviceID = {pci!r}: no PCI address", "see what wrote the file")
    return _attachment(conf, container_id, ifname, pci, roots)


def _attachment(conf: JsonObject, container_id: str, ifname: str, pci: str, roots: Roots) -> Attachment:
    before = conf.inner("OrigVfState")
    pf, pf_index = _pf(pci, conf.take("Master", string, ""), roots)
    mac = before.take("EffectiveMAC", string, "")
    asked = _asked(conf)
    host_name = before.take("HostIFName", string, "")
    return Attachment(
        container_id=container_id,
        ifname=ifname,
        pci=pci,
        state=ATTACHED,
        network=conf.take("name", string, ""),
        netns=sriov_cni.holder(pci, roots),
        pf=pf,
        pf_index=pf_index,
        vf=conf.take("VFID", whole(0, 65535), 0),
        host_name=host_name,
        attach=MOVE if host_name else USERSPACE,
        before=_before(before),
        before_mac=mac,
        before_mtu=before.take("MTU", _u32, 0),
        asked=asked,
        mac=asked.mac or mac,
        ipam=conf.inner("ipam").take("type", string, ""),
    )


def _pf(pci: str, master: str, roots: Roots) -> tuple[str, int]:
    """Return name and index of the PF now; index 0 if it has no network device here."""
    name = candidate.netdev_of(f"{roots.device(pci)}/physfn") or master
    with nl.Socket() as host:
        link = candidate.named(host, name) if name else None
    return name, link.index if link else 0


def _asked(conf: JsonObject) -> VfSettings:
    """Return the settings that were made: a key of the configuration that is not null or empty."""
    return VfSettings(
        mac=conf.take("MAC", string, "").lower() or None,
        vlan=conf.take("vlan", _u32, None),
        min_tx_rate=conf.take("min_tx_rate", _u32, None),
        max_tx_rate=conf.take("max_tx_rate", _u32, None),
        spoofchk=_switch(conf, "spoofchk"),
        link_state=conf.take("link_state", string, "") or None,
        trust=_switch(conf, "trust"),
    )


def _switch(conf: JsonObject, key: str) -> bool | None:
    """Return the value of a switch: every word but "on" means off there."""
    word = conf.take(key, string, "")
    return word == "on" if word else None


def _before(before: JsonObject) -> VfSettings:
    link_state = before.take("LinkState", whole(0, len(_LINK_STATES) - 1), 0)
    return VfSettings(
        mac=before.take("AdminMAC", string, "") or None,
        vlan=before.take("Vlan", _u32, 0),
        qos=before.take("VlanQoS", _u32, 0),
        proto=_PROTOCOLS.get(before.take("VlanProto", _u32, 0)),
        min_tx_rate=before.take("MinTxRate", _u32, 0),
        max_tx_rate=before.take("MaxTxRate", _u32, 0),
        spoofchk=before.get("SpoofChk") is True,
        link_state=_LINK_STATES[link_state],
        trust=before.get("Trust") is True,
    )
