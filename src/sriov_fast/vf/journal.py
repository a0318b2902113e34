"""The journal: one small file for each VF in use, written before the first change of the VF.

The file's name has the VF and its owner, ``PCI~CONTAINER~IFNAME``. One listing of the directory therefore
answers both questions of the hot path without opening a file: the VFs in use, and the VF of this container.
The first two parts cannot contain a ``~``. A file is written completely or not at all (rename). The name
``PCI~~CONTAINER~IFNAME`` is that of a VF that its container has released and that is still moving to the
host: it has no owner, and is not free.

A record with unusable content (no JSON, a wrong type, another owner) is broken. Its name still reserves the
VF. After the DEL of its owner the name is ``PCI~~~CONTAINER~IFNAME``: an operator must remove the file,
because the original state of the VF is not known.
"""

from __future__ import annotations

import os

from sriov_fast.common import descriptors, json
from sriov_fast.common.errors import DecodeError, FileError, is_absent, is_there
from sriov_fast.common.paths import private_directory
from sriov_fast.common.record import LinkSettings, Record, Route, VfSettings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T", bound=Record)

ATTACHING = "attaching"
ATTACHED = "attached"
RETURNING = "returning"
BROKEN = "broken"  # never written: the state of a record with unusable content
MOVE, MACVLAN = "move", "macvlan"  # the attach modes
USERSPACE = "userspace"  # the attach mode of a VF with a userspace driver, which no configuration names
PF = "pf"  # as "move", for a PF (``whole_pf``)
UNKNOWN = "unknown"  # the boot where the kernel names none; such a record is kept


class Attachment(Record):
    """The record of one interface of one container: the changes, and the VF's original state.

    ``pci`` is the VF's PCI address, or the name of an auxiliary device.

    ``attach`` is the attach mode; ``ifindex`` is the VF's index in the modes with a network device.
    ``before*`` is the original state: ``before`` has the PF's settings of the VF, the others those of its
    network device; None and empty values of the last six are unknown. In the mode ``userspace``,
    ``before_mtu`` is the PF's. ``incarnation`` identifies the PCI device and the network device
    (``find.incarnation``). ``irqs`` are the interrupts' masks before,
    ``pinned`` the masks that were set. ``queues`` and ``before_queues`` are those of
    ``vf.queues``. ``sysctl``, ``promisc`` and ``allmulti`` are of the pod's device.
    ``asked`` has the settings made through the PF. ``request`` has CNI_ARGS, CNI_PATH and the configuration,
    for IPAM's DEL. ``token`` is the token of the client's request.
    ``stranded`` marks a deleted attachment with a VF that was not found: its address is not released yet.
    ``rdma`` and ``rdma_index`` are the RDMA device that follows the VF, "" for none.
    ``device_info`` is the device information file that the ADD made, "" for none.
    """

    container_id: str
    ifname: str
    pci: str
    state: str = ATTACHING
    network: str = ""
    netns: str = ""
    pf: str = ""
    pf_index: int = 0
    vf: int = -1
    ifindex: int = 0
    host_name: str = ""
    before: VfSettings = VfSettings()
    before_mac: str = ""
    before_perm: str = ""
    before_mtu: int = 0
    before_up: bool = False
    before_settings: LinkSettings = LinkSettings()
    before_altnames: tuple[str, ...] | None = None
    before_xdp: tuple[int, ...] = ()
    before_tcx: tuple[tuple[int, ...], ...] = ()
    before_ethtool: dict[str, str] = {}  # noqa: RUF012 (Record removes it from the class)
    before_disable_ipv6: bool | None = None
    incarnation: tuple[int, ...] = ()
    irqs: dict[int, str] = {}  # noqa: RUF012
    pinned: dict[int, str] = {}  # noqa: RUF012
    queues: dict[str, str] = {}  # noqa: RUF012
    before_queues: dict[str, str] = {}  # noqa: RUF012
    asked: VfSettings = VfSettings()
    mac: str = ""
    mtu: int = 0
    attach: str = MOVE
    sysctl: dict[str, str] = {}  # noqa: RUF012
    promisc: bool | None = None
    allmulti: bool | None = None
    addresses: tuple[str, ...] = ()
    routes: tuple[dict[str, Any], ...] = ()
    ipam: str = ""
    request: dict[str, Any] = {}  # noqa: RUF012
    boot: str = ""
    token: str = ""
    stranded: bool = False
    device_info: str = ""
    rdma: str = ""
    rdma_index: int = 0

    @property
    def owner(self) -> tuple[str, str]:
        """The container's ID and the interface's name in it."""
        return self.container_id, self.ifname

    @property
    def label(self) -> str:
        """The VF in the words of a message."""
        if self.attach == PF:
            return f"PF {self.host_name} ({self.pci})"
        return f"VF {self.vf} of {self.pf} ({self.pci})" if self.pf else f"VF {self.pci}"


class Entry(Record):
    """The content of a record's name: its owner (container ID, ifname) and the state of the VF.

    ``returning``: the VF moves to the host. ``aside``: the record is broken, and its owner released it.
    """

    owner: tuple[str, str]
    returning: bool = False
    aside: bool = False


class Fault(Record):
    """A record that cannot be used: its file, its VF, the owner and the reason."""

    path: str
    pci: str
    owner: tuple[str, str]
    why: str


def _plain(record: Attachment) -> dict[str, Any]:
    return record.as_dict() | {
        "before": record.before.as_dict(),
        "before_settings": record.before_settings.as_dict(),
        "asked": record.asked.as_dict(),
        "irqs": {str(irq): mask for irq, mask in record.irqs.items()},
        "pinned": {str(irq): mask for irq, mask in record.pinned.items()},
    }


# --- reading: a record with a field of another type than annotated is broken


def _typed(record_type: type[T], plain: object) -> T:
    """Return a record from a JSON object. Raises ValueError that names the wrong field.

    Unknown fields (of a newer version) are ignored, missing ones (of an older version) get their defaults.
    """
    if type(plain) is not dict:
        raise ValueError("is no object")
    fields, values = record_type.__annotations__, {}
    for key, value in plain.items():
        if key in fields:
            try:
                values[key] = _READ[fields[key]](value)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{key}: {error}") from None
    try:
        return record_type(**values)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _of(json_type: type) -> Callable[[Any], Any]:
    """Return the reader of one of JSON's types. True is no int."""

    def read(value: Any) -> Any:
        if type(value) is not json_type:
            raise ValueError(f"is no {json_type.__name__}")
        return value

    return read


def _number(value: Any) -> int:
    """Read an index, an MTU or a rate: a number of 32 bits, or -1."""
    if type(value) is not int or not -1 <= value < 1 << 32:
        raise ValueError("is no number of 32 bits")
    return value


def _or_none(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


def _masks(value: Any) -> dict[int, str]:
    return {_irq(irq): _text(mask) for irq, mask in _object(value).items()}


def _irq(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) >= 1 << 31:
        raise ValueError(f"{text!r} is no interrupt")
    return int(text)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_text(item) for item in _list(value))


def _routes(value: Any) -> tuple[dict[str, Any], ...]:
    for item in _list(value):
        _typed(Route, item)
    return tuple(value)


_text, _list, _object, _flag = _of(str), _of(list), _of(dict), _of(bool)
_READ: dict[str, Callable[[Any], Any]] = {
    "str": _text,
    "int": _number,
    "bool": _flag,
    "str | None": _or_none(_text),
    "int | None": _or_none(_number),
    "bool | None": _or_none(_flag),
    "tuple[str, ...]": _texts,
    "tuple[str, ...] | None": _or_none(_texts),
    "tuple[int, ...]": lambda value: tuple(map(_of(int), _list(value))),  # inodes among them: 64 bits
    "tuple[tuple[int, ...], ...]": lambda value: tuple(
        tuple(map(_number, _list(item))) for item in _list(value)
    ),
    "tuple[dict[str, Any], ...]": _routes,
    "dict[int, str]": _masks,
    "dict[str, str]": lambda value: {key: _text(item) for key, item in _object(value).items()},
    "dict[str, Any]": _object,
    "VfSettings": lambda value: _typed(VfSettings, value),
    "LinkSettings": lambda value: _typed(LinkSettings, value),
}


def _require_usable(record: Attachment, pci: str, entry: Entry) -> None:
    """Raise ValueError unless owner, VF and state of a record are valid, and its request is usable."""
    if (record.pci, record.owner) != (pci, entry.owner):
        raise ValueError(f"is that of {record.pci}, {' '.join(record.owner)}")
    if not record.boot or record.state not in (ATTACHING, ATTACHED, RETURNING):
        raise ValueError(f"state {record.state!r}, boot {record.boot!r}")
    if record.attach not in (MOVE, MACVLAN, USERSPACE, PF):
        raise ValueError(f"attach {record.attach!r}")
    request = record.request
    _text(request.get("args", ""))
    _texts(request.get("path", []))
    ipam = _object(request.get("config", {})).get("ipam")
    if ipam is not None and type(ipam) is not dict:
        raise ValueError("request: its ipam is no object")
    _require_bytes(record)


def _require_bytes(record: Attachment) -> None:
    """Raise ValueError if a MAC or an ethtool setting is not hexadecimal: a release could not set it."""
    macs = (record.mac, record.before_mac, record.before_perm, record.asked.mac, record.before.mac)
    for text in (*macs, record.before_settings.broadcast, *record.before_ethtool.values()):
        bytes.fromhex((text or "").replace(":", ""))
    for mask in (*record.queues.values(), *record.before_queues.values()):
        int(mask.replace(",", ""), 16)


# ---


_boots: dict[str, str] = {}  # boot identities by proc directory


class Journal:
    """The records under ``run`` (0700; files 0600)."""

    def __init__(self, run: str, proc: str = "/proc") -> None:
        self._run = run
        self._dir = f"{run}/vfs"
        self._proc = proc

    def boot(self) -> str:
        """Return the identity of this boot of the machine, ``UNKNOWN`` if the kernel has none."""
        if self._proc not in _boots:
            try:
                with open(f"{self._proc}/sys/kernel/random/boot_id", "rb", buffering=0) as file:
                    _boots[self._proc] = file.read().decode().strip()
            except OSError as error:
                if is_absent(error):
                    return UNKNOWN
                raise
        return _boots[self._proc]

    def _is_of_this_boot(self, record: Attachment) -> bool:
        boot = self.boot()
        return boot == record.boot or UNKNOWN in (boot, record.boot)

    def _listed(self) -> list[str]:
        try:
            return os.listdir(self._dir)
        except FileNotFoundError:
            return []

    def names(self) -> list[str]:
        """Return the names of all records."""
        return [name for name in self._listed() if name[0] != "." and name.count("~") > 1]

    def entries(self) -> dict[str, Entry]:
        """Return the content of all records' names, by PCI address."""
        return dict(map(_parsed, self.names()))

    def taken(self) -> set[str]:
        """Return the PCI addresses of the VFs that have a record."""
        return {name.partition("~")[0] for name in self.names()}

    def owners(self) -> dict[str, tuple[str, str]]:
        """Return the (last) owner of each VF with a record: {PCI address: (container ID, ifname)}."""
        return {pci: entry.owner for pci, entry in self.entries().items()}

    def find(self, container_id: str, ifname: str, names: list[str] | None = None) -> Attachment | None:
        """Return the record of this container's interface, if there is one of this boot.

        ``names`` are those of ``names()`` from before, if no other request can have changed this owner's.
        """
        wanted = Entry(owner=(container_id, ifname))
        return next((self.read(pci, wanted) for pci in self._having(wanted, names)), None)

    def returning(self, container_id: str, ifname: str, names: list[str] | None = None) -> list[Attachment]:
        """Return the records of this container's released VFs that are not back in the host yet."""
        wanted = Entry(owner=(container_id, ifname), returning=True)
        records = [self.read(pci, wanted) for pci in self._having(wanted, names)]
        return [record for record in records if record is not None]

    def _having(self, entry: Entry, names: list[str] | None) -> list[str]:
        """Return the PCI addresses of the VFs with records of this content of the name."""
        suffix = self.path_of("", entry).removeprefix(f"{self._dir}/")
        names = self.names() if names is None else names
        pcis = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
        return [pci for pci in pcis if "~" not in pci]

    def stranded(self, container_id: str, ifname: str) -> Attachment | None:
        """Return the record of this container's released VF that was not found, None if there is none."""
        return next((record for record in self.returning(container_id, ifname) if record.stranded), None)

    def all(self) -> list[Attachment]:
        """Return every record of this boot."""
        records = (self.read(pci, entry) for pci, entry in self.entries().items())
        return [record for record in records if record is not None]

    def prune(self) -> bool:
        """Remove the records of earlier boots; return whether there was one."""
        return None in [self.read(pci, entry) for pci, entry in self.entries().items()]

    def has(self, record: Attachment) -> bool:
        """Return whether a record still exists; call it with the VF's lock held."""
        return is_there(self._path_of(record))

    def again(self, record: Attachment) -> Attachment | None:
        """Read a record again with the VF's lock held: it may be changed or removed by then."""
        return self.read(record.pci, Entry(owner=record.owner, returning=record.state == RETURNING))

    def read(self, pci: str, entry: Entry) -> Attachment | None:
        """Return one record, None if it is removed or of an earlier boot.

        A broken record is returned in the state ``BROKEN``, with VF and owner only.
        """
        try:
            record = self._load(pci, entry)
        except FileNotFoundError:
            return None
        except DecodeError:
            return Attachment(
                container_id=entry.owner[0], ifname=entry.owner[1], pci=pci, state=BROKEN, boot=self.boot()
            )
        if entry.returning:
            record = record.replace(state=RETURNING)
        if not self._is_of_this_boot(record):
            self.remove(record)
            return None
        return record

    def _load(self, pci: str, entry: Entry) -> Attachment:
        """Read one record. Raises DecodeError if it is broken, OSError if it cannot be read."""
        path = self.path_of(pci, entry)
        with open(path, "rb", buffering=0) as file:
            content = file.read()
        try:
            record = _typed(Attachment, json.loads(content, path, limited=False))
            _require_usable(record, pci, entry)
        except ValueError as error:
            raise DecodeError(f"{path}: {error}") from None
        if entry.aside:
            raise DecodeError(f"{path}: was broken when its owner released the VF")
        return record

    def faults(self) -> list[Fault]:
        """Return the records that are broken or cannot be read."""
        faults = []
        for pci, entry in self.entries().items():
            path = self.path_of(pci, entry)
            try:
                self._load(pci, entry)
            except FileNotFoundError:
                continue
            except DecodeError as error:
                faults.append(Fault(path=path, pci=pci, owner=entry.owner, why=error.msg))
            except OSError as error:
                why = f"{path}: {error.strerror}"
                faults.append(Fault(path=path, pci=pci, owner=entry.owner, why=why))
        return faults

    def write(self, record: Attachment) -> None:
        """Write the record in place of an older one; the VF's lock must be held."""
        self.draft(record)
        self.publish(record)

    def draft(self, record: Attachment) -> None:
        """Write the record's draft, which ``publish`` renames to the record."""
        path, content = self._draft_of(record.pci), json.dumps(_plain(record))
        try:
            try:
                _put(path, content)
            except FileNotFoundError:
                private_directory(self._run, "vfs")
                _put(path, content)
        except OSError as error:
            raise self._unwritten(record, error) from error

    def publish(self, record: Attachment) -> None:
        """Rename the record's draft to the record; if a ``write`` has renamed it since, write it again."""
        draft, path = self._draft_of(record.pci), self._path_of(record)
        try:
            try:
                os.rename(draft, path)
            except FileNotFoundError:
                self.draft(record)
                os.rename(draft, path)
        except OSError as error:
            raise self._unwritten(record, error) from error

    def drop(self, pci: str) -> None:
        """Remove the draft of a VF, with the VF's lock held; harmless if there is none."""
        try:
            os.unlink(self._draft_of(pci))
        except OSError:
            pass  # the next draft replaces it

    def _unwritten(self, record: Attachment, error: OSError) -> FileError:
        self.drop(record.pci)
        return FileError(
            f"the journal {self._path_of(record)} cannot be written: {error.strerror}",
            f"see that {self._run} can be written to and has free space",
            errno=error.errno or 0,
        )

    def _draft_of(self, pci: str) -> str:
        return f"{self._dir}/.{pci}"  # one name for each VF, so the draft of a crash is overwritten

    def release(self, record: Attachment) -> Attachment:
        """Mark a VF as released and still moving to the host; return the new record."""
        returning = record.replace(state=RETURNING)
        os.rename(self._path_of(record), self._path_of(returning))
        return returning

    def strand(self, record: Attachment) -> None:
        """Mark a VF as released and not found."""
        stranded = record.replace(stranded=True)
        self.write(stranded)
        self.release(stranded)

    def remove(self, record: Attachment) -> None:
        """Remove the record; harmless if it is gone. A broken record is renamed and still reserves its VF."""
        if record.state != BROKEN:
            _unlink(self._path_of(record))
            return
        try:
            os.rename(self._path_of(record), self.path_of(record.pci, Entry(owner=record.owner, aside=True)))
        except FileNotFoundError:
            pass

    def drafts(self) -> list[str]:
        """Return the PCI addresses of the VFs with a draft; if the VF's lock is free, it is of a crash."""
        return [name[1:] for name in self._listed() if name[0] == "." and "~" not in name]

    def _path_of(self, record: Attachment) -> str:
        return self.path_of(record.pci, Entry(owner=record.owner, returning=record.state == RETURNING))

    def path_of(self, pci: str, entry: Entry) -> str:
        """Return the file of a record."""
        mark = "~~" if entry.aside else "~" if entry.returning else ""
        return f"{self._dir}/{pci}~{mark}{entry.owner[0]}~{entry.owner[1]}"


def _parsed(name: str) -> tuple[str, Entry]:
    """Return PCI address and content of a record's name."""
    pci, container_id, rest = name.split("~", 2)
    if container_id:
        return pci, Entry(owner=(container_id, rest))
    aside = rest.startswith("~")
    container_id, _, ifname = rest.removeprefix("~").partition("~")
    return pci, Entry(owner=(container_id, ifname), returning=not aside, aside=aside)


def _put(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        descriptors.write_all(fd, content)
    finally:
        os.close(fd)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
