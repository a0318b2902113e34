"""``sriov-fast vfs`` and ``doctor`` on simulated files of sysfs and /proc."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.sysfs_tree import build_tree
from sriov_fast.cli import doctor, main, problems
from sriov_fast.common.paths import Roots
from sriov_fast.vf.journal import Attachment, Journal

MAC = "02:00:00:00:01:01"
OWNER = "c1/net1 (pod shop/web-1)"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Roots:
    """A PF ``pf0`` with three VFs (the first in a pod, the last without a driver), and ``pf1`` with none."""
    pf0 = build_tree(tmp_path, "pf0", vfs=3, numa=1)
    build_tree(tmp_path, "pf1", vfs=0, pf_pci="0000:02:00.0")
    pf0.remove_netdev(0)
    pf0.unbind(2)
    roots = Roots(sys=str(pf0.sys), proc=str(pf0.proc), run=str(tmp_path / "run"))
    pod = {"args": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1"}
    journal = Journal(roots.run, roots.proc)
    owned = Attachment(container_id="c1", ifname="net1", pci=pf0.pci(0), request=pod, boot=journal.boot())
    journal.write(owned)
    Path(pf0.sys, "class/net/pf0v1/address").write_text(f"{MAC}\n")
    for name, root in roots.as_dict().items():
        monkeypatch.setenv(f"SRIOV_FAST_{name.upper()}", root)
    return roots


def test_table(here: Roots, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vfs"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["PF", "VF", "PCI", "DRIVER", "NETDEV", "NUMA", "MAC", "VLAN", "STATE", "OWNER"],
        ["pf0", "0", "0000:01:10.0", "igbvf", "-", "1", "-", "-", "attached", *OWNER.split()],
        ["pf0", "1", "0000:01:10.1", "igbvf", "pf0v1", "1", MAC, "-", "free", "-"],
        ["pf0", "2", "0000:01:10.2", "-", "-", "1", "-", "-", "broken", "-"],
        ["pf1", *["-"] * 8, "(no", "VFs,", "up", "to", "8)"],
    ]


def test_attachments_of_the_sriov_cni(
    here: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A VF is free if its pod's namespace is gone, and a file that is no attachment is ignored."""
    files = tmp_path / "sriov-cni"
    (files / "pci" / "vf_lock").mkdir(parents=True)
    monkeypatch.setenv("SRIOV_FAST_SRIOV_CNI", str(files))
    for number, netns in ((1, "/proc/self/ns/net"), (2, "/nonexistent")):
        pci = f"0000:01:10.{number}"
        (files / f"c{number}-net1").write_text(json.dumps({"deviceID": pci}))
        (files / "pci" / pci).write_text(netns)
    (files / "c3-net1").write_text("{")
    assert main(["vfs", "pf0"]) == 0
    owners = [line.split()[9] for line in capsys.readouterr().out.splitlines()[1:]]
    assert owners == ["c1/net1", "c1/net1", "-"]
    found = doctor.examine(here.replace(sriov_cni=str(files)), [tmp_path])
    assert [item.what for item in found if "SR-IOV CNI" in item.text] == ["VF 0000:01:10.1"]


def test_vfs_reads_each_record_once(here: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    """One read of each record serves all columns, so that they are consistent."""
    read = []
    load = Journal.read
    monkeypatch.setattr(Journal, "read", lambda self, *which: read.append(which) or load(self, *which))
    assert main(["vfs"]) == 0
    assert len(read) == 1


@pytest.mark.parametrize("command", ["vfs", "doctor", "check", "warm", "release", "trace", "tune"])
def test_every_report_has_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--json" in capsys.readouterr().out


def test_json(here: Roots, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vfs", "--json", "pf0"]) == 0
    (pf,) = json.loads(capsys.readouterr().out)
    assert (pf["pf"], pf["total"], len(pf["vfs"])) == ("pf0", 8, 3)
    assert pf["vfs"][0]["owner"] == {"containerID": "c1", "ifname": "net1"}
    assert pf["vfs"][1] == {
        "index": 1,
        "pci": "0000:01:10.1",
        "driver": "igbvf",
        "netdev": "pf0v1",
        "numa": 1,
        "mac": MAC,
        "vlan": 0,
        "state": "free",
        "owner": None,
        "pod": None,
        "stray": None,
        "warm": False,
        "problems": [],
    }


def test_watch_shows_the_table_again(
    here: Roots, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("sriov_fast.cli.vfs.time.sleep", sleep)
    assert main(["vfs", "--watch", "5"]) == 130
    assert pauses == [5, 5]
    assert capsys.readouterr().out.count("OWNER") == 2


def test_doctor_as_json(here: Roots, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])
    found = {item["what"]: item for item in json.loads(capsys.readouterr().out)}
    assert found["PF pf1"]["level"] == "WARN"
    assert "has no VFs yet" in found["PF pf1"]["text"]


def test_no_such_pf(here: Roots, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vfs", "eth9", "pf0"]) == 1
    said = capsys.readouterr()
    assert "eth9 is no PF" in said.err
    assert "pf0v1" in said.out


def findings(roots: Roots, path: Path) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for level, what, text in doctor.examine(roots, [path]):
        found.setdefault(what, []).append((level, text))
    return found


def test_doctor_on_a_good_machine(here: Roots, tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    assert main(["install", "--no-server", "--bin-dir", str(plugins)]) == 0
    (plugins / "host-local").touch(0o755)
    (tmp_path / "run").chmod(0o700)
    found = findings(here, plugins)
    assert [what for what, lines in found.items() for level, _ in lines if level == "FAIL"] == []
    ok, unbound = found["PF pf0"]
    assert ok == ("OK", "driver igb, 3 of 8 VFs, 1 in pods")
    assert unbound[0] == "WARN"
    assert unbound[1].startswith("no driver on VF 2:")
    advice = f"echo 8 > {here.sys}/class/net/pf1/device/sriov_numvfs"
    assert found["PF pf1"] == [("WARN", f"has no VFs yet: {advice}")]
    assert found["plugin"][0][0] == "OK"
    assert found["IPAM"] == [("OK", f"host-local in {plugins}")]
    assert found["state"][0][0] == "OK"


OTHER = "02:00:00:00:00:07"


@pytest.mark.parametrize(
    ("vfs", "words"),
    [
        ({0: (OTHER, 5), 1: (MAC, 0)}, []),
        ({0: (problems.NONE, 0), 1: (problems.NONE, 0)}, []),
        ({0: (MAC, 0), 1: (MAC, 0)}, [f"has the MAC {MAC} of another VF"]),
        ({1: (MAC, 5)}, ["has VLAN 5 and no pod: an ADD without vlan leaves it"]),
        ({1: (OTHER, 0)}, [f"has the MAC {OTHER} on the PF and {MAC} itself"]),
    ],
)
def test_settings_that_a_pod_left(
    here: Roots, monkeypatch: pytest.MonkeyPatch, vfs: dict[int, tuple[str, int]], words: list[str]
) -> None:
    """A MAC or VLAN that a pod left on the free VF 1 is a warning; ``vfs`` has the PF's values by index."""
    monkeypatch.setattr(problems, "_told", lambda pf: vfs if pf == "pf0" else {})
    found = findings(here, Path(here.run)).get("VF 0000:01:10.1", [])
    assert [text for level, text in found if level == "WARN"] == words


@pytest.mark.parametrize("name", ["temp_7", "sriov12", "dev3"])
def test_a_name_that_was_left(here: Roots, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    net = Path(here.sys, "bus/pci/devices/0000:01:10.1/net")
    (net / "pf0v1").rename(net / name)
    (Path(here.sys) / "class/net" / "pf0v1").unlink()
    (Path(here.sys) / "class/net" / name).symlink_to(net / name)
    assert f"is named {name}" in findings(here, Path(here.run))["VF 0000:01:10.1"][0][1]
    assert main(["vfs", "--json", "pf0"]) == 0
    (pf,) = json.loads(capsys.readouterr().out)
    assert pf["vfs"][1]["problems"] == [f"is named {name}, as during a move: rename it"]


def test_networks_without_their_pf(here: Roots, tmp_path: Path) -> None:
    directory = tmp_path / "net.d"
    directory.mkdir()
    (directory / "10-here.conf").write_text('{"name": "a", "type": "sriov", "master": "pf0"}')
    (directory / "11-one-of-two.conf").write_text('{"name": "b", "type": "sriov", "master": ["eth9", "pf1"]}')
    (directory / "12-device.conf").write_text('{"name": "c", "type": "sriov"}')
    (directory / "13-other.conf").write_text('{"name": "d", "type": "bridge", "master": "eth9"}')
    (directory / "14-wrong.conflist").write_text("{")
    (directory / "15-note.txt").write_text("{")
    chain = {"name": "e", "plugins": [{"type": "tuning"}, {"type": "sriov", "Master": "eth9"}]}
    (directory / "16-away.conflist").write_text(json.dumps(chain))
    (directory / "17-number.yaml").write_text("name: f\ntype: sriov\n1: x\nmaster: eth8\n")
    (directory / "18-endless.yaml").write_text("kind: List\nitems: &all\n- items: *all\n")
    found = [item for item in doctor.examine(here, [tmp_path], directory) if item.what.startswith("network")]
    wrong, away, number, endless = found
    assert wrong.what == f"network {directory}/14-wrong.conflist"
    assert away.what == f"network {directory}/16-away.conflist: plugins[1]"
    assert number.text == "master eth8: no such PF here"
    assert endless.text == "nested too deeply, or an alias that contains itself"
    assert (away.level, away.text) == ("WARN", "master eth9: no such PF here")


def test_a_pf_that_cannot_be_read_is_not_missing(
    here: Roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, _: Roots) -> None:
        raise PermissionError(13, "Permission denied", f"/sys/class/net/{name}")

    (tmp_path / "10.conf").write_text('{"name": "a", "type": "sriov", "master": "pf0"}')
    monkeypatch.setattr(doctor.machine, "pf_names", lambda _: [])
    monkeypatch.setattr(doctor.machine, "pf", fail)
    found = [item for item in doctor.examine(here, [tmp_path], tmp_path) if item.what.startswith("network")]
    assert [item.text for item in found] == ["/sys/class/net/pf0: Permission denied"]


def test_a_slow_setting_of_rcu(here: Roots, tmp_path: Path) -> None:
    assert "rcu-expedited" not in findings(here, tmp_path)
    (Path(here.sys) / "kernel").mkdir(exist_ok=True)
    (Path(here.sys) / "kernel/rcu_normal").write_text("1\n")
    ((level, text),) = findings(here, tmp_path)["rcu-normal"]
    assert level == "WARN"
    assert "sriov-fast tune --apply rcu-normal" in text


def test_doctor_without_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sys", "proc", "run"):
        monkeypatch.setenv(f"SRIOV_FAST_{name.upper()}", str(tmp_path / name))
    assert main(["doctor"]) == 1


def test_doctor_with_the_pf_in_a_pod(tmp_path: Path) -> None:
    tree = build_tree(tmp_path, "pf0", vfs=1)
    (tree.sys / "class/net/pf0").unlink()
    roots = Roots(sys=str(tree.sys), proc=str(tree.proc), run=str(tmp_path / "run"))
    record = Attachment(container_id="c1", ifname="net1", pci=tree.pf_pci, attach="pf", boot="b")
    Journal(roots.run, roots.proc).write(record)
    found = findings(roots, tmp_path)
    assert found[f"PF {tree.pf_pci}"] == [("OK", "is in the pod c1/net1 (pfOnly)")]
    assert "PF" not in found


def test_doctor_in_a_virtual_machine(tmp_path: Path) -> None:
    """A VF without a visible PF, as in a virtual machine, is usable by "deviceID" alone."""
    tree = build_tree(tmp_path, "pf0", vfs=1)
    (tree.device(0) / "physfn").unlink()
    (tree.sys / "class/net/pf0").unlink()
    (tree.sys / "bus/pci/devices" / tree.pf_pci).unlink()
    roots = Roots(sys=str(tree.sys), proc=str(tree.proc), run=str(tmp_path / "run"))
    ((level, text),) = findings(roots, tmp_path)["PF"]
    assert level == "WARN"
    assert text.endswith(f'by "deviceID", without settings of a PF: {tree.pci(0)} (pf0v0)')


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("echo oh no >&2; exit 3", "exit status 3; oh no"),
        ("echo '{}'", "no list of versions"),
        ("echo 3", "no list of versions"),
        ("exit 0", "it prints nothing"),
    ],
)
def test_doctor_finds_a_broken_plugin(here: Roots, tmp_path: Path, body: str, fault: str) -> None:
    (tmp_path / "sriov").write_text(f"#!/bin/sh\n{body}\n")
    (tmp_path / "sriov").chmod(0o755)
    ((level, text),) = findings(here, tmp_path)["plugin"]
    assert level == "FAIL"
    assert fault in text


def test_an_empty_path_of_plugins_is_the_usual_one(here: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNI_PATH", ":")
    (ipam,) = (item for item in doctor.examine(here, doctor.cni_path()) if item.what == "IPAM")
    assert "/opt/cni/bin:/usr/lib/cni" in ipam.text


def test_doctor_sees_irqbalance_and_open_state(here: Roots, tmp_path: Path) -> None:
    (tmp_path / "proc/77").mkdir()
    (tmp_path / "proc/77/comm").write_text("irqbalance\n")
    (tmp_path / "run").chmod(0o755)
    found = findings(here, tmp_path)
    assert found["irqbalance"][0][0] == "WARN"
    assert found["state"][0][0] == "WARN"


def test_representors_are_no_pfs(here: Roots, capsys: pytest.CaptureFixture[str]) -> None:
    """``vfs`` does not list the representors of a card in switchdev mode as PFs."""
    tree = build_tree(Path(here.sys).parent, "pf2", vfs=1, pf_pci="0000:03:00.0")
    tree.add_netdev(None, "pf2rep0")
    (tree.sys / "class/net/pf2rep0/phys_port_name").write_text("pf0vf0\n")
    assert main(["vfs"]) == 0
    said = capsys.readouterr().out
    assert "pf2rep0" not in said
    assert "pf2v0" in said
