"""``CNI_ARGS``: "KEY=value;KEY=value" (SPEC section 2, "Parameters"), keys in any case."""

from __future__ import annotations

from sriov_fast.errors import EnvError

# As the runtimes spell them; looked up by their upper case.
KNOWN = (
    "VF",
    "VLAN",
    "MAC",
    "CORES",
    "PodID",
    "HostIP",
    "IP",
    "GATEWAY",
    "IgnoreUnknown",
    "K8S_POD_NAMESPACE",
    "K8S_POD_NAME",
    "K8S_POD_UID",
    "K8S_POD_INFRA_CONTAINER_ID",
)
_CANONICAL = frozenset(name.upper() for name in KNOWN)
_TRUE = ("1", "true", "yes")
_FALSE = ("0", "false", "no", "")


def _pairs(text: str, faults: list[EnvError]) -> list[tuple[str, str]]:
    found = []
    for part in text.split(";"):
        key, equals, value = part.partition("=")
        if equals and key:
            found.append((key, value))
        elif part:  # an empty part is a semicolon too many, and harmless
            faults.append(
                EnvError(
                    f"CNI_ARGS: {part!r:.120} is not KEY=value",
                    "separate pairs with ';', as in VF=0;VLAN=100",
                )
            )
    return found


def _ignores_unknown(pairs: list[tuple[str, str]], faults: list[EnvError]) -> bool:
    for key, value in pairs:
        if key.upper() == "IGNOREUNKNOWN":
            word = value.lower()
            if word in _TRUE:
                return True
            if word not in _FALSE:
                faults.append(
                    EnvError(
                        f"CNI_ARGS: {key}={value!r:.120} is not a truth value", "give IgnoreUnknown=1 or 0"
                    )
                )
    return False


def _unknown(key: str, value: str) -> EnvError:
    advice = f"known keys: {', '.join(KNOWN)}; with IgnoreUnknown=1 others are passed over"
    return EnvError(f"CNI_ARGS: unknown key {key!r:.80} (value {value!r:.80})", advice)


def sift(text: str) -> tuple[dict[str, str], list[EnvError]]:
    """Return what can be read, keys in upper case, and what is wrong with the rest.

    An empty value counts as not given. Unknown keys are left out.
    """
    faults: list[EnvError] = []
    pairs = _pairs(text, faults)
    ignore = _ignores_unknown(pairs, faults)
    found: dict[str, str] = {}
    seen: set[str] = set()
    for key, value in pairs:
        canonical = key.upper()
        if canonical not in _CANONICAL:
            if not ignore:
                faults.append(_unknown(key, value))
        elif canonical in seen:
            faults.append(
                EnvError(
                    f"CNI_ARGS: the key {key!r} is given twice (again as {value!r:.120})", "give it once"
                )
            )
        elif value:
            found[canonical] = value
        seen.add(canonical)
    return found, faults


def parse(text: str) -> dict[str, str]:
    """Return the arguments, keys in upper case; the first thing wrong is an EnvError."""
    found, faults = sift(text)
    if faults:
        raise faults[0]
    return found
