"""Boot the guest, run one command in it, copy its files to the host."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from lab import job as jobs
from lab import node_image, qemu, source, tree
from lab.chroot import Chroot
from lab.errors import TIMED_OUT, LabError
from lab.install import Installed
from lab.job import Job
from lab.paths import Place
from lab.progress import say
from lab.qemu import Machine
from lab.source import Source
from lab.stream import Report, Streams

EXPORT = "/run/tree"
CONSOLE_LINES = 25
ATTEMPTS = 3
# A boot takes about ten seconds and a card four; a busy host may need several times that.
SECONDS_TO_BOOT = 120.0
SECONDS_PER_CARD = 30.0


@dataclass(frozen=True, slots=True)
class Task:
    """A command for the guest, with its environment, timeout and output directory.

    ``native`` runs in the tree before the boot, and may fail. It leaves bytecode for the guest in the
    sources: emulated, a compilation takes twenty times as long.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    timeout: float
    output: Path | None
    native: Sequence[str]


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest to boot: the tree, the installed project, the machine.

    With ``image``, the guest's sources contain the image of the DaemonSet, at the path of ``make image``.
    """

    place: Place
    machine: Machine
    installed: Installed | None = None
    source: Source | None = None
    image: bool = False

    def run(self, task: Task) -> int:
        """Run ``task`` in a new machine and return the command's exit status.

        If a machine fails before it starts the command, the lab boots another. The command runs at most once.
        """
        say(self._announcement())
        for attempt in range(1, ATTEMPTS + 1):
            with tempfile.TemporaryDirectory(prefix="sriov-fast-lab-", ignore_cleanup_errors=True) as top:
                job = Job(Path(top))
                report = self._boot(job, task)
                if report.started:
                    return _status(report, job, task)
                say(f"the guest did not boot (attempt {attempt} of {ATTEMPTS})\n{_last_words(job)}")
        raise LabError("the guest does not boot")

    def _announcement(self) -> str:
        root, machine = self.place.root, self.machine
        system = f"Linux {tree.kernel_version(root)}, QEMU {tree.package_version(root, 'qemu-system-x86')}"
        cards = f"{machine.pfs} PF{'s' * (machine.pfs != 1)} with {machine.vfs} VFs each"
        return f"booting {system} ({machine.accel}), {machine.cpus} CPUs, {cards}"

    def _boot(self, job: Job, task: Task) -> Report:
        version = tree.kernel_version(self.place.root)
        jobs.fill(job, self.machine, self.place.root, version)
        (job.top / "command").write_text(jobs.command_script(task.argv, task.env))
        if self.source:
            tests = self.source.tests
            source.mirror(tests, source.test_files(source.files(tests)), job.sources)
        if self.installed and self.image:
            built = node_image.ensure(self.place.root, self.installed)
            (job.sources / node_image.OUTPUT).parent.mkdir(exist_ok=True)
            shutil.copyfile(built, job.sources / node_image.OUTPUT)
        if self.installed and task.native:
            binds = (*self.installed.binds(), (job.sources, tree.SOURCES))
            with suppress(LabError):
                Chroot(self.place.root, binds, env=task.env).run(task.native, cwd=tree.SOURCES)
        chroot = Chroot(self.place.root, binds=((job.top, tree.JOB),))
        exports = export_lines(self.place.root, self.installed, job, self.machine)
        argv = qemu.arguments(self.machine, version, EXPORT, tree.JOB)
        try:
            return self._watch(chroot.command(argv, prepare=exports), chroot.environment(), job, task)
        finally:
            if task.output:
                shutil.copytree(job.output, task.output, dirs_exist_ok=True)

    def _watch(self, command: Sequence[str], env: Mapping[str, str], job: Job, task: Task) -> Report:
        report = Report()
        terminal = self.machine.terminal
        with (
            closing(Streams(job.pipe("out"), job.pipe("err"), job.pipe("control"), report)) as streams,
            job.log.open("wb") as log,
        ):
            process = subprocess.Popen(
                command,
                env=env,
                stdin=None if terminal else subprocess.DEVNULL,
                stdout=None if terminal else log,
                stderr=log,
                start_new_session=not terminal,
            )
            try:
                report.late = not streams.pump(lambda: process.poll() is None, self._clock(report, task))
            finally:
                process.kill()  # ends its PID namespace with all processes
                process.wait()
        return report

    def _clock(self, report: Report, task: Task) -> Callable[[], bool]:
        """Return a function that tells whether the guest is late: first to boot, then to end the command."""
        to_boot = SECONDS_TO_BOOT + SECONDS_PER_CARD * self.machine.pfs
        booting = time.monotonic()
        running: list[float] = []

        def late() -> bool:
            now = time.monotonic()
            if not report.started:
                return now - booting > to_boot
            running[:] = running or [now]
            return now - running[0] > task.timeout

        return late


def _status(report: Report, job: Job, task: Task) -> int:
    if report.status is not None:
        phases = ", ".join(f"{name} {duration:.1f} s" for name, duration in report.durations().items())
        say(f"exit status {report.status}; {phases}")
        return report.status
    if report.late:
        say(f"stopped: the command took more than {task.timeout:.0f} s (--timeout)\n{_last_words(job)}")
        return TIMED_OUT
    raise LabError(f"the guest ended while the command ran\n{_last_words(job)}")


def _last_words(job: Job) -> str:
    """Return the ends of QEMU's output and of the guest's console."""
    lines = []
    for title, path in (("QEMU", job.log), ("the guest's console", job.console)):
        text = path.read_text(errors="replace") if path.exists() else ""
        lines += [f"{title}:", *(f"  {line}" for line in text.splitlines()[-CONSOLE_LINES:])]
    return "\n".join(lines)


def export_lines(root: Path, installed: Installed | None, job: Job, machine: Machine) -> list[str]:
    """Return shell lines that assemble the guest's root: tree, installed project, sources."""
    export = f"{root}{EXPORT}"
    binds = [(job.sources, tree.SOURCES), *(installed.binds() if installed else ())]
    lines = [f"mkdir {shlex.quote(export)}", _bind(root, export)]
    lines += [_bind(path, export + target) for path, target in binds]
    if machine.share == "virtiofs":
        lines += _virtiofsd(root)
    return lines


def _bind(path: Path, target: str) -> str:
    return shlex.join(("mount", "--bind", str(path), target))


def _virtiofsd(root: Path) -> list[str]:
    # The guest's overlay does not show the content of announced mount points.
    options = f"--socket-path={qemu.SOCKET} --shared-dir={EXPORT} --sandbox=none --readonly --cache=always"
    quoted = shlex.quote(str(root))
    return [
        f"chroot {quoted} /usr/libexec/virtiofsd {options} --no-announce-submounts --log-level=error &",
        f"until [ -S {quoted}{qemu.SOCKET} ]; do sleep 0.02; done",
    ]
