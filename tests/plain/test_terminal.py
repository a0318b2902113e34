"""Tables and lines of the operator's commands: plain for scripts, with colours on a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sriov_fast.cli import terminal

OWNER = f"{'c' * 64}/eth0 (pod default/[bold]web)"
ROWS = [("ens1f0", "0", "attached", OWNER), ("ens1f0", "1", "free", "-")]
CODE = f"""
from sriov_fast.cli import terminal
terminal.print_table(("PF", "VF", "STATE", "OWNER"), {ROWS!r})
terminal.print_line("WARN", {"word " * 40!r})
"""


def test_a_pipe_gets_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_table(("PF", "VF", "STATE", "OWNER"), ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "PF      VF  STATE     OWNER",
        f"ens1f0  0   attached  {OWNER}",
        "ens1f0  1   free      -",
    ]


def test_a_line_is_never_folded(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_line("OK", "word " * 100)
    assert capsys.readouterr().out == f"OK    {'word ' * 100}\n"


def on_a_terminal(columns: int, **environment: str) -> str:
    """Return the output of CODE on a terminal of this width."""
    controller, end = pty.openpty()
    environ = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns)} | environment
    process = subprocess.Popen([sys.executable, "-c", CODE], stdout=end, env=environ)
    os.close(end)
    text = b"".join(_read(controller)).decode().replace("\r\n", "\n")
    os.close(controller)
    assert process.wait() == 0
    return text


def _read(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(descriptor, 65536)
        except OSError:  # EIO: the other end is closed
            return
        yield data


def test_a_terminal_has_colours() -> None:
    text = on_a_terminal(200)
    assert "\x1b[36mattached\x1b[0m" in text
    assert "\x1b[33mWARN\x1b[0m" in text


def test_no_color_is_respected() -> None:
    text = on_a_terminal(200, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", text)


@pytest.mark.parametrize("columns", [40, 95, 200])
def test_nothing_is_cut(columns: int) -> None:
    """A wide terminal folds the last column between words; a narrow one gets whole lines."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(columns))
    assert OWNER.replace(" ", "") in re.sub(r"\s", "", text)
    folded = max(map(len, text.splitlines()[:3])) <= columns
    assert folded == (columns >= 95)


def test_the_server_and_the_plugin_do_not_import_it() -> None:
    modules = "cli, cli.node, cli.serve, cli.install, server.threads, plugin.process".replace(
        ",", ", sriov_fast."
    )
    code = f"import sys, sriov_fast.{modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sriov_fast.server.threads" in done.stdout.split()
    assert "rich" not in done.stdout.split()
