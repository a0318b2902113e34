"""``sriov-fast tune``: show, set and restore the kernel settings that a move between namespaces depends on.

Nothing is set unless requested. The old values are first written to ``tuned.json`` under ``/run/sriov-fast``;
like the settings themselves they do not survive a reboot. docs/tuning.md has the measured effects.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sriov_fast.cli import output, terminal
from sriov_fast.cli.output import read_text
from sriov_fast.common import json, paths
from sriov_fast.common.errors import ConfigError, DecodeError, FileError
from sriov_fast.common.paths import Roots
from sriov_fast.common.replace import replace_file
from sriov_fast.vf import locks

_STATE = "tuned.json"
_FORGET = "delete it to forget the old values"


class Setting(NamedTuple):
    """A value of the kernel: its file below /sys, the recommended value and its effect.

    ``matters``: any other value makes an ADD slower. ``default``: ``--apply`` without names sets it.
    """

    name: str
    file: str
    value: str
    effect: str
    matters: bool = True
    default: bool = False


_RCU = "module/rcutree/parameters"
_FIRST = "the kernel checks for the end of an RCU grace period at once, not a tick later"
_AGAIN = "... and again every tick (useful with HZ above 250)"
_NORMAL = "1 forbids expedited grace periods, which makes a move three times as long"
_EXPEDITED = "expedites every wait for RCU; a move does not gain by it, and CPUs are interrupted"
SETTINGS = (
    Setting("rcu-first-fqs", f"{_RCU}/jiffies_till_first_fqs", "0", _FIRST, default=True),
    Setting("rcu-next-fqs", f"{_RCU}/jiffies_till_next_fqs", "1", _AGAIN, default=True),
    Setting("rcu-normal", "kernel/rcu_normal", "0", _NORMAL),
    Setting("rcu-expedited", "kernel/rcu_expedited", "1", _EXPEDITED, matters=False),
)
_BY_NAME = {setting.name: setting for setting in SETTINGS}


class SettingState(NamedTuple):
    """A setting on this machine: its current value, None without such a file; the old value if we set it."""

    setting: Setting
    now: str | None
    before: str | None

    def level(self) -> str:
        """Return the mark of the line: set by ``--apply``, good, or slow."""
        if self.before is not None:
            return "SET"
        if self.now is None or not self.setting.matters:
            return ""
        return "OK" if self.now == self.setting.value else "SLOW"

    def shown(self) -> str:
        """Return the value as the terminal shows it."""
        if self.now is None:
            return "not in this kernel"
        if self.before is not None:
            return f"{self.now} (was {self.before})"
        return self.now if self.now == self.setting.value else f"{self.now}, not {self.setting.value}"


class Advice(NamedTuple):
    """A value that is shown and never set."""

    name: str
    now: str
    text: str


SUMMARY = "show kernel settings that an ADD waits for; set them and put them back when asked to"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    default = ", ".join(setting.name for setting in SETTINGS if setting.default)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--apply", nargs="*", metavar="NAME", help=f"set these (default: {default})")
    action.add_argument("--restore", action="store_true", help="restore the values before --apply")
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Set or restore settings if requested, and show all; return 1 if a value was refused."""
    tuning = Tuning(paths.from_environment())
    faults: list[str] = []
    if args.apply is not None:
        faults = tuning.apply(args.apply)
    elif args.restore:
        faults = tuning.restore()
    states, advice = tuning.states(), list(tuning.advice())
    for text in faults:
        print(f"sriov-fast tune: {text}", file=sys.stderr)
    if args.json:
        settings = [state.setting._asdict() | {"now": state.now, "before": state.before} for state in states]
        output.print_json({"settings": settings, "advice": [item._asdict() for item in advice]})
    else:
        _show(states, advice)
    return int(bool(faults))


def _show(states: list[SettingState], advice: list[Advice]) -> None:
    width = max(len(name) for name in (*_BY_NAME, *(item.name for item in advice)))
    for state in states:
        text = f"{state.setting.name:<{width}}  {state.shown()}: {state.setting.effect}"
        terminal.print_line(state.level(), text)
    for item in advice:
        terminal.print_line("", f"{item.name:<{width}}  {item.now}: {item.text}")
    slow = [state.setting.name for state in states if state.level() == "SLOW"]
    if slow:
        print(f"to set the marked ones, see docs/tuning.md, then: sriov-fast tune --apply {' '.join(slow)}")


class Tuning:
    """The settings of one machine."""

    def __init__(self, roots: Roots, dev: str = "/dev") -> None:
        self.sys = Path(roots.sys)
        self.proc = Path(roots.proc)
        self.dev = Path(dev)
        self.run = roots.run
        self._state = Path(roots.run, _STATE)

    # --- reading

    def states(self) -> list[SettingState]:
        """Return every setting with its values."""
        before = self._recorded()
        return [SettingState(item, self._read(item), before.get(item.name)) for item in SETTINGS]

    def advice(self) -> Iterator[Advice]:
        """Return the other values that an ADD depends on, without those that do not exist here."""
        paths = self.sys.glob("devices/system/cpu/cpu*/cpufreq/scaling_governor")
        governors = ", ".join(sorted(filter(None, set(map(read_text, paths)))))
        if governors:
            yield Advice("cpufreq governor", governors, "performance: no wait for the clock to rise")
        idle = read_text(self.sys / "devices/system/cpu/cpuidle/current_governor")
        if idle:
            yield Advice("cpuidle governor", idle, "deep sleep states make each wake-up of an ADD longer")
        latency = _latency(self.dev / "cpu_dma_latency")
        if latency is not None:
            text = "the longest wake-up allowed; a process that holds this file open lowers it"
            yield Advice("cpu_dma_latency", f"{latency} us", text)
        text = "rcu_nocbs=all at the boot: a move then does not wait for the tick (docs/tuning.md)"
        yield Advice("RCU callbacks", _offloaded(read_text(self.proc / "cmdline")), text)
        dad = read_text(self.proc / "sys/net/ipv6/conf/default/accept_dad")
        if dad:
            text = "only for link-local addresses: those of IPAM need no duplicate address detection"
            yield Advice("IPv6 accept_dad", dad, text)

    def _read(self, setting: Setting) -> str | None:
        path = self.sys / setting.file
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FileError(f"{path}: {error.strerror}", "see that it can be read") from error

    # --- changing

    def apply(self, names: Sequence[str]) -> list[str]:
        """Set these settings, or the default ones; return the faults."""
        unknown = [name for name in names if name not in _BY_NAME]
        if unknown:
            raise ConfigError(f"no setting named {', '.join(unknown)}", f"there are {', '.join(_BY_NAME)}")
        faults = []
        with self._locked():
            for setting in SETTINGS:
                if not (setting.name in names if names else setting.default):
                    continue
                now = self._read(setting)
                if now is not None:
                    faults += self._change(setting, now)
                elif names:
                    faults.append(f"{setting.name}: this kernel has no {self.sys / setting.file}")
        return faults

    def _change(self, setting: Setting, now: str) -> list[str]:
        """Record the value ``now`` unless an older one is recorded, then set the recommended one."""
        if now == setting.value:
            return []
        known = self._recorded()
        self._record({setting.name: now} | known)
        faults = self._set(setting, setting.value)
        if self._read(setting) == now:
            self._record(known)
        return faults

    def restore(self) -> list[str]:
        """Restore every recorded value; return the faults."""
        faults: list[str] = []
        with self._locked():
            left = self._recorded()
            for name, value in list(left.items()):
                fault = self._set(_BY_NAME[name], value)
                faults += fault
                if not fault:
                    del left[name]
            self._record(left)
        return faults

    def _set(self, setting: Setting, value: str) -> list[str]:
        path = self.sys / setting.file
        try:
            # without O_CREAT: in a wrong tree no file must appear
            descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            try:
                os.write(descriptor, value.encode())
            finally:
                os.close(descriptor)
        except PermissionError:
            return [f"{setting.name}: {path} cannot be written to; be root"]
        except OSError as error:
            return [f"{setting.name}: {path}: {error.strerror}"]
        kept = self._read(setting)
        return [] if kept == value else [f"{setting.name}: the kernel made {kept} of {value}"]

    # --- the old values

    def _boot(self) -> str:
        return read_text(self.proc / "sys/kernel/random/boot_id")

    def _recorded(self) -> dict[str, str]:
        """Return the old values by name; those of an earlier boot are dropped, as the kernel did."""
        try:
            document = json.loads(self._state.read_bytes())
        except (FileNotFoundError, PermissionError):
            return {}  # only root may read it; the settings themselves are readable by everybody
        except (OSError, DecodeError) as error:
            raise FileError(f"{self._state} cannot be read: {error}", _FORGET) from error
        values = document.get("before") if isinstance(document, dict) else None
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            raise FileError(f"{self._state} has an unknown format", _FORGET)
        if document.get("boot") != self._boot():
            return {}
        return {name: value for name, value in values.items() if name in _BY_NAME}

    def _record(self, before: dict[str, str]) -> None:
        try:
            if before:
                document = json.text({"boot": self._boot(), "before": before})
                replace_file(self._state, document.encode(), 0o600)
            else:
                self._state.unlink(missing_ok=True)
        except OSError as error:
            raise FileError(f"{error.filename}: {error.strerror}", "nothing more was set") from error

    def _locked(self) -> locks.Lock:
        """Lock the settings against another ``tune``."""
        return locks.acquire(self.run, "tune", "sriov-fast tune")


def _offloaded(command_line: str) -> str:
    """Return the options that offload RCU callbacks (kernel-parameters.txt; nohz_full= implies it)."""
    options = dict(word.partition("=")[::2] for word in command_line.split())
    named = [f"{name}={options[name]}" for name in ("rcu_nocbs", "nohz_full") if name in options]
    return ", ".join(named) or "at the tick"


def _latency(path: Path) -> int | None:
    """Return the limit in microseconds: a 32-bit number in the machine's byte order."""
    try:
        with path.open("rb", buffering=0) as file:
            data = file.read(4)
    except OSError:
        return None
    return int.from_bytes(data, sys.byteorder, signed=True) if len(data) == 4 else None
