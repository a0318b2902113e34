"""``sriov-fast ipam``: every command against a real service, and the errors without a service."""

from __future__ import annotations

import json
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import httpx
import ipam_server
import pytest
from ipam_server import DOMAIN, HOST, OTHER_HOST, AddressService, World, address, ask, run


@pytest.fixture
def ipam(world: World, server: AddressService, admin: httpx.Client) -> Any:
    """Return a function that runs a command with an administrator's environment variables."""

    def call(*words: object, **options: Any) -> Any:
        env = {
            "SRIOV_FAST_IPAM_URL": server.url,
            "SRIOV_FAST_IPAM_CA": str(world.authority.ca),
            "SRIOV_FAST_IPAM_TOKEN_FILE": str(world.directory / "admin.token"),
        }
        return run(*words, **(env | options))

    return call


def config(admin: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = admin.get("/v1/config").json()
    return found


# ---------------------------------------------------------------------------------------- configuration


def test_config_show(ipam: Any) -> None:
    assert json.loads(ipam("config", "show").stdout) == DOMAIN
    assert tomllib.loads(ipam("config", "show", "--toml").stdout) == DOMAIN


def test_config_apply(ipam: Any, admin: httpx.Client, tmp_path: Path) -> None:
    shown = tmp_path / "ipam.toml"
    shown.write_text(ipam("config", "show", "--toml").stdout.replace("grace = 0", "grace = 60"))
    assert "revision" in ipam("config", "apply", shown).stdout
    assert config(admin)["networks"] == [{"name": "mynet", "grace": 60}]
    assert ipam("config", "apply", shown).stdout == "nothing to change\n"
    as_json = tmp_path / "ipam.json"
    as_json.write_text(json.dumps(DOMAIN))
    ipam("config", "apply", as_json)
    assert config(admin) == DOMAIN


def test_config_apply_takes_the_services_own_file(ipam: Any, server: AddressService) -> None:
    assert ipam("config", "apply", server.config).stdout == "nothing to change\n"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[pools", "ipam.toml"),
        ('[[pools]]\nname = "a"\nnetwork = "b"\nsubnet = "x"\n', "pools[0].subnet"),
        ("networks = 3\n", "networks"),
    ],
)
def test_a_wrong_file_is_refused_before_the_service_is_asked(
    ipam: Any, tmp_path: Path, text: str, named: str
) -> None:
    path = tmp_path / "ipam.toml"
    path.write_text(text)
    done = ipam("config", "apply", path, check=False, SRIOV_FAST_IPAM_URL="https://127.0.0.1:1")
    assert done.returncode == 1
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_config_check(server: AddressService, tmp_path: Path) -> None:
    found = run("config", "check", server.config).stdout
    assert "1 networks, 1 pools, 1 hosts, 0 assignments" in found
    bad = tmp_path / "ipam.toml"
    bad.write_text(server.config.read_text().replace('"10.55.206.1"', '"10.9.9.9"'))
    done = run("config", "check", bad, check=False)
    assert done.returncode == 1
    assert "10.9.9.9" in done.stderr
    missing = run("config", "check", tmp_path / "none.toml", check=False)
    assert (missing.returncode, "none.toml" in missing.stderr) == (1, True)


# ------------------------------------------------------------------------------------------------ items


def test_networks(ipam: Any, admin: httpx.Client) -> None:
    ipam("networks", "set", "second", "--grace", "5")
    assert ipam("networks", "list").stdout.splitlines() == ["NAME    GRACE", "mynet   0", "second  5"]
    ipam("networks", "set", "second")
    assert json.loads(ipam("networks", "list", "--json").stdout)[1] == {"name": "second"}
    ipam("networks", "delete", "second")
    assert config(admin) == DOMAIN


def test_pools(ipam: Any, admin: httpx.Client) -> None:
    words = (
        "--subnet 10.9.0.0/16 --range 10.9.1.0-10.9.1.9 --range 10.9.2.0-10.9.2.9 --gateway 10.9.0.1 --vlan 7"
        " --route 0.0.0.0/0 --route 10.0.0.0/8,10.9.0.2 --mac-prefix 02:5a"
        " --dns-nameserver 10.9.0.53 --dns-search example.org"
    )
    ipam("pools", "set", "mynet", "b", *words.split())
    assert config(admin)["pools"][1] == {
        "network": "mynet",
        "name": "b",
        "subnet": "10.9.0.0/16",
        "ranges": [{"start": f"10.9.{n}.0", "end": f"10.9.{n}.9"} for n in (1, 2)],
        "gateway": "10.9.0.1",
        "vlan": 7,
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "gw": "10.9.0.2"}],
        "mac_prefix": "02:5a",
        "dns": {"nameservers": ["10.9.0.53"], "search": ["example.org"]},
    }
    assert "10.9.1.0-10.9.1.9,10.9.2.0-10.9.2.9" in ipam("pools", "list").stdout
    again = tomllib.loads(ipam("config", "show", "--toml").stdout)
    assert again == config(admin)
    ipam("pools", "delete", "mynet", "b")
    assert config(admin) == DOMAIN
    done = ipam("pools", "set", "mynet", "b", "--subnet", "10.9.0.0/16", "--range", "10.9.0.5", check=False)
    assert (done.returncode, "FIRST-LAST" in done.stderr) == (1, True)


def test_hosts_and_assignments(ipam: Any, admin: httpx.Client) -> None:
    ipam("hosts", "set", "mynet", "10.1.0.0/16", "--pool", "a")
    ipam("assignments", "set", "mynet", "ns/pod", "--ip", "10.55.206.50", "--vf", "0", "--vlan", "5")
    assert "10.1.0.0/16" in ipam("hosts", "list").stdout
    assert config(admin)["assignments"] == [
        {"network": "mynet", "pod_id": "ns/pod", "ips": ["10.55.206.50"], "vf": 0, "vlan": 5}
    ]
    assert "ns/pod" in ipam("assignments", "list").stdout
    words = ("assignments", "set", "mynet", "db", "--ip", "10.55.206.46", "--host")
    ipam(*words, HOST)
    assert HOST in ipam("assignments", "list").stdout
    wrong = ipam(*words, f"{HOST}/24", check=False)
    assert (wrong.returncode, "hosts[0]" in wrong.stderr) == (1, True)
    ipam("assignments", "delete", "mynet", "db")
    ipam("assignments", "delete", "mynet", "ns/pod")
    ipam("hosts", "delete", "mynet", "10.1.0.0/16")
    assert config(admin) == DOMAIN
    done = ipam("hosts", "delete", "mynet", "10.1.0.0/16", check=False)
    assert (done.returncode, "10.1.0.0/16" in done.stderr) == (1, True)


# ------------------------------------------------------------------------ allocations, backup, status


def test_allocations(ipam: Any, admin: httpx.Client) -> None:
    given = address(ask(admin, "c1"))
    other = address(ask(admin, "c2", host=OTHER_HOST))
    listed = ipam("allocations", "list").stdout
    assert given in listed
    assert other in listed
    assert other not in ipam("allocations", "list", "--host", HOST, "--network", "mynet").stdout
    held = json.loads(ipam("allocations", "list", "--json").stdout)
    assert {each["container_id"] for each in held} == {"c1", "c2"}
    assert ipam("allocations", "release", "mynet", "c2", "eth0").stdout == f"released {other}\n"
    done = ipam("allocations", "release", "mynet", "c2", "eth0", check=False)
    assert (done.returncode, "c2/eth0 holds nothing" in done.stderr) == (1, True)


def test_export_and_import(ipam: Any, admin: httpx.Client, tmp_path: Path) -> None:
    given = address(ask(admin, "e1"))
    path = tmp_path / "backup.json"
    ipam("export", "--output", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == json.loads(ipam("export").stdout)
    admin.delete("/v1/networks/mynet/allocations/e1/eth0", params={"host_ip": HOST})
    assert "1 allocations" in ipam("import", path).stdout
    assert address(ask(admin, "e1")) == given
    address(ask(admin, "e2"))
    done = ipam("import", path, check=False)
    assert (done.returncode, "conflict" in done.stderr) == (1, True)
    assert "1 allocations" in ipam("import", "-", "--replace", stdin=path.read_text()).stdout


def test_status(ipam: Any, admin: httpx.Client) -> None:
    address(ask(admin, "s1"))
    assert ipam("status").stdout.splitlines() == ["NETWORK  POOL  USED  TOTAL", "mynet    a     1     21"]
    found = json.loads(ipam("status", "--json").stdout)
    assert found["ready"] is True
    assert found["pools"][0]["used"] == 1


# ----------------------------------------------------------------------------------- tokens, certificates


def test_tokens(ipam: Any, world: World, tmp_path: Path) -> None:
    file = tmp_path / "token"
    words = ("--tokens", world.tokens.path)
    done = run("token", "create", *words, "--host", HOST, "--note", "node 20", "--output", file)
    assert done.stdout == ""
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    listed = json.loads(run("token", "list", *words, "--json").stdout)[-1]
    assert (listed["role"], listed["hosts"], listed["note"]) == ("host", [f"{HOST}/32"], "node 20")
    assert "sha256" not in listed
    assert "node 20" in run("token", "list", *words).stdout
    mine = {"SRIOV_FAST_IPAM_TOKEN_FILE": str(file)}
    assert "NETWORK" in ipam("allocations", "list", "--host", HOST, **mine).stdout
    assert "forbidden" in ipam("allocations", "list", check=False, **mine).stderr
    run("token", "revoke", *words, listed["id"])
    assert "unauthorized" in ipam("allocations", "list", "--host", HOST, check=False, **mine).stderr
    done = run("token", "revoke", *words, listed["id"], check=False)
    assert (done.returncode, listed["id"] in done.stderr) == (1, True)


def test_the_first_token_makes_the_file_that_the_settings_name(tmp_path: Path) -> None:
    path = tmp_path / "ipam.toml"
    path.write_text(ipam_server.toml({"insecure": True, "tokens": "mine.json"}))
    secret = run("token", "create", "--config", path, "--admin").stdout.strip()
    assert secret.startswith("sfi_")
    assert len(secret) > 40
    assert stat.S_IMODE((tmp_path / "mine.json").stat().st_mode) == 0o600


def test_tokens_made_at_once_are_all_there(tmp_path: Path) -> None:
    words = ipam_server.command("token", "create", "--tokens", tmp_path / "t.json", "--admin")
    made = [
        subprocess.Popen(words, env=ipam_server.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    assert all(each.communicate()[0].startswith(b"sfi_") for each in made)
    assert len(json.loads(run("token", "list", "--tokens", tmp_path / "t.json", "--json").stdout)) == 4


@pytest.mark.parametrize("host", ["10.0.0.1/8", "node7", ""])
def test_a_token_for_what_is_no_host_is_refused(tmp_path: Path, host: str) -> None:
    done = run("token", "create", "--tokens", tmp_path / "t.json", "--host", host, check=False)
    assert done.returncode == 1
    assert repr(host) in done.stderr
    assert not (tmp_path / "t.json").exists()


def test_a_secret_that_cannot_be_written_makes_no_token(tmp_path: Path) -> None:
    words = ("--tokens", tmp_path / "t.json", "--admin", "--output", tmp_path / "missing/token")
    done = run("token", "create", *words, check=False)
    assert done.returncode == 1
    assert "missing" in done.stderr
    assert not (tmp_path / "t.json").exists()


def test_a_trial_with_the_certificates_of_our_own_ca(tmp_path: Path) -> None:
    """The files of the ``ca`` command are sufficient for a service, a node and an administrator."""
    made = run(
        *("ca", tmp_path / "ca", "--server", "127.0.0.1", "--server", "ipam.example", "--host", HOST),
        *("--admin", "me"),
    ).stdout.split()
    names = ["ca.crt", "server.crt", "server.key", f"host-{HOST}.crt", f"host-{HOST}.key"]
    assert [Path(each).name for each in made] == [*names, "admin-me.crt", "admin-me.key"]
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in (tmp_path / "ca").glob("*.key"))
    table = {
        "cert": "ca/server.crt",
        "key": "ca/server.key",
        "client_ca": "ca/ca.crt",
        "auth": "certificate",
        "admins": ["CN=me"],
    }
    server = AddressService(tmp_path, table, DOMAIN)
    try:
        where = ("--url", server.url, "--ca", tmp_path / "ca/ca.crt")
        me = ("--cert", tmp_path / "ca/admin-me.crt", "--key", tmp_path / "ca/admin-me.key")
        node = ("--cert", tmp_path / f"ca/host-{HOST}.crt", "--key", tmp_path / f"ca/host-{HOST}.key")
        assert "mynet" in run("status", *where, *me).stdout
        assert run("allocations", "list", "--host", HOST, *where, *node).returncode == 0
        refused = run("allocations", "list", "--host", OTHER_HOST, *where, *node, check=False)
        assert "forbidden" in refused.stderr
        assert "unauthorized" in run("config", "show", *where, check=False).stderr
        assert server.stop() == 0
    finally:
        server.kill()
    # a second run keeps the CA, so that issued certificates stay valid
    before = (tmp_path / "ca/ca.crt").read_bytes()
    run("ca", tmp_path / "ca", "--host", OTHER_HOST)
    assert (tmp_path / "ca/ca.crt").read_bytes() == before


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--url", "https://127.0.0.1:1"), "https://127.0.0.1:1"),
        (("--url", "127.0.0.1:1"), "127.0.0.1:1"),
        (("--url", "ftp://x"), "ftp://x"),
        (("--url", "https://["), "https://["),
        (("--url", "https://x:y"), "https://x:y"),
        (("--ca", "/no/such/ca"), "/no/such/ca"),
        (("--token-file", "/no/such/token"), "/no/such/token"),
        (("--cert", "/no/such/cert", "--key", "/no/such/key"), "/no/such/cert"),
        (("--cert", "/no/such/cert"), "--cert and --key belong together"),
    ],
)
def test_a_service_that_is_not_reached(ipam: Any, words: tuple[str, ...], named: str) -> None:
    done = ipam("status", *words, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("sriov-fast ipam: ")
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_service_that_is_not_trusted(ipam: Any) -> None:
    done = ipam("status", SRIOV_FAST_IPAM_CA="", check=False)
    assert done.returncode == 1
    assert "certificate verify failed" in done.stderr


def test_a_command_is_needed() -> None:
    done = run(check=False)
    assert done.returncode == 2
    assert "serve" in run("--help").stdout
