"""The parts of the demo that need no card."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from ipamd_kit import free_port

from harness.sysfs_tree import build_tree
from lab import demo, demo_addresses, demo_card, demo_ipam
from lab.demo_addresses import add_args, release_args
from lab.demo_card import UNUSED, Card, Difference
from lab.demo_ipam import TxIpam
from lab.demo_stage import Done, Stage, wrapped
from lab.errors import LabError


class TestStage:
    def test_a_command_is_shown_as_it_is_run(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stage = Stage(tmp_path)
        stage.write("conf", "{}")
        stage.export("COLOUR", "blue")
        done = stage.run("echo $COLOUR; cat < conf; echo said >&2; exit 3")
        assert done == Done(3, "blue\n{}\n")
        shown = capsys.readouterr().out.splitlines()
        assert shown[-4:] == ["# echo $COLOUR; cat < conf; echo said >&2; exit 3", "said", "blue", "{}"]

    def test_a_command_that_hangs_is_ended(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lab.demo_stage.SECONDS", 0.1)
        assert Stage(tmp_path).run("exec sleep 5").status == 124

    def test_the_summary_names_what_failed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        stage = Stage(tmp_path)
        stage.expect("one", True)
        stage.expect("two", False, "it is three")
        stage.summary()
        assert capsys.readouterr().out.splitlines()[-2:] == [
            "1 of 2 expectations did not hold:",
            "  - two: it is three",
        ]

    def test_a_story_that_breaks_off_is_summed_up(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def story() -> int:
            raise LabError("ADD for pod 1234 failed")

        assert demo.told(Stage(tmp_path), story) == 1
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == "  - the demo can go on: ADD for pod 1234 failed"

    def test_a_wrapped_command_is_the_same_to_the_shell(self) -> None:
        words = [f"word{number}" for number in range(40)]
        text = wrapped(["printf", "'%s '", *words])
        assert len(text.splitlines()) > 1
        assert max(map(len, text.splitlines())) <= 110
        assert subprocess.check_output(["sh", "-c", text], text=True).split() == words


class TestCompare:
    def test_another(self) -> None:
        found = demo_card.compare({"MTU": "1500", "MAC": "a"}, {"MTU": "9000", "VLAN": "1"}, {})
        assert [item.same for item in found] == [False, False, False]
        assert found[1] == Difference("MAC", "a", "(not there)", False)

    @pytest.mark.parametrize(
        ("before", "now", "same"), [("3f", "02", False), (UNUSED, "3f", True), (UNUSED, "02", False)]
    )
    def test_an_interrupt_must_not_stay_on_the_pod_s_core(self, before: str, now: str, same: bool) -> None:
        (found,) = demo_card.compare({"IRQ 37 mask": before}, {"IRQ 37 mask": now}, {37: "02"})
        assert found.same is same

    def test_the_words_for_it(self) -> None:
        fields = [
            Difference("MTU", "1500", "1500", True),
            Difference("IRQ 37 mask", UNUSED, "3f", True),
            Difference("MAC", "a", "b", False),
        ]
        assert demo.verdicts(fields) == [
            "  MTU          1500  as it was",
            "  IRQ 37 mask  3f    the kernel's own, since its first use",
            "  MAC          b     IT WAS a",
        ]


class TestCores:
    @pytest.mark.parametrize(
        ("mask", "cpus"),
        [("02", {1}), ("3f", set(range(6))), ("0000,00000002", {1}), ("00000001,00000000,00000000", {64})],
    )
    def test_masks(self, mask: str, cpus: set[int]) -> None:
        assert demo_card.cpus_of_mask(mask) == cpus

    @pytest.mark.parametrize(("text", "cpus"), [("0", [0]), ("0-2,8\n", [0, 1, 2, 8]), ("", [])])
    def test_lists(self, text: str, cpus: list[int]) -> None:
        assert demo_card.parse_cpus(text) == cpus

    def test_some_are_there(self) -> None:
        chosen = demo_card.choose_cores((1, 2, 3, 4), (0, 1))
        assert chosen == ([1], "core 2, 3, 4 is not online here, so CORES=1")


class TestChoice:
    def test_the_option_goes_before_the_environment_and_the_only_pf(self, tmp_path: Path) -> None:
        sys = build_tree(tmp_path, pf="pf0", vfs=2).sys
        assert demo_card.choose_pf("eth5", "eth6,eth7", sys) == "eth5"
        assert demo_card.choose_pf("", "eth6,eth7", sys) == "eth6"
        assert demo_card.choose_pf("", "", sys) == "pf0"

    def test_of_several_one_must_be_named(self, tmp_path: Path) -> None:
        for name in ("pf0", "pf1"):
            _totalvfs(tmp_path, name)
            (tmp_path / f"class/net/{name}/device/virtfn0").mkdir()
        with pytest.raises(LabError, match="--pf pf0"):
            demo_card.choose_pf("", "", tmp_path)

    def test_one_without_vfs_is_told_how_to_make_some(self, tmp_path: Path) -> None:
        _totalvfs(tmp_path, "pf0", "63")
        card = Card(demo_card.choose_pf("", "", tmp_path), tmp_path)
        with pytest.raises(LabError, match="echo 7 > /sys/class/net/pf0/device/sriov_numvfs"):
            demo_card.require_two(card)

    def test_two_free_vfs_are_needed(self, tmp_path: Path) -> None:
        _totalvfs(tmp_path, "pf0")
        for number in range(3):
            (tmp_path / f"class/net/pf0/device/virtfn{number}").mkdir()
        (tmp_path / "class/net/pf0/device/virtfn1/net/eth1").mkdir(parents=True)
        with pytest.raises(LabError, match="has 1 of 3"):
            demo_card.require_two(Card("pf0", tmp_path))


def _totalvfs(sys: Path, name: str, number: str = "7") -> None:
    device = sys / f"class/net/{name}/device"
    device.mkdir(parents=True, exist_ok=True)
    (device / "sriov_totalvfs").write_text(number)


class TestPlugin:
    def test_the_checkout_s_is_the_first_candidate(self) -> None:
        assert demo.PLUGINS[0] == Path(__file__).resolve().parents[2] / "bin/sriov"

    def test_another_project_s_sriov_is_not_taken(self, tmp_path: Path) -> None:
        other, ours = tmp_path / "other", tmp_path / "ours"
        other.write_bytes(b"\x7fELF")
        ours.write_text("from sriov_fast.plugin.process import main")
        other.chmod(0o755)
        ours.chmod(0o755)
        found = demo.find_plugin([tmp_path / "absent", other, ours], tmp_path, Stage(tmp_path))
        assert found == ours

    def test_one_is_made_where_there_is_none(self, tmp_path: Path) -> None:
        found = demo.find_plugin([], tmp_path, Stage(tmp_path))
        assert found == tmp_path / "sriov"
        assert demo.is_ours(found)


# Configuration, ADD and DEL as in the users' manual, with the address of the demo's service.
CONF = """{
    "name": "mynet",
    "type": "sriov",
    "master": "eth1",
    "ipam": {
        "type": "txipam",
        "remote": "https://127.0.0.1:10000",
        "ca": "%s/ca/ca.crt"
    }
}"""
ADD = (
    "CNI_PATH=$CNI_PATH CNI_COMMAND=ADD CNI_NETNS=/var/run/netns/1234 CNI_CONTAINERID=1234 CNI_IFNAME=eth1 "
    'CNI_ARGS="IgnoreUnknown=1;PodID=1234;HostIP=10.55.206.20;CORES=1,2,3,4" bin/sriov < txnet.conf'
)
DEL = (
    "CNI_PATH=$CNI_PATH CNI_COMMAND=DEL CNI_NETNS=/var/run/netns/1234 CNI_CONTAINERID=1234 CNI_IFNAME=eth1 "
    'CNI_ARGS="PodID=1234;HostIP=10.55.206.20" bin/sriov < txnet.conf'
)


@pytest.fixture
def tx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TxIpam]:
    """The demo with an address service on a free port; the service must have ended afterwards."""
    monkeypatch.setenv("SRIOV_FAST_RUN", str(tmp_path / "run"))
    stage = Stage(tmp_path)
    with ExitStack() as cleanup:
        plugin = demo.find_plugin([], tmp_path, stage)
        made = TxIpam(stage, cleanup, plugin, port=free_port())
        yield made
    assert made.service is None or made.service.poll() is not None


@pytest.fixture
def card(tmp_path: Path) -> Card:
    tree = build_tree(tmp_path / "machine", pf="pf0", vfs=3)
    return Card("pf0", Path(tree.sys), Path(tree.proc))


class TestService:
    def test_the_commands_are_those_of_the_users_manual(self, tx: TxIpam) -> None:
        tx.port = demo_ipam.PORT
        assert demo_addresses.shown(tx.network("eth1")) == CONF % tx.stage.directory
        for verb, args, line in (
            ("ADD", add_args("1234", "CORES=1,2,3,4"), ADD),
            ("DEL", release_args("1234"), DEL),
        ):
            assert tx.command(verb, tx.pods[0], args).replace(" \\\n   ", "") == line

    def test_all_that_needs_no_card(self, tx: TxIpam, card: Card, capsys: pytest.CaptureFixture[str]) -> None:
        """txipam serves the pods without sriov, and returns the VF, VLAN and MAC that sriov would get."""
        tx.prepare(card)
        assert tx.choice == (2, demo_ipam.MAC)
        tx.stage.write(tx.conf, demo_addresses.shown(tx.network("pf0")))
        tx.export()
        extras = []
        for pod in tx.pods:
            done = tx.stage.run(alone(tx.command("ADD", pod, add_args(pod.name))))
            found = json.loads(done.out)
            extras.append(found.pop("extra"))
            assert found == {"ip4": {"ip": f"{pod.address}/26", "gateway": "10.55.206.1"}, "dns": {}}
        assert extras == [{"vlan": 100}, {"vf": 2, "vlan": 100, "mac": demo_ipam.MAC}]
        tx.show()
        assert tx.service is not None
        assert tx.remains() == [f"kill {tx.service.pid}"]
        for pod in tx.pods:
            assert tx.holds(pod)
            assert tx.stage.run(alone(tx.command("DEL", pod, release_args(pod.name)))) == Done(0, "")
            assert not tx.holds(pod)
        tx.end()
        assert tx.stage.summary() == 0
        shown = capsys.readouterr().out
        assert re.search(r"^mynet +1236 +eth1 +1236 +10\.55\.207\.20 +10\.55\.207\.", shown, re.MULTILINE)
        assert "ipam serve --config ipam.toml >ipam.log 2>&1 &" in shown
        assert "method=DELETE" in shown
        assert "All 8 expectations held." in shown

    def test_a_service_that_cannot_start_is_quoted(self, tx: TxIpam, card: Card) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            tx.port = taken.getsockname()[1]
            with pytest.raises(LabError, match=f"the address service ended: .*listen: 127.0.0.1:{tx.port}: "):
                tx.prepare(card)

    def test_one_that_dies_does_not_end_well(self, tx: TxIpam, card: Card) -> None:
        tx.prepare(card)
        assert tx.service is not None
        tx.service.send_signal(signal.SIGKILL)
        tx.service.wait(30)
        tx.end()
        assert any(fault.startswith("the service ends with status 0") for fault in tx.stage.faults)


def alone(command: str) -> str:
    """Return a command with the IPAM plugin in place of the plugin that moves a VF."""
    return command.replace("bin/sriov", "bin/txipam")
