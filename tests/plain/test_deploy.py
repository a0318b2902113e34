"""Manifests, examples and monitoring in deploy/, verified by the programs that read them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ipamd_kit import free_port

from harness.sysfs_tree import build_tree
from harness.waiting import wait_for
from sriov_fast.cli import main
from sriov_fast.common.paths import Roots
from sriov_fast.common.trace import Steps
from sriov_fast.server.counts import Counts
from sriov_fast.server.exposition import Endpoint
from sriov_fast.server.metrics import Metrics

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
VERSIONS = ("1.34", "1.37")
EXAMPLES = sorted((DEPLOY / "examples").glob("*.yaml"))
DASHBOARD = json.loads((DEPLOY / "monitoring/dashboard.json").read_text())
CUSTOM = {"NetworkAttachmentDefinition"}  # kinds without a schema in Kubernetes
# The text that identifies each mode in the configurations of the examples.
MODES = (
    *(
        '"attach": "macvlan"',
        '"pfOnly": true',
        '"rdma": true',
        '"cores": "pod"',
        '"master": [',
        '"plugins": [',
    ),
    *('"type": "host-local"', '"type": "static"', '"type": "txipam"'),
    '"capabilities": {"mac": true, "ips": true',
)


def run(*words: object, stdin: str = "") -> str:
    done = subprocess.run(
        [str(word) for word in words], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    """Return the documents of the kustomize base."""
    assert shutil.which("kubectl"), "needs kubectl (Debian's kubernetes-client)"
    return list(yaml.safe_load_all(run("kubectl", "kustomize", DEPLOY / "base")))


@pytest.fixture(scope="module")
def daemonset(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return next(each for each in manifests if each["kind"] == "DaemonSet")


# --- manifests


@pytest.mark.parametrize("version", VERSIONS)
def test_the_base_is_valid(manifests: list[dict[str, Any]], version: str) -> None:
    assert [each["kind"] for each in manifests] == ["Namespace", "DaemonSet"]
    for each in manifests:
        kubernetes_validate.validate(each, version, strict=True)


def test_the_daemonset_has_few_rights(daemonset: dict[str, Any]) -> None:
    pod = daemonset["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    rights = container["securityContext"]
    assert (pod["hostNetwork"], pod.get("hostPID"), pod.get("hostIPC")) == (True, None, None)
    assert not pod["automountServiceAccountToken"]
    assert (rights["privileged"], rights["readOnlyRootFilesystem"]) == (False, True)
    assert rights["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW", "SYS_ADMIN"]}
    writable = {each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")}
    state = {"/var/lib/cni", "/run/sriov-fast", "/var/lib/sriov-fast", "/var/run/k8s.cni.cncf.io"}
    assert writable == {"/host/opt/cni/bin", "/host/proc", *state}


def test_every_mount_has_its_volume(daemonset: dict[str, Any]) -> None:
    pod = daemonset["spec"]["template"]["spec"]
    mounted = {each["name"] for each in pod["containers"][0]["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}


# --- examples


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_valid(path: Path) -> None:
    for each in documents(path):
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_check_finds_no_fault_in_an_example(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each definition is for this plugin, names a VF or PF, and has no unknown key."""
    definitions = [each for each in documents(path) if each["kind"] in CUSTOM]
    assert main(["check", "--json", str(path)]) == 0
    (lines,) = json.loads(capsys.readouterr().out).values()
    assert {line["level"] for line in lines} == {"", "OK"}, lines
    assert sum(not line["level"] for line in lines) == len(definitions) > 0


def test_every_mode_has_an_example() -> None:
    configs = [
        each["spec"]["config"] for path in EXAMPLES for each in documents(path) if each["kind"] in CUSTOM
    ]
    assert [mode for mode in MODES if not any(mode in config for config in configs)] == []
    whole = "".join(path.read_text() for path in EXAMPLES)
    for resource in (
        "resourceName: example.com/sriov_nic",
        "resourceName: example.com/sriov_vfio",
        "VfConfig",
    ):
        assert resource in whole


# --- the entry point


def node(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sriov_fast.cli", "node", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_init_mode_of_the_operator(tmp_path: Path) -> None:
    """The init mode replaces another plugin by the client, also twice, and leaves no temporary file."""
    (tmp_path / "sriov").write_text("another plugin")
    for _ in range(2):
        done = node("--no-sleep", f"--cni-bin-dir={tmp_path}")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "sriov").read_bytes()[:4] == b"\x7fELF"
    assert (tmp_path / "sriov").stat().st_mode & 0o777 == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["sriov"]


def test_another_file_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "other").write_text("#!/bin/sh\n")
    done = node("--no-sleep", f"--cni-bin-dir={tmp_path}/bin", f"--sriov-bin-file={tmp_path}/other")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bin/other").read_text() == "#!/bin/sh\n"


@pytest.mark.parametrize("option", ["--cni-bin-dir", "--sriov-bin-file"])
def test_a_path_that_does_not_exist(tmp_path: Path, option: str) -> None:
    done = node("--no-sleep", f"--cni-bin-dir={tmp_path}", f"{option}=/does/not/exist")
    assert done.returncode == 1
    assert "/does/not/exist does not exist" in done.stderr


# --- monitoring


@pytest.fixture
def target(tmp_path: Path) -> Iterator[str]:
    """The address of an HTTP server with the metrics of a node that has VFs and has served some requests."""
    tree = build_tree(tmp_path / "tree", pf="pf0", vfs=4, numa=0)
    roots = Roots(sys=str(tree.sys), proc=str(tree.proc), run=str(tmp_path / "run"))
    counts = Counts()
    metrics = Metrics(roots, counts, lambda: 0, vf_counters=True)
    for verb in ("ADD", "ADD", "DEL"):
        steps = Steps("", "resident", time.monotonic_ns() - 20_000_000)
        steps.done("move", "kernel")
        counts.served(verb, 0, b"", steps)
    counts.served("ADD", 1, b'{"code": 11}', Steps("", "resident"))
    with closing(Endpoint("127.0.0.1:0", metrics)) as endpoint:
        endpoint.start()
        yield "{}:{}".format(*endpoint.address)


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_promtool_takes_the_metrics(target: str) -> None:
    """promtool finds no error and has no lint warning."""
    text = fetch(f"http://{target}/metrics")
    assert 'sriov_fast_requests_total{code="11",verb="ADD"} 1.0' in text
    run("promtool", "check", "metrics", stdin=text)


def test_promtool_takes_the_rules() -> None:
    run("promtool", "check", "rules", DEPLOY / "monitoring/alerts.yaml")


def expressions() -> list[str]:
    """Return every expression of the dashboard and of the rules, with Grafana's variables replaced."""
    rules = yaml.safe_load((DEPLOY / "monitoring/alerts.yaml").read_text())["groups"][0]["rules"]
    shown = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    found = [*shown, *(rule["expr"] for rule in rules)]
    return [each.replace("$instance", ".*").replace("$__rate_interval", "1m") for each in found]


def test_expressions_name_metrics_that_there_are(target: str) -> None:
    text = fetch(f"http://{target}/metrics")
    there = set(re.findall(r"^(?:# TYPE )?([a-z_]+)", text, re.MULTILINE)) | {"sriov_fast_step_seconds_sum"}
    named = set(re.findall(r"\bsriov_fast_[a-z_]+", " ".join(expressions())))
    assert named <= there, named - there


def test_prometheus_scrapes_and_evaluates(target: str, tmp_path: Path) -> None:
    """A Prometheus process scrapes the samples, and evaluates the rules and the dashboard's expressions."""
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(
        yaml.safe_dump(
            {
                "global": {
                    "scrape_interval": "1s",
                    "scrape_timeout": "1s",
                    "evaluation_interval": "1s",
                },
                "rule_files": [str(DEPLOY / "monitoring/alerts.yaml")],
                "scrape_configs": [{"job_name": "sriov-fast", "static_configs": [{"targets": [target]}]}],
            }
        )
    )
    words = [
        "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        result = wait_for(lambda: query(port, 'sum by (state) (sriov_fast_vfs{pf="pf0"})'), "a scrape")
        assert len(result) == 5, result
        for expression in expressions():
            query(port, expression, check=True)
        rules = json.loads(fetch(f"http://127.0.0.1:{port}/api/v1/rules"))["data"]["groups"][0]["rules"]
        assert {rule["health"] for rule in rules} <= {"ok", "unknown"}, rules
    finally:
        process.terminate()
        process.wait()
        print((tmp_path / "log").read_text())


def query(port: int, expression: str, *, check: bool = False) -> list[Any]:
    words = urllib.parse.urlencode({"query": expression})
    try:
        answer = json.loads(fetch(f"http://127.0.0.1:{port}/api/v1/query?{words}"))
    except OSError:
        if check:
            raise
        return []
    found: list[Any] = answer["data"]["result"]
    return found
