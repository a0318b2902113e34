"""Reading and checking of the network configuration (SPEC section 1), before anything is touched.

A value may come from four sources. In order of precedence: ``runtimeConfig``, ``CNI_ARGS``, ``args.cni``
(Multus fills it from the annotation's ``cni-args``), the configuration itself. A wrong value in any source is
an error, even if it is overridden. DEL and GC skip a wrong value with a warning: the configuration may have
changed since the ADD, and the attachment must be released all the same.

Keys match in any case, as with Go's encoding/json; of keys that differ in case only, the last one counts.
null and "" mean "not given".
"""

from __future__ import annotations

from sriov_fast.cni import fields, result
from sriov_fast.common import cni_args, json
from sriov_fast.common.errors import ConfigError, DecodeError, IpamError, VersionError
from sriov_fast.common.json_object import (
    ATTACHMENTS,
    JsonObject,
    absolute_path,
    label,
    list_of,
    shown,
    string,
    strings,
    valid_attachments,
    whole,
)
from sriov_fast.common.record import Record, VfSettings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from sriov_fast.cni.request import Request
    from sriov_fast.cni.result import Result
    from sriov_fast.common.errors import SriovError

    _T = TypeVar("_T")

VERSIONS = result.VERSIONS
_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
# SPEC section 1 names them for everybody; they mean nothing here or are the runtime's.
_OTHERS = (
    "cniVersion",
    "cniVersions",
    "capabilities",
    "plugins",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
)

KEYS = (
    *("name", "type", "master", "deviceID", "pciBusID", "vf", "mac", "vlan", "vlanQoS", "vlanProto"),
    *("min_tx_rate", "max_tx_rate", "spoofchk", "trust", "link_state", "mtu", "cores", "ipam", "dns"),
    *("timeout", "attach", "pfOnly", "rdma", "sysctl", "promisc", "allmulti", "enabledad", "rps", "xps"),
    *("logLevel", "logFile", "prevResult", "args", "runtimeConfig"),
)
_ALWAYS_KNOWN = [key.casefold() for key in _OTHERS]
_SPELLING = {key.casefold(): key for key in (*KEYS, *_OTHERS, *ATTACHMENTS)}

_MAX_WARNINGS = 20  # about unknown keys
# Limits of the server's cache: a node has few configurations. A larger one is different for each pod.
_MOST_KNOWN = 256
_LARGEST_KNOWN = 1 << 12  # bytes

_vf = whole(0, 65535)
_vlan = whole(0, 4094)
_LEVELS = fields.one_of("debug", "info", "warning", "error", "panic")
_ATTACH = fields.one_of("move", "macvlan")


class NetConf(Record):
    """The settings of one call, from all sources.

    ``cni_version`` is the configured one ("" if there is none), ``version`` that of the result. ``masters``
    may be empty with a ``device_id`` (a VF's PCI address, "" for none). ``pf_only``: a master itself is for
    the pod. ``timeout`` is in seconds, 0 for none. ``device_info`` is the path of the device information
    file, "" for none. ``raw`` is the configuration for IPAM. ``valid_attachments`` (container ID, ifname) is
    None except for a GC. ``warnings`` is for the log.
    """

    name: str = ""
    type: str = "sriov"
    cni_version: str = ""
    version: str = "0.1.0"
    masters: tuple[str, ...] = ()
    device_id: str = ""
    vf: int | None = None
    attach: str = "move"
    pf_only: bool = False
    rdma: bool = False
    settings: VfSettings = VfSettings()
    mtu: int = 0
    cores: tuple[int, ...] = ()
    rps: tuple[int, ...] = ()
    xps: tuple[int, ...] = ()
    sysctl: dict[str, str] = {}  # noqa: RUF012 (Record removes it from the class)
    promisc: bool | None = None
    allmulti: bool | None = None
    enable_dad: bool = False
    ipam: dict[str, Any] | None = None
    ipam_type: str = ""
    timeout: float | None = None
    dns: dict[str, Any] = {}  # noqa: RUF012
    prev_result: Result | None = None
    log_level: str = "info"
    log_file: str = ""
    device_info: str = ""
    raw: dict[str, Any] = {}  # noqa: RUF012
    valid_attachments: tuple[tuple[str, str], ...] | None = None
    warnings: tuple[str, ...] = ()


def _fail(error: SriovError, faults: list[SriovError] | None) -> None:
    """Raise an error, or append it to ``faults`` if that is a list."""
    if faults is None:
        raise error
    faults.append(error)


def _skipped(faults: list[SriovError] | None) -> list[str]:
    """Return the warnings for faults that a DEL or GC skips."""
    return [f"passed over: {error.msg}" for error in faults or ()]


def _need(conf: JsonObject, key: str, check: Callable[[object], str]) -> str:
    return conf.need(key, check, f'give "{key}" in the network configuration', "")


def _unknown(conf: JsonObject) -> list[str]:
    """Return a warning for every key that was not asked for."""
    strangers = [shown(conf.place(f"{key:.60}")) for key in conf.unasked()]
    found = [f"unknown key {key} is ignored" for key in strangers[:_MAX_WARNINGS]]
    if len(strangers) > _MAX_WARNINGS:
        found.append(f"{len(strangers) - _MAX_WARNINGS} more unknown keys are ignored")
    return found


# --- the version ------------------------------------------------------------------------------------------


def decode(stdin: bytes, what: str = "the network configuration") -> dict[str, Any]:
    """Return the JSON object on stdin with our spelling of its keys, or raise DecodeError."""
    raw = json.loads(stdin, what)
    if not isinstance(raw, dict):
        raise DecodeError(f"{what} is not a JSON object: {shown(raw)}", "give one JSON object: { ... }")
    given: dict[str, Any] = raw
    return {_SPELLING.get(key.casefold(), key): value for key, value in given.items()}


def declared_version(raw: dict[str, Any]) -> str:
    """Return the configuration's cniVersion, "" where it has none (SPEC section 1)."""
    version = raw.get("cniVersion")
    if version is None:
        return ""
    if not isinstance(version, str):
        raise DecodeError(f"cniVersion = {shown(version)}: not a string", 'give a version such as "1.1.0"')
    return version


def spoken(command: str, declared: str) -> str:
    """Return the version to speak, or raise VersionError where we or the verb cannot."""
    supported = f"supported: {', '.join(VERSIONS)}"
    version = declared or "0.1.0"  # no version is 0.1.0, as before there were any
    if version not in VERSIONS:
        raise VersionError(f"cniVersion = {shown(version)}: not supported", supported)
    since = _SINCE.get(command, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(since):
        raise VersionError(
            f"cniVersion = {shown(version)}: {command} is not in it, only from {since} on",
            f"raise cniVersion in the configuration; {supported}",
        )
    return version


# --- single parts -----------------------------------------------------------------------------------------


def _pod_args(conf: JsonObject) -> JsonObject:
    """Return ``args.cni`` as a source: values for one pod. Unknown keys there belong to other plugins."""
    return conf.inner("args").inner("cni")


def _settings(conf: JsonObject, runtime: JsonObject, pod: JsonObject) -> VfSettings:
    """Return the settings that the PF shall make for the VF, without CNI_ARGS."""
    mac = pod.take("mac", fields.mac, conf.take("mac", fields.mac, None))
    return VfSettings(
        mac=runtime.take("mac", fields.mac, mac),
        vlan=pod.take("vlan", fields.number_or_digits(0, 4094), conf.take("vlan", _vlan, None)),
        qos=conf.take("vlanQoS", whole(0, 7), None),
        proto=conf.take("vlanProto", fields.vlan_proto, None),
        min_tx_rate=conf.take("min_tx_rate", fields.u32, None),
        max_tx_rate=conf.take("max_tx_rate", fields.u32, None),
        spoofchk=conf.take("spoofchk", fields.switch, None),
        link_state=conf.take("link_state", fields.one_of("auto", "enable", "disable"), None),
        trust=conf.take("trust", fields.switch, None),
    )


def _agree(settings: VfSettings, faults: list[SriovError] | None, *, vlan_follows: bool) -> None:
    """Check settings against each other; ``faults`` as in ``JsonObject``.

    With ``vlan_follows`` IPAM may still replace a VLAN of 0.
    """
    for key, value, default in (("vlanQoS", settings.qos, 0), ("vlanProto", settings.proto, "802.1Q")):
        if value is None:
            continue
        if settings.vlan is None:
            advice = f'give "vlan" as well, or drop "{key}"'
            _fail(ConfigError(f"{key} = {shown(value)}: there is no vlan", advice), faults)
        elif settings.vlan == 0 and value != default and not vlan_follows:
            advice = f'give a "vlan" from 1 to 4094, or drop "{key}"'
            _fail(ConfigError(f"{key} = {shown(value)}: vlan is 0, which means no tag", advice), faults)
    low, high = settings.min_tx_rate, settings.max_tx_rate
    if low and high and low > high:  # 0 is no limit
        advice = "give a min_tx_rate up to max_tx_rate"
        _fail(ConfigError(f"min_tx_rate = {low}: above max_tx_rate = {high}", advice), faults)


_KEYS = {"qos": "vlanQoS", "proto": "vlanProto"}  # of settings; the others are the keys themselves


def _require_no_vf(conf: NetConf, faults: list[SriovError] | None) -> None:
    """With ``pfOnly``, refuse keys of a VF, except VLAN 0 and rates of 0, which ask for nothing."""
    if not conf.pf_only:
        return
    settings = conf.settings if conf.settings.vlan else conf.settings.replace(qos=None, proto=None)
    asked = [_KEYS.get(key, key) for key, value in settings.as_dict().items() if value or value is False]
    asked += ["vf"] if conf.vf is not None else []
    asked += ["deviceID"] if conf.device_id else []
    asked += ["attach"] if conf.attach == "macvlan" else []
    if asked:
        msg = (
            f"{', '.join(asked)}: with pfOnly the pod gets the PF itself, moved and without settings of a VF"
        )
        _fail(ConfigError(msg, "leave that out, or pfOnly"), faults)


def _require_consistent(
    conf: NetConf, faults: list[SriovError] | None, chooses_vlan: Callable[[str], bool]
) -> None:
    """Check keys against each other; ``chooses_vlan`` is as in ``parse``."""
    if conf.rdma and conf.attach == "macvlan":
        msg = 'rdma: with attach "macvlan" the VF stays in the host, and its RDMA device as well'
        _fail(ConfigError(msg, 'leave rdma out, or take attach "move"'), faults)
    _require_no_vf(conf, faults)
    _agree(conf.settings, faults, vlan_follows=bool(conf.ipam_type) and chooses_vlan(conf.ipam_type))


def _device_id(conf: JsonObject, runtime: JsonObject) -> str:
    own = conf.take("deviceID", fields.device, "")
    alias = conf.take("pciBusID", fields.device, "")
    if own and alias and own != alias:
        msg = f"deviceID = {shown(own)}: pciBusID = {shown(alias)} names another VF"
        conf.fail(ConfigError(msg, "they are two names for one key: give one"))
    return runtime.take("deviceID", fields.device, "") or own or alias


def _log_level(value: object) -> str:
    """Accept a level in any case. "panic" is a level of the Kubernetes operator: here it means "error"."""
    level = _LEVELS(value.lower() if isinstance(value, str) else value)
    return "error" if level == "panic" else level


def _mtu(value: object) -> int:
    """Accept an IPv4 link's MTU (RFC 791: 68 at least); 0 asks for none."""
    return 0 if value == 0 and type(value) is int else whole(68, 65535)(value)


def _ipam(conf: JsonObject) -> tuple[dict[str, Any] | None, str]:
    """Return the ``ipam`` object and its type; without any value in it there is no IPAM."""
    ipam = conf.inner("ipam")
    if all(value in (None, "") for value in ipam.values.values()):
        return None, ""
    kind = _need(ipam, "type", fields.plugin)
    return (ipam.obj, kind) if kind else (None, "")


def _address_text(value: object) -> tuple[str, ...]:
    return tuple(fields.ip_or_cidr(item.strip()) for item in string(value).split(","))


# CNI_ARGS that IPAM reads; they are checked before anything is touched.
_OF_IPAM: dict[str, Callable[[object], object]] = {
    "IP": _address_text,
    "PodID": label,
    "HostIP": fields.ip,
}


def _dns(conf: JsonObject, warnings: list[str]) -> dict[str, Any]:
    """Return the well-known key ``dns``, checked."""
    dns = conf.inner("dns")
    found = {
        "nameservers": dns.take("nameservers", list_of(fields.ip), None),
        "domain": dns.take("domain", string, None),
        "search": dns.take("search", strings, None),
        "options": dns.take("options", strings, None),
    }
    warnings += _unknown(dns)
    return {key: value for key, value in found.items() if value}


def _prev_result(conf: JsonObject, version: str) -> Result | None:
    value = conf.get("prevResult")
    if value is None:
        return None
    try:
        return result.from_json(value, version)
    except DecodeError as error:
        conf.fail(error)
        return None


def _late_device(conf: JsonObject) -> bool:
    """Whether the runtime names the VF for each pod (capability ``deviceID``), so that STATUS has none."""
    capabilities = conf.get("capabilities")
    return isinstance(capabilities, dict) and capabilities.get("deviceID") is True


def _masters(command: str, conf: JsonObject, device_id: str) -> tuple[str, ...]:
    """Return the PFs to take a VF from; none are needed where the VF is named, or nothing is attached."""
    optional = device_id or command in ("DEL", "GC") or (command == "STATUS" and _late_device(conf))
    if not optional and conf.get("master") is None:
        advice = 'name the PF: "master": "eth1", or the VF: "deviceID": "0000:03:10.1"'
        conf.fail(ConfigError("master is missing", advice))
    return conf.take("master", fields.altnames, ())


# --- the whole --------------------------------------------------------------------------------------------


class _Configured(Record):
    """The settings from stdin alone. ``fixed`` are keys of ``runtimeConfig``: CNI_ARGS cannot change them."""

    conf: NetConf
    fixed: frozenset[str]


def parse(request: Request, chooses_vlan: Callable[[str], bool] = lambda _: False) -> NetConf:
    """Return the settings from the configuration on stdin and CNI_ARGS, or raise.

    DecodeError: no JSON object. VersionError: an unsupported version, or one without this verb. ConfigError:
    everything else. A DEL raises only the first two; a GC also raises ConfigError for a wrong network name or
    list of attachments. ``chooses_vlan`` says of an IPAM type whether its result may name the VLAN.

    The parsed stdin is cached, so two calls may return the same objects.
    """
    found = _known.get((request.command, request.stdin)) or _learned(request.command, request.stdin)
    faults: list[SriovError] | None = [] if _is_lenient(request.command) else None
    conf = _with_args(found, request.args, faults) if request.args else found.conf
    _require_consistent(conf, faults, chooses_vlan)
    warnings = (*request.warnings, *_skipped(faults))
    return conf.replace(warnings=(*warnings, *conf.warnings)) if warnings else conf


def examine(
    stdin: bytes, chooses_vlan: Callable[[str], bool] = lambda _: False
) -> tuple[NetConf, list[SriovError]]:
    """Return the settings of an ADD, and every fault in place of the first.

    Raises DecodeError and VersionError. ``chooses_vlan`` is as in ``parse``.
    """
    faults: list[SriovError] = []
    conf = _configured("ADD", stdin, faults).conf
    _require_consistent(conf, faults, chooses_vlan)
    return conf, faults


_known: dict[tuple[str, bytes], _Configured] = {}


def _learned(command: str, stdin: bytes) -> _Configured:
    faults: list[SriovError] | None = [] if _is_lenient(command) else None
    found = _configured(command, stdin, faults)
    if faults:
        warnings = (*_skipped(faults), *found.conf.warnings)
        found = found.replace(conf=found.conf.replace(warnings=warnings))
    if len(stdin) <= _LARGEST_KNOWN and command != "GC":  # each GC has another list
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[command, stdin] = found
    return found


def _is_lenient(command: str) -> bool:
    return command in ("DEL", "GC")


def _configured(command: str, stdin: bytes, faults: list[SriovError] | None) -> _Configured:
    raw = decode(stdin)
    declared = declared_version(raw)
    version = spoken(command, declared)
    warnings: list[str] = []
    conf = JsonObject(raw, faults=faults)
    runtime = conf.inner("runtimeConfig")
    pod = _pod_args(conf)
    conf.asked.update(_ALWAYS_KNOWN, (key for key in raw if key.startswith("cni.dev/")))
    device_id = _device_id(conf, runtime)
    ipam, ipam_type = _ipam(conf)
    runtime.take("ips", list_of(fields.ip_or_cidr), None)  # IPAM's, checked before anything is touched
    found = NetConf(
        name=_name(command, conf),
        type=_need(conf, "type", fields.plugin),
        cni_version=declared,
        version=version,
        masters=_masters(command, conf, device_id),
        device_id=device_id,
        vf=pod.take("vf", fields.number_or_digits(0, 65535), conf.take("vf", _vf, None)),
        attach=pod.take("attach", _ATTACH, conf.take("attach", _ATTACH, "move")),
        pf_only=conf.take("pfOnly", fields.boolean, False),
        rdma=conf.take("rdma", fields.boolean, False),
        settings=_settings(conf, runtime, pod),
        mtu=conf.take("mtu", _mtu, 0),
        cores=pod.take("cores", fields.pod_cores, conf.take("cores", fields.cores, ())),
        rps=conf.take("rps", fields.cores, ()),
        xps=conf.take("xps", fields.cores, ()),
        sysctl=conf.take("sysctl", fields.sysctls, {}),
        promisc=conf.take("promisc", fields.boolean, None),
        allmulti=conf.take("allmulti", fields.boolean, None),
        enable_dad=conf.take("enabledad", fields.boolean, False),
        ipam=ipam,
        ipam_type=ipam_type,
        timeout=conf.take("timeout", fields.seconds, None),
        dns=_dns(conf, warnings),
        prev_result=_prev_result(conf, version),
        log_level=conf.take("logLevel", _log_level, "info"),
        log_file=conf.take("logFile", absolute_path, ""),
        device_info=runtime.take("CNIDeviceInfoFile", absolute_path, ""),
        raw=raw,
        valid_attachments=valid_attachments(JsonObject(raw)) if command == "GC" else None,
    )
    found = found.replace(warnings=tuple(warnings + _unknown(conf) + _unknown(runtime)))
    fixed = frozenset(key for key, value in runtime.values.items() if value not in (None, ""))
    return _Configured(conf=found, fixed=fixed)


def _with_args(found: _Configured, given: dict[str, str], faults: list[SriovError] | None) -> NetConf:
    """Let CNI_ARGS go before the configuration, and ``runtimeConfig`` before CNI_ARGS."""
    args = JsonObject({key: given.get(key.upper()) for key in cni_args.KNOWN}, "CNI_ARGS ", faults=faults)
    conf, settings = found.conf, found.conf.settings
    mac = args.take("MAC", fields.mac, settings.mac)
    for key, check in _OF_IPAM.items():
        args.take(key, check, None)
    return conf.replace(
        vf=args.take("VF", fields.digits(0, 65535), conf.vf),
        attach=args.take("ATTACH", _ATTACH, conf.attach),
        settings=settings.replace(
            mac=settings.mac if "mac" in found.fixed else mac,
            vlan=args.take("VLAN", fields.digits(0, 4094), settings.vlan),
        ),
        cores=args.take("CORES", fields.cores, conf.cores),
    )


def _name(command: str, conf: JsonObject) -> str:
    """Return the network's name; a GC must have it, since it releases by it."""
    source = JsonObject(conf.obj) if command == "GC" else conf
    conf.get("name")
    return _need(source, "name", fields.name)


def with_extra(conf: NetConf, extra: object) -> NetConf:
    """Return ``conf`` with the VF, VLAN and MAC of an IPAM result's ``extra``, which override all others.

    None, and an absent key, change nothing. A wrong value is an IpamError.
    """
    try:
        source = JsonObject({} if extra is None else extra, "extra.")
        vf = source.take("vf", _vf, conf.vf)
        vlan = source.take("vlan", _vlan, conf.settings.vlan)
        mac = source.take("mac", fields.mac, conf.settings.mac)
    except ConfigError as error:
        raise IpamError(f"the IPAM result's {error.msg}", error.details) from None
    settings = conf.settings.replace(vlan=vlan, mac=mac)
    _agree(settings, None, vlan_follows=False)
    conf = conf.replace(vf=vf, settings=settings)
    _require_no_vf(conf, None)
    return conf
