"""Output of the demo: every command, its real output, and the result of each expectation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SECONDS = 300.0
_WIDTH = 100


class Done(NamedTuple):
    """Exit status and output of one command."""

    status: int
    out: str


class Stage:
    """A directory to run commands in with sh; prints each with its output, and counts expectations."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        self.exported: dict[str, str] = {}
        self.met = 0
        self.faults: list[str] = []
        self._steps = 0

    def step(self, title: str) -> None:
        """Print the title of the next step."""
        self._steps += 1
        say(f"\n== {self._steps}. {title}")

    def export(self, name: str, value: str) -> None:
        """Set a variable for all commands that follow."""
        say(f"# export {name}={value}")
        self.environment[name] = self.exported[name] = value

    def write(self, name: str, text: str) -> None:
        """Write a file, and print it as a shell command."""
        say(f"# cat > {name} <<EOF\n{text}\nEOF")
        (self.directory / name).write_text(text + "\n")

    def run(self, command: str, most: int = 40) -> Done:
        """Run a command and show it, with at most ``most`` lines of its output."""
        say(f"# {command}")
        done = self._run(command)
        said = f"{done.stderr.rstrip()}\n{done.stdout.rstrip()}".strip("\n")
        if said:
            say(shortened(said, most))
        return Done(done.returncode, done.stdout)

    def start(self, command: str, log: str) -> subprocess.Popen[bytes]:
        """Start a background command that writes to a log; ^C in the terminal does not interrupt it."""
        say(f"# {command} >{log} 2>&1 &")
        with (self.directory / log).open("wb") as file:
            return subprocess.Popen(
                ["/bin/sh", "-c", f"exec {command}"],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def quiet(self, command: str) -> Done:
        """Run a command without printing it; if it fails, the output includes stderr."""
        done = self._run(command)
        return Done(done.returncode, done.stdout + (done.stderr if done.returncode else ""))

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                ["/bin/sh", "-c", command],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "", f"no end after {SECONDS:g} s")

    def expect(self, what: str, well: bool, otherwise: str = "") -> None:
        """Print whether an expectation holds, and record the result."""
        if well:
            self.met += 1
            say(f"  [ok] {what}")
            return
        fault = f"{what}: {otherwise}" if otherwise else what
        self.faults.append(fault)
        say(f"  [FAILED] {fault}")

    def summary(self) -> int:
        """Print the number of met expectations and the failed ones; return the exit status."""
        total = self.met + len(self.faults)
        if not self.faults:
            say(f"\nAll {total} expectations held.")
            return 0
        say(f"\n{len(self.faults)} of {total} expectations did not hold:")
        for fault in self.faults:
            say(f"  - {fault}")
        return 1


def say(text: str) -> None:
    """Print and flush: stdout may be a pipe."""
    print(text, flush=True)


def complain(text: str) -> None:
    """Print to stderr."""
    print(f"demo: {text}", file=sys.stderr, flush=True)


def shortened(text: str, most: int) -> str:
    """Return the first lines, and the number of omitted ones."""
    lines = text.splitlines()
    if len(lines) <= most:
        return text
    return "\n".join([*lines[:most], f"... ({len(lines) - most} more lines)"])


def wrapped(words: list[str]) -> str:
    """Join the arguments of a command in lines of at most ``_WIDTH`` characters, in the syntax of sh."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) + 1 > _WIDTH:
            lines.append("   ")
        lines[-1] += (" " if lines[-1] else "") + word
    return " \\\n".join(lines)
