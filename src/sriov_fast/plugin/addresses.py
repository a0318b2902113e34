"""The addresses of an attachment: IPAM's part of an ADD and of a DEL."""

from __future__ import annotations

from sriov_fast.cni import result
from sriov_fast.common.errors import IpamError, SriovError
from sriov_fast.common.record import Record
from sriov_fast.plugin.context import IPAM_GRACE, IPAM_WAIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sriov_fast.cni.config import NetConf
    from sriov_fast.cni.result import Result
    from sriov_fast.ipam.builtin import Done
    from sriov_fast.ipam.exec import Running
    from sriov_fast.plugin.context import Call


class Answer(Record):
    """An IPAM result with its ``extra``."""

    result: Result
    extra: object = None


class Addresses:
    """The addresses that IPAM gives in one ADD."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._conf = call.conf
        self._log = call.log
        self._ipam = call.ipam()
        self._running: Running | Done | None = None
        self._limit = IPAM_WAIT
        self._answer: Answer | None = None

    @property
    def wait(self) -> bool:
        """Whether ``obtain`` waits for another process or for the network."""
        return self._ipam is not None and self._ipam.waits

    def obtain(self) -> Answer:
        """Run IPAM's ADD and return its answer; a repetition returns the same."""
        if self._answer is None:
            self._answer = read_answer(self._run(), self._conf)
        return self._answer

    def _run(self) -> dict[str, Any] | None:
        if self._ipam is None:
            return None
        self._call.demand_time()
        self._limit = min(self._limit, self._call.wait(IPAM_WAIT))
        self._running = self._ipam.start("ADD")
        return self._running.finish(self._limit)

    def hurry(self) -> None:
        """Give IPAM's ADD, which another thread runs, a short time to end.

        A delegate that is killed at once may leave an address without an owner, which no DEL finds:
        host-local first makes the address's file, then writes the owner into it.
        """
        self._limit = IPAM_GRACE
        if self._running:
            self._running.hurry(IPAM_GRACE)

    def give_back(self) -> None:
        """Run IPAM's DEL if its ADD was started; an error is logged."""
        ipam = self._call.unlimited().ipam()
        if ipam is None or self._running is None:
            return
        try:
            ipam.run("DEL", IPAM_WAIT)
        except (SriovError, OSError) as error:
            self._log.error("IPAM could not be undone", plugin=ipam.kind, why=error)

    def keep(self) -> None:
        """Have ``give_back`` do nothing."""
        self._running = None


def read_answer(document: dict[str, Any] | None, conf: NetConf) -> Answer:
    """Check an IPAM result and return it; IpamError names key and value."""
    where = f"the result of IPAM plugin {conf.ipam_type}"
    document = document or {}
    found = result.from_json(document, conf.version, error=IpamError, where=where)
    for number, route in enumerate(found.routes):
        if route.gw and (":" in route.gw) != (":" in route.dst):
            raise IpamError(
                f"{where}: routes[{number}].gw = {route.gw!r}: of another IP version than {route.dst}",
                "give a gateway of the same",
            )
    return Answer(result=found, extra=document.get("extra"))
