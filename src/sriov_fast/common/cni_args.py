"""``CNI_ARGS``: "KEY=value;KEY=value" (SPEC section 2, "Parameters"), keys in any case.

The protocol and the built-in IPAM plugins use this parser. A key may be repeated: a meta-plugin puts its own
``IgnoreUnknown`` and ``K8S_*`` before those of the runtime, and of these the last one counts. A key of this
plugin, such as ``VF``, must not have two different values.
"""

from __future__ import annotations

from sriov_fast.common.errors import EnvError

# The usual spelling; keys are compared in upper case.
OURS = ("VF", "VLAN", "MAC", "CORES", "ATTACH", "PodID", "HostIP", "IP", "GATEWAY")
KNOWN = (
    *OURS,
    "IgnoreUnknown",
    "K8S_POD_NAMESPACE",
    "K8S_POD_NAME",
    "K8S_POD_UID",
    "K8S_POD_INFRA_CONTAINER_ID",
)
_OURS = frozenset(name.upper() for name in OURS)
_CANONICAL = frozenset(name.upper() for name in KNOWN)
_TRUE = ("1", "true", "yes")
_FALSE = ("0", "false", "no")


def _pairs(text: str, faults: list[EnvError]) -> list[tuple[str, str]]:
    found = []
    for part in text.split(";"):
        key, equals, value = part.partition("=")
        if equals and key:
            found.append((key, value))
        elif part:  # an empty part is an additional semicolon, which is harmless
            faults.append(
                EnvError(
                    f"CNI_ARGS: {part!r:.120} is not KEY=value",
                    "separate pairs with ';', as in VF=0;VLAN=100",
                )
            )
    return found


def _ignores_unknown(pairs: list[tuple[str, str]], faults: list[EnvError]) -> bool:
    ignore = False
    for key, value in pairs:
        if key.upper() != "IGNOREUNKNOWN" or not value:
            continue
        word = value.lower()
        ignore = word in _TRUE
        if not ignore and word not in _FALSE:
            msg = f"CNI_ARGS: {key}={value!r:.120} is not a truth value"
            faults.append(EnvError(msg, "give IgnoreUnknown=1 or 0"))
    return ignore


def _unknown(key: str, value: str) -> EnvError:
    advice = f"known keys: {', '.join(KNOWN)}; with IgnoreUnknown=1 others are passed over"
    return EnvError(f"CNI_ARGS: unknown key {key!r:.80} (value {value!r:.80})", advice)


def _conflict(key: str, value: str, before: str) -> EnvError:
    msg = f"CNI_ARGS: {key}={value!r:.120}: the key was given before, with the value {before!r:.120}"
    return EnvError(msg, "give one value")


def sift(text: str) -> tuple[dict[str, str], list[EnvError]]:
    """Return the readable pairs, keys in upper case, and the faults of the others.

    An empty value counts as not given. Unknown keys are left out.
    """
    faults: list[EnvError] = []
    pairs = _pairs(text, faults)
    ignore = _ignores_unknown(pairs, faults)
    found: dict[str, str] = {}
    for key, value in pairs:
        canonical = key.upper()
        if canonical not in _CANONICAL:
            if not ignore:
                faults.append(_unknown(key, value))
        elif canonical in _OURS and value and found.get(canonical, value) != value:
            faults.append(_conflict(key, value, found[canonical]))
        elif value:
            found[canonical] = value
    return found, faults


def parse(text: str) -> dict[str, str]:
    """Return the arguments, keys in upper case, or raise EnvError for the first fault."""
    found, faults = sift(text)
    if faults:
        raise faults[0]
    return found


def readable(text: str) -> dict[str, str]:
    """Return the arguments that can be read; the verb has reported the faults of the others."""
    return sift(text)[0]
