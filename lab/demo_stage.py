"""What the demo shows: every command as it is run, what it really printed, and whether that was expected."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SECONDS = 300.0
_WIDTH = 100


class Done(NamedTuple):
    """How one command ended."""

    status: int
    out: str


class Stage:
    """Runs commands through sh in one directory, prints them with their output, and keeps the score."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        self.exported: dict[str, str] = {}
        self.met = 0
        self.faults: list[str] = []
        self._steps = 0

    def step(self, title: str) -> None:
        """Begin a part of the story."""
        self._steps += 1
        say(f"\n== {self._steps}. {title}")

    def export(self, name: str, value: str) -> None:
        """Set a variable for all commands that follow."""
        say(f"# export {name}={value}")
        self.environment[name] = self.exported[name] = value

    def write(self, name: str, text: str) -> None:
        """Make a file, shown as the shell would do it."""
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
        """Start a command that goes on, with a file for what it says; the keyboard's ^C is not for it."""
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
        """Run a command without a word; what it printed to stderr comes with its output where it fails."""
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
        """Say whether an expectation held, and remember it."""
        if well:
            self.met += 1
            say(f"  [ok] {what}")
            return
        fault = f"{what}: {otherwise}" if otherwise else what
        self.faults.append(fault)
        say(f"  [FAILED] {fault}")

    def summary(self) -> int:
        """Print the score and return the exit status."""
        total = self.met + len(self.faults)
        if not self.faults:
            say(f"\nAll {total} expectations held.")
            return 0
        say(f"\n{len(self.faults)} of {total} expectations did not hold:")
        for fault in self.faults:
            say(f"  - {fault}")
        return 1


def say(text: str) -> None:
    """Print at once: the reader may sit behind a pipe."""
    print(text, flush=True)


def complain(text: str) -> None:
    """Print to stderr."""
    print(f"demo: {text}", file=sys.stderr, flush=True)


def shortened(text: str, most: int) -> str:
    """Keep the first lines, and say how many were left out."""
    lines = text.splitlines()
    if len(lines) <= most:
        return text
    return "\n".join([*lines[:most], f"... ({len(lines) - most} more lines)"])


def wrapped(words: list[str]) -> str:
    """Join the words of a command, with lines that a terminal holds, to be read by people and by sh."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) + 1 > _WIDTH:
            lines.append("   ")
        lines[-1] += (" " if lines[-1] else "") + word
    return " \\\n".join(lines)
