"""``sriov-fast ipam``: run the address service, and operate a running one."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TypeAlias

from sriov_fast.cli import output
from sriov_fast.common.errors import SriovError

CONFIG = "/etc/sriov-fast/ipam.toml"
URL = "https://127.0.0.1:10000"
EXTRA = "the address service needs more packages: pip install 'sriov-fast[ipam]'"
_MODULES = ("fastapi", "uvicorn", "pydantic", "prometheus_client", "httpx", "cryptography")

SUMMARY = "run the address service that the txipam plugin asks, and operate it"

_Parser = argparse.ArgumentParser
_Subparsers: TypeAlias = "argparse._SubParsersAction[_Parser]"


def add_options(parser: _Parser) -> None:
    """Add the commands."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _file(_command(commands, "serve", "run the address service in the foreground", "serve"))
    _add_config(commands)
    _add_items(commands)
    _add_allocations(commands)
    _add_backup(commands)
    _add_token(commands)
    _add_ca(commands)


def run(args: argparse.Namespace) -> int:
    """Import the address service and carry a command out."""
    try:
        from sriov_fast.cli.ipam import commands

        return commands.carry_out(getattr(commands, args.function), args)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _MODULES:
            raise
        raise SriovError(f"{EXTRA} (missing: {error.name})") from error


# --- helpers


def _command(commands: _Subparsers, name: str, summary: str, function: str) -> _Parser:
    """Add a command that ``function`` of ``commands`` carries out."""
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(function=function)
    return parser


def _group(commands: _Subparsers, name: str, summary: str) -> _Subparsers:
    parser = commands.add_parser(name, help=summary, description=summary)
    return parser.add_subparsers(required=True, metavar="COMMAND")


def _options(parser: _Parser, *options: tuple[str, str | None, str], repeated: bool = False) -> None:
    """Add options, each with its metavar and help text."""
    for name, metavar, text in options:
        action = "append" if repeated else "store"
        parser.add_argument(name, action=action, metavar=metavar, help=text)


def _remote(parser: _Parser, *, json: bool = False) -> _Parser:
    """Add the options of a client of the service; each has an environment variable as well."""
    group = parser.add_argument_group("the service (or SRIOV_FAST_IPAM_URL, _CA, _CERT, _KEY, _TOKEN_FILE)")
    group.add_argument("--url", default=_setting("URL", URL), help=f"the service's URL ({URL})")
    for name, text in (
        ("ca", "CA of its certificate, PEM (default: the system's)"),
        ("cert", "our client certificate, PEM"),
        ("key", "its key, PEM"),
        ("token-file", "file that holds our token"),
    ):
        default = _setting(name.replace("-", "_").upper())
        group.add_argument(f"--{name}", type=Path, default=default, metavar="FILE", help=text)
    group.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="for one answer (30)")
    if json:
        output.add_json(parser)
    return parser


def _setting(name: str, default: str | None = None) -> str | None:
    return os.environ.get(f"SRIOV_FAST_IPAM_{name}") or default


def _file(parser: _Parser) -> _Parser:
    parser.add_argument(
        "--config", type=Path, default=Path(CONFIG), metavar="FILE", help=f"the operator's file ({CONFIG})"
    )
    return parser


# --- commands


def _add_config(commands: _Subparsers) -> None:
    group = _group(commands, "config", "show, check or replace the whole configuration")
    show = _remote(_command(group, "show", "print the service's configuration", "config_show"))
    show.add_argument(
        "--toml", action="store_true", help="in the format of the operator's file (default: JSON)"
    )
    check = _command(group, "check", "check an operator's file without touching anything", "config_check")
    text = "replace the service's configuration by that of a file (TOML or JSON), unless it changes meanwhile"
    put = _remote(_command(group, "apply", text, "config_apply"))
    for parser in (check, put):
        parser.add_argument("file", nargs="?", type=Path, default=Path(CONFIG), help=f"default: {CONFIG}")


def _add_items(commands: _Subparsers) -> None:
    """Add the commands that edit one item: network, pool, hosts' rule, assignment."""
    for kind, keys, summary, add_options in (
        ("networks", ("name",), "networks, as CNI configurations name them", _network_options),
        ("pools", ("network", "name"), "pools of addresses", _pool_options),
        ("hosts", ("network", "host"), "the pools of each host", _hosts_options),
        ("assignments", ("network", "pod_id"), "fixed assignments of pods", _assignment_options),
    ):
        group = _group(commands, kind, f"list, set and delete {summary}")
        listing = _remote(_command(group, "list", f"list {summary}", "items_list"), json=True)
        listing.set_defaults(kind=kind)
        setting = _remote(_command(group, "set", "add one, or replace it", "items_set"))
        deleting = _remote(_command(group, "delete", "delete one", "items_delete"))
        for parser in (setting, deleting):
            parser.set_defaults(kind=kind, keys=keys)
            _add_keys(parser, keys)
        add_options(setting)


def _add_keys(parser: _Parser, keys: tuple[str, ...]) -> None:
    for key in keys:
        parser.add_argument(key, metavar=key.upper().replace("_ID", ""))


def _network_options(parser: _Parser) -> None:
    text = "how long an address is reserved for its pod (300)"
    parser.add_argument("--grace", type=int, metavar="SECONDS", help=text)


def _pool_options(parser: _Parser) -> None:
    add = parser.add_argument
    add("--subnet", required=True, metavar="CIDR")
    add(
        "--range", action="append", dest="ranges", metavar="FIRST-LAST", help="may be repeated (default: all)"
    )
    add("--gateway", metavar="IP")
    add("--vlan", type=int, metavar="ID")
    add("--route", action="append", dest="routes", metavar="CIDR[,GATEWAY]", help="may be repeated")
    add("--mac-prefix", metavar="02:5a:00", help="pods get MACs that begin with it")
    for name, metavar in (("nameserver", "IP"), ("search", "DOMAIN"), ("option", "TEXT")):
        add(f"--dns-{name}", action="append", metavar=metavar, help="for resolv.conf, may be repeated")
    add("--dns-domain", metavar="DOMAIN")


def _hosts_options(parser: _Parser) -> None:
    text = "one of each family"
    parser.add_argument("--pool", action="append", dest="pools", required=True, metavar="NAME", help=text)


def _assignment_options(parser: _Parser) -> None:
    add = parser.add_argument
    text = "HostIP or network of them, may be repeated: no other host gets the assignment"
    add("--host", action="append", dest="hosts", metavar="CIDR", help=text)
    add("--ip", action="append", dest="ips", metavar="IP", help="one of each family")
    add("--mac")
    add("--vlan", type=int, metavar="ID")
    add("--vf", type=int, metavar="INDEX")


def _add_allocations(commands: _Subparsers) -> None:
    group = _group(commands, "allocations", "list the allocations of pods, and release abandoned ones")
    listing = _remote(_command(group, "list", "list the allocations", "allocations_list"), json=True)
    _options(listing, ("--network", "NAME", "only of this network"), ("--host", "IP", "only of this HostIP"))
    text = "release the allocations of an owner without a request of its node"
    release = _remote(_command(group, "release", text, "allocations_release"))
    _add_keys(release, ("network", "container_id", "ifname"))


def _add_backup(commands: _Subparsers) -> None:
    """Add ``export``, ``import`` and ``status``."""
    export = _remote(_command(commands, "export", "print the service's whole content: the backup", "export"))
    export.add_argument(
        "--output", type=Path, metavar="FILE", help="write it to a file, completely or not at all"
    )
    load = _remote(_command(commands, "import", "import an export, completely or not at all", "load"))
    load.add_argument("file", type=Path, help="the output of export; - for standard input")
    load.add_argument("--replace", action="store_true", help="drop allocations that the file does not have")
    text = "show whether the service is ready, and the use of its pools; exit status 1 if it is not ready"
    _remote(_command(commands, "status", text, "status"), json=True)


def _add_token(commands: _Subparsers) -> None:
    group = _group(commands, "token", "make, list and revoke tokens, in the service's file of hashes")
    text = "make a token; it is printed once and not stored"
    make = _tokens(_command(group, "create", text, "token_create"))
    holder = make.add_mutually_exclusive_group(required=True)
    holder.add_argument("--admin", action="store_true", help="a token with all rights")
    text = "a HostIP that it may act for, may be repeated"
    holder.add_argument("--host", action="append", metavar="IP|CIDR", help=text)
    make.add_argument("--note", default="", help="a note that list shows")
    text = "write it to a file (mode 0600) and not to stdout"
    make.add_argument("--output", type=Path, metavar="FILE", help=text)
    listing = _tokens(_command(group, "list", "list the tokens", "token_list"))
    output.add_json(listing)
    revoke = _tokens(_command(group, "revoke", "revoke a token, at once", "token_revoke"))
    revoke.add_argument("id", metavar="ID", help="the ID that list shows")


def _tokens(parser: _Parser) -> _Parser:
    text = "the file of hashes (default: --config's)"
    parser.add_argument("--tokens", type=Path, metavar="FILE", help=text)
    return _file(parser)


def _add_ca(commands: _Subparsers) -> None:
    text = "make a CA and certificates for a trial; the CA's key stays in the directory"
    parser = _command(commands, "ca", text, "ca")
    text = "ca.crt and ca.key are made in it unless they exist"
    parser.add_argument("directory", type=Path, help=text)
    _options(
        parser,
        ("--server", "NAME|IP", "server.crt and server.key for these names"),
        ("--host", "IP", "host-IP.crt and .key: the certificate of that HostIP"),
        ("--admin", "NAME", "admin-NAME.crt and .key, with the subject CN=NAME"),
        repeated=True,
    )
    parser.add_argument("--days", type=int, default=365, help="validity of the certificates (365)")
