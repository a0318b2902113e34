"""Record the plugin's system calls, inject faults into them in parallel, and print a table of the results."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from faults import points, ptrace
from faults.cycle import VERBS, Bench, Verdict
from faults.modes import MODES
from faults.points import Injection
from harness.veth import Node

_FORK = multiprocessing.get_context("fork")
Queue = Any
_LONGEST = 2000  # characters, at most, of one fault in a line of the report


class Result(NamedTuple):
    """One injection with its verdict; ``once`` means that its repetition on a new node was clean."""

    injection: Injection
    verdict: Verdict
    seconds: float
    once: bool = False

    @property
    def line(self) -> str:
        """The line of the report."""
        about = f" ({self.injection.about})" if self.injection.about else ""
        faults = [" ".join(fault.split())[:_LONGEST] for fault in self.verdict.faults]
        return f"{self.injection}{about}: {'; '.join(faults)}"


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    args = _arguments().parse_args(argv)
    if not ptrace.SUPPORTED or os.geteuid():
        print("fault injection needs root on Linux for x86-64")
        return 1
    begin = time.monotonic()
    with _installed() as top:
        seen, todo = _plan(args, top)
        print(f"{len(todo)} injections in {sum(seen.values())} calls, seed {args.seed}", flush=True)
        report = Report(seen, args.out)
        limit = begin + args.sample if args.sample else 0.0
        _all(todo, args.jobs, limit, top, report)
    return report.end(complete=not (args.sample or args.only or args.mode or args.verb), begin=begin)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", action="append", choices=list(MODES), help="only this one, may be repeated")
    parser.add_argument("--verb", action="append", choices=VERBS, help="only this one, may be repeated")
    parser.add_argument("--call", action="append", help="only this system call, may be repeated")
    parser.add_argument("--error", action="append", help="only this error, or KILL; may be repeated")
    parser.add_argument("--only", action="append", help="only this injection: a line of the report")
    parser.add_argument("--sample", type=float, default=0, metavar="SECONDS", help="those that fit")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the chance")
    parser.add_argument("--jobs", type=int, default=2, help="at the same time")
    parser.add_argument("--out", type=Path, help="a file for every result, JSON lines")
    return parser


@contextmanager
def _installed() -> Iterator[Path]:
    """Yield a directory with the plugin's executable; remove it afterwards."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    top = Path(tempfile.mkdtemp(prefix="faults", dir=shared))
    try:
        Node.install(top)
        yield top
    finally:
        shutil.rmtree(top, ignore_errors=True)


# --- the plan


def _plan(args: argparse.Namespace, top: Path) -> tuple[Counter[tuple[str, str]], list[Injection]]:
    """Return the number of calls by mode and verb, and the injections in the order of execution."""
    named = [points.parsed(line) for line in args.only or []]
    modes = args.mode or sorted({item.mode for item in named}, key=list(MODES).index) or list(MODES)
    verbs = args.verb or sorted({item.verb for item in named}) or VERBS
    recordings = _parallel(args.jobs, [(mode, verbs, top) for mode in modes], _recorded)
    seen: Counter[tuple[str, str]] = Counter()
    found: list[Injection] = []
    for calls, items in recordings:
        seen.update(calls)
        found += items
    if named:
        found = [item for item in found if item[:3] in [name[:3] for name in named]] or named
    if args.call:
        found = [item for item in found if item.fault.call in args.call]
    if args.error:
        found = [item for item in found if item.fault.error in args.error]
    return seen, points.mixed(found, args.seed)


def _recorded(mode: str, verbs: list[str], top: Path) -> tuple[dict[tuple[str, str], int], list[Injection]]:
    counts, found = {}, []
    with _bench(mode, top) as bench:
        for verb in verbs:
            seen = bench.record(verb).seen
            counts[mode, verb] = len(seen)
            found += points.injections(mode, verb, seen)
    return counts, found


def _parallel(jobs: int, work: list[tuple[Any, ...]], what: Any) -> list[Any]:
    with _FORK.Pool(jobs, maxtasksperchild=1) as pool:
        return pool.starmap(what, work, chunksize=1)


@contextmanager
def _bench(mode: str, top: Path) -> Iterator[Bench]:
    root = Path(tempfile.mkdtemp(prefix="n", dir=top))
    made = MODES[mode](root)
    try:
        yield Bench(made)
    finally:
        made.close()


# --- execution


def _all(todo: list[Injection], jobs: int, limit: float, top: Path, report: Report) -> None:
    """Execute the injections mode by mode; each mode gets an equal part of a limited time."""
    modes = [mode for mode in MODES if any(item.mode == mode for item in todo)]
    for number, mode in enumerate(modes):
        mine = [item for item in todo if item.mode == mode]
        now = time.monotonic()
        until = now + (limit - now) / (len(modes) - number) if limit else 0.0
        results: Queue = _FORK.Queue()
        workers = [
            _FORK.Process(target=_work, args=(mine[job::jobs], until, top, results)) for job in range(jobs)
        ]
        for worker in workers:
            worker.start()
        left = jobs
        while left:
            result = results.get()
            left -= result is None
            if result is not None:
                report.add(result)
        for worker in workers:
            worker.join()


def _work(todo: list[Injection], until: float, top: Path, results: Queue) -> None:
    """Execute the injections of one worker; replace the node after one that was not clean."""
    try:
        work = _Work(list(reversed(todo)), until, results)
        while work.has_more():
            with _bench(work.waiting[-1].mode, top) as bench:
                work.on_one_bench(bench)
    except BaseException:
        traceback.print_exc()
    finally:
        results.put(None)


class _Work:
    """The injections of one worker, the last one first.

    An injection that is neither clean nor accepted is repeated once on a new node: a loaded machine can
    exceed a time limit.
    """

    def __init__(self, waiting: list[Injection], until: float, results: Queue) -> None:
        self.waiting = waiting
        self._until = until
        self._results = results
        self._accepted = points.Accepted()
        self._first: dict[Injection, Verdict] = {}  # verdicts of the injections that are repeated

    def has_more(self) -> bool:
        """Return whether an injection and time are left; repetitions do not depend on the time."""
        is_late = self._until and time.monotonic() > self._until
        return bool(self.waiting) and (not is_late or self.waiting[-1] in self._first)

    def on_one_bench(self, bench: Bench) -> None:
        """Execute injections until one is not clean."""
        while self.has_more():
            item = self.waiting.pop()
            begin = time.monotonic()
            verdict = self._injected(bench, item)
            self._judge(Result(item, verdict, time.monotonic() - begin))
            if verdict.faults:
                return

    def _injected(self, bench: Bench, item: Injection) -> Verdict:
        try:
            return bench.inject(item.verb, item.fault)
        except Exception as error:
            return Verdict(True, [f"the harness failed: {type(error).__name__}: {error}"])

    def _judge(self, result: Result) -> None:
        """Report a result, or queue the injection for its repetition."""
        item = result.injection
        first = self._first.pop(item, None)
        if first and not result.verdict.faults:
            result = result._replace(verdict=first, once=True)
        elif not first and result.verdict.faults and not self._accepted.covers(result.line):
            self._first[item] = result.verdict
            self.waiting.append(item)
            return
        self._results.put(result)


# --- the report


class Report:
    """The report: counts all results, prints faults immediately and a table at the end."""

    def __init__(self, seen: Counter[tuple[str, str]], out: Path | None) -> None:
        self.seen = seen
        self.accepted = points.Accepted()
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self._file = out.open("w") if out else None

    def add(self, result: Result) -> None:
        """Count a result, print its faults and write it to the output file."""
        kind = self._kind(result)
        self.counts[result.injection.mode, result.injection.verb, kind] += 1
        if kind in ("not clean", "once"):
            print(f"{'clean when repeated: ' * result.once}{result.line}", flush=True)
        if self._file:
            record = {"injection": str(result.injection), "about": result.injection.about, "kind": kind}
            record |= {"faults": result.verdict.faults, "seconds": round(result.seconds, 3)}
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def _kind(self, result: Result) -> str:
        if result.once:
            return "once"
        if not result.verdict.faults:
            return "clean" if result.verdict.fired else "not reached"
        return "listed" if self.accepted.covers(result.line) else "not clean"

    def end(self, *, complete: bool, begin: float) -> int:
        """Print the table; return the exit status."""
        print("\n" + "\n".join(self._table()))
        for pattern in self.accepted.unseen() if complete else ():
            print(f"clean now, take it from {points.ACCEPTED.name}: {pattern}")
        done = sum(count for (*_, kind), count in self.counts.items() if kind != "not reached")
        bad = sum(count for (*_, kind), count in self.counts.items() if kind == "not clean")
        print(f"{done} injections, {bad} not clean, {time.monotonic() - begin:.0f} s", flush=True)
        return 1 if bad or not done else 0

    def _table(self) -> list[str]:
        kinds = ("clean", "once", "listed", "not clean", "not reached")
        head = f"{'mode':<10}{'verb':<7}{'calls':>7}{'injections':>12}"
        lines = [head + "".join(f"{kind:>13}" for kind in kinds)]
        for mode, verb in self.seen:
            numbers = [self.counts[mode, verb, kind] for kind in kinds]
            done = sum(numbers[:-1])
            line = f"{mode:<10}{verb:<7}{self.seen[mode, verb]:>7}{done:>12}"
            lines.append(line + "".join(f"{number:>13}" for number in numbers))
        return lines
