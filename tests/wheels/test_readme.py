"""Execute the commands of the README with the files of ``make wheels``.

The commands run in a mount namespace with overlays on /opt and /etc, which protect the machine from changes.
systemd does not run there. ``make demo`` executes the commands that need a card.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from lab.chroot import ISOLATE

TOP = Path(__file__).resolve().parents[2]
README = (TOP / "README.md").read_text()
PROGRAMS = "/opt/sriov-fast/bin"
CARD = "eth1"  # the README's PF
FOREGROUND = "sriov-fast serve"  # runs until a signal ends it
REMOVAL = "sriov-fast uninstall"
NO_CARD = "FAIL  PF: no network card with SR-IOV (a checkout has a virtual one: make demo)"
pytestmark = [
    pytest.mark.skipif(not (TOP / "dist/SHA256SUMS").exists(), reason="needs make wheels"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def shown(text: str) -> list[str]:
    """Return the commands of the text's console blocks that need no card."""
    blocks = "".join(re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    return [line for line in re.findall(r"^[#$] (.*)", blocks, re.MULTILINE) if CARD not in line]


def named(text: str, program: str) -> list[str]:
    """Return the commands of a program in the text's sentences."""
    found = re.findall(rf"`({program} [^`]+)`", " ".join(text.split()))
    return list(dict.fromkeys(found))


class Done(NamedTuple):
    status: int
    output: str


class Machine:
    """A machine without an installation, and the means to execute commands on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.start = directory / "start"
        self.start.mkdir()
        (self.start / "dist").symlink_to(TOP / "dist")
        self.mounts = ["mount -t tmpfs tmpfs /run"]
        for name in ("opt", "etc"):
            for part in ("upper", "work"):
                (directory / name / part).mkdir(parents=True)
            layers = f"lowerdir=/{name},upperdir={directory}/{name}/upper,workdir={directory}/{name}/work"
            self.mounts.append(f"mount -t overlay overlay -o {layers} /{name}")

    def run(self, command: str, **env: str) -> Done:
        """Execute a command line in root's shell."""
        shell = (f"cd {shlex.quote(str(self.start))}", f"exec sh -c {shlex.quote(command)}")
        script = "\n".join([*self.mounts, *shell])
        ours = ("PYTHON", "SRIOV_FAST", "VIRTUAL_ENV")
        clean = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        clean["PATH"] = f"{PROGRAMS}:{clean['PATH']}"
        clean["PIP_FIND_LINKS"] = str(TOP / "dist")
        done = subprocess.run(
            [*ISOLATE, "sh", "-ec", script],
            env=clean | env,
            input="{}",
            capture_output=True,
            text=True,
            check=False,
        )
        print(f"# {command}\n{done.stdout}{done.stderr}")
        return Done(done.returncode, done.stdout + done.stderr)

    def written(self) -> list[str]:
        """Return the files that the commands created or changed, except those of the virtual environment."""
        changed = [path for name in ("opt", "etc") for path in (self.directory / name / "upper").rglob("*")]
        return [str(path) for path in changed if not path.is_dir() and "/upper/sriov-fast/" not in str(path)]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine after the commands of the section "Install"."""
    made = Machine(tmp_path_factory.mktemp("readme"))
    for command in shown(section("Install")):
        done = made.run(command)
        if "doctor" in command:  # this machine may have no card
            assert {line for line in done.output.splitlines() if line.startswith("FAIL")} <= {NO_CARD}
        else:
            assert done.status == 0, f"{command}\n{done.output}"
    return made


def test_a_runtime_can_call_the_installed_plugin(machine: Machine) -> None:
    done = machine.run("/opt/cni/bin/sriov", CNI_COMMAND="VERSION")
    assert "1.1.0" in json.loads(done.output)["supportedVersions"]


def test_install_says_what_is_missing_without_systemd(machine: Machine) -> None:
    (command,) = [each for each in shown(section("Install")) if "sriov-fast install" in each]
    done = machine.run(command)
    assert done.status == 0
    assert "systemd does not run here: keep `sriov-fast serve` running" in done.output


def test_the_commands_in_its_sentences(machine: Machine) -> None:
    commands = named(section("Install"), "sriov-fast")
    outputs = {each: machine.run(each) for each in commands if each not in (FOREGROUND, REMOVAL)}
    assert {each: done.status for each, done in outputs.items()} == dict.fromkeys(outputs, 0)
    assert "10.99.0.2/24" in outputs["sriov-fast demo --netns"].output
    assert "(backend cython; wheel cp311-abi3-manylinux" in outputs["sriov-fast --version"].output


def test_its_configurations_are_valid(machine: Machine) -> None:
    found = re.findall(r"^\{\n.*?^\}", section("Usage"), re.MULTILINE | re.DOTALL)
    configurations = [each for each in found if '"type"' in each]
    assert len(configurations) == 2
    for number, text in enumerate(configurations):
        (machine.start / f"{number}.conf").write_text(text)
        done = machine.run(f"sriov-fast check {number}.conf")
        assert done.status == 0, done.output


def test_the_extra_can_be_installed(machine: Machine) -> None:
    (command,) = named(section("Usage"), "pip install")
    assert machine.run(command).status == 0
    assert machine.run("sriov-fast ipam serve --help").status == 0


def test_the_operators_commands_exist(machine: Machine) -> None:
    rows = re.findall(r"^\| (`.*?) \|", section("The operator's command"), re.MULTILINE)
    words = [re.findall(r"`(?:sriov-fast )?(\w+)", row) for row in rows]
    commands = [f"sriov-fast {command} --help" for row in words for command in row]
    assert len(commands) > 10
    assert [each for each in commands if machine.run(each).status] == []


def test_removal_leaves_nothing(machine: Machine) -> None:
    """Remove the installation: this test must be the last one, since the others use it."""
    assert any(path.endswith("/cni/bin/sriov") for path in machine.written())
    assert machine.run(REMOVAL).status == 0
    assert machine.written() == []
