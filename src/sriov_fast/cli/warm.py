"""``sriov-fast warm``: keep the free VFs of a PF up and quiet, so that a pod's link exists at once.

A VF that is brought up has no link for 10 ms to some seconds. A warm VF is up, has no address and no IPv6,
and does not answer ARP. Attachments do not change that.

The state before is first written to ``warm/PCI`` under ``/run/sriov-fast``, and ``--off`` restores it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sriov_fast.cli import machine, output, terminal
from sriov_fast.common import json, paths
from sriov_fast.common.errors import ConfigError, DecodeError, FileError, SriovError
from sriov_fast.common.paths import Roots
from sriov_fast.common.record import Link, LinkSettings, Vf
from sriov_fast.common.replace import replace_file
from sriov_fast.kernel.backend import nl
from sriov_fast.vf import candidate, find, locks
from sriov_fast.vf.attach import IFF_NOARP, change_disable_ipv6
from sriov_fast.vf.journal import Journal

_DIRECTORY = "warm"
_NO_ADDRESSES = 1  # IN6_ADDR_GEN_MODE_NONE, linux/if_link.h
_HEADER = ("PF", "VF", "PCI", "NETDEV", "WARM", "")
_ADVICE = "restore the VF's settings, then delete the file"


class Before(NamedTuple):
    """The state of a VF before it was made warm; ``None`` if the kernel has no IPv6."""

    boot: str
    incarnation: list[int]
    up: bool
    noarp: bool
    addrgenmode: int | None
    disable_ipv6: str | None


class State(NamedTuple):
    """Whether a VF is warm, and why not; ``failed`` if that is an error."""

    pf: str
    vf: Vf
    warm: bool
    why: str
    failed: bool


SUMMARY = "keep free VFs up and quiet, so that a pod's link is there at once (attach: macvlan)"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("pf", nargs="+", metavar="PF", help="network device of a PF")
    parser.add_argument("--off", action="store_true", help="restore the state before")
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Warm or cool the VFs of each PF, and show them; return 1 if one failed, or could not be cooled."""
    roots = paths.from_environment()
    try:
        states = [state for name in args.pf for state in _changed(name, roots, off=args.off)]
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if args.json:
        output.print_json(list(map(_plain, states)))
    elif states:
        terminal.print_table(_HEADER, list(map(_row, states)))
    return int(any(state.failed or (args.off and state.warm) for state in states))


def _changed(name: str, here: Roots, *, off: bool) -> Iterator[State]:
    """Warm or cool every VF of a PF that can be; yield the state of each. A VF that fails stops no other."""
    pf = machine.pf(name, here)
    warmth = Warmth(here)
    with nl.Socket() as host:
        for vf in pf.vfs:
            why, failed = "", False
            try:
                why = warmth.cool(host, vf) if off else warmth.warm(host, vf)
            except (SriovError, OSError) as error:
                why, failed = str(error), True
            yield State(pf.name, vf, warmth.is_marked(vf.pci) and (off or not why), why, failed)


class Warmth:
    """The warm VFs of a node, and the state of each before."""

    def __init__(self, here: Roots) -> None:
        self._here = here
        self._directory = Path(here.run, _DIRECTORY)
        self._journal = Journal(here.run, here.proc)

    # --- looking

    def marked(self) -> set[str]:
        """Return the PCI addresses of the VFs that were made warm; none without permission to read them."""
        try:
            return {name for name in os.listdir(self._directory) if name[0] != "."}
        except (FileNotFoundError, PermissionError):
            return set()

    def is_marked(self, pci: str) -> bool:
        """Return whether a VF was made warm and not cooled since."""
        return pci in self.marked()

    def fault(self, host: nl.Socket, vf: Vf) -> str:
        """Return why a marked VF is not warm any more, "" if it is warm or in a pod."""
        if vf.pci in self._journal.taken():
            return ""
        device = candidate.examine(host, vf, self._here)
        if device is None:
            return "it has no network device"
        return device.use or _not_quiet(device.link)

    # --- changing

    def warm(self, host: nl.Socket, vf: Vf) -> str:
        """Make a free VF warm; return why it is not, "" on success."""
        lock = locks.attempt(self._here.run, f"vf-{vf.pci}", "sriov-fast warm")
        if lock is None:
            return "a request is using it"
        with lock:
            return self._warm(host, vf)

    def _warm(self, host: nl.Socket, vf: Vf) -> str:
        if owner := self._journal.owners().get(vf.pci):
            return f"in use by {'/'.join(owner)}"
        device = candidate.examine(host, vf, self._here)
        if device is None:
            return "it has no network device"
        if device.use:
            return f"the host uses it: {device.use}"
        if self._before(vf.pci) is None:
            self._write(vf.pci, self._state_of(vf.pci, device.link))
        _quieten(host, device.link)
        return ""

    def cool(self, host: nl.Socket, vf: Vf) -> str:
        """Restore the state before ``warm``; return why it was not, "" on success."""
        if not self.is_marked(vf.pci):
            return ""
        lock = locks.attempt(self._here.run, f"vf-{vf.pci}", "sriov-fast warm --off")
        if lock is None:
            return "a request is using it; run this again"
        with lock:
            if owner := self._journal.owners().get(vf.pci):
                return f"in use by {'/'.join(owner)}; run this again when it is free"
            before = self._before(vf.pci)
            device = candidate.examine(host, vf, self._here) if before else None
            if before and device:
                _restore(host, device.link, before)
            Path(self._directory, vf.pci).unlink(missing_ok=True)
            return ""

    # --- the state before

    def _state_of(self, pci: str, link: Link) -> Before:
        return Before(
            boot=self._journal.boot(),
            incarnation=list(find.incarnation(pci, self._here)),
            up=link.up,
            noarp=bool((link.settings.flags or 0) & IFF_NOARP),
            addrgenmode=link.settings.addrgenmode,
            disable_ipv6=_disable_ipv6(link),
        )

    def _before(self, pci: str) -> Before | None:
        """Return the state before, None if there is none of this boot and of this device."""
        path = self._directory / pci
        try:
            before = Before(**json.loads(path.read_bytes(), str(path)))
        except FileNotFoundError:
            return None
        except (DecodeError, TypeError) as error:
            raise FileError(f"{path} has an unknown format: {error}", _ADVICE) from error
        now = list(find.incarnation(pci, self._here))
        return before if (before.boot, before.incarnation) == (self._journal.boot(), now) else None

    def _write(self, pci: str, before: Before) -> None:
        paths.private_directory(self._here.run, _DIRECTORY)
        replace_file(self._directory / pci, json.dumps(before._asdict()), 0o600)


def _quieten(host: nl.Socket, link: Link) -> None:
    """Bring a device up that can neither have an address of its own nor answer ARP."""
    if link.disable_ipv6 is False:
        change_disable_ipv6(link.name, "1")
    _set(host, link, up=True, noarp=True, addrgenmode=_NO_ADDRESSES)


def _restore(host: nl.Socket, link: Link, before: Before) -> None:
    """Restore the state before. IPv6 comes last: the kernel then makes the same address again."""
    _set(host, link, up=before.up, noarp=before.noarp, addrgenmode=before.addrgenmode)
    if before.disable_ipv6 not in (None, _disable_ipv6(link)):
        change_disable_ipv6(link.name, before.disable_ipv6)


def _set(host: nl.Socket, link: Link, *, up: bool, noarp: bool, addrgenmode: int | None) -> None:
    flags = (link.settings.flags or 0) & ~IFF_NOARP | (IFF_NOARP if noarp else 0)
    mode = None if link.settings.addrgenmode is None else addrgenmode
    batch = nl.Batch()
    batch.set_link(link.index, settings=LinkSettings(flags=flags, addrgenmode=mode))
    batch.set_link(link.index, up=up)
    host.run(batch)


def _not_quiet(link: Link) -> str:
    if not link.up:
        return "it is down"
    if not (link.settings.flags or 0) & IFF_NOARP:
        return "it answers ARP"
    if link.disable_ipv6 is False:
        return "it has IPv6"
    return ""


def _disable_ipv6(link: Link) -> str | None:
    """Return the value of the sysctl, None on a kernel without IPv6."""
    return None if link.disable_ipv6 is None else str(int(link.disable_ipv6))


# --- output


def _row(state: State) -> tuple[str, ...]:
    vf = state.vf
    return (state.pf, str(vf.index), vf.pci, vf.netdev or "-", "yes" if state.warm else "no", state.why)


def _plain(state: State) -> dict[str, Any]:
    return {
        "pf": state.pf,
        "vf": state.vf.index,
        "pci": state.vf.pci,
        "netdev": state.vf.netdev,
        "warm": state.warm,
        "why": state.why or None,
    }
