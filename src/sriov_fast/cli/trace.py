"""``sriov-fast trace``: execute the plugin as a runtime does, and show the time of each step.

A DEL follows each ADD, also after an error or a signal, so that nothing remains attached.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sriov_fast.cli import output, waterfall
from sriov_fast.cli.doctor import cni_path
from sriov_fast.cli.install import PLUGIN_DIRECTORY
from sriov_fast.cli.serve import positive
from sriov_fast.cli.waterfall import Waterfall
from sriov_fast.common import json, paths
from sriov_fast.common.errors import ConfigError, DecodeError, EnvError, FileError, SriovError, TryAgainError

_NETNS = "/var/run/netns"  # the directory of ip(8)
_PATIENCE = 120.0  # seconds for one verb; longer than the plugin waits for locks and IPAM
_GRACE = 1.0  # seconds for an ADD after a signal
_LOOK = 0.05  # seconds between two looks for a signal
_ENDING = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
_VERBS = {"ADD": ("ADD",), "DEL": ("DEL",), "both": ("ADD", "DEL")}


SUMMARY = "execute the plugin once, for real, and show the time of each step of an ADD"
DESCRIPTION = f"{SUMMARY}. A DEL releases the VF at once."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("--conf", required=True, metavar="FILE", help="network configuration or list of them (- for stdin)")
    add("--netns", metavar="NAME|PATH", help="the pod's namespace (default: a temporary one)")
    add("--ifname", default="eth0", help="the interface's name in the pod (eth0)")
    add("--args", default="", metavar="CNI_ARGS", help="such as MAC=02:00:00:00:00:01;VLAN=100")
    add("--cni-path", metavar="PATH", help="directories of IPAM plugins (default: CNI_PATH)")
    add("--plugin", default=f"{PLUGIN_DIRECTORY}/sriov", metavar="FILE", help="the executable")
    add("--verb", choices=list(_VERBS), default="ADD", help="the verb to show (ADD)")
    add("--repeat", type=positive, default=1, metavar="N", help="execute N times, show the median one")
    add("--svg", metavar="FILE", help="write a picture (- for stdout)")
    add("--json", nargs="?", const="-", metavar="FILE", help="write the figures (to stdout without FILE)")


def run(args: argparse.Namespace) -> None:
    """Measure an attachment, and show the verb that was asked for."""
    with _ending_as_interrupt():
        measured = measure(_job(args), args.repeat)
    _show([measured[verb] for verb in _VERBS[args.verb]], args.svg, args.json)


# --- the arguments


class Job(NamedTuple):
    """One attachment: the plugin, its configuration and its environment."""

    plugin: str
    conf: dict[str, Any]
    netns: str
    environment: dict[str, str]


def _job(args: argparse.Namespace) -> Job:
    """Check the arguments before anything is executed."""
    if args.svg == args.json == "-":
        raise ConfigError("--svg - --json -: stdout is one", "give one of them a file")
    if not os.access(args.plugin, os.X_OK):
        advice = "write it with sriov-fast install, or name it with --plugin"
        raise EnvError(f"--plugin {args.plugin}: there is no such executable", advice)
    netns = args.netns or ""
    if netns and "/" not in netns:
        netns = f"{_NETNS}/{netns}"
    if netns and not os.path.exists(netns):
        raise EnvError(f"--netns {args.netns}: there is no {netns}", "see ip netns, or leave it out")
    plugin = os.path.abspath(args.plugin)
    path = ":".join([os.path.dirname(plugin), *map(str, cni_path())])
    environment = {key: value for key, value in os.environ.items() if key.startswith("SRIOV_FAST_")}
    environment |= {
        "PATH": os.environ.get("PATH", os.defpath),
        "CNI_IFNAME": args.ifname,
        "CNI_ARGS": args.args,
        "CNI_PATH": args.cni_path or os.environ.get("CNI_PATH") or path,
    }
    return Job(plugin, configuration(args.conf), netns, environment)


def configuration(file: str) -> dict[str, Any]:
    """Return the plugin's configuration; of a list that of sriov, completed as a runtime does."""
    option = f"--conf {file}"
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise FileError(f"{option}: {error.strerror}", "name a file such as /etc/cni/net.d/*.conf") from error
    document = json.loads(data, option)
    if not isinstance(document, dict):
        raise ConfigError(f"{option}: not a JSON object", "give a network configuration")
    if document.get("plugins") is None:
        return document
    plugins = document["plugins"] if isinstance(document["plugins"], list) else []
    for plugin in plugins:
        if isinstance(plugin, dict) and plugin.get("type") == "sriov":
            return plugin | {key: document[key] for key in ("cniVersion", "name") if key in document}
    raise ConfigError(f"{option}: no plugin of the list is of the type sriov", "give one with it")


# --- executing


def measure(job: Job, repeat: int) -> dict[str, Waterfall]:
    """Execute ADD and DEL ``repeat`` times; return the execution of median length for each verb."""
    with ExitStack() as closing:
        if not job.netns:
            job = job._replace(netns=closing.enter_context(temporary_netns()))
        directory = closing.enter_context(_directory())
        rounds = [attach_and_release(job, directory) for _ in range(repeat)]
    return {verb: waterfall.median([each[verb] for each in rounds]) for verb in ("ADD", "DEL")}


def attach_and_release(job: Job, directory: str) -> dict[str, Waterfall]:
    """Execute ADD, and DEL after it in any case. Signals that end this process are deferred."""
    container = f"trace-{uuid.uuid4().hex}"
    with _signals_deferred():
        try:
            added, result = _execute(job, "ADD", container, directory)
        except BaseException:
            _clean_up(job, container, directory)
            raise
        if result is not None:
            job = job._replace(conf=job.conf | {"prevResult": result})
        deleted, _ = _execute(job, "DEL", container, directory)
    return {"ADD": added, "DEL": deleted}


def _clean_up(job: Job, container: str, directory: str) -> None:
    """Execute DEL after a failed or interrupted ADD, and only print its error."""
    try:
        _execute(job, "DEL", container, directory)
    except (SriovError, OSError) as error:
        print(f"sriov-fast trace: the DEL after it failed, too: {output.explain(error)}", file=sys.stderr)


def _execute(job: Job, verb: str, container: str, directory: str) -> tuple[Waterfall, Any]:
    """Execute one verb; return its waterfall and its result."""
    trace = Path(directory, f"{verb}.json")
    trace.unlink(missing_ok=True)
    call = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": job.netns}
    environment = job.environment | call | {"SRIOV_FAST_TRACE": str(trace)}
    with ExitStack() as closing:
        streams = [closing.enter_context(tempfile.TemporaryFile(dir=directory)) for _ in range(3)]
        streams[0].write(json.dumps(job.conf))
        streams[0].seek(0)
        fds = [stream.fileno() for stream in streams]
        begin, end, status = _ran(job.plugin, environment, fds)
        stdout, stderr = (os.pread(fd, os.fstat(fd).st_size, 0) for fd in fds[1:])
    if status:
        sys.stderr.write(stderr.decode("utf-8", "replace"))
        raise _failure(verb, status, stdout)
    result = json.loads(stdout, f"the plugin's answer to {verb}") if stdout.strip() else None
    steps = json.loads(trace.read_bytes(), "the trace") if trace.exists() else None
    return waterfall.assemble(steps, verb, begin, end), result


def _ran(program: str, environment: dict[str, str], streams: list[int]) -> tuple[int, int, int]:
    """Run the program; return its start and end in nanoseconds, and its exit status.

    ``subprocess`` is not used: its own time would be in the figures. The program has a process group of its
    own, so that a Ctrl-C does not reach it, and no signal mask of this process.
    """
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams)]
    begin = time.monotonic_ns()
    pid = os.posix_spawn(
        program,
        [program],
        environment,
        file_actions=actions,
        setpgroup=0,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE,),  # Python ignores it
    )
    pidfd = os.pidfd_open(pid)
    try:
        ended = _wait(pidfd, may_be_cut_short=environment["CNI_COMMAND"] == "ADD")
        end = time.monotonic_ns()
        if not ended:
            os.killpg(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(pidfd)
    if not ended:
        raise TryAgainError(f"{program} was killed: it did not end in time", "see its log")
    return begin, end, status


def _wait(pidfd: int, *, may_be_cut_short: bool) -> bool:
    """Wait for the end of a process; return whether it ended. After a signal it has a second more."""
    deadline = time.monotonic() + _PATIENCE
    while (left := deadline - time.monotonic()) > 0:
        if select.select([pidfd], [], [], min(left, _LOOK))[0]:
            return True
        if may_be_cut_short and signal.sigpending() & _ENDING:
            deadline = min(deadline, time.monotonic() + _GRACE)
            may_be_cut_short = False
    return False


def _failure(verb: str, status: int, stdout: bytes) -> SriovError:
    """Return the plugin's error; its stderr is printed already."""
    try:
        error = json.loads(stdout, "the error")
    except DecodeError:
        error = None
    if not isinstance(error, dict) or "msg" not in error:
        return FileError(
            f"{verb} failed: exit status {status}, and no CNI error on stdout", "see stderr above"
        )
    details = str(error.get("details") or "")
    return FileError(f"{verb} failed: code {error.get('code')}: {error['msg']}", details)


# --- temporary objects and signals


@contextmanager
def temporary_netns() -> Iterator[str]:
    """Make a network namespace for the time of the block."""
    from pyroute2 import netns

    name = f"sriov-fast-trace-{os.getpid()}"
    path = f"{_NETNS}/{name}"
    try:
        try:
            with _signals_deferred():
                netns.create(name)
        except OSError as error:
            raise EnvError(
                f"no network namespace can be made: {error.strerror or error}", "be root"
            ) from error
        yield path
    finally:
        with _signals_deferred():
            if os.path.exists(path):
                netns.remove(name)


@contextmanager
def _directory() -> Iterator[str]:
    """Make a directory that the resident server sees as well: its /tmp may be another one."""
    path = paths.private_directory(paths.from_environment().run, f"trace-{os.getpid()}")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _ending_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM and SIGHUP, so that the temporary objects are removed."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Block the signals that end this process during work of bounded time."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- showing


def _show(items: list[Waterfall], picture: str | None, figures: str | None) -> None:
    if "-" not in (picture, figures):
        for item in items:
            waterfall.show(item)
    if picture:
        _write(picture, waterfall.svg(items))
    if figures:
        _write(figures, output.json_text({"waterfalls": [waterfall.plain(item) for item in items]}))


def _write(file: str, content: str) -> None:
    if file == "-":
        sys.stdout.write(content)
    else:
        Path(file).write_text(content, encoding="utf-8")
