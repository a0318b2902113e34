"""What the protocol imports is the latency of every pod: a fresh process must not pay for heavy modules."""

import subprocess
import sys
from pathlib import Path

import sriov_fast

SRC = str(Path(sriov_fast.__file__).parent.parent)
HEAVY = {
    *("argparse", "asyncio", "collections", "contextlib", "dataclasses", "datetime", "enum", "functools"),
    *("inspect", "ipaddress", "json", "logging", "orjson", "pathlib", "pyroute2", "re", "selectors", "site"),
    *("socket", "subprocess", "threading", "traceback", "typing", "uuid"),
}
# The protocol's part of a whole ADD.
PROGRAM = f"""
import sys
sys.path.insert(0, {SRC!r})
from sriov_fast.common import cni_args, json, log
from sriov_fast.cni import config, response, request, result
environ = {{
    "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "a", "CNI_NETNS": "/run/netns/a", "CNI_IFNAME": "eth1",
    "CNI_ARGS": "IgnoreUnknown=1;CORES=1,2;MAC=02:00:00:00:00:01", "CNI_PATH": "/opt/cni/bin",
}}
stdin = b'{{"cniVersion":"1.1.0","name":"n","type":"sriov","master":"eth1","ipam":{{"type":"static"}}}}'
conf = config.parse(request.read(environ, stdin))
ipam = {{"ips": [{{"address": "10.0.0.2/24"}}], "routes": [{{"dst": "::/0"}}]}}
found = result.from_json(ipam, conf.version)
conf = config.with_extra(conf, {{"vlan": 5}})
response.success(result.merge(conf.prev_result, found), conf)
response.error(OSError(2, "x", "/y"), conf.version)
response.version_info(stdin)
log.Logger(context={{"containerID": "a"}}).info("done", vf=1)
print(*sorted(sys.modules))
"""


def test_nothing_heavy_is_imported() -> None:
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    assert not HEAVY & set(run.stdout.split())
    assert "sriov_fast.cni.response" in run.stdout.split()
    assert run.stderr.count("\n") == 1  # the log line


def test_lower_layers_are_not_imported() -> None:
    """No NIC here: neither the backend nor the domain is imported by the protocol."""
    program = f"import sys; sys.path.insert(0, {SRC!r}); import sriov_fast.cni.response; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True
    )
    ours = {name for name in run.stdout.split() if name.startswith("sriov_fast.")}
    assert {name.split(".")[1] for name in ours} == {"cni", "common"}
