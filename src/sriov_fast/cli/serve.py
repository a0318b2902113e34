"""``sriov-fast serve``: the resident server."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from socket import socket

    from sriov_fast.common.paths import Roots
    from sriov_fast.server.counts import Counts
    from sriov_fast.server.exposition import Endpoint
    from sriov_fast.server.threads import Options, Server
    from sriov_fast.server.workers import Channel, Worker


_MOST_FILES = 65536
_PROCESSES = 2  # with a third one, 200 ADDs on two CPUs end no sooner


SUMMARY = "stay in memory and serve the plugin's calls, which saves each of them a start of Python"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the server."""
    parser.add_argument(
        "--defer-release",
        action="store_true",
        help="answer a DEL when the VF is quiet and its address released, and return the VF afterwards",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        default=64,
        metavar="N",
        help="largest number of concurrent requests of each process (64)",
    )
    parser.add_argument(
        "--processes",
        type=positive,
        default=0,
        metavar="N",
        help=f"processes that serve requests ({_PROCESSES}; 1 with --defer-release, or with one CPU)",
    )
    parser.add_argument(
        "--metrics",
        default="",
        metavar="ADDRESS",
        help="serve Prometheus metrics at unix:/PATH or ADDRESS:PORT (off; needs the extra: metrics)",
    )
    parser.add_argument(
        "--vf-counters",
        action="store_true",
        help="metrics: packets and bytes of each VF, which takes the driver up to 2 ms for each VF",
    )
    parser.add_argument(
        "--also-listen",
        default="",
        metavar="PATH",
        help="a second socket, for clients that cannot see the first",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=0.0,
        metavar="S",
        help="seconds for a request without a `timeout` of its own, which then fails with code 11 (no limit)",
    )


def positive(text: str) -> int:
    """Return a positive number of the command line."""
    import argparse

    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def seconds(text: str) -> float:
    """Return a time of the command line, an hour at most."""
    import argparse

    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 0 to 3600")
    return number


def _usual_processes(*, defer_release: bool) -> int:
    """Return the number of processes; deferred moves have an order only among those of one process."""
    return 1 if defer_release else min(_PROCESSES, len(os.sched_getaffinity(0)))


def _prepare() -> None:
    """Raise the limit of descriptors, and make stderr non-blocking if it is a pipe or a socket.

    A slow reader of the log then loses lines and does not block the server.
    """
    import resource
    import stat

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        mode = os.fstat(2).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            os.set_blocking(2, False)
    except OSError:
        pass  # stderr is closed


def run(args: argparse.Namespace) -> None:
    """Serve until a signal comes."""
    from sriov_fast.common import log, paths, sd_notify
    from sriov_fast.server import sockets, threads, workers
    from sriov_fast.server.counts import Counts

    _prepare()
    roots = paths.from_environment()
    notify = os.environ.pop("NOTIFY_SOCKET", "")  # executed plugins must not see it
    options = threads.Options(threads=args.threads, defer_release=args.defer_release, timeout=args.timeout)
    logger = log.Logger()
    listeners = sockets.from_systemd(os.environ)
    threads.warm_up(roots.state)
    counts = Counts() if args.metrics else None  # each process has its own after the fork
    processes = args.processes or _usual_processes(defer_release=args.defer_release)
    forked = workers.start(
        processes - 1, lambda channel: _work(channel, roots, options, counts), unused=listeners
    )
    own_paths = [args.also_listen] if args.also_listen else []
    if not listeners:
        listeners = [sockets.listen(roots.run)]
        own_paths.append(f"{roots.run}/{sockets.NAME}")
    if args.also_listen:
        listeners.append(sockets.listen_at(args.also_listen))
    server = threads.Server(listeners, roots, options, workers=forked)
    server.counts = counts
    endpoint = _endpoint(server, listeners, forked, roots, args)
    server.start()
    if endpoint:
        endpoint.start()
    sd_notify.notify(notify, "READY=1")
    logger.info("serving", processes=processes, threads=args.threads, defer_release=args.defer_release)
    server.wait()
    try:
        logger.info("stopping")
        sd_notify.notify(notify, "STOPPING=1")
        for path in own_paths:
            sockets.remove(path)
        if endpoint:
            endpoint.close()
    finally:
        server.finish()


def _work(channel: Channel, roots: Roots, options: Options, counts: Counts | None) -> None:
    """Serve the connections of a channel until it is closed."""
    from sriov_fast.server.threads import Server

    worker = Server((), roots, options, channel=channel)
    worker.counts = channel.counts = counts
    worker.start()
    worker.wait()
    worker.finish()


def _endpoint(
    server: Server,
    listeners: list[socket],
    workers: Sequence[Worker],
    roots: Roots,
    args: argparse.Namespace,
) -> Endpoint | None:
    """Listen for scrapes, if the server counts."""
    if not server.counts:
        return None
    try:
        from sriov_fast.server.exposition import Endpoint
        from sriov_fast.server.metrics import Metrics
    except ModuleNotFoundError as error:
        from sriov_fast.common.errors import ConfigError

        advice = "pip install 'sriov-fast[metrics]', or Debian's python3-prometheus-client"
        raise ConfigError(f"--metrics needs the module {error.name}", advice) from error
    metrics = Metrics(roots, server.counts, server.running, listeners, workers, vf_counters=args.vf_counters)
    return Endpoint(args.metrics, metrics)
