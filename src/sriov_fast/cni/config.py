"""The network configuration: read, checked and settled before anything is touched (SPEC section 1).

A value may come from four places: ``runtimeConfig`` goes before ``CNI_ARGS``, that before ``args.cni``, where
Multus puts the annotation's ``cni-args``, and that before the configuration itself. What is wrong in any of
them is an error, whether it would have been used or not. A DEL (and a GC, as far as it can) passes over a
wrong value instead, with a warning: the configuration may have changed since the ADD, and what was attached
must come back all the same.
"""

from __future__ import annotations

from sriov_fast.cni import fields, result
from sriov_fast.common import cni_args, json
from sriov_fast.common.errors import ConfigError, DecodeError, IpamError, VersionError
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
_ATTACHMENTS = ("cni.dev/valid-attachments", "cni.dev/attachments")
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

_MAX_WARNINGS = 20  # about keys that are not ours
# What a server remembers: the configurations of a node are few, even where each names one VF. What is larger
# has something of its own for every pod.
_MOST_KNOWN = 256
_LARGEST_KNOWN = 1 << 12  # bytes

_vf = fields.whole(0, 65535)
_vlan = fields.whole(0, 4094)
_LEVELS = fields.one_of("debug", "info", "warning", "error", "panic")


class NetConf(Record):
    """What to do for one call, all sources taken together.

    ``cni_version`` is as configured ("" where absent), ``version`` is what we speak. ``masters`` may be empty
    where ``device_id`` (a VF's PCI address, "" for none) is given. ``raw`` is the configuration as it came,
    for IPAM. ``valid_attachments`` (container ID, ifname) is None but for a GC. ``warnings`` is for the log.
    """

    name: str = ""
    type: str = "sriov"
    cni_version: str = ""
    version: str = "0.1.0"
    masters: tuple[str, ...] = ()
    device_id: str = ""
    vf: int | None = None
    settings: VfSettings = VfSettings()
    mtu: int = 0
    cores: tuple[int, ...] = ()
    ipam: dict[str, Any] | None = None
    ipam_type: str = ""
    dns: dict[str, Any] = {}  # noqa: RUF012 (Value takes it out of the class; nobody writes to it)
    prev_result: Result | None = None
    ips: tuple[str, ...] = ()
    pod_id: str = ""
    host_ip: str = ""
    log_level: str = "info"
    log_file: str = ""
    raw: dict[str, Any] = {}  # noqa: RUF012 (as above)
    valid_attachments: tuple[tuple[str, str], ...] | None = None
    warnings: tuple[str, ...] = ()


def _fail(error: SriovError, faults: list[str] | None) -> None:
    """Raise, or where faults are passed over, note a warning among them."""
    if faults is None:
        raise error
    faults.append(f"passed over: {error.msg}")


class _Source:
    """One object that values are taken from.

    ``faults`` None: a wrong value raises ConfigError. Else the default is taken, with a warning there.
    """

    __slots__ = ("faults", "known", "obj", "prefix")

    def __init__(self, obj: dict[str, Any], prefix: str, faults: list[str] | None) -> None:
        self.obj = obj
        self.prefix = prefix
        self.faults = faults
        self.known: set[str] = set()

    def fail(self, error: SriovError) -> None:
        _fail(error, self.faults)

    def take(self, key: str, check: Callable[[object], _T], default: _T) -> _T:
        """Return the key's value, checked, or ``default`` where it is absent or null."""
        self.known.add(key)
        value = self.obj.get(key)
        if value is None:
            return default
        try:
            return check(value)
        except fields.FieldError as bad:
            self.fail(ConfigError(f"{self.prefix}{key} = {fields.shown(value)}: {bad.reason}", bad.advice))
        return default

    def need(self, key: str, check: Callable[[object], str]) -> str:
        """Return the key's value, which must be there."""
        if self.obj.get(key) is None:
            self.known.add(key)
            self.fail(
                ConfigError(f"{self.prefix}{key} is missing", f'give "{key}" in the network configuration')
            )
            return ""
        return self.take(key, check, "")

    def inner(self, key: str, prefix: str) -> _Source:
        """Return the object under ``key`` as a source; an empty one where it is absent."""
        return _Source(self.take(key, fields.obj, {}), prefix, self.faults)

    def unknown(self) -> list[str]:
        """Return a warning for every key that nobody took."""
        hints = {key.lower(): key for key in self.known}
        strangers = [key for key in self.obj if key not in self.known]
        found = []
        for key in strangers[:_MAX_WARNINGS]:
            near = hints.get(key.lower())
            hint = f"; is {near} meant?" if near else ""
            found.append(f"unknown key {fields.shown(f'{self.prefix}{key:.60}')} is ignored{hint}")
        if len(strangers) > _MAX_WARNINGS:
            found.append(f"{len(strangers) - _MAX_WARNINGS} more unknown keys are ignored")
        return found


# --- the version ------------------------------------------------------------------------------------------


def decode(stdin: bytes) -> dict[str, Any]:
    """Return the configuration's JSON object, or raise DecodeError."""
    raw = json.loads(stdin, "the network configuration")
    if not isinstance(raw, dict):
        raise DecodeError(
            f"the network configuration is not a JSON object: {fields.shown(raw)}",
            "give the configuration of one plugin: { ... }",
        )
    return raw


def declared_version(raw: dict[str, Any]) -> str:
    """Return the configuration's cniVersion, "" where it has none (SPEC section 1)."""
    version = raw.get("cniVersion")
    if version is None:
        return ""
    if not isinstance(version, str):
        raise DecodeError(
            f"cniVersion = {fields.shown(version)}: not a string", 'give a version such as "1.1.0"'
        )
    return version


def _spoken(command: str, declared: str) -> str:
    """Return the version to speak, or raise VersionError where we or the verb cannot."""
    supported = f"supported: {', '.join(VERSIONS)}"
    version = declared or "0.1.0"  # no version is 0.1.0, as before there were any
    if version not in VERSIONS:
        raise VersionError(f"cniVersion = {fields.shown(version)}: not supported", supported)
    since = _SINCE.get(command, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(since):
        raise VersionError(
            f"cniVersion = {fields.shown(version)}: {command} is not in it, only from {since} on",
            f"raise cniVersion in the configuration; {supported}",
        )
    return version


# --- single parts -----------------------------------------------------------------------------------------


def _pod_args(conf: _Source) -> _Source:
    """Return ``args.cni`` as a source: what is asked for one pod, keys in any case, "" for not given.

    Keys that are not ours are other plugins'.
    """
    given = conf.inner("args", "args.").inner("cni", "args.cni.").obj
    lowered = {key.lower(): value for key, value in given.items() if value != ""}
    return _Source(lowered, "args.cni.", conf.faults)


def _settings(conf: _Source, runtime: _Source, pod: _Source) -> VfSettings:
    """Return what the PF shall set for the VF, as far as the configuration says."""
    mac = pod.take("mac", fields.mac, conf.take("mac", fields.mac, None))
    return VfSettings(
        mac=runtime.take("mac", fields.mac, mac),
        vlan=pod.take("vlan", fields.number_or_digits(0, 4094), conf.take("vlan", _vlan, None)),
        qos=conf.take("vlanQoS", fields.whole(0, 7), None),
        proto=conf.take("vlanProto", fields.vlan_proto, None),
        min_tx_rate=conf.take("min_tx_rate", fields.u32, None),
        max_tx_rate=conf.take("max_tx_rate", fields.u32, None),
        spoofchk=conf.take("spoofchk", fields.switch, None),
        link_state=conf.take("link_state", fields.one_of("auto", "enable", "disable"), None),
        trust=conf.take("trust", fields.switch, None),
    )


def _agree(settings: VfSettings, faults: list[str] | None) -> None:
    """Check what settings must have in common; ``faults`` as in ``_Source``."""
    for key, value in (("vlanQoS", settings.qos), ("vlanProto", settings.proto)):
        if value is not None and settings.vlan is None:
            advice = f'give "vlan" as well, or drop "{key}"'
            _fail(ConfigError(f"{key} = {fields.shown(value)}: there is no vlan", advice), faults)
    low, high = settings.min_tx_rate, settings.max_tx_rate
    if low and high and low > high:  # 0 is no limit
        advice = "give a min_tx_rate up to max_tx_rate"
        _fail(ConfigError(f"min_tx_rate = {low}: above max_tx_rate = {high}", advice), faults)


def _device_id(conf: _Source, runtime: _Source) -> str:
    own = conf.take("deviceID", fields.pci, "")
    alias = conf.take("pciBusID", fields.pci, "")
    if own and alias and own != alias:
        msg = f"deviceID = {fields.shown(own)}: pciBusID = {fields.shown(alias)} names another VF"
        conf.fail(ConfigError(msg, "they are two names for one key: give one"))
    return runtime.take("deviceID", fields.pci, "") or own or alias


def _log_level(value: object) -> str:
    """Accept a level. "panic" is one of the Kubernetes operator's: nothing here is above an error."""
    level = _LEVELS(value)
    return "error" if level == "panic" else level


def _mtu(value: object) -> int:
    """Accept an IPv4 link's MTU (RFC 791: 68 at least); 0 asks for none."""
    return 0 if value == 0 and type(value) is int else fields.whole(68, 65535)(value)


def _ipam(conf: _Source) -> tuple[dict[str, Any] | None, str]:
    """Return the ``ipam`` object and its type; none, or an empty one, means that there is no IPAM."""
    ipam: dict[str, Any] = conf.take("ipam", fields.obj, {})
    if not ipam:
        return None, ""
    kind = _Source(ipam, "ipam.", conf.faults).need("type", fields.plugin)
    return (ipam, kind) if kind else (None, "")


def _addresses(value: object) -> tuple[str, ...]:
    return tuple(fields.ip_or_cidr(item) for item in fields.array(value))


def _address_text(value: object) -> tuple[str, ...]:
    return tuple(fields.ip_or_cidr(item.strip()) for item in fields.string(value).split(","))


def _dns(conf: _Source, warnings: list[str]) -> dict[str, Any]:
    """Return the well-known key ``dns``, checked."""
    dns = conf.inner("dns", "dns.")
    found = {
        "nameservers": dns.take("nameservers", _nameservers, None),
        "domain": dns.take("domain", fields.string, None),
        "search": dns.take("search", fields.strings, None),
        "options": dns.take("options", fields.strings, None),
    }
    warnings += dns.unknown()
    return {key: value for key, value in found.items() if value}


def _nameservers(value: object) -> list[str]:
    return [fields.ip(item) for item in fields.array(value)]


def _prev_result(conf: _Source, version: str) -> Result | None:
    conf.known.add("prevResult")
    value = conf.obj.get("prevResult")
    if value is None:
        return None
    try:
        return result.from_json(value, version)
    except DecodeError as error:
        conf.fail(error)
        return None


def _attachment(value: object) -> tuple[str, str]:
    item = fields.obj(value)
    container, name = item.get("containerID"), item.get("ifname")
    if not isinstance(container, str) or not isinstance(name, str) or not container or not name:
        advice = 'list {"containerID": "...", "ifname": "..."}'
        raise fields.FieldError("an attachment lacks containerID or ifname", advice)
    return container, name


def _attachments(value: object) -> list[tuple[str, str]]:
    return [_attachment(item) for item in fields.array(value)]


def _valid_attachments(raw: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return what a GC must spare: both spellings of the key together.

    Strict even though a GC is lenient elsewhere: what is not listed is released. null is how Go writes an
    empty list.
    """
    if not any(key in raw for key in _ATTACHMENTS):
        raise ConfigError(
            f"{_ATTACHMENTS[0]} is missing", "GC needs the list of attachments that are still valid"
        )
    source = _Source(raw, "", None)
    found: dict[tuple[str, str], None] = {}
    for key in _ATTACHMENTS:
        listed: list[tuple[str, str]] = source.take(key, _attachments, [])
        found.update(dict.fromkeys(listed))
    return tuple(found)


def _late_device(conf: _Source) -> bool:
    """Whether the runtime names the VF for each pod (capability ``deviceID``), so that STATUS has none."""
    capabilities = conf.obj.get("capabilities")
    return isinstance(capabilities, dict) and capabilities.get("deviceID") is True


def _masters(command: str, conf: _Source, device_id: str) -> tuple[str, ...]:
    """Return the PFs to take a VF from; none are needed where the VF is named, or nothing is attached."""
    optional = device_id or command in ("DEL", "GC") or (command == "STATUS" and _late_device(conf))
    if not optional and conf.obj.get("master") is None:
        advice = 'name the PF: "master": "eth1", or the VF: "deviceID": "0000:03:10.1"'
        raise ConfigError("master is missing", advice)
    return conf.take("master", fields.altnames, ())


# --- the whole --------------------------------------------------------------------------------------------


class _Configured(Record):
    """What one verb is asked by stdin alone. ``fixed`` has the keys that CNI_ARGS cannot change any more."""

    conf: NetConf
    fixed: frozenset[str]


def parse(request: Request) -> NetConf:
    """Return what the configuration on stdin and CNI_ARGS ask for, or raise.

    DecodeError: no JSON object. VersionError: a version that we do not speak, or that has no such verb.
    ConfigError: everything else. A DEL raises only the first two, a GC also ConfigError where its network's
    name or its list is not right.

    What stdin says is remembered, so the values of two calls may be the same objects.
    """
    found = _known.get((request.command, request.stdin)) or _learned(request.command, request.stdin)
    warnings = list(request.warnings)
    faults = warnings if _is_lenient(request.command) else None
    conf = _with_args(found, request.args, faults) if request.args else found.conf
    _agree(conf.settings, faults)
    return conf.replace(warnings=(*warnings, *conf.warnings)) if warnings else conf


_known: dict[tuple[str, bytes], _Configured] = {}


def _learned(command: str, stdin: bytes) -> _Configured:
    found = _configured(command, stdin)
    if len(stdin) <= _LARGEST_KNOWN and command != "GC":  # whose list is another one each time
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[command, stdin] = found
    return found


def _is_lenient(command: str) -> bool:
    return command in ("DEL", "GC")


def _configured(command: str, stdin: bytes) -> _Configured:
    raw = decode(stdin)
    declared = declared_version(raw)
    version = _spoken(command, declared)
    warnings: list[str] = []
    conf = _Source(raw, "", warnings if _is_lenient(command) else None)
    runtime = conf.inner("runtimeConfig", "runtimeConfig.")
    pod = _pod_args(conf)
    conf.known.update(_OTHERS, (key for key in raw if key.startswith("cni.dev/")))
    device_id = _device_id(conf, runtime)
    ipam, ipam_type = _ipam(conf)
    found = NetConf(
        name=_name(command, conf),
        type=conf.need("type", fields.plugin),
        cni_version=declared,
        version=version,
        masters=_masters(command, conf, device_id),
        device_id=device_id,
        vf=pod.take("vf", fields.number_or_digits(0, 65535), conf.take("vf", _vf, None)),
        settings=_settings(conf, runtime, pod),
        mtu=conf.take("mtu", _mtu, 0),
        cores=pod.take("cores", fields.pod_cores, conf.take("cores", fields.cores, ())),
        ipam=ipam,
        ipam_type=ipam_type,
        dns=_dns(conf, warnings),
        prev_result=_prev_result(conf, version),
        ips=runtime.take("ips", _addresses, ()),
        log_level=conf.take("logLevel", _log_level, "info"),
        log_file=conf.take("logFile", fields.path, ""),
        raw=raw,
        valid_attachments=_valid_attachments(raw) if command == "GC" else None,
    )
    found = found.replace(warnings=tuple(warnings + conf.unknown() + runtime.unknown()))
    return _Configured(
        conf=found, fixed=frozenset(key for key, value in runtime.obj.items() if value is not None)
    )


def _with_args(found: _Configured, given: dict[str, str], faults: list[str] | None) -> NetConf:
    """Let CNI_ARGS go before the configuration, and ``runtimeConfig`` before CNI_ARGS."""
    args = _Source({key: given.get(key.upper()) for key in cni_args.KNOWN}, "CNI_ARGS ", faults)
    conf, settings = found.conf, found.conf.settings
    mac = args.take("MAC", fields.mac, settings.mac)
    ips = args.take("IP", _address_text, conf.ips)
    return conf.replace(
        vf=args.take("VF", fields.digits(0, 65535), conf.vf),
        settings=settings.replace(
            mac=settings.mac if "mac" in found.fixed else mac,
            vlan=args.take("VLAN", fields.digits(0, 4094), settings.vlan),
        ),
        cores=args.take("CORES", fields.cpu_list, conf.cores),
        ips=conf.ips if "ips" in found.fixed else ips,
        pod_id=args.take("PodID", fields.label, ""),
        host_ip=args.take("HostIP", fields.ip, ""),
    )


def _name(command: str, conf: _Source) -> str:
    """Return the network's name; a GC must have it, since it releases by it."""
    source = _Source(conf.obj, "", None) if command == "GC" else conf
    conf.known.add("name")
    return source.need("name", fields.name)


def with_extra(conf: NetConf, extra: object) -> NetConf:
    """Return ``conf`` with what IPAM decided: ``extra`` {"vf", "vlan", "mac"} goes before everything else.

    None, and an absent key, change nothing. A value that cannot be is an IpamError.
    """
    if extra is None:
        return conf
    try:
        source = _Source(fields.obj(extra), "extra.", None)
        vf = source.take("vf", _vf, conf.vf)
        vlan = source.take("vlan", _vlan, conf.settings.vlan)
        mac = source.take("mac", fields.mac, conf.settings.mac)
    except fields.FieldError as bad:
        raise IpamError(
            f"the IPAM result's extra = {fields.shown(extra)}: {bad.reason}", bad.advice
        ) from None
    except ConfigError as error:
        raise IpamError(f"the IPAM result's {error.msg}", error.details) from None
    return conf.replace(vf=vf, settings=conf.settings.replace(vlan=vlan, mac=mac))
