"""``sriov-fast doctor``: find the faults of this machine that prevent an ADD, and show how to mend them."""

from __future__ import annotations

import argparse
import errno
import os
import platform
import stat
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from sriov_fast.cli import check, machine, output, problems, release, terminal, unmanaged
from sriov_fast.cli.check import FAIL, OK, WARN
from sriov_fast.cli.install import PLUGIN_DIRECTORY
from sriov_fast.cli.tune import Tuning
from sriov_fast.cli.warm import Warmth
from sriov_fast.common import json, log, paths
from sriov_fast.common.errors import DecodeError, SriovError, is_absent
from sriov_fast.common.paths import Roots
from sriov_fast.kernel import backend
from sriov_fast.plugin import recovery
from sriov_fast.vf import candidate
from sriov_fast.vf.journal import Journal

# pidfd_open; older kernels work, with a slower wait for IPAM plugins.
_KERNEL = (5, 3)
# The defaults of containerd and of Debian's package of plugins.
_CNI_PATH = [Path(PLUGIN_DIRECTORY), Path("/usr/lib/cni")]
NETWORKS = Path("/etc/cni/net.d")
_IPAM = ("host-local", "static", "dhcp")


class Finding(NamedTuple):
    """One line of the report."""

    level: str
    what: str
    text: str


_Findings = Iterator[Finding]


SUMMARY = "check that this machine can attach VFs; exit status 1 when it cannot"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    repair = "first release the attachments of pods that ended without a DEL, and finish interrupted requests"
    parser.add_argument("--repair", action="store_true", help=repair)
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Repair if requested, and report; return 1 if a pod could not be attached."""
    roots = paths.from_environment()
    found = []
    for finding in chain(_repaired(roots) if args.repair else (), examine(roots, cni_path())):
        found.append(finding)
        if not args.json:
            terminal.print_line(finding.level, f"{finding.what}: {finding.text}")
    if args.json:
        output.print_json([finding._asdict() for finding in found])
    return int(any(finding.level == FAIL for finding in found))


def _repaired(roots: Roots) -> _Findings:
    """Release every stray attachment; an error of one does not prevent the release of the others."""
    finished = recovery.repair(roots, log.Logger("warning"))
    if finished:
        yield Finding(OK, "repair", f"finished {finished} interrupted requests")
    for record, why in machine.strays(machine.records(roots), roots):
        which = f"VF {record.pci} of {'/'.join(record.owner)}"
        try:
            release.release(record, roots)
            yield Finding(OK, "repair", f"{which} is released: {why}")
        except (OSError, SriovError) as error:
            yield Finding(FAIL, "repair", f"{which}: {error}")


def cni_path() -> list[Path]:
    """Return the directories of plugins: CNI_PATH, or the usual ones."""
    return [Path(part) for part in os.environ.get("CNI_PATH", "").split(":") if part] or _CNI_PATH


def examine(roots: Roots, path: list[Path], networks: Path = NETWORKS) -> _Findings:
    """Run every check; ``path`` has the directories of plugins, ``networks`` their configurations."""
    yield from _interpreter()
    yield from _kernel(platform.release())
    yield from _user()
    yield from _cards(roots)
    yield from _warm(roots)
    yield from _strays(roots)
    yield from _of_sriov_cni(roots)
    yield from _state(Path(roots.run))
    yield from _records(roots)
    yield from _networks(roots, networks)
    yield from _irqbalance(Path(roots.proc))
    yield from _slow(roots)
    yield from _plugin(path)
    yield from _delegates(path)


def _interpreter() -> _Findings:
    python = f"Python {platform.python_version()}, {sys.executable}"
    if backend.name == "cython":
        yield Finding(OK, "backend", f"compiled; {python}")
    else:
        advice = "reinstall with a C compiler and Python's headers"
        yield Finding(WARN, "backend", f"plain Python, slower than compiled ({advice}); {python}")


def _kernel(version: str) -> _Findings:
    numbers = version.split("-", maxsplit=1)[0].split(".")[:2]
    if tuple(int(number) for number in numbers if number.isdigit()) >= _KERNEL:
        yield Finding(OK, "kernel", version)
    else:
        yield Finding(WARN, "kernel", f"{version} is older than 5.3, and untested")


def _user() -> _Findings:
    if os.geteuid() == 0:
        yield Finding(OK, "user", "root")
    else:
        yield Finding(WARN, "user", "not root: owners of VFs are not shown; the plugin itself needs root")


def _cards(roots: Roots) -> _Findings:
    """Check the PFs and their VFs."""
    names, owned = machine.pf_names(roots), machine.owners(roots)
    away = machine.pfs_in_pods(roots, owned)
    for pci, owner in away.items():
        yield Finding(OK, f"PF {pci}", f"is in the pod {'/'.join(owner)} (pfOnly)")
    if not names:
        if not away:
            yield _without_pf(roots)
        return
    pfs = [machine.pf(name, roots) for name in names]
    for pf in pfs:
        yield from _card(pf, owned, Path(roots.sys, "class/net", pf.name))
    for pci, texts in problems.of(pfs, owned, problems.settings(pfs, roots), roots).items():
        yield from (Finding(WARN, f"VF {pci}", text) for text in texts)
    if not any(machine.usable(vf, owned) for pf in pfs for vf in pf.vfs):
        yield Finding(FAIL, "VF", "no VF that a pod could get")


def _without_pf(roots: Roots) -> Finding:
    """Name the network cards that may be VFs: in a virtual machine the PF of a VF is not visible."""
    lone = [f"{vf.pci} ({vf.netdev or vf.driver})" for vf in machine.lone_vfs(roots)]
    if not lone:
        return Finding(FAIL, "PF", "no network card with SR-IOV (a checkout has a virtual one: make demo)")
    advice = 'a network can name one of these cards by "deviceID", without settings of a PF'
    return Finding(WARN, "PF", f"none is visible here; {advice}: {', '.join(lone)}")


def _card(pf: machine.Pf, owned: machine.Owners, directory: Path) -> _Findings:
    what = f"PF {pf.name}"
    if not pf.vfs:
        advice = f"echo {pf.total} > {directory}/device/sriov_numvfs"
        yield Finding(WARN, what, f"has no VFs yet: {advice}")
        return
    taken = sum(vf.pci in owned for vf in pf.vfs)
    driver = (directory / "device/driver").resolve().name
    yield Finding(OK, what, f"driver {driver}, {len(pf.vfs)} of {pf.total} VFs, {taken} in pods")
    unbound = [str(vf.index) for vf in pf.vfs if not vf.driver and vf.pci not in owned]
    if unbound:
        advice = "load the VF's driver, or see device/sriov_drivers_autoprobe"
        yield Finding(WARN, what, f"no driver on VF {', '.join(unbound)}: {advice}")
    userspace = [str(vf.index) for vf in pf.vfs if candidate.has_userspace_driver(vf)]
    if userspace:
        yield Finding(OK, what, f"userspace driver on VF {', '.join(userspace)}: for pods that name the VF")
    if output.read_text(directory / "operstate") == "down":
        yield Finding(WARN, what, f"is down: ip link set {pf.name} up")


def _warm(roots: Roots) -> _Findings:
    """Count the warm VFs, and report those that something else has changed."""
    warmth = Warmth(roots)
    marked = warmth.marked()
    if not marked:
        return
    faults, pfs = [], []
    with backend.nl.Socket() as host:
        for name in machine.pf_names(roots):
            vfs = [vf for vf in machine.pf(name, roots).vfs if vf.pci in marked]
            faults += [(name, vf.pci, why) for vf in vfs if (why := warmth.fault(host, vf))]
            pfs += [name] if vfs else []
    yield Finding(OK, "warm VFs", f"{len(marked) - len(faults)} of {len(marked)} are up and quiet")
    for pf, pci, why in faults:
        yield Finding(WARN, f"VF {pci}", f"is not warm any more: {why}: sriov-fast warm {pf}")
    yield from _managed(pfs, Path("/"))


def _managed(pfs: list[str], root: Path) -> _Findings:
    """Report the PFs with warm VFs that a network manager may configure."""
    running = unmanaged.managers(root)
    left = sorted(set(pfs) - unmanaged.covered(root)) if running else []
    if left:
        text = f"{' and '.join(running)} may configure its warm VFs: sriov-fast install --unmanaged"
        yield from (Finding(WARN, f"PF {pf}", f"{text} {pf}") for pf in left)


def _strays(roots: Roots) -> _Findings:
    """Report the VFs of pods that ended without a DEL."""
    for record, why in machine.strays(machine.records(roots), roots):
        advice = f"sriov-fast release {record.container_id} {record.ifname}, or sriov-fast doctor --repair"
        yield Finding(WARN, f"VF {record.pci}", f"belongs to {'/'.join(record.owner)}: {why}: {advice}")


def _of_sriov_cni(roots: Roots) -> _Findings:
    """Name the VFs that the SR-IOV CNI attached before this plugin replaced it."""
    for pci, owner in machine.of_sriov_cni(roots).items():
        text = f"was attached to {'/'.join(owner)} by the SR-IOV CNI ({roots.sriov_cni}); its DEL is served"
        yield Finding(OK, f"VF {pci}", text)


def _state(directory: Path) -> _Findings:
    try:
        mode = stat.S_IMODE(directory.stat().st_mode)
    except FileNotFoundError:
        yield Finding(OK, "state", f"{directory} is made by the first ADD")
    except OSError as error:
        yield Finding(FAIL, "state", f"{directory}: {error.strerror}")
    else:
        level, remark = (OK, "") if mode == 0o700 else (WARN, f", not 0700: chmod 700 {directory}")
        yield Finding(level, "state", f"{directory}, mode {mode:04o}{remark}")


def _records(roots: Roots) -> _Findings:
    """Report the records that reserve a VF and cannot be used."""
    try:
        faults = Journal(roots.run, roots.proc).faults()
    except OSError as error:
        yield Finding(WARN, "records", f"cannot be read: {error.filename}: {error.strerror}")
        return
    for fault in faults:
        owner = "/".join(fault.owner)
        advice = f"after the end of that pod, restore the VF's settings, then remove {fault.path}"
        yield Finding(WARN, "records", f"VF {fault.pci} of {owner} is reserved: {fault.why} ({advice})")


def _networks(roots: Roots, directory: Path) -> _Findings:
    """Report the files of networks that name no PF of this machine."""
    for file in sorted(directory.glob("*")):
        if file.suffix not in (".conf", ".conflist", ".json", ".yaml", ".yml"):
            continue
        try:
            for network in check.networks(check.documents(file.read_bytes(), str(file)), str(file)):
                masters = _masters(network.conf)
                if masters and not any(_is_pf(name, roots) for name in masters):
                    text = f"master {', '.join(masters)}: no such PF here"
                    yield Finding(WARN, f"network {network.where}", text)
        except (OSError, SriovError) as error:
            yield Finding(WARN, f"network {file}", output.explain(error))
        except RecursionError:
            yield Finding(WARN, f"network {file}", check.TOO_DEEP)


def _masters(conf: dict[str, Any]) -> list[str]:
    value = check.folded(conf).get("master") or []
    return [str(name) for name in (value if isinstance(value, list) else [value])]


def _is_pf(name: str, roots: Roots) -> bool:
    try:
        machine.pf(name, roots)
    except ValueError:
        return False
    except OSError as error:
        if is_absent(error) or error.errno == errno.ENOTSUP:
            return False
        raise
    return True


def _slow(roots: Roots) -> _Findings:
    """Report the kernel's settings, such as those of RCU, with which an ADD takes longer."""
    try:
        slow = [state for state in Tuning(roots).states() if state.level() == "SLOW"]
    except SriovError as error:
        yield Finding(WARN, "tune", output.explain(error))
        return
    for state in slow:
        name = state.setting.name
        yield Finding(WARN, name, f"{state.shown()}, {state.setting.effect}: sriov-fast tune --apply {name}")


def _irqbalance(proc: Path) -> _Findings:
    if any(output.read_text(comm) == "irqbalance" for comm in proc.glob("[0-9]*/comm")):
        advice = "exclude the VFs' interrupts (--banirq, a policy script) if pods ask for cores"
        yield Finding(WARN, "irqbalance", f"is running and may undo CORES: {advice}")


def _plugin(path: list[Path]) -> _Findings:
    program = next((part / "sriov" for part in path if (part / "sriov").is_file()), None)
    if program is None:
        yield Finding(WARN, "plugin", f"no sriov in {_shown(path)}: sriov-fast install --bin-dir {path[0]}")
    elif fault := _version_fault(program):
        yield Finding(FAIL, "plugin", f"{program}: {fault}")
    else:
        yield Finding(OK, "plugin", f"{program} answers")


def _version_fault(program: Path) -> str:
    """Run the plugin's VERSION; return the fault of the answer, "" for none."""
    try:
        done = subprocess.run(
            [program],
            env={"CNI_COMMAND": "VERSION"},
            input=b'{"cniVersion": "1.0.0"}',
            capture_output=True,
            timeout=10,
            check=False,
        )
        answer = json.loads(done.stdout)
    except OSError as error:
        return f"cannot be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        return "does not answer"
    except DecodeError:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return f"exit status {done.returncode}; {last or 'it prints nothing'}"
    return (
        ""
        if isinstance(answer, dict) and "supportedVersions" in answer
        else "answers with no list of versions"
    )


def _delegates(path: list[Path]) -> _Findings:
    present = [name for name in _IPAM if any((part / name).is_file() for part in path)]
    if present:
        yield Finding(OK, "IPAM", f"{', '.join(present)} in {_shown(path)}")
    else:
        yield Finding(WARN, "IPAM", f"none of {', '.join(_IPAM)} in {_shown(path)}")


def _shown(path: list[Path]) -> str:
    return ":".join(map(str, path))
