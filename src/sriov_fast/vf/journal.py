"""The journal: one small file for each VF in use, written before the first change.

The file's name says whose VF it is (``PCI~CONTAINER~IFNAME``), so that one listing of the directory answers
both questions of the hot path, which VFs are taken and which one is this container's, without opening a file.
None of the first two parts can contain a ``~``. Files appear whole or not at all (rename). A VF that its
container has given back, and that is still on its way home, is ``PCI~~CONTAINER~IFNAME``: nobody's, and not
free.

A record whose content cannot be used (no JSON, a wrong type, another owner) is broken. Its name still keeps
the VF from being given to anybody. When its owner has given the VF back it is ``PCI~~~CONTAINER~IFNAME``:
kept aside until an operator removes it, because nobody knows what the VF was before.
"""

from __future__ import annotations

import os

from sriov_fast.common import json
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
BROKEN = "broken"  # never written: of a record that cannot be used, only its name is known
UNKNOWN = "unknown"  # a boot: no reason to drop a record


class Attachment(Record):
    """What was done for one interface of one container, and what was there before.

    ``before*`` is the VF's original state: ``before`` what the PF held for it, the others what its device
    showed; None and empty values of the last five are unknown. ``incarnation`` says which PCI device and
    which network device are meant (``locate.incarnation``). ``irqs`` are the interrupts' masks before,
    ``pinned`` those that were set, if any. ``asked`` is what the PF was told. ``request`` is what an IPAM DEL
    needs later: CNI_ARGS, CNI_PATH, the configuration. ``token`` is the call's that made it, where it came
    through the resident server's client. ``stranded`` marks a deleted attachment whose VF could not be found:
    its address is still to be given back.
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
    before_ethtool: dict[str, str] = {}  # noqa: RUF012 (Value takes it out of the class; nobody writes to it)
    incarnation: tuple[int, ...] = ()
    irqs: dict[int, str] = {}  # noqa: RUF012
    pinned: dict[int, str] = {}  # noqa: RUF012
    asked: VfSettings = VfSettings()
    mac: str = ""
    mtu: int = 0
    addresses: tuple[str, ...] = ()
    routes: tuple[dict[str, Any], ...] = ()
    ipam: str = ""
    request: dict[str, Any] = {}  # noqa: RUF012
    boot: str = ""
    token: str = ""
    stranded: bool = False

    @property
    def owner(self) -> tuple[str, str]:
        """The container's ID and the interface's name in it."""
        return self.container_id, self.ifname


class Entry(Record):
    """What a record's name says: its owner (container ID, ifname), and what became of the VF.

    ``returning``: the VF moves to the host. ``aside``: the record is broken, and its owner released it.
    """

    owner: tuple[str, str]
    returning: bool = False
    aside: bool = False


class Fault(Record):
    """A record that cannot be used: its file, the VF that it keeps, whose that is or was, and the reason."""

    path: str
    pci: str
    owner: tuple[str, str]
    why: str


def _plain(found: Attachment) -> dict[str, Any]:
    return found.as_dict() | {
        "before": found.before.as_dict(),
        "before_settings": found.before_settings.as_dict(),
        "asked": found.asked.as_dict(),
        "irqs": {str(irq): mask for irq, mask in found.irqs.items()},
        "pinned": {str(irq): mask for irq, mask in found.pinned.items()},
    }


# --- reading: every field is of the type that its annotation says, or the record is broken


def _typed(kind: type[T], plain: object) -> T:
    """Return a value made of what was read from JSON; ValueError names the field that is wrong.

    Fields of a newer version are ignored, those that an older one did not have are at their defaults.
    """
    if type(plain) is not dict:
        raise ValueError("is no object")
    fields, values = kind.__annotations__, {}
    for key, value in plain.items():
        if key in fields:
            try:
                values[key] = _READ[fields[key]](value)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{key}: {error}") from None
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _of(kind: type) -> Callable[[Any], Any]:
    """Return what reads a value of one of JSON's types, which True is no number of."""

    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError(f"is no {kind.__name__}")
        return value

    return read


def _number(value: Any) -> int:
    """Read an index, an MTU or a rate: what fits the kernel's 32 bits, and -1."""
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
    """Raise ValueError unless a record is that of its name, in a state that is one, with a request in it."""
    if (record.pci, record.owner) != (pci, entry.owner):
        raise ValueError(f"is that of {record.pci}, {' '.join(record.owner)}")
    if not record.boot or record.state not in (ATTACHING, ATTACHED, RETURNING):
        raise ValueError(f"state {record.state!r}, boot {record.boot!r}")
    given = record.request
    _text(given.get("args", ""))
    _texts(given.get("path", []))
    ipam = _object(given.get("config", {})).get("ipam")
    if ipam is not None and type(ipam) is not dict:
        raise ValueError("request: its ipam is no object")
    _require_bytes(record)


def _require_bytes(record: Attachment) -> None:
    """Raise ValueError where a MAC or a state of ethtool is no hexadecimal, which no release could set."""
    macs = (record.mac, record.before_mac, record.before_perm, record.asked.mac, record.before.mac)
    for text in (*macs, record.before_settings.broadcast, *record.before_ethtool.values()):
        bytes.fromhex((text or "").replace(":", ""))


# ---


_boots: dict[str, str] = {}  # by /proc; it does not change while we live


class Journal:
    """The records under ``run`` (0700; files 0600)."""

    def __init__(self, run: str, proc: str = "/proc") -> None:
        self._run = run
        self._dir = f"{run}/vfs"
        self._proc = proc

    def boot(self) -> str:
        """Return the identity of this boot of the machine; ``UNKNOWN`` where the kernel has none."""
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

    def _names(self) -> list[str]:
        return [name for name in self._listed() if name[0] != "." and name.count("~") > 1]

    def entries(self) -> dict[str, Entry]:
        """Return what the directory says, by PCI address."""
        parts = (name.split("~", 2) for name in self._names())
        return {part[0]: _entry(*part) for part in parts}

    def taken(self) -> set[str]:
        """Return the PCI addresses of the VFs that have a record."""
        return {name.partition("~")[0] for name in self._names()}

    def owners(self) -> dict[str, tuple[str, str]]:
        """Return whose each VF is, or was until it is home: {PCI address: (container ID, ifname)}."""
        return {pci: entry.owner for pci, entry in self.entries().items()}

    def find(self, container_id: str, ifname: str) -> Attachment | None:
        """Return the record of this container's interface, if there is one of this boot."""
        whose = f"~{container_id}~{ifname}"
        for name in self._names():
            pci = name.removesuffix(whose)
            if pci != name and "~" not in pci:
                return self.read(pci, Entry(owner=(container_id, ifname)))
        return None

    def returning(self, container_id: str, ifname: str) -> list[Attachment]:
        """Return the records of the VFs that this container has given back and that are not home yet."""
        owner = (container_id, ifname)
        entries = [(pci, entry) for pci, entry in self.entries().items() if entry.returning]
        found = [self.read(pci, entry) for pci, entry in entries if entry.owner == owner]
        return [record for record in found if record is not None]

    def stranded(self, container_id: str, ifname: str) -> Attachment | None:
        """Return the record of what this container has given back, where its VF has not been found yet."""
        found = (record for record in self.returning(container_id, ifname) if record.stranded)
        return next(found, None)

    def all(self) -> list[Attachment]:
        """Return every record of this boot."""
        found = (self.read(pci, entry) for pci, entry in self.entries().items())
        return [record for record in found if record is not None]

    def prune(self) -> bool:
        """Remove what an earlier boot left; return whether there was any."""
        return None in [self.read(pci, entry) for pci, entry in self.entries().items()]

    def has(self, record: Attachment) -> bool:
        """Say whether a record is still there: who waited for its VF's lock may find it gone."""
        return is_there(self._path_of(record))

    def again(self, record: Attachment) -> Attachment | None:
        """Read a record again: who waited for its VF's lock may find it changed, or gone."""
        return self.read(record.pci, Entry(owner=record.owner, returning=record.state == RETURNING))

    def read(self, pci: str, entry: Entry) -> Attachment | None:
        """Return one record, None where it is gone or of an earlier boot.

        A broken one still says by its name whose VF it is; it comes back ``BROKEN``, with that alone.
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
        """Read one record; DecodeError where it is broken, OSError where it cannot be read."""
        path = self._path(pci, entry)
        with open(path, "rb", buffering=0) as file:
            content = file.read()
        try:
            record = _typed(Attachment, json.loads(content, path, own=True))
            _require_usable(record, pci, entry)
        except ValueError as error:
            raise DecodeError(f"{path}: {error}") from None
        if entry.aside:
            raise DecodeError(f"{path}: was broken when its owner gave the VF back")
        return record

    def faults(self) -> list[Fault]:
        """Return the records that are broken or cannot be read, for whoever reports them."""
        found = []
        for pci, entry in self.entries().items():
            path = self._path(pci, entry)
            try:
                self._load(pci, entry)
            except FileNotFoundError:
                continue
            except DecodeError as error:
                found.append(Fault(path=path, pci=pci, owner=entry.owner, why=error.msg))
            except OSError as error:
                why = f"{path}: {error.strerror}"
                found.append(Fault(path=path, pci=pci, owner=entry.owner, why=why))
        return found

    def write(self, record: Attachment) -> None:
        """Write the record, whole, in place of an older one; the VF's lock must be held."""
        self.draft(record)
        self.publish(record)

    def draft(self, record: Attachment) -> None:
        """Write down what ``publish`` will make the record; until then nobody reads it."""
        path, content = self._draft_of(record), json.dumps(_plain(record))
        try:
            try:
                _put(path, content)
            except FileNotFoundError:
                private_directory(self._run, "vfs")
                _put(path, content)
        except OSError as error:
            raise self._unwritten(record, error) from error

    def publish(self, record: Attachment) -> None:
        """Put the record's draft in the place of an older one; a ``write`` since then has used it up."""
        draft, path = self._draft_of(record), self._path_of(record)
        try:
            try:
                os.rename(draft, path)
            except FileNotFoundError:
                self.draft(record)
                os.rename(draft, path)
        except OSError as error:
            raise self._unwritten(record, error) from error

    def drop(self, record: Attachment) -> None:
        """Remove the record's draft; harmless when there is none."""
        try:
            os.unlink(self._draft_of(record))
        except OSError:
            pass  # whatever it is, what is wrong has been said already

    def _unwritten(self, record: Attachment, error: OSError) -> FileError:
        self.drop(record)
        return FileError(
            f"the journal {self._path_of(record)} cannot be written: {error.strerror}",
            f"see that {self._run} can be written to and has room",
            errno=error.errno or 0,
        )

    def _draft_of(self, record: Attachment) -> str:
        return f"{self._dir}/.{record.pci}"  # one name for each VF: what a crash leaves is written over

    def release(self, record: Attachment) -> Attachment:
        """Say of a VF that it is its container's no more, and on its way home; return the record."""
        returning = record.replace(state=RETURNING)
        os.rename(self._path_of(record), self._path_of(returning))
        return returning

    def strand(self, record: Attachment) -> None:
        """Say of a VF that it is its container's no more, and that nobody knows where it is."""
        stranded = record.replace(stranded=True)
        self.write(stranded)
        self.release(stranded)

    def remove(self, record: Attachment) -> None:
        """Remove the record; harmless when it is gone. A broken one is kept aside, and so is its VF."""
        if record.state != BROKEN:
            _forget(self._path_of(record))
            return
        try:
            os.rename(self._path_of(record), self._path(record.pci, Entry(owner=record.owner, aside=True)))
        except FileNotFoundError:
            pass

    def drafts(self) -> list[str]:
        """Return the PCI addresses of the VFs that have a draft; one whose VF's lock is free is left over."""
        return [name[1:] for name in self._listed() if name[0] == "." and name.count(":") == 2]

    def drop_draft(self, pci: str) -> None:
        """Remove the draft of a VF, whose lock must be held; harmless when there is none."""
        _forget(f"{self._dir}/.{pci}")

    def _path_of(self, record: Attachment) -> str:
        return self._path(record.pci, Entry(owner=record.owner, returning=record.state == RETURNING))

    def _path(self, pci: str, entry: Entry) -> str:
        mark = "~~" if entry.aside else "~" if entry.returning else ""
        return f"{self._dir}/{pci}~{mark}{entry.owner[0]}~{entry.owner[1]}"


def _entry(_: str, container_id: str, rest: str) -> Entry:
    if container_id:
        return Entry(owner=(container_id, rest))
    aside = rest.startswith("~")
    before, _, ifname = rest.removeprefix("~").partition("~")
    return Entry(owner=(before, ifname), returning=not aside, aside=aside)


def _put(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb", buffering=0) as file:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]


def _forget(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
