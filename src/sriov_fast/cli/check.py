"""``sriov-fast check``: read network configurations offline and report the effect of each key."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sriov_fast.cli import output, terminal
from sriov_fast.cni import config, fields
from sriov_fast.cni.config import NetConf
from sriov_fast.common import json
from sriov_fast.common.errors import ConfigError, DecodeError, RefusedError, SriovError
from sriov_fast.ipam.keys import Keys
from sriov_fast.ipam.kinds import builtin, may_choose_vf

TYPE = "sriov"
# The annotation with the device plugin's resource: Multus then adds "deviceID" for each pod.
RESOURCE = "k8s.v1.cni.cncf.io/resourceName"
_CAPABILITIES = ("mac", "deviceID", "ips", "CNIDeviceInfoFile")  # keys of runtimeConfig that are read
TOO_DEEP = "nested too deeply, or an alias that contains itself"
OK, WARN, FAIL = "OK", "WARN", "FAIL"


class Line(NamedTuple):
    """One line of the report."""

    level: str
    key: str
    text: str


class Network(NamedTuple):
    """One configuration for the plugin, and where it comes from.

    ``names_device`` is True if the runtime adds the VF's PCI address for each pod. ``fault`` says why there
    is no configuration.
    """

    where: str
    conf: dict[str, Any]
    names_device: bool = False
    fault: Line | None = None


SUMMARY = "read network configurations without touching anything; exit status 1 if one is wrong"
DESCRIPTION = (
    f"{SUMMARY}. A file has a configuration, a list of plugins or NetworkAttachmentDefinitions; JSON, or "
    "YAML with any number of documents. The report says for each key what the plugin will do."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("file", nargs="+", metavar="FILE", help='a file, or "-" for stdin')
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Report on each file; return 1 if a configuration is wrong."""
    found = {name: list(check_file(name)) for name in args.file}
    lines = [line for each in found.values() for line in each]
    if args.json:
        output.print_json({name: [line._asdict() for line in each] for name, each in found.items()})
    else:
        for line in lines:
            if line.level:
                terminal.print_line(line.level, f"{line.key}: {line.text}")
            else:
                print(line.key)
    return int(any(line.level == FAIL for line in lines))


def check_file(name: str) -> Iterator[Line]:
    """Report on every configuration in a file. A line without a level is a heading."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        found = list(networks(documents(data, name), name))
    except OSError as error:
        yield Line(FAIL, name, error.strerror or str(error))
        return
    except SriovError as error:
        yield Line(FAIL, name, f"{error.msg}: {error.details}")
        return
    except RecursionError:
        yield Line(FAIL, name, TOO_DEEP)
        return
    for network in found:
        yield Line("", network.where, "")
        yield from [network.fault] if network.fault else examine(network)
    if all(network.fault and network.fault.level == WARN for network in found):
        yield Line(FAIL, name, f'no network of type "{TYPE}" in it')


# --- from a file to configurations


def documents(data: bytes, name: str) -> list[object]:
    """Return the documents of a file, of JSON or of YAML."""
    if data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[", b""):
        return list(_json_documents(data, name))
    try:
        import yaml
    except ImportError:
        advice = "YAML needs PyYAML: pip install 'sriov-fast[check]'"
        raise DecodeError(f"{name} is no JSON", advice) from None
    try:
        return list(yaml.safe_load_all(data))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        words = " ".join(str(error).split())
        raise DecodeError(f"{name} cannot be decoded: {words}", "give JSON or YAML") from None


def _json_documents(data: bytes, name: str) -> Iterator[object]:
    """Yield the JSON documents of a file, which may have lines of "---" between them."""
    rest = data
    while True:
        end = _end_of_document(rest)
        yield _unambiguous(rest[:end], name)
        rest = rest[end:].strip().removeprefix(b"---")
        if not rest.strip():
            return


def _unambiguous(data: bytes, name: str) -> Any:
    """Return a JSON document; DecodeError also for a key that is given twice in one object."""
    from json import loads

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in pairs:
            if key in found:
                msg = f"{name}: the key {json.text(key)} is given twice in one object"
                raise DecodeError(msg, "the last one counts; remove the other")
            found[key] = item
        return found

    value = json.loads(data, name, limited=False)  # the limit is of one configuration
    loads(data, object_pairs_hook=unique)
    return value


def _end_of_document(data: bytes) -> int:
    """Return the length of the first JSON document, that of everything if it cannot be decoded."""
    from json import JSONDecoder

    text = data.decode("latin-1")  # one character for each byte
    try:
        return JSONDecoder().raw_decode(text, len(text) - len(text.lstrip()))[1]
    except (ValueError, RecursionError):
        return len(data)


def networks(found: Iterable[object], name: str) -> Iterator[Network]:
    """Yield the configurations of our type in documents; other kinds of objects are left out."""
    for document in found:
        if isinstance(document, list):
            yield from networks(document, name)
        if not isinstance(document, dict):
            continue
        kind = document.get("kind")
        if kind == "NetworkAttachmentDefinition":
            yield from _of_definition(document, name)
        elif isinstance(document.get("items"), list):  # kubectl get -o yaml
            yield from networks(document["items"], name)
        elif kind is None:
            yield from _of_configuration(document, name)


def _of_definition(document: dict[str, Any], name: str) -> Iterator[Network]:
    """Yield the configurations in a NetworkAttachmentDefinition, completed as Multus does."""
    metadata = _object(document.get("metadata"))
    title = "/".join(str(metadata[key]) for key in ("namespace", "name") if metadata.get(key))
    where = f"{name}: NetworkAttachmentDefinition {title}".rstrip()
    text = _object(document.get("spec")).get("config")
    if text is None or text == "":
        advice = "Multus then reads a file of the node: check that file"
        yield Network(where, {}, fault=Line(WARN, "no spec.config", advice))
        return
    try:
        inner = _of_text(text)
    except SriovError as error:
        yield Network(where, {}, fault=_fault(error))
        return
    names_device = bool(_object(metadata.get("annotations")).get(RESOURCE))
    named = {"name": metadata.get("name")} | {key: value for key, value in inner.items() if value != ""}
    for network in _of_configuration(named, where):
        yield network._replace(names_device=names_device)


def _of_text(text: object) -> dict[str, Any]:
    """Return the JSON object in ``spec.config``."""
    if not isinstance(text, str):
        raise ConfigError("spec.config is no string", "give the configuration as JSON in a string")
    inner = _unambiguous(text.encode("utf-8", "surrogatepass"), "spec.config")
    if not isinstance(inner, dict):
        raise DecodeError("spec.config is no JSON object", "give the configuration as a string")
    return inner


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _of_configuration(document: dict[str, Any], where: str) -> Iterator[Network]:
    """Yield the configurations in a list of plugins, or in the configuration of one."""
    given = folded(document)
    plugins = given.get("plugins")
    if not isinstance(plugins, list):
        if given.get("type") == TYPE:
            yield Network(where, document)
        return
    head = {"cniVersion": _version(given), "name": given.get("name")}
    for number, plugin in enumerate(plugins):
        if folded(_object(plugin)).get("type") == TYPE:
            yield Network(f"{where}: plugins[{number}]", plugin | head)


def folded(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document with its keys as text in lower case: YAML has other keys, and the case is ignored."""
    return {str(key).casefold(): value for key, value in document.items()}


def _version(head: dict[str, Any]) -> object:
    """Return the version of a list: the highest that is supported (libcni, ``NetworkConfFromBytes``)."""
    declared, more = head.get("cniversion"), head.get("cniversions")
    known = [
        each for each in (declared, *(more if isinstance(more, list) else ())) if each in config.VERSIONS
    ]
    return max(known, key=config.VERSIONS.index) if known else declared


# --- from a configuration to the report


def examine(network: Network) -> Iterator[Line]:
    """Report the effect of each key, and every fault."""
    try:
        conf, faults = config.examine(json.text(network.conf).encode(), may_choose_vf)
    except SriovError as error:
        yield _fault(error)
        return
    except (TypeError, ValueError, RecursionError) as error:  # YAML has values that JSON has not
        yield Line(FAIL, "the configuration is no JSON", str(error))
        return
    if network.names_device or _has_capability(conf, "deviceID"):
        faults = [error for error in faults if error.msg != "master is missing"]
        yield Line(OK, "deviceID", "the VF that the device plugin allocates for the pod")
        conf = conf.replace(device_id=conf.device_id or "later")
    wrong = {error.msg.split(" ", 1)[0] for error in faults}
    for key in conf.raw:
        if key in EFFECTS and key not in wrong and (text := EFFECTS[key](conf)):
            yield Line(OK, key, text)
    yield from (Line(WARN, *_parted(text)) for text in conf.warnings)
    yield from (_fault(error) for error in [*faults, *_ipam_faults(conf)])


def _parted(warning: str) -> tuple[str, str]:
    """Return the key and the rest of a warning: ``unknown key "x" is ignored``."""
    _, _, rest = warning.partition('"')
    key, quote, words = rest.partition('"')
    return (key, f"unknown key,{words}") if quote else ("keys", warning)


def _fault(error: SriovError) -> Line:
    return Line(FAIL, error.msg, error.details)


def _has_capability(conf: NetConf, key: str) -> bool:
    return _object(conf.raw.get("capabilities")).get(key) is True


def _ipam_faults(conf: NetConf) -> Iterator[SriovError]:
    """Yield the fault of a built-in IPAM plugin's keys. Files and services are not looked at."""
    try:
        serve = builtin(conf.ipam_type, conf.ipam)
        if serve is None:
            return
        ipam = Keys(conf.ipam, "ipam.")
        if conf.ipam_type == "txipam":
            from sriov_fast.ipam.txipam.settings import read_settings

            read_settings(ipam)
        elif conf.ipam_type == "static":
            serve(keys=Keys(conf.raw), container_id="", ifname="").status()
        elif not _has_capability(conf, "ipRanges"):
            from sriov_fast.ipam.host_local.ranges import read

            read(Keys(conf.raw, ""))
    except RefusedError:
        return  # the rules of root belong to the node
    except SriovError as error:
        yield error


# --- the words for each key


def _switch(on: str, off: str) -> Callable[[bool | None], str]:
    return lambda value: "" if value is None else on if value else off


_spoofchk = _switch("the PF drops frames with another source MAC", "the PF lets any source MAC through")
_trust = _switch("the VF is trusted", "the VF is not trusted")
_promisc = _switch("the pod's interface is promiscuous", "the pod's interface is not promiscuous")
_allmulti = _switch("the pod's interface gets all multicasts", "the pod's interface gets its own multicasts")
_enabledad = _switch(
    "an ADD waits until no other machine has the pod's IPv6 addresses", "IPv6 addresses are used at once"
)
_LINK_STATE = {
    "auto": "the VF's link follows the PF's",
    "enable": "the VF's link is up, whatever the PF's is",
    "disable": "the VF has no link: nothing is sent or received",
}


_ATTACH = {
    "move": "the VF's device moves into the pod",
    "macvlan": "the VF stays in the host; the pod gets a macvlan on top of it",
}


def _vlan(conf: NetConf) -> str:
    vlan = conf.settings.vlan
    if vlan is None:
        return ""
    return (
        f"the PF tags the VF's traffic with VLAN {vlan}" if vlan else "the VF's traffic has no tag of the PF"
    )


def _vf(conf: NetConf) -> str:
    return "" if conf.vf is None else f"VF {conf.vf} and no other"


def _rate(value: int | None, what: str) -> str:
    return "" if value is None else f"{what} {value} Mbit/s" if value else f"no {what}"


def _cores(conf: NetConf) -> str:
    if conf.cores == fields.POD_CORES:
        return "the VF's interrupts go to the exclusive cores of the pod in turn, if it has any"
    shown = ", ".join(str(core) for core in conf.cores)
    return f"the VF's interrupts go to the cores {shown} in turn" if shown else ""


def _queues(cores: tuple[int, ...], what: str) -> str:
    shown = "of the pod" if cores == fields.POD_CORES else ", ".join(map(str, cores))
    return f"the {what} queues are served by the cores {shown}" if cores else ""


def _ipam(conf: NetConf) -> str:
    if not conf.ipam_type:
        return "no addresses"
    try:
        how = "built in" if builtin(conf.ipam_type, conf.ipam) else "executed from CNI_PATH"
    except SriovError as error:
        return error.msg
    more = "; it may choose VF, VLAN and MAC" if may_choose_vf(conf.ipam_type) else ""
    return f"addresses from {conf.ipam_type}, {how}{more}"


def _capabilities(conf: NetConf) -> str:
    asked = [key for key in _CAPABILITIES if _has_capability(conf, key)]
    return f"the runtime may set {', '.join(asked)} for each pod" if asked else "none that is used"


def _master(conf: NetConf) -> str:
    first, *more = conf.masters or ("",)
    if conf.pf_only:
        return f"the PF {first} itself" + "".join(f", else {name}" for name in more)
    if conf.masters and conf.device_id:
        return "ignored, since deviceID names the VF"
    return f"a VF of {first}" + "".join(f", else of {name}" for name in more) if first else ""


EFFECTS: dict[str, Callable[[NetConf], str]] = {
    "cniVersion": lambda conf: f"results are in version {conf.version}",
    "name": lambda conf: f"the network {conf.name}",
    "type": lambda conf: f"the plugin {conf.type}",
    "master": _master,
    "deviceID": lambda conf: conf.device_id and f"the VF at {conf.device_id}",
    "pciBusID": lambda conf: conf.device_id and f"the VF at {conf.device_id}",
    "vf": _vf,
    "attach": lambda conf: _ATTACH[conf.attach],
    "rdma": lambda conf: "the VF's RDMA device follows it, in exclusive mode" if conf.rdma else "",
    "pfOnly": lambda conf: "the pod gets the whole card" if conf.pf_only else "",
    "mac": lambda conf: f"the MAC {conf.settings.mac}" if conf.settings.mac else "",
    "rps": lambda conf: _queues(conf.rps, "receive"),
    "xps": lambda conf: _queues(conf.xps, "transmit"),
    "sysctl": lambda conf: ", ".join(f"{key} is {value}" for key, value in conf.sysctl.items()),
    "promisc": lambda conf: _promisc(conf.promisc),
    "allmulti": lambda conf: _allmulti(conf.allmulti),
    "enabledad": lambda conf: _enabledad(conf.enable_dad),
    "mtu": lambda conf: f"an MTU of {conf.mtu}" if conf.mtu else "the MTU stays",
    "vlan": _vlan,
    "vlanQoS": lambda conf: "" if conf.settings.qos is None else f"tags have priority {conf.settings.qos}",
    "vlanProto": lambda conf: f"tags are {conf.settings.proto}" if conf.settings.proto else "",
    "min_tx_rate": lambda conf: _rate(conf.settings.min_tx_rate, "guaranteed rate"),
    "max_tx_rate": lambda conf: _rate(conf.settings.max_tx_rate, "rate limit"),
    "spoofchk": lambda conf: _spoofchk(conf.settings.spoofchk),
    "trust": lambda conf: _trust(conf.settings.trust),
    "link_state": lambda conf: _LINK_STATE.get(conf.settings.link_state or "", ""),
    "cores": _cores,
    "ipam": _ipam,
    "timeout": lambda conf: f"a request ends within {conf.timeout:g} s" if conf.timeout else "",
    "dns": lambda conf: "passed on in the result" if conf.dns else "",
    "capabilities": _capabilities,
    "logLevel": lambda conf: f"lines at level {conf.log_level} and above",
    "logFile": lambda conf: (
        f"lines go to {conf.log_file} as well, if root allows it" if conf.log_file else ""
    ),
    "runtimeConfig": lambda _: "overrides the keys of the configuration",
    "args": lambda _: "args.cni overrides the keys of the configuration",
}
