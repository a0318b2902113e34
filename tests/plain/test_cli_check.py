"""``sriov-fast check``: configurations, lists and NetworkAttachmentDefinitions."""

import json
from pathlib import Path
from typing import Any

import pytest

from sriov_fast import cli
from sriov_fast.cli import check
from sriov_fast.cni import config

CONF = {"cniVersion": "1.0.0", "name": "net", "type": "sriov", "master": "eth1"}
NAD = """\
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata:
  name: red
  namespace: default
  annotations:
    k8s.v1.cni.cncf.io/resourceName: openshift.io/red
spec:
  config: '{config}'
"""
OPERATOR = '{"cniVersion":"1.0.0","name":"red","type":"sriov","vlan":0,"vlanQoS":0,"ipam":{}}'


def said(tmp_path: Path, content: object, capsys: Any) -> tuple[int, str]:
    """Return exit status and output of the command for a file."""
    path = tmp_path / "file"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    status = cli.main(["check", str(path)])
    return status, capsys.readouterr().out


def test_a_configuration(tmp_path: Path, capsys: Any) -> None:
    more = {"capabilities": {"mac": True, "CNIDeviceInfoFile": True, "portMappings": True}}
    status, text = said(tmp_path, CONF | more | {"VLAN": 100, "trust": "on", "colour": "red"}, capsys)
    assert status == 0
    assert "OK    capabilities: the runtime may set mac, CNIDeviceInfoFile for each pod\n" in text
    assert "OK    vlan: the PF tags the VF's traffic with VLAN 100\n" in text
    assert "OK    master: a VF of eth1\n" in text
    assert "WARN  colour: unknown key, is ignored\n" in text


def test_json(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "file"
    path.write_text(json.dumps(CONF | {"vlan": 5000}))
    assert cli.main(["check", "--json", str(path)]) == 1
    lines = json.loads(capsys.readouterr().out)[str(path)]
    assert {"level": "OK", "key": "master", "text": "a VF of eth1"} in lines
    assert [line["key"] for line in lines if line["level"] == "FAIL"] == ["vlan = 5000: not from 0 to 4094"]


def test_every_fault_is_named(tmp_path: Path, capsys: Any) -> None:
    wrong = {"vlan": 5000, "spoofchk": "yes", "ipam": {"type": "host-local", "subnet": "10.0.0.0/33"}}
    status, text = said(tmp_path, CONF | wrong, capsys)
    assert status == 1
    assert "FAIL  vlan = 5000: not from 0 to 4094: give a whole number from 0 to 4094\n" in text
    assert "FAIL  spoofchk = " in text
    assert "FAIL  ipam.subnet = " in text
    assert "OK    vlan" not in text


def test_a_list(tmp_path: Path, capsys: Any) -> None:
    plugins = [{"type": "sriov", "deviceID": "0000:03:10.1"}, {"type": "tuning", "mtu": "x"}]
    status, text = said(tmp_path, {"cniVersion": "1.0.0", "name": "net", "plugins": plugins}, capsys)
    assert status == 0
    assert "file: plugins[0]\n" in text
    assert "plugins[1]" not in text


def test_definitions_of_the_operator(tmp_path: Path, capsys: Any) -> None:
    """The name is that of the object if the configuration has none, and the VF is the device plugin's."""
    nameless = NAD.format(config='{"type": "sriov", "vlan": 7, "vlanQoS": 9}')
    other = "apiVersion: v1\nkind: ConfigMap\ndata: {}\n"
    status, text = said(tmp_path, "---\n".join([NAD.format(config=OPERATOR), other, nameless]), capsys)
    assert status == 1
    assert text.count("NetworkAttachmentDefinition default/red\n") == 2
    assert text.count("OK    deviceID: the VF that the device plugin allocates for the pod\n") == 2
    assert text.count("FAIL") == 1
    assert "FAIL  vlanQoS = 9" in text


def test_a_list_of_definitions_as_json(tmp_path: Path, capsys: Any) -> None:
    item = {"kind": "NetworkAttachmentDefinition", "metadata": {"name": "a"}, "spec": {"config": OPERATOR}}
    status, text = said(tmp_path, {"kind": "List", "items": [item, item]}, capsys)
    assert (status, text.count("FAIL  master is missing")) == (1, 2)  # no resource: who names the VF?


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be decoded"),
        ("a: [", "cannot be decoded"),
        ("", "cannot be decoded"),
        ('{"type": "bridge", "name": "x"}', 'no network of type "sriov"'),
        (NAD.format(config=""), "no spec.config"),
        (NAD.format(config="[]"), "no JSON object"),
        (NAD.format(config="{"), "cannot be decoded"),
        ('{"cniVersion": "9", "type": "sriov"}', 'cniVersion = "9"'),
        ('{"name": "a", "name": "b"}', "twice"),
        ("- a\n- b\n", "no network"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, capsys: Any, content: str, words: str) -> None:
    status, text = said(tmp_path, content, capsys)
    assert status == 1
    assert words in text
    assert "FAIL" in text


def test_a_file_that_is_not_there(capsys: Any) -> None:
    assert cli.main(["check", "/nonexistent/file"]) == 1
    assert "FAIL  /nonexistent/file: No such file or directory" in capsys.readouterr().out


def test_every_key_has_words() -> None:
    assert set(check.EFFECTS) >= set(config.KEYS) - {"prevResult"}
