"""Inject one fault into a verb, send a DEL as the runtime would, and compare the node's state."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from faults.modes import Mode, Run
from faults.tracer import KILL, Fault
from harness.pod import without_dad
from harness.runtime import Outcome

VERBS = ("ADD", "DEL", "CHECK", "GC")
_TRIES = 3  # attempts of a DEL: a runtime repeats a failed one
_INTERNAL = 999  # errors.SriovError.code
# Files of an IPAM store that are no leases: they remain after a DEL, or the store recreates them.
_KEPT = ("lock", "last_reserved_ip")

_APART = ("run/locks",)  # compared as "held locks"
# A killed ADD leaves a draft; the next ADD of that VF overwrites the draft.
_WRITTEN_OVER = ("drafts",)

World = dict[str, Any]


class Verdict(NamedTuple):
    """The result of one injection: whether the fault was injected, and the faults that were found."""

    fired: bool
    faults: list[str]


class Bench:
    """An idle node for consecutive injections.

    A second pod stays attached; no injection may change it.
    """

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.node = mode.node
        for index in range(self.node.tree.vfs):
            self.node.nip("link", "set", self.node.tree.netdev(index), "up", "mtu", "1400")
        self.bystander = self.node.pod()
        self.node.add(self._conf(), self.bystander)
        self.pod = self.node.pod()
        self.node.add(self._conf(), self.pod)
        self.node.delete(self._conf(), self.pod)
        mode.at_rest()
        self._is_attached = False
        self.status: int | None = None  # of the verb that was injected last
        self.before = self.world()

    def _conf(self, verb: str = "") -> dict[str, Any]:
        ipam = {
            "type": "host-local",
            "dataDir": str(self.node.root / "ipam"),
            "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/112"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            **self.mode.ipam,
        }
        conf = self.node.conf(cniVersion="1.1.0", ipam=ipam, mtu=1450, cores=[1, 2], attach=self.mode.attach)
        if verb == "GC":
            valid = [{"containerID": self.bystander, "ifname": "eth0"}]
            conf["cni.dev/valid-attachments"] = valid
        return conf

    # --- state

    def world(self) -> World:
        """Return the state that an injection and its DEL must restore."""
        masks = [self.node.tree.mask(irq) for index in range(3) for irq in self.node.tree.irqs(index)]
        return {
            "vfs": self.node.state(),
            "records": self.node.records(),
            "drafts": self.node.drafts(),
            "files": self._files("run", "ipam", "state"),
            "held locks": self.node.held(),
            "masks": {path.parent.name: path.read_text() for path in masks},
            "pods": {name: self._pod(pod) for pod, name in ((self.bystander, "other"), (self.pod, "pod"))},
        }

    def _pod(self, pod: str) -> str:
        """Return the addresses and routes in a pod's namespace."""
        shown = self.node.ip("-o", "-n", pod, "-batch", "-", stdin="address\nroute\n")
        return without_dad(shown)

    def _files(self, *directories: str) -> list[str]:
        top, found = str(self.node.root), []
        for directory in directories:
            for path, below, names in os.walk(f"{top}/{directory}"):
                found += [f"{path[len(top) + 1 :]}/{name}" for name in names if not name.startswith(_KEPT)]
                below[:] = [name for name in below if f"{directory}/{name}" not in _APART]
        return sorted(name for name in found if not name.startswith(("run/s", "run/vfs/.")))

    # --- the cycle

    def record(self, verb: str) -> Run:
        """Run a verb without a fault; return the run with its recorded system calls."""
        self._prepare(verb)
        run = self.mode.run(verb, self._conf(verb), self.pod, None)
        assert run.outcome
        assert run.outcome.status == 0, run.outcome
        self._delete()
        return run

    def inject(self, verb: str, fault: Fault) -> Verdict:
        """Run a verb with a fault; check its outcome, the DEL after it and the next ADD."""
        self._prepare(verb)
        run = self.mode.run(verb, self._conf(verb), self.pod, fault)
        self.status = run.outcome.status if run.outcome else None
        found = judged(run, verb, fault)
        self._refill_masks()
        self.mode.restart()
        found += [f"after {verb}: {fault}" for fault in self.mode.at_rest()]
        if run.outcome and run.outcome.status == 0:
            found += self._is_so(verb, run.outcome)
        elif verb == "ADD" and fault.error != KILL:
            found += self._compared("after the failed ADD")
        found += self._repeated_delete()
        found += self._compared("after DEL", but=_WRITTEN_OVER)
        found += self._again(verb)
        return Verdict(run.fired, found)

    def _prepare(self, verb: str) -> None:
        """Attach the pod, or detach it before an ADD."""
        if verb == "ADD" and self._is_attached:
            self._delete()
        elif verb != "ADD" and not self._is_attached:
            self.node.add(self._conf(), self.pod)
        self._is_attached = False  # ``_again`` sets it

    def _refill_masks(self) -> None:
        """Write a value to each empty mask: the kernel's smp_affinity files are never empty."""
        for index in range(self.node.tree.vfs):
            for irq in self.node.tree.irqs(index):
                mask = self.node.tree.mask(irq)
                if not mask.read_text():
                    mask.write_text("ff\n")

    def _is_so(self, verb: str, said: Outcome) -> list[str]:
        """Return the faults of a verb that reported success."""
        if verb == "ADD":
            return [f"ADD said it succeeded: {why}" for why in self._not_attached(said)]
        return self._compared(f"{verb} said it succeeded", but=_WRITTEN_OVER) if verb != "CHECK" else []

    def _not_attached(self, said: Outcome) -> list[str]:
        try:
            wanted = sorted(item["address"] for item in said.json["ips"])
            link = self.node.link("eth0", self.pod)
            have = sorted(self.node.addresses("eth0", self.pod))
        except (AssertionError, KeyError, TypeError) as error:
            return [f"{type(error).__name__}: {error}"]
        found = []
        if "UP" not in link["flags"] or link["mtu"] != 1450 or wanted != have:
            found.append(f"{link['flags']}, mtu {link['mtu']}, {have} for {wanted}")
        records = [name for name in self.node.records() if name.endswith(f"~{self.pod}~eth0")]
        states = [json.loads((self.node.run_dir / "vfs" / name).read_text())["state"] for name in records]
        if states != ["attached"]:
            found.append(f"records: {records}, {states}")
        return found

    def _delete(self) -> Outcome:
        done = self.node.run("DEL", self._conf(), self.pod)
        self.mode.at_rest()
        return done

    def _repeated_delete(self) -> list[str]:
        said = []
        for _ in range(_TRIES):
            done = self._delete()
            if done.status == 0:
                return []
            said.append(_first_words(done))
        return [f"DEL fails: {said[-1]}"]

    def _compared(self, when: str, but: tuple[str, ...] = ()) -> list[str]:
        now = self.world()
        differing = [key for key in now if now[key] != self.before[key] and key not in but]
        return [f"{when}: {key}: {_difference(self.before[key], now[key])}" for key in differing]

    def _again(self, verb: str) -> list[str]:
        """Execute another ADD, which must succeed; return its faults.

        The pod stays attached for the next DEL, CHECK or GC. After an injected ADD, it is detached.
        """
        done = self.node.run("ADD", self._conf(), self.pod)
        if done.status:
            return [f"the next ADD fails: {_first_words(done)}"]
        self._is_attached = True
        found = [f"the next ADD: {why}" for why in self._not_attached(done)]
        if self.node.drafts():
            found.append(f"the next ADD: drafts: {self.node.drafts()}")
        if verb != "ADD":
            return found
        self._is_attached = False
        if self._delete().status:
            found.append("the DEL of the next ADD fails")
        return found + self._compared("after the next DEL")


def judged(run: Run, verb: str, fault: Fault) -> list[str]:
    """Return the faults in a verb's outcome: a hang, traceback or signal, a malformed error or code 999."""
    if run.hung:
        return [f"{verb} hangs"]
    said = run.outcome
    if said is None:
        return []
    found = []
    if "Traceback" in said.stderr:
        found.append(f"traceback: {said.stderr.strip().splitlines()[-1]}")
    if said.status < 0:
        if fault.error != KILL:
            found.append(f"{verb} ends by signal {-said.status}")
    elif said.status:
        found += _no_error(said)
    return found


def _no_error(said: Outcome) -> list[str]:
    body = said.json
    if not isinstance(body, dict) or not body.get("msg") or not body.get("code"):
        return [f"status {said.status} without an error: {said.stdout!r} {said.stderr.strip()[-200:]!r}"]
    return [f"code 999: {body['msg']}"] if body["code"] == _INTERNAL else []


def _first_words(said: Outcome) -> str:
    return f"status {said.status}, {str(said.json or said.stdout)[:300]} {said.stderr.strip()[-300:]}"


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict):
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        return ", ".join(f"{key} {now.get(key)!r} for {before.get(key)!r}" for key in keys)
    if isinstance(before, list):
        more = [item for item in now if item not in before]
        less = [f"-{item}" for item in before if item not in now]
        return f"{more + less}"
    return f"{now!r} for {before!r}"
