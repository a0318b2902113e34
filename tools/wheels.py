"""Build the release: one sdist, and from it one wheel for each processor and C library.

Usage: python -m tools.wheels OUTPUT. Needs ``tools/release.txt``. The compiler of all wheels is zig, which
compiles for each target without containers. The wheels use Python's stable ABI, so each serves every CPython
from 3.11 on. The headers of this Python fit all targets: the stable ABI uses only those values of
``pyconfig.h`` that are equal on LP64 little-endian machines. SOURCE_DATE_EPOCH sets the time in the archives
(default: the time of the last commit). Two builds of one commit with the same tools are identical.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from tools import sbom

TOP = Path(__file__).resolve().parents[1]
ZIG = f"{sys.executable} -m ziglang cc"
LINK = "-shared -s -Wl,--build-id=none"


class Target(NamedTuple):
    """One wheel: the processor, the C library as zig names it, and the platform of the wheel's tag."""

    machine: str
    libc: str
    platform: str

    @property
    def tag(self) -> str:
        """Return the platform tag of the wheel."""
        return f"{self.platform}_{self.machine}"


# glibc 2.17 is that of RHEL 7; every later distribution has a newer one. Alpine since 3.13 has musl 1.2.
TARGETS = tuple(
    Target(machine, libc, platform)
    for machine in ("x86_64", "aarch64")
    for libc, platform in (("gnu.2.17", "manylinux_2_17"), ("musl", "musllinux_1_2"))
)


def main() -> None:
    """Run the command line."""
    output = Path(sys.argv[1]).resolve()
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct")
    os.environ["SOURCE_DATE_EPOCH"] = epoch
    os.umask(0o022)
    shutil.rmtree(output, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="sriov-fast-wheels-") as name:
        workplace = Path(name)
        source = sdist(workplace, output, int(epoch))
        wheels = [wheel(source, target, workplace / target.tag, output) for target in TARGETS]
    for built, target in zip(wheels, TARGETS, strict=True):
        check(built, target)
    for built in (source, *wheels):
        sbom.write(built, git("rev-parse", "HEAD"), int(epoch))
    write_sums(output)


def git(*words: str) -> str:
    """Return the output of a git command in the checkout."""
    command = ["git", "-c", f"safe.directory={TOP}", "-C", str(TOP), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def build(kind: str, source: Path, output: Path, *options: str, **environment: str) -> None:
    """Run the build front end with the tools of this environment."""
    words = ("--no-isolation", kind, *options, "--outdir", output, source)
    command = [sys.executable, "-m", "build", *map(str, words)]
    env = os.environ | environment
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{command}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}")


def sdist(workplace: Path, output: Path, epoch: int) -> Path:
    """Build the sdist from a copy of the files that git tracks; return its path in ``output``."""
    checkout = workplace / "checkout"
    for name in git("ls-files", "-z").split("\0"):
        if name:
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TOP / name, checkout / name)
    build("--sdist", checkout, workplace)
    (made,) = workplace.glob("*.tar.gz")
    output.mkdir(parents=True)
    repack(made, output / made.name, epoch)
    print(f"built {made.name}")
    return output / made.name


def repack(source: Path, target: Path, epoch: int) -> None:
    """Copy a tar archive with fixed order, times, owners and modes, so that it is reproducible."""
    with (
        tarfile.open(source) as old,
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", 9, raw, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
            member.mode = 0o755 if member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)


def wheel(source: Path, target: Target, workplace: Path, output: Path) -> Path:
    """Build the wheel of one target from the sdist; return its path in ``output``."""
    with tarfile.open(source) as archive:
        archive.extractall(workplace, filter="data")
    (sources,) = workplace.iterdir()
    compiler = f"{ZIG} -target {target.machine}-linux-{target.libc}"
    build(
        "--wheel",
        sources,
        output,
        f"-C--build-option=--plat-name={target.tag}",
        _PYTHON_HOST_PLATFORM=f"linux-{target.machine}",
        CC=compiler,
        LDSHARED=f"{compiler} {LINK}",
        SRIOV_FAST_CLIENT_CC=f"{ZIG} -target {target.machine}-linux-musl -static",
        SRIOV_FAST_REQUIRE_EXT="1",
        SRIOV_FAST_STABLE_ABI="1",
    )
    (made,) = output.glob(f"*{target.tag}.whl")
    print(f"built {made.name}")
    return made


def check(wheel: Path, target: Target) -> None:
    """Exit with an error unless the wheel's binaries match its tags."""
    if target.libc == "musl":
        check_musl(wheel)
    else:
        words = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
        said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        if f'"{target.tag}"' not in said:
            sys.exit(f"{wheel.name}: is not what its tag says\n{said}")
    subprocess.run([sys.executable, "-m", "abi3audit", "--strict", wheel], check=True)


def check_musl(wheel: Path) -> None:
    """Exit with an error unless every module needs only musl; auditwheel needs a musl host for that."""
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".so"):
                elf = ELFFile(io.BytesIO(archive.read(name)))
                dynamic = [each for each in elf.iter_sections() if isinstance(each, DynamicSection)]
                tags: list[Any] = [tag for each in dynamic for tag in each.iter_tags("DT_NEEDED")]
                needed = {tag.needed for tag in tags}
                if needed != {"libc.so"}:
                    sys.exit(f"{wheel.name}: {name} needs {', '.join(sorted(needed))}")


def write_sums(output: Path) -> None:
    """Write SHA256SUMS, as sha256sum(1) does."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(output.iterdir())
    ]
    (output / "SHA256SUMS").write_text("".join(lines))


if __name__ == "__main__":
    main()
