"""The built-in host-local and static compared with the originals: equal replies, one store for both."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sriov_fast
from sriov_fast.cni import result
from sriov_fast.common.errors import SriovError
from sriov_fast.ipam.host_local.plugin import HostLocal
from sriov_fast.ipam.keys import Keys
from sriov_fast.ipam.static import Static

WHERE = next((path for path in ("/usr/lib/cni", "/opt/cni/bin") if os.path.exists(f"{path}/host-local")), "")
pytestmark = pytest.mark.skipif(not WHERE, reason="needs the real host-local: containernetworking-plugins")

SOURCE = str(Path(sriov_fast.__file__).parent.parent)
Answer = dict[str, Any] | None
Verb = Callable[..., Answer]


class RefusedError(Exception):
    """The plugin replied with an error."""


def environment(verb: str, pod: str, args: str) -> dict[str, str]:
    return {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": pod,
        "CNI_NETNS": "/var/run/netns/none",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": args,
        "CNI_PATH": WHERE,
    }


def real(verb: str, pod: str, conf: dict[str, Any], args: str = "") -> Answer:
    """Execute the plugin of containernetworking."""
    done = subprocess.run(
        [f"{WHERE}/{conf['ipam']['type']}"],
        input=json.dumps(conf).encode(),
        env=environment(verb, pod, args),
        capture_output=True,
        check=False,
        timeout=60,
    )
    document = json.loads(done.stdout) if done.stdout.strip() else None
    if done.returncode:
        raise RefusedError(document)
    return document


def ours(verb: str, pod: str, conf: dict[str, Any], args: str = "") -> Answer:
    """Run the built-in plugin; convert its result to the version's form, as the main plugin does."""
    kind = Static if conf["ipam"]["type"] == "static" else HostLocal
    try:
        answer = kind(keys=Keys(conf), container_id=pod, ifname="eth0", args=args).run(verb, 10.0)
    except SriovError as error:
        raise RefusedError(error.msg) from error
    version = conf["cniVersion"]
    return answer and result.to_json(result.from_json(answer, version), version)


def network(data: Path, ipam: dict[str, Any], version: str = "1.0.0", **more: Any) -> dict[str, Any]:
    ipam = {"type": "host-local", "dataDir": str(data)} | ipam
    return {"cniVersion": version, "name": "n", "type": "sriov", "ipam": ipam} | more


def outcome(serve: Verb, *call: Any) -> object:
    """Return a call's outcome without the texts of errors, which may differ."""
    try:
        answer = serve(*call)
    except RefusedError:
        return "refused"
    if answer is not None:
        answer.setdefault("dns", {})
    return answer


def files(data: Path) -> dict[str, str]:
    store = data / "n"
    return {path.name: path.read_bytes().decode() for path in store.iterdir()} if store.exists() else {}


# --- equal replies

V4, V6 = {"subnet": "10.1.2.0/29"}, {"subnet": "fd00::/124"}
HOST_LOCAL: list[dict[str, Any]] = [
    V4,
    V6,
    V4 | {"rangeStart": "10.1.2.3", "rangeEnd": "10.1.2.4", "gateway": "10.1.2.4"},
    V4 | {"rangeStart": "10.1.2.0", "rangeEnd": "10.1.2.7"},
    V4 | {"rangeStart": "", "gateway": ""},
    V4 | {"gateway": "192.0.2.1"},
    V4 | {"rangeStart": "::ffff:10.1.2.3"},
    {"ranges": [[V4], [V6]]},
    V6 | {"ranges": [[V4]]},
    {"ranges": [[V4, {"subnet": "10.1.3.0/30"}]]},
    {"ranges": [[V4], [{"subnet": "10.1.3.0/30"}]]},
    {"rangeStart": "10.9.9.9", "ranges": [[V4]]},
    V4 | {"routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.5/8", "gw": "10.1.2.6"}]},
    V4 | {"routes": [{"dst": "::/0", "gw": "fd00::1"}]},
    V4 | {"resolvConf": "RESOLV"},
    V4 | {"resolvConf": "/nowhere"},
    {},
    {"ranges": []},
    {"ranges": [[]]},
    {"ranges": [[{}]]},
    {"ranges": [V4]},
    {"subnet": "10.1.2.0"},
    {"subnet": "10.1.2.1/29"},
    {"subnet": "10.1.2.0/31"},
    {"subnet": "fd00::/127"},
    V4 | {"gateway": "x"},
    V4 | {"rangeStart": "10.1.2.9"},
    V4 | {"rangeEnd": "10.1.1.9"},
    V4 | {"rangeStart": "10.1.2.5", "rangeEnd": "10.1.2.4"},
    {"ranges": [[V4, V6]]},
    {"ranges": [[V4, V4]]},
    {"ranges": [[V4], [{"subnet": "10.1.0.0/16"}]]},
    V4 | {"routes": [{"dst": "x"}]},
]
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("IP=10.1.2.4", {}),
    ("IgnoreUnknown=1;K8S_POD_NAME=a;IP=10.1.2.4/29", {}),
    ("IP=", {}),
    ("IP=10.1.2.1", {}),
    ("IP=10.9.9.9", {}),
    ("IP=x", {}),
    ("", {"args": {"cni": {"ips": ["10.1.2.5"]}}}),
    ("", {"runtimeConfig": {"ips": ["10.1.2.5/24", "fd00::7"]}}),
    ("IP=10.1.2.4", {"runtimeConfig": {"ips": ["10.1.2.4"]}}),
    ("IP=10.1.2.4", {"runtimeConfig": {"ips": ["10.1.2.5"]}}),
    ("", {"runtimeConfig": {"ips": [""]}}),
    ("", {"runtimeConfig": {"ipRanges": [[{"subnet": "10.7.0.0/24"}]]}}),
]


@pytest.mark.parametrize("ipam", HOST_LOCAL, ids=json.dumps)
def test_host_local_answers_the_same(tmp_path: Path, ipam: dict[str, Any]) -> None:
    """Replies and stores are equal for each configuration with every version and every request."""
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 10.0.0.1\nsearch a b\noptions ndots:5\n# nameserver x\ndomain d\n")
    ipam = {key: str(resolv) if value == "RESOLV" else value for key, value in ipam.items()}
    cases = [(version, *REQUESTS[0]) for version in ("0.1.0", "0.2.0", "0.3.1", "0.4.0")]
    for number, (version, args, more) in enumerate(cases + [("1.0.0", *request) for request in REQUESTS]):
        here, theirs = tmp_path / f"ours{number}", tmp_path / f"theirs{number}"
        for pod in ("a", "b", "a"):
            mine = outcome(ours, "ADD", pod, network(here, ipam, version, **more), args)
            wanted = outcome(real, "ADD", pod, network(theirs, ipam, version, **more), args)
            assert mine == wanted, (version, args, more)
        assert without_pointers(here) == without_pointers(theirs)


def without_pointers(data: Path) -> dict[str, str]:
    """Return the leases in the store, by address.

    The pointers differ after a failure: the original allocates an address and releases it.
    """
    return {name: text for name, text in files(data).items() if name[0] in "0123456789abcdef:"}


A4, A6 = {"address": "10.1.0.5/24", "gateway": "10.1.0.254"}, {"address": "fd00::5/64"}
STATIC: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"addresses": [A4, A6]}, "", {}),
    ({"addresses": [A4, A6], "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.0.0.1"]}}, "", {}),
    ({"addresses": [A4]}, "IP=10.2.0.1/24", {}),
    ({"addresses": [A4]}, "IP=10.2.0.1/24,fd02::1/64;GATEWAY=10.2.0.9,fd02::9", {}),
    ({"addresses": [A4]}, "IP=10.2.0.1/24;GATEWAY=10.2.0.9,10.2.0.8", {}),
    ({"addresses": [{"address": "10.1.0.5/24"}]}, "GATEWAY=10.1.0.1", {}),
    ({"addresses": [A4]}, "IP=10.2.0.1", {}),
    ({"addresses": [A4]}, "IP=10.2.0.1/24;GATEWAY=x", {}),
    ({"addresses": [A4]}, "IP=10.2.0.1/24", {"args": {"cni": {"ips": ["10.3.0.1/24"]}}}),
    ({"addresses": [A4]}, "", {"args": {"cni": {"ips": ["x"]}}}),
    ({"addresses": [A4]}, "", {"runtimeConfig": {"ips": ["10.4.0.1/24", "fd04::1/64"]}}),
    ({"addresses": [A4]}, "", {"runtimeConfig": {"ips": ["10.4.0.1"]}}),
    ({"addresses": [{"address": "10.1.0.5"}]}, "", {}),
    ({"addresses": [A4 | {"gateway": "x"}]}, "", {}),
    ({"addresses": [A4, {"address": "10.1.0.6/24"}]}, "", {}),
]


@pytest.mark.parametrize(("ipam", "args", "more"), STATIC)
@pytest.mark.parametrize("version", ["0.2.0", "0.3.1", "0.4.0", "1.0.0"])
def test_static_answers_the_same(
    tmp_path: Path, version: str, ipam: dict[str, Any], args: str, more: dict[str, Any]
) -> None:
    conf = network(tmp_path, {"type": "static"} | ipam, version, **more)
    wanted = outcome(real, "ADD", "a", conf, args)
    assert outcome(ours, "ADD", "a", conf, args) == wanted


@pytest.mark.parametrize("gateway", [{}, {"gateway": "10.1.0.1"}, {"gateway": None}])
@pytest.mark.parametrize("address", ["10.1.0.5/24", "10.1.0.9/24"])
def test_static_checks_the_same(tmp_path: Path, address: str, gateway: dict[str, Any]) -> None:
    previous = {"cniVersion": "1.0.0", "ips": [A4 | {"address": address} | gateway]}
    conf = network(tmp_path, {"type": "static", "addresses": [A4, A6]}, prevResult=previous)
    assert outcome(ours, "CHECK", "a", conf) == outcome(real, "CHECK", "a", conf)


# --- equal order, separately and alternating

SETS = [
    [[{"subnet": "10.1.2.0/29"}]],
    [[{"subnet": "10.1.2.0/30"}, {"subnet": "10.1.3.0/29", "gateway": "10.1.3.3"}]],
    [[{"subnet": "10.1.2.0/28"}], [{"subnet": "fd00::/125"}, {"subnet": "fd00:1::/126"}]],
]
SEQUENCES = st.lists(
    st.tuples(st.sampled_from(["ADD", "ADD", "DEL", "CHECK", "wish"]), st.integers(0, 7), st.integers(1, 6)),
    max_size=14,
)
SLOW = settings(suppress_health_check=list(HealthCheck))


def played(
    serve: Callable[[], Verb], data: Path, sets: list[Any], sequence: list[tuple[str, int, int]]
) -> list[object]:
    """Execute a sequence of calls; return the outcome and the store's leases after each."""
    seen = []
    for verb, pod, octet in sequence:
        args = f"IP=10.1.2.{octet}" if verb == "wish" else ""
        if octet > 2 and "/30" in sets[0][0]["subnet"] and args:
            continue  # in no range: the original moves its pointer before it refuses
        conf = network(data, {"ranges": sets})
        came = outcome(serve(), "ADD" if verb == "wish" else verb, f"pod{pod}", conf, args)
        if came == "refused" and verb != "CHECK" and len(sets) > 1:
            return [*seen, came]  # the original has moved a pointer, or released all of the pod's addresses
        seen.append((came, without_pointers(data)))
    return seen


@SLOW
@given(st.sampled_from(SETS), SEQUENCES, st.randoms(use_true_random=False))
def test_the_same_order_when_both_take_turns(
    tmp_path_factory: pytest.TempPathFactory,
    sets: list[Any],
    sequence: list[tuple[str, int, int]],
    dice: random.Random,
) -> None:
    """A sequence of calls on one store has the same outcomes with alternating plugins."""
    root = tmp_path_factory.mktemp("n")
    mixed = played(lambda: dice.choice([ours, real]), root / "mixed", sets, sequence)
    assert mixed == played(lambda: real, root / "theirs", sets, sequence)


# --- concurrently

WORKER = f"""
import json, sys
sys.path.insert(0, {SOURCE!r})
from sriov_fast.ipam.host_local.plugin import HostLocal
from sriov_fast.ipam.keys import Keys
conf, pod = json.loads(sys.argv[1]), sys.argv[2]
sys.stdin.read(1)
for turn in range(int(sys.argv[3])):
    ipam = HostLocal(keys=Keys(conf), container_id=f"{{pod}}-{{turn}}", ifname="eth0")
    print(f"{{pod}}-{{turn}}", *(item["address"] for item in ipam.run("ADD")["ips"]), flush=True)
    if turn % 2:
        ipam.run("DEL")
"""
SHELL = """
read -r start
for turn in $(seq 0 $((TURNS - 1))); do
    export CNI_CONTAINERID=$POD-$turn
    export CNI_COMMAND=ADD
    answer=$(printf %s "$CONF" | "$PLUGIN") || exit 1
    echo "$CNI_CONTAINERID" $(printf %s "$answer" | grep -o '"address": "[^"]*"' | cut -d'"' -f4)
    [ $((turn % 2)) = 0 ] || printf %s "$CONF" | CNI_COMMAND=DEL "$PLUGIN" || exit 1
done
"""
WORKERS, TURNS = 6, 12


def our_worker(conf: dict[str, Any], pod: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-I", "-S", "-c", WORKER, json.dumps(conf), pod, str(TURNS)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def real_worker(conf: dict[str, Any], pod: str) -> subprocess.Popen[str]:
    more = {"POD": pod, "TURNS": str(TURNS), "CONF": json.dumps(conf), "PLUGIN": f"{WHERE}/host-local"}
    env = dict(os.environ) | environment("ADD", pod, "") | more
    return subprocess.Popen(
        ["sh", "-c", SHELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )


def test_both_at_once(tmp_path: Path) -> None:
    """Concurrent processes of both plugins on one range allocate no address twice, and lose none."""
    # the range has just enough addresses: a lost one would fail an ADD
    most = 2 * WORKERS * (TURNS // 2 + 1)
    last = f"10.1.0.{most + 1}"
    sets = [[{"subnet": "10.1.0.0/24", "rangeEnd": last}], [{"subnet": "fd00::/64"}]]
    conf = network(tmp_path / "data", {"ranges": sets})
    workers = [our_worker(conf, f"ours{number}") for number in range(WORKERS)]
    workers += [real_worker(conf, f"real{number}") for number in range(WORKERS)]
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("\n")
        worker.stdin.flush()
    lines = "".join(worker.communicate(timeout=120)[0] for worker in workers).splitlines()
    assert [worker.returncode for worker in workers] == [0] * len(workers)
    assert len(lines) == 2 * WORKERS * TURNS

    given = {pod: [cidr.partition("/")[0] for cidr in cidrs] for pod, *cidrs in map(str.split, lines)}
    stays = {pod: addresses for pod, addresses in given.items() if int(pod.rpartition("-")[2]) % 2 == 0}
    wanted = {address: f"{pod}\r\neth0" for pod, addresses in stays.items() for address in addresses}
    assert len(wanted) == 2 * len(stays)  # no address twice, both families
    assert without_pointers(tmp_path / "data") == wanted  # no address lost, no address left behind
    assert not (tmp_path / "data/n/sriov-fast.new").exists()

    for number, pod in enumerate(stays):
        (ours, real)[number % 2]("DEL", pod, conf)
    assert without_pointers(tmp_path / "data") == {}
