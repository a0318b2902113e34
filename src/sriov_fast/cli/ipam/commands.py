"""The commands of ``sriov-fast ipam``: over the API, or on the service's own files."""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from sriov_fast import ipamd_api
from sriov_fast.cli import output, terminal
from sriov_fast.cli.ipam.remote import Json, Remote, explanation
from sriov_fast.common.errors import SriovError
from sriov_fast.common.replace import replace_file
from sriov_fast.ipamd import auth, model, settings
from sriov_fast.ipamd.config import Config
from sriov_fast.ipamd.errors import ServiceError
from sriov_fast.ipamd.trial_ca import TrialCa

_ALLOCATIONS = f"{ipamd_api.ROOT}/allocations"
_SECTIONS = ("networks", "pools", "hosts", "assignments")


def carry_out(function: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Carry out one command; return its exit status."""
    try:
        return function(args) or 0
    except (ServiceError, ValueError) as error:
        raise SriovError(str(error)) from error


# --- printing


def _print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    terminal.print_table(header, [list(map(_cell, row)) for row in rows])


def _cell(value: Any) -> str:
    if isinstance(value, dict):  # a range of addresses
        return f"{value['start']}-{value['end']}"
    if isinstance(value, (list, tuple)):
        return ",".join(map(_cell, value)) or "-"
    return "-" if value is None or value == "" else str(value)


# --- the whole config


def serve(args: argparse.Namespace) -> None:
    """Run the service."""
    from sriov_fast.ipamd import server

    server.run(args.config)


def config_show(args: argparse.Namespace) -> None:
    """Print the configuration."""
    with Remote(args) as remote:
        document = remote.get(ipamd_api.CONFIG)
    if args.toml:
        print(toml(document), end="")
    else:
        output.print_json(document)


def config_check(args: argparse.Namespace) -> None:
    """Check a file like the service."""
    found = settings.read(args.file)
    config = settings.parse_config(found) or Config()
    counts = ", ".join(f"{len(getattr(config, section))} {section}" for section in _SECTIONS)
    print(f"{args.file}: good ({counts})")


def config_apply(args: argparse.Namespace) -> None:
    """Replace the configuration by a file."""
    document = _read_document(args.file)
    document.pop("server", None)
    config = model.parse(Config, document)
    with Remote(args) as remote:
        response = remote.ask("GET", ipamd_api.CONFIG)
        if response.json() == config.document():
            print("nothing to change")
            return
        etag = response.headers["etag"]
        response = remote.ask("PUT", ipamd_api.CONFIG, json=config.document(), headers={"if-match": etag})
    print(f"applied, revision {response.headers['etag']}")


def _read_document(path: Path) -> Json:
    content = path.read_bytes()
    try:
        found = orjson.loads(content) if path.suffix == ".json" else tomllib.loads(content.decode())
    except ValueError as error:
        raise SriovError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise SriovError(f"{path}: is no table of networks, pools, hosts and assignments")
    return found


def toml(document: Json) -> str:
    """Return a configuration as TOML: arrays of tables at the top, inline values below."""
    lines: list[str] = []
    for section in _SECTIONS:
        for item in document.get(section, ()):
            lines += [f"[[{section}]]", *(f"{key} = {_toml(value)}" for key, value in item.items()), ""]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        # A JSON string is a TOML string, except that TOML escapes DEL.
        return orjson.dumps(value).decode().replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- its items

_VALUES = {
    "networks": ("grace",),
    "pools": ("subnet", "ranges", "gateway", "vlan", "routes", "mac_prefix", "dns"),
    "hosts": ("pools",),
    "assignments": ("hosts", "ips", "mac", "vlan", "vf"),
}
_COLUMNS = {
    "networks": ("name", "grace"),
    "pools": ("network", "name", "subnet", "gateway", "vlan", "ranges", "mac_prefix"),
    "hosts": ("network", "hosts", "pools"),
    "assignments": ("network", "pod_id", "hosts", "ips", "mac", "vlan", "vf"),
}


def items_list(args: argparse.Namespace) -> None:
    """List the items of one kind."""
    with Remote(args) as remote:
        items = remote.get(ipamd_api.CONFIG).get(args.kind, [])
    if args.json:
        output.print_json(items)
        return
    columns = _COLUMNS[args.kind]
    defaults = {"grace": model.GRACE}
    rows = [[item.get(column, defaults.get(column)) for column in columns] for item in items]
    _print_table([column.upper() for column in columns], rows)


def items_set(args: argparse.Namespace) -> None:
    """Add or replace an item."""
    body = _body(args)
    with Remote(args) as remote:
        response = remote.ask("PUT", _item_path(args), json=body)
    output.print_json(response.json())


def items_delete(args: argparse.Namespace) -> None:
    """Delete an item."""
    with Remote(args) as remote:
        remote.ask("DELETE", _item_path(args))


def _item_path(args: argparse.Namespace) -> str:
    keys = [getattr(args, key) for key in args.keys]
    return "/".join([f"{ipamd_api.CONFIG}/{args.kind}", *(quote(key, safe="") for key in keys)])


def _body(args: argparse.Namespace) -> Json:
    """Return the given values of an item; those that are not given are left out."""
    given = vars(args) | (_of_pool(args) if args.kind == "pools" else {})
    return {name: given[name] for name in _VALUES[args.kind] if given[name] not in (None, [], {})}


def _of_pool(args: argparse.Namespace) -> Json:
    dns = {
        "nameservers": args.dns_nameserver,
        "domain": args.dns_domain,
        "search": args.dns_search,
        "options": args.dns_option,
    }
    return {
        "ranges": [_range(text) for text in args.ranges or ()],
        "routes": [_route(text) for text in args.routes or ()],
        "dns": {key: value for key, value in dns.items() if value},
    }


def _range(text: str) -> Json:
    start, dash, end = text.partition("-")
    if not dash:
        raise SriovError(f"--range: {text!r}: must be FIRST-LAST, such as 10.0.0.10-10.0.0.20")
    return {"start": start, "end": end}


def _route(text: str) -> Json:
    destination, _, gateway = text.partition(",")
    return {"dst": destination} | ({"gw": gateway} if gateway else {})


# --- allocations


def allocations_list(args: argparse.Namespace) -> None:
    """List the allocations."""
    with Remote(args) as remote:
        answer = remote.get(_ALLOCATIONS, network=args.network, host_ip=args.host)
    held = answer["allocations"]
    if args.json:
        output.print_json(held)
        return
    keys = ("network", "container_id", "ifname", "pod_id", "host_ip")
    rows = [[*(each.get(key) for key in keys), _ips(each)] for each in held]
    _print_table(("NETWORK", "CONTAINER", "IFNAME", "POD", "HOST", "ADDRESSES"), rows)


def _ips(allocation: Json) -> list[str]:
    return [ip["address"] for ip in allocation["ips"]]


def allocations_release(args: argparse.Namespace) -> None:
    """Release an owner's allocation, on any host."""
    owner = {key: getattr(args, key) for key in ("network", "container_id", "ifname")}
    with Remote(args) as remote:
        held = remote.get(_ALLOCATIONS, network=args.network)["allocations"]
        found = next((each for each in held if owner.items() <= each.items()), None)
        if found is None:
            raise SriovError(f"{args.container_id}/{args.ifname} holds nothing in {args.network}")
        path = ipamd_api.allocation(args.network, args.container_id, args.ifname)
        named = {ipamd_api.HOST_IP: found[ipamd_api.HOST_IP], ipamd_api.LEASE: found.get(ipamd_api.LEASE, "")}
        answer = remote.ask("DELETE", path, params=named)
    if answer.content and not answer.json()[ipamd_api.RELEASED]:
        raise SriovError(f"{args.container_id}/{args.ifname} has got something else meanwhile")
    print(f"released {','.join(_ips(found))}")


def export(args: argparse.Namespace) -> None:
    """Print or write a backup of the service."""
    with Remote(args) as remote:
        content = remote.ask("GET", f"{ipamd_api.ROOT}/export").content
    if args.output is None:
        sys.stdout.write(content.decode() + "\n")
    else:
        replace_file(args.output, content + b"\n", 0o600)


def load(args: argparse.Namespace) -> None:
    """Import a backup."""
    content = sys.stdin.buffer.read() if str(args.file) == "-" else args.file.read_bytes()
    headers = {"content-type": ipamd_api.JSON}
    query = {"replace": "true"} if args.replace else {}
    with Remote(args) as remote:
        answer = remote.ask(
            "POST", f"{ipamd_api.ROOT}/import", content=content, headers=headers, params=query
        )
    print(f"imported; {answer.json()['allocations']} allocations are held")


def status(args: argparse.Namespace) -> int:
    """Print whether the service is ready, and the use of its pools."""
    with Remote(args) as remote:
        ready = remote.send("GET", ipamd_api.READY)
        pools = remote.get(f"{ipamd_api.ROOT}/usage")["pools"] if ready.is_success else []
    if args.json:
        output.print_json({"ready": ready.is_success, "pools": pools})
    elif not ready.is_success:
        raise SriovError(f"not ready: {explanation(ready)}")
    else:
        rows = [(pool["network"], pool["name"], pool["used"], pool["total"]) for pool in pools]
        _print_table(("NETWORK", "POOL", "USED", "TOTAL"), rows)
    return 0 if ready.is_success else 1


# --- tokens, certificates


def token_create(args: argparse.Namespace) -> None:
    """Make a token."""
    path = _tokens_path(args)
    secret, token = auth.new_token("admin" if args.admin else "host", args.host or [], args.note)
    with auth.locked(path):
        tokens = auth.read_tokens(path) if path.exists() else []
        if args.output is not None:  # first: a token whose secret is lost is of no use
            replace_file(args.output, secret.encode() + b"\n", 0o600)
        auth.write_tokens(path, [*tokens, token])
    if args.output is None:
        print(secret)
    print(f"token {token.id} added to {path}", file=sys.stderr)


def token_list(args: argparse.Namespace) -> None:
    """List the tokens."""
    tokens = auth.read_tokens(_tokens_path(args))
    if args.json:
        output.print_json([token.model_dump(exclude={"sha256"}) for token in tokens])
        return
    rows = [(token.id, token.role, token.hosts, token.created, token.note) for token in tokens]
    _print_table(("ID", "ROLE", "HOSTS", "CREATED", "NOTE"), rows)


def token_revoke(args: argparse.Namespace) -> None:
    """Revoke a token."""
    path = _tokens_path(args)
    with auth.locked(path):
        tokens = auth.read_tokens(path)
        rest = [token for token in tokens if token.id != args.id]
        if len(rest) == len(tokens):
            raise SriovError(f"{path}: there is no token {args.id}")
        auth.write_tokens(path, rest)


def _tokens_path(args: argparse.Namespace) -> Path:
    if args.tokens is not None:
        path: Path = args.tokens
        return path
    if args.config.exists():
        return settings.read(args.config).server.tokens
    return Path(settings.TOKENS)


def ca(args: argparse.Namespace) -> None:
    """Make a CA and certificates."""
    authority = TrialCa(args.directory)
    made = [authority.certificate_path]
    if args.server:
        made += authority.server(args.server, args.days)
    for address in args.host or ():
        made += authority.host(address, args.days)
    for name in args.admin or ():
        made += authority.admin(name, args.days)
    print("\n".join(map(str, made)))
