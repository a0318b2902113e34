"""``sriov-fast tune``: kernel settings that a move between namespaces waits for; shown, set, and put back.

Nothing is set unless asked for. What was there before is written down first, in ``tuned.json`` under
``/run/sriov-fast``; like the settings themselves that does not outlive a reboot. What each setting was
measured to do is in docs/tuning.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sriov_fast.common import json, paths
from sriov_fast.common.errors import ConfigError, DecodeError, FileError, SriovError
from sriov_fast.common.paths import Roots
from sriov_fast.vf import locks

_STATE = "tuned.json"
_FORGET = "delete it to forget what was there before"


class Setting(NamedTuple):
    """One value of the kernel: its file below /sys, what we would set, and what that does.

    ``matters`` where any other value makes an ADD slower; ``default`` where we set it without being asked for
    it by name, since it costs little.
    """

    name: str
    file: str
    value: str
    matters: bool
    default: bool
    effect: str


SETTINGS = (
    Setting(
        "rcu-first-fqs",
        "module/rcutree/parameters/jiffies_till_first_fqs",
        "0",
        True,
        True,
        "the kernel looks for the end of an RCU grace period at once, not a tick later",
    ),
    Setting(
        "rcu-next-fqs",
        "module/rcutree/parameters/jiffies_till_next_fqs",
        "1",
        True,
        True,
        "... and again every tick (of use where HZ is above 250)",
    ),
    Setting(
        "rcu-normal",
        "kernel/rcu_normal",
        "0",
        True,
        False,
        "1 forbids expedited grace periods, which makes a move three times as long",
    ),
    Setting(
        "rcu-expedited",
        "kernel/rcu_expedited",
        "1",
        False,
        False,
        "expedites every wait for RCU; a move does not gain by it, and CPUs are interrupted",
    ),
)
_BY_NAME = {setting.name: setting for setting in SETTINGS}


class State(NamedTuple):
    """A setting as it is here: ``now`` None where this kernel has none; ``before`` None where we set none."""

    setting: Setting
    now: str | None
    before: str | None


class Advice(NamedTuple):
    """What is shown and never set."""

    name: str
    now: str
    text: str


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``tune``."""
    summary = "show kernel settings that an ADD waits for; set them and put them back when asked to"
    parser = subparsers.add_parser("tune", help=summary, description=summary)
    default = ", ".join(setting.name for setting in SETTINGS if setting.default)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--apply", nargs="*", metavar="NAME", help=f"set these (default: {default})")
    what.add_argument("--restore", action="store_true", help="put back what was there before --apply")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    here = Tuning(paths.from_environment())
    faults: list[str] = []
    try:
        if args.apply is not None:
            faults = here.apply(args.apply)
        elif args.restore:
            faults = here.restore()
        states, advice = here.states(), list(here.advice())
    except SriovError as error:
        print(f"sriov-fast tune: {error.msg}; {error.details}", file=sys.stderr)
        return 1
    for text in faults:
        print(f"sriov-fast tune: {text}", file=sys.stderr)
    if args.json:
        _print_json(states, advice)
    else:
        print("\n".join(_lines(states, advice)))
    return int(bool(faults))


class Tuning:
    """The settings of one machine."""

    def __init__(self, where: Roots, dev: str = "/dev") -> None:
        self.sys = Path(where.sys)
        self.proc = Path(where.proc)
        self.dev = Path(dev)
        self.run = Path(where.run)

    # --- looking

    def states(self) -> list[State]:
        """Return every setting as it is."""
        before = self._recorded()
        return [State(item, self._read(item), before.get(item.name)) for item in SETTINGS]

    def advice(self) -> Iterator[Advice]:
        """Return what else has a say. What is not here is left out."""
        paths = self.sys.glob("devices/system/cpu/cpu*/cpufreq/scaling_governor")
        governors = {_text(path) for path in paths}
        if governors:
            found = ", ".join(sorted(filter(None, governors)))
            yield Advice("cpufreq governor", found, "performance: no wait for the clock to rise")
        idle = _text(self.sys / "devices/system/cpu/cpuidle/current_governor")
        if idle:
            yield Advice("cpuidle governor", idle, "deep sleep states make each wake-up of an ADD longer")
        latency = _latency(self.dev / "cpu_dma_latency")
        if latency is not None:
            text = "the longest wake-up allowed; a process that holds this file open lowers it"
            yield Advice("cpu_dma_latency", f"{latency} us", text)
        offloaded = _offloaded(_text(self.proc / "cmdline"))
        text = "rcu_nocbs=all at the boot: a move then does not wait for the tick (docs/tuning.md)"
        yield Advice("RCU callbacks", offloaded, text)
        dad = _text(self.proc / "sys/net/ipv6/conf/default/accept_dad")
        if dad:
            text = "for link-local addresses alone: those of IPAM need no duplicate address detection"
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
        """Set these, or the default ones; return what went wrong."""
        chosen = _chosen(names)
        faults = []
        with self._locked():
            for setting in chosen:
                now = self._read(setting)
                if now is not None:
                    faults += self._change(setting, now)
                elif names:
                    faults.append(f"{setting.name}: this kernel has no {self.sys / setting.file}")
        return faults

    def _change(self, setting: Setting, now: str) -> list[str]:
        """Set one that is ``now`` something else; what was there before us is written down first."""
        if now == setting.value:
            return []
        known = self._recorded()
        self._record({setting.name: now} | known)
        faults = self._set(setting, setting.value)
        if self._read(setting) == now:
            self._record(known)
        return faults

    def restore(self) -> list[str]:
        """Put back everything that was set; return what went wrong."""
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
            # No creation: on a wrong tree a file would be made that means nothing.
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

    # --- what was there before

    @property
    def _state(self) -> Path:
        return self.run / _STATE

    def _boot(self) -> str:
        return _text(self.proc / "sys/kernel/random/boot_id")

    def _recorded(self) -> dict[str, str]:
        """Return the values before, by name; of another boot none, for the kernel has forgotten ours, too."""
        try:
            document = json.loads(self._state.read_bytes())
        except FileNotFoundError:
            return {}
        except PermissionError:
            return {}  # only root may look there; the values themselves are for everybody
        except (OSError, DecodeError) as error:
            raise FileError(f"{self._state} cannot be read: {error}", _FORGET) from error
        values = document.get("before") if isinstance(document, dict) else None
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            raise FileError(f"{self._state} is not as we write it", _FORGET)
        if document.get("boot") != self._boot():
            return {}
        return {name: value for name, value in values.items() if name in _BY_NAME}

    def _record(self, before: dict[str, str]) -> None:
        try:
            if not before:
                self._state.unlink(missing_ok=True)
                return
            temporary = self._state.with_suffix(".new")
            temporary.write_text(json.text({"boot": self._boot(), "before": before}))
            temporary.replace(self._state)
        except OSError as error:
            raise FileError(f"{error.filename}: {error.strerror}", "nothing more was set") from error

    def _locked(self) -> locks.Lock:
        """Keep others that tune away."""
        return locks.acquire(str(self.run), "tune", "sriov-fast tune")


def _chosen(names: Sequence[str]) -> list[Setting]:
    wrong = [name for name in names if name not in _BY_NAME]
    if wrong:
        raise ConfigError(f"no setting named {', '.join(wrong)}", f"there are {', '.join(_BY_NAME)}")
    return [item for item in SETTINGS if (item.name in names if names else item.default)]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _offloaded(command_line: str) -> str:
    """Say which CPUs have RCU callbacks run by threads (kernel-parameters.txt; nohz_full= implies it)."""
    words = {name: value for name, _, value in (word.partition("=") for word in command_line.split())}
    named = [f"{name}={words[name]}" for name in ("rcu_nocbs", "nohz_full") if name in words]
    return ", ".join(named) or "at the tick"


def _latency(path: Path) -> int | None:
    """Return the limit in microseconds: a 32-bit number in the machine's byte order."""
    try:
        with path.open("rb", buffering=0) as file:
            data = file.read(4)
    except OSError:
        return None
    return int.from_bytes(data, sys.byteorder, signed=True) if len(data) == 4 else None


# --- showing


def _lines(states: list[State], advice: list[Advice]) -> Iterator[str]:
    width = max(len(name) for name in (*_BY_NAME, *(item.name for item in advice)))
    for state in states:
        yield f"{_level(state):<4}  {state.setting.name:<{width}}  {_value(state)}: {state.setting.effect}"
    for item in advice:
        yield f"      {item.name:<{width}}  {item.now}: {item.text}"
    slow = [state.setting.name for state in states if _level(state) == "SLOW"]
    if slow:
        yield f"to set what is marked, see docs/tuning.md, then: sriov-fast tune --apply {' '.join(slow)}"


def _level(state: State) -> str:
    """Mark what we have set, and what makes an ADD slower."""
    if state.before is not None:
        return "SET"
    if state.now is None or not state.setting.matters:
        return ""
    return "OK" if state.now == state.setting.value else "SLOW"


def _value(state: State) -> str:
    if state.now is None:
        return "not in this kernel"
    if state.before is not None:
        return f"{state.now} (was {state.before})"
    return state.now if state.now == state.setting.value else f"{state.now}, not {state.setting.value}"


def _print_json(states: list[State], advice: list[Advice]) -> None:
    import orjson

    document: dict[str, Any] = {
        "settings": [
            state.setting._asdict() | {"now": state.now, "before": state.before} for state in states
        ],
        "advice": [item._asdict() for item in advice],
    }
    sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")
