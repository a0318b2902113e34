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
    """Return the exit status and the output of ``sriov-fast check`` for a file with this content."""
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
    status, text = said(tmp_path, [CONF | wrong, CONF | {"ipam": {"type": "txipam", "remote": 3}}], capsys)
    assert status == 1
    assert "FAIL  ipam.remote = 3: not a string" in text
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
    """A configuration without a name has its object's name, and the device plugin chooses the VF."""
    nameless = NAD.format(config='{"type": "sriov", "vlan": 7, "vlanQoS": 9}')
    other = "apiVersion: v1\nkind: ConfigMap\ndata: {}\n"
    status, text = said(tmp_path, "---\n".join([NAD.format(config=OPERATOR), other, nameless]), capsys)
    assert status == 1
    assert text.count("NetworkAttachmentDefinition default/red\n") == 2
    assert text.count("OK    deviceID: the VF that the device plugin allocates for the pod\n") == 2
    assert text.count("FAIL") == 1
    assert "FAIL  vlanQoS = 9" in text


def test_a_master_with_a_device_plugin(tmp_path: Path, capsys: Any) -> None:
    text = said(tmp_path, NAD.format(config=json.dumps(CONF)), capsys)[1]
    assert "OK    master: ignored, since deviceID names the VF\n" in text


def test_a_list_of_definitions_as_json(tmp_path: Path, capsys: Any) -> None:
    item = {"kind": "NetworkAttachmentDefinition", "metadata": {"name": "a"}, "spec": {"config": OPERATOR}}
    status, text = said(tmp_path, {"kind": "List", "items": [item, item]}, capsys)
    assert (status, text.count("FAIL  master is missing")) == (1, 2)  # no resource of a device plugin


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be decoded"),
        ("a: [", "cannot be decoded"),
        ("a: 2026-99-99", "cannot be decoded"),
        ("", "cannot be decoded"),
        ('{"type": "bridge", "name": "x"}', 'no network of type "sriov"'),
        (NAD.format(config=""), "no spec.config"),
        (NAD.format(config="[]"), "no JSON object"),
        (NAD.format(config="{"), "cannot be decoded"),
        ('{"cniVersion": "9", "type": "sriov"}', 'cniVersion = "9"'),
        ('{"name": "a", "name": "b"}', "twice"),
        ("\ufeff" + json.dumps(CONF), "byte order mark"),
        ("# a comment\n---\n---\n", "no network"),
        ("kind: NetworkAttachmentDefinition\nspec: {config: [{type: sriov}]}\n", "spec.config is no string"),
        ("kind: List\nitems: &all\n- items: *all\n", "contains itself"),
        ("a: " + "[" * 1000, "nested too deeply"),
        ("&all\ntype: sriov\nname: x\nx: *all\n", "no JSON"),
        ("type: sriov\nname: x\ntimeout: .nan\n", "no JSON"),
        ("type: sriov\nname: 2026-01-01\n", "no JSON"),
        ("- a\n- b\n", "no network"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, capsys: Any, content: str, words: str) -> None:
    status, text = said(tmp_path, content, capsys)
    assert status == 1
    assert words in text
    assert "FAIL" in text


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_yaml_of_any_editor(tmp_path: Path, capsys: Any, start: str, newline: str) -> None:
    text = "---\n".join([NAD.format(config=OPERATOR)] * 2)
    status, said_of_it = said(tmp_path, start + text.replace("\n", newline), capsys)
    assert (status, said_of_it.count("OK    name: the network red\n")) == (0, 2)


def test_an_alias(tmp_path: Path, capsys: Any) -> None:
    one = f"kind: NetworkAttachmentDefinition\n  spec: &spec {{config: '{OPERATOR}'}}"
    text = f"kind: List\nitems:\n- {one}\n- kind: NetworkAttachmentDefinition\n  spec: *spec\n"
    assert said(tmp_path, text, capsys)[1].count("OK    name: the network red\n") == 2


@pytest.mark.parametrize(
    ("config", "level", "words"),
    [
        ("", "WARN", "no spec.config"),
        ("{", "FAIL", "spec.config cannot be decoded"),
        ('{"type": "bridge"', "FAIL", "spec.config cannot be decoded"),
    ],
)
def test_one_faulty_definition_hides_no_other(
    tmp_path: Path, capsys: Any, config: str, level: str, words: str
) -> None:
    """The definition after a faulty one is checked as well.

    A definition without a configuration is only a warning, since Multus then reads a file of the node.
    """
    text = "---\n".join([NAD.format(config=config), NAD.format(config=OPERATOR)])
    status, text = said(tmp_path, text, capsys)
    assert status == (level == "FAIL")
    assert f"{level}  {words}" in text
    assert "OK    vlan: the VF's traffic has no tag of the PF\n" in text


@pytest.mark.parametrize("between", ["\n---\n", "\n", ""])
def test_many_json_documents(tmp_path: Path, capsys: Any, between: str) -> None:
    """A file may hold several documents, as jq and kubectl print them, and arrays of objects."""
    status, text = said(tmp_path, between.join([json.dumps(CONF), json.dumps([CONF, CONF])]), capsys)
    assert (status, text.count("OK    master: a VF of eth1\n")) == (0, 3)
    status, text = said(tmp_path, between.join([json.dumps(CONF), "{"]), capsys)
    assert (status, text.count("cannot be decoded")) == (1, 1)


def test_all_definitions_of_a_large_cluster(tmp_path: Path, capsys: Any) -> None:
    """The file may be larger than the plugin's limit for stdin."""
    item = {"kind": "NetworkAttachmentDefinition", "metadata": {"name": "a" * 200}, "spec": {"config": ""}}
    document = {"kind": "List", "items": [item] * 4000 + [CONF]}
    assert "OK    master: a VF of eth1\n" in said(tmp_path, document, capsys)[1]


def test_a_key_of_yaml_that_is_a_number(tmp_path: Path, capsys: Any) -> None:
    text = "name: net\nplugins:\n- {type: sriov, master: eth1, 1: x}\n"
    status, text = said(tmp_path, text, capsys)
    assert (status, "WARN  1: unknown key, is ignored\n" in text) == (0, True)


def test_versions_of_a_list(tmp_path: Path, capsys: Any) -> None:
    """The version of a list is the highest supported one of ``cniVersions``, as a runtime chooses it."""
    document = {"cniVersions": ["0.4.0", "1.1.0", "9.0.0"], "name": "net", "plugins": [CONF]}
    assert "OK    cniVersion: results are in version 1.1.0\n" in said(tmp_path, document, capsys)[1]


def test_a_file_that_is_not_there(capsys: Any) -> None:
    assert cli.main(["check", "/nonexistent/file"]) == 1
    assert "FAIL  /nonexistent/file: No such file or directory" in capsys.readouterr().out


def test_every_key_has_words() -> None:
    assert set(check.EFFECTS) >= set(config.KEYS) - {"prevResult"}
