"""``sriov-fast trace``: execute the plugin for real, as a runtime does, and show where the time goes.

Each ADD is followed by its DEL, whatever comes in between, so that nothing stays.
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

from sriov_fast.cli import waterfall
from sriov_fast.cli.doctor import cni_path
from sriov_fast.cli.install import PLUGIN_DIRECTORY
from sriov_fast.cli.waterfall import Waterfall
from sriov_fast.common import json, paths
from sriov_fast.common.errors import ConfigError, DecodeError, EnvError, FileError, SriovError, TryAgainError

_NETNS = "/var/run/netns"  # as ip(8) has it
_PATIENCE = 120.0  # seconds for one verb; the plugin waits for locks and IPAM for less
_GRACE = 1.0  # seconds that an ADD still has when we are to end
_LOOK = 0.05  # seconds between two looks whether we are to end
_ENDING = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
_VERBS = {"ADD": ("ADD",), "DEL": ("DEL",), "both": ("ADD", "DEL")}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``trace``."""
    summary = "execute the plugin once, for real, and show what an ADD spends its time on"
    parser = subparsers.add_parser(
        "trace", help=summary, description=f"{summary}. The VF is given back by a DEL at once."
    )
    parser.add_argument(
        "--conf", required=True, metavar="FILE", help="network configuration or list of them (- for stdin)"
    )
    parser.add_argument("--netns", metavar="NAME|PATH", help="the pod's namespace (default: a temporary one)")
    parser.add_argument("--ifname", default="eth0", help="the interface's name in the pod (eth0)")
    parser.add_argument(
        "--args", default="", metavar="CNI_ARGS", help="such as MAC=02:00:00:00:00:01;VLAN=100"
    )
    parser.add_argument("--cni-path", metavar="PATH", help="where IPAM plugins are (default: CNI_PATH)")
    parser.add_argument(
        "--plugin", default=f"{PLUGIN_DIRECTORY}/sriov", metavar="FILE", help="what to execute"
    )
    parser.add_argument("--verb", choices=list(_VERBS), default="ADD", help="what to show (ADD)")
    parser.add_argument(
        "--repeat", type=_positive, default=1, metavar="N", help="execute N times, show the median one"
    )
    parser.add_argument("--svg", metavar="FILE", help="write a picture, too (- for stdout)")
    parser.add_argument("--json", metavar="FILE", help="write the figures, too (- for stdout)")
    parser.set_defaults(run=_run)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _run(args: argparse.Namespace) -> int:
    try:
        with _terminated_like_interrupted():
            found = measure(_job(args), args.repeat)
        shown = [found[verb] for verb in _VERBS[args.verb]]
        _put_out(shown, args.svg, args.json)
    except SriovError as error:
        print(f"sriov-fast trace: {_worded(error)}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"sriov-fast trace: {error.filename or 'the plugin'}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _worded(error: SriovError) -> str:
    return f"{error.msg}; {error.details}" if error.details else error.msg


# --- what is to be executed


class Job(NamedTuple):
    """One attachment: the plugin, its configuration, and what a runtime tells it in the environment."""

    plugin: str
    conf: dict[str, Any]
    netns: str
    environment: dict[str, str]


def _job(args: argparse.Namespace) -> Job:
    """Settle everything that can be wrong before anything is executed."""
    if not os.access(args.plugin, os.X_OK):
        advice = "write it with sriov-fast install, or name it with --plugin"
        raise EnvError(f"--plugin {args.plugin}: there is no such executable", advice)
    netns = args.netns or ""
    if netns and "/" not in netns:
        netns = f"{_NETNS}/{netns}"
    if netns and not os.path.exists(netns):
        raise EnvError(f"--netns {args.netns}: there is no {netns}", "see ip netns, or leave it out")
    own = os.path.dirname(os.path.abspath(args.plugin))
    environment = {key: value for key, value in os.environ.items() if key.startswith("SRIOV_FAST_")}
    environment |= {
        "PATH": os.environ.get("PATH", os.defpath),
        "CNI_IFNAME": args.ifname,
        "CNI_ARGS": args.args,
        "CNI_PATH": args.cni_path or os.environ.get("CNI_PATH") or ":".join([own, *map(str, cni_path())]),
    }
    return Job(os.path.abspath(args.plugin), configuration(args.conf), netns, environment)


def configuration(file: str) -> dict[str, Any]:
    """Return the plugin's configuration; of a list that of sriov, as a runtime takes it out of there."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise FileError(
            f"--conf {file}: {error.strerror}", "name a file such as /etc/cni/net.d/*.conf"
        ) from error
    document = json.loads(data, f"--conf {file}")
    if not isinstance(document, dict):
        raise ConfigError(f"--conf {file}: not a JSON object", "give a network configuration")
    plugins = document.get("plugins")
    if plugins is None:
        return document
    found = [item for item in plugins if isinstance(item, dict)] if isinstance(plugins, list) else []
    ours = next((item for item in found if item.get("type") == "sriov"), None)
    if ours is None:
        raise ConfigError(f"--conf {file}: no plugin of the list is of the type sriov", "give one with it")
    return ours | {key: document[key] for key in ("cniVersion", "name") if key in document}


# --- executing


def measure(job: Job, repeat: int) -> dict[str, Waterfall]:
    """Execute ADD and DEL so many times; return for each verb the one of median length."""
    with ExitStack() as closing:
        if not job.netns:
            job = job._replace(netns=closing.enter_context(temporary_netns()))
        directory = closing.enter_context(_directory())
        rounds = [attach_and_release(job, directory) for _ in range(repeat)]
    return {verb: waterfall.median([each[verb] for each in rounds]) for verb in ("ADD", "DEL")}


def attach_and_release(job: Job, directory: str) -> dict[str, Waterfall]:
    """Execute ADD, and DEL after it in any case. What would end us is put off until then."""
    container = f"trace-{uuid.uuid4().hex}"
    with _undisturbed():
        try:
            added, answer = _execute(job, "ADD", container, directory)
        except BaseException:
            _clean_up(job, container, directory)
            raise
        if answer is not None:
            job = job._replace(conf=job.conf | {"prevResult": answer})
        deleted, _ = _execute(job, "DEL", container, directory)
    return {"ADD": added, "DEL": deleted}


def _clean_up(job: Job, container: str, directory: str) -> None:
    """DEL after an ADD that failed or was interrupted; its own error must not hide that one's."""
    try:
        _execute(job, "DEL", container, directory)
    except (SriovError, OSError) as error:
        words = _worded(error) if isinstance(error, SriovError) else str(error)
        print(f"sriov-fast trace: the DEL after it failed, too: {words}", file=sys.stderr)


def _execute(job: Job, verb: str, container: str, directory: str) -> tuple[Waterfall, Any]:
    """Execute one verb; return its waterfall and its result."""
    trace = f"{directory}/{verb}.json"
    Path(trace).unlink(missing_ok=True)
    call = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": job.netns}
    environment = job.environment | call | {"SRIOV_FAST_TRACE": trace}
    with ExitStack() as closing:
        streams = [closing.enter_context(tempfile.TemporaryFile(dir=directory)) for _ in range(3)]
        streams[0].write(json.dumps(job.conf))
        streams[0].seek(0)
        begin, end, status = _ran(job.plugin, environment, [stream.fileno() for stream in streams])
        stdout, stderr = (_content(stream.fileno()) for stream in streams[1:])
    if status:
        sys.stderr.write(stderr.decode("utf-8", "replace"))
        raise _failure(verb, status, stdout)
    result = json.loads(stdout, f"the plugin's answer to {verb}") if stdout.strip() else None
    return waterfall.assemble(_written(trace), verb, begin, end), result


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _ran(program: str, environment: dict[str, str], streams: list[int]) -> tuple[int, int, int]:
    """Run the program; return when that began and when it had ended, in nanoseconds, and its exit status.

    Not by ``subprocess``, whose own time would be in the figures. The program has a process group of its own,
    so that a Ctrl-C is ours to deal with, and none of our signal mask.
    """
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams)]
    is_add = environment["CNI_COMMAND"] == "ADD"
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
        ended = _wait(pidfd, may_be_cut_short=is_add)
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
    """Wait for the end of a process and say whether it came; if we are to end, it soon must."""
    deadline = time.monotonic() + _PATIENCE
    while (left := deadline - time.monotonic()) > 0:
        if select.select([pidfd], [], [], min(left, _LOOK))[0]:
            return True
        if may_be_cut_short and signal.sigpending() & _ENDING:
            deadline = min(deadline, time.monotonic() + _GRACE)
            may_be_cut_short = False
    return False


def _failure(verb: str, status: int, stdout: bytes) -> SriovError:
    """Return the plugin's error; what it said last on stderr stands above already."""
    try:
        said = json.loads(stdout, "the error")
    except DecodeError:
        said = None
    if not isinstance(said, dict) or "msg" not in said:
        return FileError(
            f"{verb} failed: exit status {status}, and no CNI error on stdout", "see stderr above"
        )
    details = said.get("details")
    return FileError(f"{verb} failed: code {said.get('code')}: {said['msg']}", str(details or ""))


def _written(trace: str) -> object:
    """Return what the plugin wrote of its steps, None where it is one that does not."""
    try:
        return json.loads(Path(trace).read_bytes(), "the trace")
    except FileNotFoundError:
        return None


# --- what is made for it, and taken away


@contextmanager
def temporary_netns() -> Iterator[str]:
    """Make a network namespace, for the time of the block."""
    from pyroute2 import netns

    name = f"sriov-fast-trace-{os.getpid()}"
    path = f"{_NETNS}/{name}"
    try:
        try:
            with _undisturbed():
                netns.create(name)
        except OSError as error:
            raise EnvError(
                f"no network namespace can be made: {error.strerror or error}", "be root"
            ) from error
        yield path
    finally:
        with _undisturbed():
            if os.path.exists(path):
                netns.remove(name)


@contextmanager
def _directory() -> Iterator[str]:
    """Make a directory that a resident server sees, too: its /tmp may be another."""
    path = paths.private_directory(paths.from_environment().run, f"trace-{os.getpid()}")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Take SIGTERM and SIGHUP for a Ctrl-C, so that what was made is taken away."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Put off what would end us, for things that are bounded in time and must be done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- showing


def _put_out(shown: list[Waterfall], picture: str | None, figures: str | None) -> None:
    if picture == figures == "-":
        raise ConfigError("--svg - --json -: stdout is one", "give one of them a file")
    if "-" not in (picture, figures):
        print("\n\n".join(_text(item) for item in shown))
    if picture:
        _write(picture, waterfall.svg(shown))
    if figures:
        import orjson

        document = {"waterfalls": [waterfall.plain(item) for item in shown]}
        _write(figures, orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")


def _text(item: Waterfall) -> str:
    out = sys.stdout
    try:
        "█▓▒░▚".encode(out.encoding or "ascii")
        blocks = True
    except UnicodeEncodeError:
        blocks = False
    colours = out.isatty() and not os.environ.get("NO_COLOR")
    return waterfall.text(item, shutil.get_terminal_size().columns, colours=colours, blocks=blocks)


def _write(file: str, text: str) -> None:
    if file == "-":
        sys.stdout.write(text)
    else:
        Path(file).write_text(text, encoding="utf-8")
