"""Translation of the host's pip configuration for a pip inside the guest's tree.

The host's file system is visible in the tree below one directory while pip runs. So every local path (a CA
bundle, a constraints file, a directory of wheels, a ``file:`` index) is valid with that directory as prefix.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress

from lab.chroot import HOST

_TAKEN_OVER = frozenset(
    (
        *("cert", "client-cert", "trusted-host", "proxy", "retries", "timeout", "default-timeout"),
        *("index-url", "extra-index-url", "find-links", "no-index"),
        *("constraint", "only-binary", "prefer-binary", "pre"),
    )
)
_CA_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_SECTIONS = ("global", "wheel", "install", ":env:")
_LINE = re.compile(r"^([^.]+)\.([a-z-]+)=(.*)$")


def environment() -> dict[str, str]:
    """Return the environment for pip in the tree."""
    return translate(parse(_listing().splitlines()), os.environ)


def _listing() -> str:
    for pip in ([sys.executable, "-m", "pip"], ["pip3"], ["pip"]):
        with suppress(OSError):
            done = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return done.stdout
    return ""


def parse(lines: Iterable[str]) -> dict[str, str]:
    """Read ``pip config list``; later sections in pip's order of precedence override earlier ones."""
    found: dict[str, dict[str, str]] = {section: {} for section in _SECTIONS}
    for line in lines:
        match = _LINE.match(line)
        if match and match[1] in found:
            found[match[1]][match[2]] = _unquoted(match[3])
    merged: dict[str, str] = {}
    for section in _SECTIONS:
        merged |= found[section]
    return merged


def _unquoted(text: str) -> str:
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text


def translate(options: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for the tree from pip's options and the host's environment."""
    result = {
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_NO_INPUT": "1",
    }
    for name in sorted(_TAKEN_OVER & set(options)):
        result["PIP_" + name.upper().replace("-", "_")] = relocate(options[name])
    for name in _CA_VARIABLES:
        if name in environ:
            result[name] = relocate(environ[name])
    for name in (*_PROXY_VARIABLES, *(name.upper() for name in _PROXY_VARIABLES)):
        if name in environ:
            result[name] = environ[name]
    return result


def relocate(value: str) -> str:
    """Prefix every local path in ``value`` with the directory of the host's file system."""
    return " ".join(_relocated(word) for word in value.split())


def _relocated(word: str) -> str:
    if word.startswith("file:///"):
        return f"file://{HOST}{word[len('file://') :]}"
    return HOST + word if word.startswith("/") else word
