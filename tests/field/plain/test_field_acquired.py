"""What was acquired (a lock, a descriptor) is released, whatever fails."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.sysfs_tree import build_tree, vf_request
from sriov_fast.common.errors import SriovError
from sriov_fast.common.paths import Roots
from sriov_fast.kernel import _irq_py
from sriov_fast.server import protocol
from sriov_fast.vf import locks, netns, select
from sriov_fast.vf.journal import Journal


class FailingJournal(Journal):
    """A journal whose ``nth`` listing fails, and no other."""

    nth = 0

    def _names(self) -> list[str]:
        self.nth -= 1
        if not self.nth:
            raise OSError(24, "Too many open files", self._dir)
        return super()._names()


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("named", [False, True], ids=["by PF", "by deviceID"])
def test_204_the_journals_listing_fails_once(tmp_path: Path, nth: int, named: bool) -> None:
    """It failed once after a VF's lock was taken, and that lock was never released."""
    tree = build_tree(tmp_path / "tree", vfs=1)
    roots = Roots(sys=str(tree.sys), proc=str(tree.proc), run=str(tmp_path / "run"))
    journal = FailingJournal(roots.run, roots.proc)
    journal.nth = nth
    wish = vf_request(journal, roots, device_id=tree.pci(0) if named else "")
    before = descriptors()
    try:
        with select.choose(wish).lock:
            pass
    except OSError as error:
        assert error.errno == 24  # noqa: PT017 (a listing that is not reached fails nothing)
    assert descriptors() == before
    assert not os.path.isdir(f"{roots.run}/locks") or os.listdir(f"{roots.run}/locks") == []
    with locks.acquire(roots.run, f"vf-{tree.pci(0)}", "the next", wait=0):
        pass


def test_204_a_namespace_that_cannot_be_compared(tmp_path: Path) -> None:
    """The pod's namespace was left open where the host's could not be looked at."""
    path = f"/proc/{os.getpid()}/ns/net"
    home = 1 << 20  # not open
    before = descriptors()
    with pytest.raises(OSError, match="Bad file descriptor"):
        netns.open_pod(path, -1, home)
    assert descriptors() == before
    for wrong in ("/proc/self/ns/mnt", "/etc/hostname", str(tmp_path), str(tmp_path / "nowhere")):
        with pytest.raises(SriovError):
            netns.open_pod(wrong)
    assert descriptors() == before


def test_204_a_lock_whose_holder_cannot_be_asked(tmp_path: Path) -> None:
    """The error names the lock also where the name of its holder cannot be read."""
    run = str(tmp_path / "run")
    os.makedirs(f"{run}/locks/vf-x")
    assert locks.holder_of(run, "vf-x") == "an unknown process (Is a directory)"


@pytest.fixture
def late_error(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every close fail with EIO after it has released the descriptor."""
    real_close = os.close

    def close(fd: int) -> None:
        real_close(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        yield


def test_204_a_mask_whose_close_fails(tmp_path: Path, late_error: None) -> None:
    """The mask was taken for unwritten, and so the interrupt's old mask was not restored."""
    mask = tmp_path / "irq/7/smp_affinity"
    mask.parent.mkdir(parents=True)
    mask.write_text("ff\n")
    assert _irq_py.write_masks([(7, "2")], str(tmp_path)) == [0]
    assert mask.read_text() == "2\n"


def test_204_a_close_that_fails(late_error: None) -> None:
    """A client's stderr on NFS answered close with EIO: a deferred DEL ended there and kept its VF's lock."""
    ours, theirs = socket.socketpair()
    incoming = protocol.Incoming(ours)
    incoming._fds += [os.dup(ours.fileno()), os.dup(ours.fileno()), os.dup(ours.fileno())]
    received = list(incoming._fds)
    with theirs, incoming:
        incoming.close_files(received[0])
    for fd in received:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
