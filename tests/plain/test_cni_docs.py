"""docs/configuration.md: its examples are valid, and its tables list the names in the code."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sriov_fast.cni import config, request, response, result
from sriov_fast.common import cni_args as args
from sriov_fast.common import errors

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
if not PAGE.exists():
    pytest.skip("the documentation is not here", allow_module_level=True)
TEXT = PAGE.read_text()
JSON = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)]
CONFIGURATIONS = [block for block in JSON if block.get("type") == "sriov"]
ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "1234",
    "CNI_NETNS": "/var/run/netns/1234",
    "CNI_IFNAME": "eth1",
    "CNI_PATH": "/opt/cni/bin",
}


def section(title: str) -> str:
    """Return the text under a heading."""
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_column(title: str) -> set[str]:
    """Return the names in backquotes in the first columns of a section's tables."""
    cells = [line.split("|")[1] for line in section(title).splitlines() if line.startswith("| `")]
    return set(re.findall(r"`([^`]+)`", " ".join(cells)))


def parsed(conf: dict[str, Any], cni_args: str = "") -> config.NetConf:
    """Parse a configuration as an ADD does."""
    return config.parse(request.read(ENVIRON | {"CNI_ARGS": cni_args}, json.dumps(conf).encode()))


@pytest.mark.parametrize("conf", CONFIGURATIONS)
def test_configurations(conf: dict[str, Any]) -> None:
    runtime = {"runtimeConfig": {"deviceID": "0000:03:10.1"}} if "capabilities" in conf else {}
    assert parsed(conf | runtime).warnings == ()


def test_there_are_configurations() -> None:
    assert len(CONFIGURATIONS) >= 4


def test_the_error() -> None:
    (shown,) = [block for block in JSON if "code" in block]
    with pytest.raises(errors.ConfigError) as caught:
        parsed(CONFIGURATIONS[0] | {"vlan": 5000})
    assert json.loads(response.error(caught.value, "1.1.0")) == shown


def test_the_arguments() -> None:
    (line,) = re.findall(r'CNI_COMMAND=ADD CNI_ARGS="([^"]*)"', TEXT)
    got = parsed(CONFIGURATIONS[0], line)
    assert got.cores == (1, 2, 3, 4)


def test_the_result() -> None:
    (shown,) = [block for block in JSON if "interfaces" in block]
    assert result.to_json(result.from_json(shown, "1.1.0"), "1.1.0") == shown


def test_extra() -> None:
    (shown,) = [block["extra"] for block in JSON if "extra" in block]
    got = config.with_extra(config.NetConf(), shown)
    assert (got.vf, got.settings.vlan, got.settings.mac) == (3, 100, "02:00:00:00:00:01")


def test_every_argument_is_in_the_table() -> None:
    listed = first_column("`CNI_ARGS`")
    assert listed == set(args.KNOWN)


@pytest.mark.parametrize("key", sorted(first_column("Keys of the configuration")))
def test_every_key_of_the_table_is_known(key: str) -> None:
    conf = {"name": "n", "type": "sriov", "master": "eth1"}
    assert parsed({key: None} | conf).warnings == ()


def test_every_key_that_is_known_is_in_the_table() -> None:
    listed = first_column("Keys of the configuration")
    assert set(config.KEYS) - listed - {"pciBusID", "prevResult", "args", "runtimeConfig"} == set()


def test_codes() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", section("Errors"), re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert {kind.code for kind in kinds if issubclass(kind, errors.SriovError)} <= listed


def test_the_tests_that_the_readme_names_exist() -> None:
    tests = PAGE.parents[1] / "tests"
    table = (PAGE.parents[1] / "README.md").read_text().split("## Compared with other plugins")[1]
    named = re.findall(r"`((?:plain|netns|lab)/[\w/.]+)`", table)
    assert len(named) > 10
    assert [name for name in named if not (tests / name).exists()] == []
