"""A process with the address service and clients: URL NAME CLIENTS TIMES; it prints what was acknowledged."""

from __future__ import annotations

import asyncio
import os
import sys

from sriov_fast.ipamd.model import Ask
from sriov_fast.ipamd.service import Service, open_service

HOST = "10.9.0.1"


def say(*words: str) -> None:
    """Print one line with one write: what a kill leaves is whole lines, but perhaps the last."""
    os.write(1, (" ".join(words) + "\n").encode())


async def client(service: Service, name: str, times: int) -> None:
    """Take an address each time, and give every other one back."""
    for turn in range(times):
        container = f"{name}-{turn}"
        allocation, _ = await service.allocate(
            Ask(network="n", container_id=container, ifname="eth0", pod_id=f"ns/{container}", host_ip=HOST)
        )
        say("took", container, allocation.ips[0].address)
        if turn % 2:
            say("freeing", container)
            assert await service.release(("n", container, "eth0"), HOST)
            say("freed", container)


async def main(url: str, name: str, clients: str, times: str) -> None:
    service = await open_service(url)
    await asyncio.gather(*(client(service, f"{name}{at}", int(times)) for at in range(int(clients))))
    await service.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
