"""Settings of the host's apt: the Debian mirror, the options to reach it, and the archive's keys."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from lab.errors import MISSING, LabError

MIRROR_VARIABLE = "SRIOV_FAST_LAB_MIRROR"
KEYRINGS = [Path(f"/usr/share/keyrings/debian-archive-keyring.{kind}") for kind in ("pgp", "gpg")]

_DEBIAN_SUITE = re.compile(
    r"^(stable|oldstable|testing|unstable|sid|buster|bullseye|bookworm|trixie|forky|duke)$"
)
_TAKEN_OVER = re.compile(r"^Acquire::(http|https|ForceIPv[46]|Check-|Retries|Queue-Mode)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Source:
    """One archive of the host's apt configuration."""

    uri: str
    suite: str
    components: tuple[str, ...]


def parse_one_line(text: str) -> Iterator[Source]:
    """Read the ``deb [options] URI SUITE COMPONENT...`` form."""
    for line in text.splitlines():
        words = re.sub(r"\[[^]]*\]", " ", line.partition("#")[0]).split()
        if len(words) >= 3 and words[0] == "deb":
            yield Source(words[1], words[2], tuple(words[3:]))


def parse_deb822(text: str) -> Iterator[Source]:
    """Read the ``Types: deb`` form; a stanza may name several URIs and suites."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", lines.strip()):
        fields = HeaderParser().parsestr(stanza)
        if "deb" not in fields.get("Types", "").split() or fields.get("Enabled", "yes").lower() == "no":
            continue
        for uri in fields.get("URIs", "").split():
            for suite in fields.get("Suites", "").split():
                yield Source(uri, suite, tuple(fields.get("Components", "").split()))


def host_sources(etc: Path = Path("/etc/apt")) -> list[Source]:
    """Return all archives that the host's apt reads, in its order."""
    found = list(parse_one_line(_read(etc / "sources.list")))
    for path in sorted((etc / "sources.list.d").glob("*")):
        if path.suffix == ".list":
            found += parse_one_line(_read(path))
        elif path.suffix == ".sources":
            found += parse_deb822(_read(path))
    return found


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def mirror(sources: Iterable[Source]) -> str:
    """Return the Debian mirror among ``sources``: a main archive of a plain Debian suite."""
    chosen = os.environ.get(MIRROR_VARIABLE)
    if chosen:
        return chosen
    for source in sources:
        if "main" in source.components and _DEBIAN_SUITE.match(source.suite):
            return source.uri
    raise LabError(
        "no Debian archive in the host's apt configuration (/etc/apt/sources.list, sources.list.d); "
        f"set {MIRROR_VARIABLE} to the URI of a Debian mirror",
        MISSING,
    )


def keyring() -> Path | None:
    """Return the file with the Debian archive's keys, if the host has it."""
    return next(filter(Path.is_file, KEYRINGS), None)


def options() -> list[str]:
    """Return the options that let another apt reach the mirrors: proxy, timeouts, date checks."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    return select_options(dump)


def select_options(dump: str) -> list[str]:
    """Return the options in ``apt-config dump`` that affect access to a mirror."""
    lines = (line.strip() for line in dump.splitlines())
    return [line.rstrip(";") for line in lines if _TAKEN_OVER.match(line) and not line.endswith(' "";')]
