"""The number of netlink requests on a real card, with all settings that need a request."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.card import Card, Node
from harness.netlink_sends import count, wrap
from harness.server import needs_strace

MOST = {"ADD": 7, "DEL": 8}


@pytest.mark.modes("process")
@needs_strace
def test_requests_with_mac_vlan_and_cores(node: Node, card: Card, tmp_path: Path) -> None:
    """The limits include the requests of the child process that announces the addresses."""
    ipam = {
        "type": "static",
        "addresses": [{"address": "10.99.7.2/24"}],
        "routes": [{"dst": "10.98.0.0/16"}],
    }
    conf, pod = node.conf(vlan=100, mac="02:00:00:00:5f:10", cores="0", ipam=ipam), node.pod()
    for verb, most in MOST.items():
        output = tmp_path / verb
        done = node.run(verb, conf, pod, wrap=wrap(output), env={"SRIOV_FAST_BACKEND": "cython"})
        assert done.status == 0, done
        lines = [line[:300] for line in output.read_text().splitlines() if "send" in line]
        assert 0 < sum(process.requests for process in count(output)) <= most, f"{verb}: {lines}"
