"""txipam as an executable: environment and stdin, JSON on stdout, and the exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from txipam_service import AUTHORITY, FakeService, Reply, problem

import sriov_fast
from sriov_fast.cni import config

SOURCE = str(Path(sriov_fast.__file__).parents[1])
PROGRAM = f"import sys; sys.path[:0] = [{SOURCE!r}]; from sriov_fast.ipam.txipam_main import main; main()"
SEED_ARGS = "IgnoreUnknown=1;PodID=1234;HostIP=10.55.206.20;CORES=1,2,3,4"
HTTPS = {"email.parser", "http.client", "re", "socket", "ssl", "threading"}
HEAVY = {
    *("argparse", "asyncio", "dataclasses", "hashlib", "inspect", "json", "logging", "orjson"),
    *("pyroute2", "shutil", "subprocess", "tempfile", "traceback", "typing", "urllib.request", "uuid"),
}

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FakeService]:
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with closing(FakeService()) as made:
        yield made


@pytest.fixture
def run(service: FakeService, tmp_path: Path) -> Run:
    def execute(
        verb: str, args: str = SEED_ARGS, program: str = PROGRAM, allowed: bool = True, **conf: Any
    ) -> subprocess.CompletedProcess[bytes]:
        ipam = {"type": "txipam", "remote": service.url, "ca": str(tmp_path / "ca.pem")}
        document = {"name": "mynet", "type": "sriov", "master": "eth1", "ipam": ipam} | conf
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": "1234",
            "CNI_NETNS": "/var/run/netns/1234",
            "CNI_IFNAME": "eth1",
            "CNI_ARGS": args,
            "CNI_PATH": "/opt/cni/bin",
            "SRIOV_FAST_RUN": str(tmp_path / "run"),
            "SRIOV_FAST_STATE": str(tmp_path / "state"),
            "SRIOV_FAST_ETC": os.environ["SRIOV_FAST_ETC"] if allowed else "",
        }
        return subprocess.run(
            [sys.executable, "-I", "-S", "-X", "utf8", "-c", program],
            input=json.dumps(document).encode(),
            env={key: value for key, value in environ.items() if value},
            capture_output=True,
            check=False,
            timeout=60,
        )

    return execute


def answer(done: subprocess.CompletedProcess[bytes]) -> Any:
    assert done.returncode == 0, done
    return json.loads(done.stdout) if done.stdout else None


def error(done: subprocess.CompletedProcess[bytes]) -> Any:
    assert done.returncode == 1, done
    found = json.loads(done.stdout)
    assert {"cniVersion", "code", "msg"} <= set(found) <= {"cniVersion", "code", "msg", "details"}
    return found


def test_the_first_readme(run: Run, service: FakeService, tmp_path: Path) -> None:
    wanted = {"ip4": {"ip": "10.55.206.46/26", "gateway": "10.55.206.1"}, "dns": {}}
    assert answer(run("ADD")) == wanted
    assert [path.name for path in tmp_path.glob("run/leases/mynet/*")] == ["1234~eth1"]
    done = run("DEL", "PodID=1234;HostIP=10.55.206.20")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert service.methods() == ["POST", "DELETE"]
    assert service.allocations == {}


@pytest.mark.parametrize("version", config.VERSIONS)
def test_every_version(run: Run, service: FakeService, version: str) -> None:
    service.more = {"extra": {"vf": 3}}
    found = answer(run("ADD", cniVersion=version))
    assert found.pop("cniVersion") == version
    assert found.pop("extra") == {"vf": 3}
    assert found.pop("dns") == {}
    gateway = {"gateway": "10.55.206.1"}
    tag = {} if version[0] == "1" else {"version": "4"}
    if version < "0.3":
        assert found == {"ip4": {"ip": "10.55.206.46/26"} | gateway}
    else:
        assert found == {"ips": [tag | {"address": "10.55.206.46/26"} | gateway]}


@pytest.mark.parametrize("version", [None, *config.VERSIONS])
def test_verbs_are_there_since_their_versions(run: Run, version: str | None) -> None:
    declared = {"cniVersion": version} if version else {}
    known = (version or "0.1.0") >= "0.4.0"
    found = answer(run("ADD", cniVersion="1.1.0"))
    done = run("CHECK", prevResult=found, **declared)
    assert known == (done.returncode == 0), done
    more = {"cni.dev/valid-attachments": [{"containerID": "1234", "ifname": "eth1"}]}
    for verb in ("STATUS", "GC"):
        done = run(verb, **declared, **more)
        assert (version == "1.1.0") == (done.returncode == 0), done
        assert version == "1.1.0" or error(done)["code"] == 1


def test_versions(run: Run) -> None:
    found = answer(run("VERSION", cniVersion="0.4.0"))
    assert found == {"cniVersion": "0.4.0", "supportedVersions": list(config.VERSIONS)}


@pytest.mark.parametrize(
    ("verb", "args", "conf", "code", "words"),
    [
        ("ADD", "PodID=1;HostIP=x", {}, 7, 'HostIP = "x"'),
        ("ADD", "PodID=1;HostIP=10.0.0.1;COLOUR=red", {}, 4, "unknown key 'COLOUR'"),
        ("ADD", "PodID", {}, 4, "not KEY=value"),
        ("add", SEED_ARGS, {}, 4, "CNI_COMMAND='add'"),
        ("ADD", SEED_ARGS, {"cniVersion": "2.0.0"}, 1, "2.0.0"),
        ("ADD", SEED_ARGS, {"cniVersion": 3}, 6, "cniVersion"),
        ("ADD", SEED_ARGS, {"ipam": []}, 7, "ipam = []"),
        ("ADD", SEED_ARGS, {"ipam": None}, 7, "ipam.remote is missing"),
        ("ADD", SEED_ARGS, {"name": "a b"}, 7, 'name = "a b"'),
    ],
)
def test_what_is_refused_before_the_service_is_asked(
    run: Run, service: FakeService, verb: str, args: str, conf: dict[str, Any], code: int, words: str
) -> None:
    found = error(run(verb, args, **{"cniVersion": "1.0.0"} | conf))
    assert (found["code"], words in found["msg"]) == (code, True), found
    assert found["cniVersion"] == "1.0.0" or "cniVersion" in conf
    assert service.seen == []


def test_errors_are_cni_errors(run: Run, service: FakeService) -> None:
    service.always = problem(409, "exhausted", "pool a has no free address")
    found = error(run("ADD"))
    assert (found["code"], found["cniVersion"]) == (11, "0.1.0")
    assert "pool a has no free address" in found["msg"]
    assert service.url in found["msg"]
    service.always = Reply(500)
    assert error(run("STATUS", cniVersion="1.1.0"))["code"] == 50


def test_a_result_that_nobody_takes(run: Run, service: FakeService) -> None:
    closed = PROGRAM.replace(
        "import sys;", "import os, sys; r, w = os.pipe(); os.dup2(w, 1); os.close(r); os.close(w);"
    )
    done = run("ADD", program=closed)
    assert done.returncode == 1
    assert b"stdout: Broken pipe" in done.stderr
    assert (service.given, service.allocations) == (1, {})


def test_imports(run: Run, tmp_path: Path) -> None:
    """Only verbs that use HTTPS import its modules, and none imports a heavy one: imports are latency."""
    show = "import os; os._exit = lambda status: print(*sys.modules, file=sys.stderr); main()"
    # Allow the CA file without a file of rules, which would need more imports.
    allow = f"from sriov_fast.common import files; files.DEFAULTS['ca'] = ({str(tmp_path)!r},); "
    program = PROGRAM.replace("main()", allow + show)
    for verb in ("ADD", "DEL"):
        done = run(verb, program=program, allowed=False)
        modules = set(done.stderr.decode().split())
        assert modules >= HTTPS, done
        assert not HEAVY & modules
    modules = set(run("VERSION", program=program).stderr.decode().split())
    assert not (HEAVY | HTTPS) & modules


@pytest.mark.parametrize("used", [False, True])
def test_the_server_imports_https_only_if_the_node_uses_txipam(tmp_path: Path, used: bool) -> None:
    if used:
        (tmp_path / "hosts").mkdir()
    program = (
        f"import sys; sys.path[:0] = [{SOURCE!r}]; from sriov_fast.server import threads; "
        "threads.warm_up(sys.argv[1]); print('sriov_fast.ipam.txipam.plugin' in sys.modules)"
    )
    argv = [sys.executable, "-c", program, str(tmp_path)]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == f"{used}\n"
