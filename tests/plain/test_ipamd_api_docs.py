"""docs/ipam.md: its trial works, and it describes every setting, configuration key, metric and error."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ipam_server import environment
from ipamd_kit import free_port
from prometheus_client.parser import text_string_to_metric_families

from sriov_fast import ipamd_api
from sriov_fast.ipamd import model
from sriov_fast.ipamd.config import Config
from sriov_fast.ipamd.metrics import Metrics
from sriov_fast.ipamd.settings import ServerSettings

MANUAL = Path(__file__).resolve().parents[2] / "docs/ipam.md"

pytestmark = pytest.mark.skipif(not MANUAL.exists(), reason="an installed package has no docs")


@pytest.fixture(scope="module")
def text() -> str:
    return MANUAL.read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def moved(script: str, directory: Path, port: int) -> str:
    """Return the script with its files below ``directory`` and with another port."""
    config = f"--config {directory}/etc/ipam.toml"
    script = script.replace("ipam serve", f"ipam serve {config}")
    script = script.replace("token create", f"token create {config}")
    script = script.replace("config check", f"config check {directory}/etc/ipam.toml")
    storage = f'storage = "sqlite://{directory}/var/ipam.db"\ntokens = "tokens.json"\nTOML\n'
    script = re.sub(r"^TOML\n", storage, script, flags=re.MULTILINE)
    script = script.replace("/etc/sriov-fast", f"{directory}/etc")
    script = script.replace("/var/lib/sriov-fast", f"{directory}/var")
    return script.replace("127.0.0.1:10000", f"127.0.0.1:{port}")


def test_the_trial_works_as_written(tmp_path: Path, text: str) -> None:
    begin, asking = blocks(text, "sh")[:2]
    port = free_port()
    install, _, begin = begin.partition("\n")
    assert install == "pip install 'sriov-fast[ipam]'"
    # the service needs time to start before the next commands
    wait = "for i in $(seq 100); do sriov-fast ipam status >/dev/null 2>&1 && break; sleep 0.1; done\n"
    exports, _, asking = asking.partition("\n")
    script = f"set -eu\n{begin}trap 'kill $!; wait $!' EXIT\n{exports}\n{wait}{asking}"
    program = tmp_path / "bin/sriov-fast"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m sriov_fast.cli "$@"\n')
    program.chmod(0o755)
    env = environment(SRIOV_FAST_IPAM_URL=f"https://127.0.0.1:{port}")
    env["PATH"] = f"{program.parent}:{env['PATH']}"
    words = ["sh", "-c", moved(script, tmp_path, port)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "ipam.toml: good (1 networks, 1 pools, 1 hosts, 0 assignments)" in done.stdout
    assert re.search(r"^mynet +a +0 +61$", done.stdout, re.MULTILINE), done.stdout
    assert "CONTAINER" in done.stdout


def test_every_setting_is_described_with_its_default(text: str) -> None:
    table = text.partition("| `[server]` |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`[^|]*`) \|([^|]*)\|", table, re.MULTILINE)
    described = {
        name: default.strip("` ") for names, default in rows for name in re.findall(r"`(\w+)`", names)
    }
    assert set(described) == set(ServerSettings.model_fields)
    # a setting without a default is optional
    needed = {"insecure": True}
    given = {name: tomllib.loads(f"x = {default}")["x"] for name, default in described.items() if default}
    assert ServerSettings.model_validate(given | needed) == ServerSettings.model_validate(needed)


@pytest.mark.parametrize("document", [model.Network, model.Pool, model.Hosts, model.Assignment])
def test_every_key_of_the_configuration_is_described(text: str, document: type[model.Document]) -> None:
    section = text.partition("The other tables are")[2].partition("### File or API")[0]
    for name in document.model_fields:
        assert f"`{name}`" in section, name


def test_every_metric_is_described(text: str) -> None:
    families = text_string_to_metric_families(Metrics().render([]).decode())
    for family in families:
        for name in {family.name, f"{family.name}_total", f"{family.name}_info"}:
            if f"`{name}`" in text:
                break
        else:
            assert family.name.startswith("process_"), family.name


def test_every_kind_of_error_is_described_with_its_status_and_code(text: str) -> None:
    for kind, status in ipamd_api.STATUS.items():
        row = re.search(rf"^\| `{kind}` \| {status}\b.*\| (\S+(?: \w+)?) \|$", text, re.MULTILINE)
        assert row, kind
        assert kind not in ipamd_api.CODES or row[1] == str(ipamd_api.CODES[kind])


def test_its_configurations_are_good(text: str) -> None:
    (trial,) = re.findall(r"<<'TOML'\n(.*?)^TOML$", text, re.MULTILINE | re.DOTALL)
    found = tomllib.loads(trial)
    assert ServerSettings.model_validate(found.pop("server")).auth == ("token",)
    assert model.parse(Config, found).pools[0].name == "a"
