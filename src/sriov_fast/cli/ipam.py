"""``sriov-fast ipam``: run the address service, and operate one that runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

CONFIG = "/etc/sriov-fast/ipam.toml"
URL = "https://127.0.0.1:10000"
EXTRA = "the address service needs more packages: pip install 'sriov-fast[ipam]'"
_MODULES = ("fastapi", "uvicorn", "pydantic", "prometheus_client", "httpx", "cryptography")

_Subparsers = argparse._SubParsersAction
_Run = Callable[[argparse.Namespace], int]


def add_parser(subparsers: _Subparsers[argparse.ArgumentParser]) -> None:
    """Register ``ipam`` with all that is below it."""
    summary = "run the address service that the txipam plugin asks, and operate it"
    parser = subparsers.add_parser("ipam", help=summary, description=summary)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_config(commands)
    _add_items(commands)
    _add_held(commands)
    _add_token(commands)
    _add_ca(commands)


# ------------------------------------------------------------------------------------------------ helpers


def _command(
    commands: _Subparsers[argparse.ArgumentParser], name: str, summary: str, run: str
) -> argparse.ArgumentParser:
    """Add a command that ``run`` of ``ipamd.commands`` carries out."""
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=_runner(run))
    return parser


def _runner(name: str) -> _Run:
    """Return what carries a command out; what it needs is imported when it is called."""

    def run(args: argparse.Namespace) -> int:
        try:
            from sriov_fast.ipamd import commands as carry_out

            return carry_out.main(name, args)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _MODULES:
                raise
            print(f"sriov-fast ipam: {EXTRA} (missing: {error.name})", file=sys.stderr)
            return 1

    return run


def _group(
    commands: _Subparsers[argparse.ArgumentParser], name: str, summary: str
) -> _Subparsers[argparse.ArgumentParser]:
    parser = commands.add_parser(name, help=summary, description=summary)
    return parser.add_subparsers(required=True, metavar="COMMAND")


def _remote(parser: argparse.ArgumentParser, *, json: bool = False) -> argparse.ArgumentParser:
    """Add how to reach a service; each option has a variable of the environment too."""
    group = parser.add_argument_group("the service (or SRIOV_FAST_IPAM_URL, _CA, _CERT, _KEY, _TOKEN_FILE)")
    group.add_argument("--url", default=_setting("URL", URL), help=f"where it is ({URL})")
    for name, text in (
        ("ca", "CA of its certificate, PEM (default: the system's)"),
        ("cert", "our client certificate, PEM"),
        ("key", "its key, PEM"),
        ("token-file", "file that holds our token"),
    ):
        variable = name.replace("-", "_").upper()
        group.add_argument(f"--{name}", type=Path, default=_setting(variable), metavar="FILE", help=text)
    group.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="for one answer (30)")
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _setting(name: str, default: str | None = None) -> str | None:
    return os.environ.get(f"SRIOV_FAST_IPAM_{name}") or default


def _file(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument(
        "--config", type=Path, default=Path(CONFIG), metavar="FILE", help=f"the operator's file ({CONFIG})"
    )
    return parser


# ----------------------------------------------------------------------------------------------- commands


def _add_serve(commands: _Subparsers[argparse.ArgumentParser]) -> None:
    _file(_command(commands, "serve", "run the address service in the foreground", "serve"))


def _add_config(commands: _Subparsers[argparse.ArgumentParser]) -> None:
    group = _group(commands, "config", "show, check or replace the whole configuration")
    show = _remote(_command(group, "show", "print the configuration that the service has", "config_show"))
    show.add_argument("--toml", action="store_true", help="as the operator's file has it (default: JSON)")
    check = _command(group, "check", "check an operator's file without touching anything", "config_check")
    check.add_argument("file", nargs="?", type=Path, default=Path(CONFIG), help=f"default: {CONFIG}")
    text = "replace the service's configuration by that of a file (TOML or JSON), unless it changes meanwhile"
    put = _remote(_command(group, "apply", text, "config_apply"))
    put.add_argument("file", nargs="?", type=Path, default=Path(CONFIG), help=f"default: {CONFIG}")


def _add_items(commands: _Subparsers[argparse.ArgumentParser]) -> None:
    """Add what edits one item: network, pool, hosts' rule, assignment."""
    for kind, keys, summary in (
        ("networks", ("name",), "networks, as CNI configurations name them"),
        ("pools", ("network", "name"), "pools of addresses"),
        ("hosts", ("network", "host"), "which hosts draw from which pools"),
        ("assignments", ("network", "pod_id"), "what a pod always gets"),
    ):
        group = _group(commands, kind, f"list, set and delete {summary}")
        listing = _remote(_command(group, "list", f"list {summary}", "items_list"), json=True)
        listing.set_defaults(kind=kind)
        setting = _remote(_command(group, "set", "add one, or replace it", "items_set"))
        deleting = _remote(_command(group, "delete", "delete one", "items_delete"))
        for parser in (setting, deleting):
            parser.set_defaults(kind=kind, keys=keys)
            for key in keys:
                parser.add_argument(key, metavar=key.upper().replace("_ID", ""))
        _OPTIONS[kind](setting)


def _network_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--grace", type=int, metavar="SECONDS", help="how long an address waits for its pod (300)"
    )


def _pool_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--subnet", required=True, metavar="CIDR")
    parser.add_argument(
        "--range", action="append", dest="ranges", metavar="FIRST-LAST", help="may be repeated (default: all)"
    )
    parser.add_argument("--gateway", metavar="IP")
    parser.add_argument("--vlan", type=int, metavar="ID")
    parser.add_argument(
        "--route", action="append", dest="routes", metavar="CIDR[,GATEWAY]", help="may be repeated"
    )
    parser.add_argument("--mac-prefix", metavar="02:5a:00", help="pods get MACs that begin so")
    for name, text in (("nameserver", "IP"), ("search", "DOMAIN"), ("option", "TEXT")):
        parser.add_argument(
            f"--dns-{name}", action="append", metavar=text, help="for resolv.conf, may be repeated"
        )
    parser.add_argument("--dns-domain", metavar="DOMAIN")


def _hosts_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pool", action="append", dest="pools", required=True, metavar="NAME", help="one of each family"
    )


def _assignment_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        action="append",
        dest="hosts",
        metavar="CIDR",
        help="HostIP or network of them, may be repeated: no other host gets what is assigned",
    )
    parser.add_argument("--ip", action="append", dest="ips", metavar="IP", help="one of each family")
    parser.add_argument("--mac")
    parser.add_argument("--vlan", type=int, metavar="ID")
    parser.add_argument("--vf", type=int, metavar="INDEX")


_OPTIONS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "networks": _network_options,
    "pools": _pool_options,
    "hosts": _hosts_options,
    "assignments": _assignment_options,
}


def _add_held(commands: _Subparsers[argparse.ArgumentParser]) -> None:
    """Add what concerns allocations."""
    group = _group(commands, "allocations", "see what pods hold, and release what nobody will")
    listing = _remote(_command(group, "list", "list what is held", "allocations_list"), json=True)
    listing.add_argument("--network", metavar="NAME", help="only of this network")
    listing.add_argument("--host", metavar="IP", help="only of this HostIP")
    text = "release what an owner holds, although its node did not ask for it"
    release = _remote(_command(group, "release", text, "allocations_release"))
    for name in ("network", "container_id", "ifname"):
        release.add_argument(name, metavar=name.upper().replace("_ID", ""))

    export = _remote(_command(commands, "export", "print all that the service holds: the backup", "export"))
    export.add_argument("--output", type=Path, metavar="FILE", help="write it there, whole or not at all")
    load = _remote(_command(commands, "import", "take over an export, all of it or nothing", "load"))
    load.add_argument("file", type=Path, help="what export wrote; - for standard input")
    load.add_argument("--replace", action="store_true", help="drop allocations that the file does not have")
    text = "say whether the service is ready, and how full its pools are; exit status 1 when it is not"
    _remote(_command(commands, "status", text, "status"), json=True)


def _add_token(commands: _Subparsers[argparse.ArgumentParser]) -> None:
    group = _group(commands, "token", "make, list and revoke tokens, in the service's file of hashes")
    make = _tokens(
        _command(group, "create", "make a token; it is printed once and kept nowhere", "token_create")
    )
    who = make.add_mutually_exclusive_group(required=True)
    who.add_argument("--admin", action="store_true", help="a token that may do everything")
    who.add_argument(
        "--host", action="append", metavar="IP|CIDR", help="a HostIP that it may act for, may be repeated"
    )
    make.add_argument("--note", default="", help="what it is for, shown by list")
    make.add_argument(
        "--output", type=Path, metavar="FILE", help="write it there (mode 0600) and not to stdout"
    )
    _tokens(_command(group, "list", "list the tokens", "token_list")).add_argument(
        "--json", action="store_true", help="print JSON"
    )
    revoke = _tokens(_command(group, "revoke", "revoke a token, at once", "token_revoke"))
    revoke.add_argument("id", metavar="ID", help="as list shows it")


def _tokens(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument(
        "--tokens", type=Path, metavar="FILE", help="the file of hashes (default: --config's)"
    )
    return _file(parser)


def _add_ca(commands: _Subparsers[argparse.ArgumentParser]) -> None:
    text = "make a CA and certificates for a trial; the CA's key stays in the directory"
    parser = _command(commands, "ca", text, "ca")
    parser.add_argument(
        "directory", type=Path, help="ca.crt and ca.key are made there, unless they are there"
    )
    parser.add_argument(
        "--server", action="append", metavar="NAME|IP", help="server.crt and server.key for these names"
    )
    parser.add_argument(
        "--host", action="append", metavar="IP", help="host-IP.crt and .key, with which a node is that HostIP"
    )
    parser.add_argument(
        "--admin", action="append", metavar="NAME", help="admin-NAME.crt and .key, with the subject CN=NAME"
    )
    parser.add_argument("--days", type=int, default=365, help="how long certificates last (365)")
