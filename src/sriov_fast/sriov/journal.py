"""The journal: one small file for each VF in use, written before the first change.

The file's name says whose VF it is (``PCI~CONTAINER~IFNAME``), so that one listing of the directory answers
both questions of the hot path, which VFs are taken and which one is this container's, without opening a file.
None of the first two parts can contain a ``~``. Files appear whole or not at all (rename). A VF that its
container has given back, and that is still on its way home, is ``PCI~~CONTAINER~IFNAME``: nobody's, and not
free.
"""

from __future__ import annotations

import os

from sriov_fast import codec
from sriov_fast.errors import DecodeError, FileError, is_absent, is_there
from sriov_fast.sriov.roots import private_directory
from sriov_fast.values import LinkSettings, Value, VfSettings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ATTACHING = "attaching"
ATTACHED = "attached"
HOMING = "homing"
UNKNOWN = "unknown"  # a boot: no reason to drop a record


class Attachment(Value):
    """What was done for one interface of one container, and what was there before.

    ``before*`` is the VF's original state: ``before`` what the PF held for it, the others what its device
    showed; None and empty values of the last four are unknown. ``incarnation`` says which PCI device and
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


class Entry(Value):
    """What a record's name says: its owner (container ID, ifname), and whether the VF is on its way home."""

    owner: tuple[str, str]
    homing: bool = False


def _plain(found: Attachment) -> dict[str, Any]:
    return found.as_dict() | {
        "before": found.before.as_dict(),
        "before_settings": found.before_settings.as_dict(),
        "asked": found.asked.as_dict(),
        "irqs": {str(irq): mask for irq, mask in found.irqs.items()},
        "pinned": {str(irq): mask for irq, mask in found.pinned.items()},
    }


def _typed(plain: dict[str, Any]) -> Attachment:
    return Attachment(
        **plain
        | {
            "before": VfSettings(**plain["before"]),
            "before_settings": LinkSettings(**plain.get("before_settings", {})),
            "before_altnames": _names(plain.get("before_altnames")),
            "before_xdp": tuple(plain.get("before_xdp", ())),
            "asked": VfSettings(**plain["asked"]),
            "irqs": {int(irq): mask for irq, mask in plain["irqs"].items()},
            "pinned": {int(irq): mask for irq, mask in plain["pinned"].items()},
            "incarnation": tuple(plain.get("incarnation", ())),
            "addresses": tuple(plain["addresses"]),
            "routes": tuple(plain["routes"]),
        }
    )


def _names(plain: list[str] | None) -> tuple[str, ...] | None:
    return None if plain is None else tuple(plain)


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

    def _names(self) -> list[str]:
        try:
            names = os.listdir(self._dir)
        except FileNotFoundError:
            return []
        return [name for name in names if name[0] != "." and name.count("~") > 1]

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

    def stranded(self, container_id: str, ifname: str) -> Attachment | None:
        """Return the record of what this container has given back, where its VF has not been found yet."""
        owner = (container_id, ifname)
        for pci, entry in self.entries().items():
            if entry.homing and entry.owner == owner:
                record = self.read(pci, entry)
                if record is not None and record.stranded:
                    return record
        return None

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
        return self.read(record.pci, Entry(owner=record.owner, homing=record.state == HOMING))

    def read(self, pci: str, entry: Entry) -> Attachment | None:
        """Return one record, None where it is gone or of an earlier boot.

        A record that cannot be read still says by its name whose VF it is; it comes back with that alone.
        """
        path = self._path(pci, entry)
        try:
            with open(path, "rb", buffering=0) as file:
                record = _typed(codec.loads(file.read(), path, own=True))
        except FileNotFoundError:
            return None
        except (DecodeError, KeyError, TypeError, ValueError, AttributeError):
            record = Attachment(container_id=entry.owner[0], ifname=entry.owner[1], pci=pci, boot=self.boot())
        if entry.homing:
            record = record.replace(state=HOMING)
        if not self._is_of_this_boot(record):
            self.remove(record)
            return None
        return record

    def write(self, record: Attachment) -> None:
        """Write the record, whole, in place of an older one; the VF's lock must be held."""
        self.draft(record)
        self.publish(record)

    def draft(self, record: Attachment) -> None:
        """Write down what ``publish`` will make the record; until then nobody reads it."""
        path, content = self._draft_of(record), codec.dumps(_plain(record))
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
        homing = record.replace(state=HOMING)
        os.rename(self._path_of(record), self._path_of(homing))
        return homing

    def strand(self, record: Attachment) -> None:
        """Say of a VF that it is its container's no more, and that nobody knows where it is."""
        stranded = record.replace(stranded=True)
        self.write(stranded)
        self.release(stranded)

    def remove(self, record: Attachment) -> None:
        """Remove the record; harmless when it is gone."""
        _forget(self._path_of(record))

    def _path_of(self, record: Attachment) -> str:
        return self._path(record.pci, Entry(owner=record.owner, homing=record.state == HOMING))

    def _path(self, pci: str, entry: Entry) -> str:
        return f"{self._dir}/{pci}~{'~' if entry.homing else ''}{entry.owner[0]}~{entry.owner[1]}"


def _entry(_: str, container_id: str, rest: str) -> Entry:
    if container_id:
        return Entry(owner=(container_id, rest))
    before, _, ifname = rest.partition("~")
    return Entry(owner=(before, ifname), homing=True)


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
