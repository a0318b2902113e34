"""The container image of the node's DaemonSet, made of a Debian tree without a registry.

The package database of the tree, and an installation of this project in that tree, determine the files. The
image has exactly the Debian packages and Python distributions of its SBOM (CycloneDX).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import stat
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from lab import image, install, source, tree
from lab.errors import LabError
from lab.install import Installed
from lab.progress import step

NAME = "sriov-fast"
REFERENCE = f"ghcr.io/{NAME}/{NAME}:latest"
OUTPUT = Path(f"dist/{NAME}.tar")
PACKAGES = ("base-files", "python3-minimal", "libpython3-stdlib")
LIBC = "musl-dev"
DISTRIBUTION = "sriov-fast[metrics]"
SITE = "usr/lib/python3/dist-packages"
SBOM = "usr/share/sriov-fast/sbom.json"
PYTHON = "/usr/bin/python3"
ENTRYPOINT = [PYTHON, "-IXutf8", "-m", "sriov_fast.cli", "node"]
# Packages that only maintainer scripts need; the image runs no maintainer scripts.
_OMITTED = frozenset(("dpkg", "debconf", "debconf-2.0", "awk", "mawk", "tar", "perl-base"))
_SKIPPED = re.compile(
    r"usr/share/(?!doc/[^/]+/copyright$)(doc|man|info|locale|lintian|bug|python3|apps|pixmaps|applications)/"
    r"|.*/(ensurepip|idlelib|pydoc_data|lib2to3|turtledemo|tkinter|gconv)/"
)
# PEP 552: unchecked bytecode, because the image does not keep the times of the sources.
_UNCHECKED = (1).to_bytes(4, "little") + bytes(8)
_COMMAND = f"""\
#!{PYTHON} -IXutf8
import sys
from sriov_fast.cli import main
sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class Package:
    """One installed package of the tree."""

    name: str
    version: str
    depends: tuple[str, ...]
    files: Path


@dataclass(frozen=True, slots=True)
class Part:
    """One component of the image: its SBOM entry, and its files by their path in the image."""

    component: dict[str, str]
    files: dict[str, Path]


def debian(root: Path) -> Iterator[Part]:
    """Return the packages of the image and their dependencies."""
    known = _database(root)
    left, done = list(PACKAGES), set(_OMITTED)
    while left:
        name = left.pop()
        if name in done:
            continue
        done.add(name)
        if name not in known:
            raise LabError(f"the tree {root} has no package {name}")
        package = known[name]
        for choice in package.depends:
            left += [each for each in choice.split("|") if each in known][:1]
        yield Part(_debian_component(package), dict(_files_of(root, package)))


def linked(root: Path) -> Part:
    """Return the C library that is linked into the client; the image contains its licence."""
    package = _database(root)[LIBC]
    name = f"usr/share/doc/{LIBC}/copyright"
    return Part(_debian_component(package), {name: root / name})


def _debian_component(package: Package) -> dict[str, str]:
    purl = f"pkg:deb/debian/{package.name}@{package.version}"
    return {"type": "library", "name": package.name, "version": package.version, "purl": purl}


def _database(root: Path) -> dict[str, Package]:
    """Read dpkg's database; provided names lead to the package that provides them."""
    found: dict[str, Package] = {}
    for stanza in (root / "var/lib/dpkg/status").read_text().split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", stanza, re.MULTILINE))
        if fields.get("Status") != "install ok installed":
            continue
        name = fields["Package"]
        depends = f"{fields.get('Pre-Depends', '')},{fields.get('Depends', '')}"
        lists = (root / "var/lib/dpkg/info" / f"{each}.list" for each in (f"{name}:amd64", name))
        package = Package(
            name,
            fields["Version"],
            tuple(re.sub(r"\([^)]*\)|:any|\s", "", each) for each in depends.split(",") if each.strip()),
            next(path for path in lists if path.exists()),
        )
        for each in (
            name,
            *re.findall(r"[a-z0-9.+-]{2,}", re.sub(r"\([^)]*\)", "", fields.get("Provides", ""))),
        ):
            found.setdefault(each, package)
    return found


def _files_of(root: Path, package: Package) -> Iterator[tuple[str, Path]]:
    """Yield a package's files, and their compiled bytecode."""
    for line in package.files.read_text().splitlines():
        name = _merged(line.lstrip("/"))
        path = root / name
        if not name or name == "." or _SKIPPED.match(f"{name}/" if path.is_dir() else name):
            continue
        if path.is_symlink() or path.exists():
            yield name, path
        if name.endswith(".py"):
            for cached in path.parent.glob(f"__pycache__/{path.stem}.cpython-*.pyc"):
                if ".opt-" not in cached.name:
                    yield f"{os.path.dirname(name)}/__pycache__/{cached.name}", cached


def _merged(name: str) -> str:
    """Return a path below the merged /usr."""
    return f"usr/{name}" if re.match(r"(bin|sbin|lib|lib64)/", name) else name


def python(site: Path) -> Iterator[Part]:
    """Return this project's distribution and its requirements, from a directory of packages."""
    known = {_normal(each.metadata["Name"]): each for each in distributions(path=[str(site)])}
    left, done = [DISTRIBUTION], set()
    while left:
        name, extra = re.match(r"([\w.-]+)(?:\[(\w+)\])?", left.pop()).groups()  # type: ignore[union-attr]
        if _normal(name) in done:
            continue
        done.add(_normal(name))
        found = known[_normal(name)]
        left += list(_requirements(found, extra or ""))
        purl = f"pkg:pypi/{_normal(name)}@{found.version}"
        component = {"type": "library", "name": _normal(name), "version": found.version, "purl": purl}
        yield Part(component, dict(_files_of_distribution(found, site)))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirements(found: Distribution, extra: str) -> Iterator[str]:
    for line in found.requires or ():
        requirement, _, marker = line.partition(";")
        if not marker or (extra and re.search(rf"extra == ['\"]{extra}['\"]", marker)):
            yield requirement.strip()


def _files_of_distribution(found: Distribution, site: Path) -> Iterator[tuple[str, Path]]:
    for file in found.files or ():
        path = Path(str(found.locate_file(file)))
        if ".." not in file.parts and path.is_file():
            yield f"{SITE}/{file}", path


def layer(parts: Iterable[Part], scratch: Path) -> tuple[bytes, dict[str, object]]:
    """Return the image's only layer, a tar archive, and its SBOM."""
    components, files = [], {}
    for part in parts:
        components.append(part.component)
        files.update(part.files)
    sbom: dict[str, object] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "components": sorted(components, key=lambda each: each["name"]),
    }
    made = {
        SBOM: json.dumps(sbom, indent=1).encode(),
        "usr/bin/sriov-fast": _COMMAND.encode(),
        "etc/passwd": b"root:x:0:0:root:/:/sbin/nologin\n",
        "etc/group": b"root:x:0:\n",
    }
    for name, content in made.items():
        files[name] = scratch / name.replace("/", "_")
        files[name].write_bytes(content)
    files["usr/bin/sriov"] = files[f"{SITE}/sriov_fast/client/sriov-client"]
    return _tar(files), sbom


def _tar(files: dict[str, Path]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        directories = {str(each) for name in files for each in Path(name).parents} - {"."}
        for name in sorted({*files, *directories}):
            _add(tar, name, files.get(name))
    return stream.getvalue()


def _add(tar: tarfile.TarFile, name: str, path: Path | None) -> None:
    """Add a file, link or directory, owned by root and without a time, so that builds are reproducible."""
    entry = tarfile.TarInfo(name)
    entry.mode = 0o755
    if path is None or (path.is_dir() and not path.is_symlink()):
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
    elif path.is_symlink():
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(path)
        tar.addfile(entry)
    else:
        content = path.read_bytes()
        if name.endswith(".pyc"):
            content = content[:4] + _UNCHECKED + content[16:]
        entry.size = len(content)
        is_program = stat.S_IMODE(path.stat().st_mode) & 0o111 or name.startswith("usr/bin/")
        entry.mode = 0o755 if is_program else 0o644
        tar.addfile(entry, io.BytesIO(content))


def build(root: Path, site: Path, output: Path, name: str = REFERENCE, *, compress: bool = True) -> int:
    """Write the image as an OCI archive, and its SBOM to a second file; return the uncompressed size."""
    with tempfile.TemporaryDirectory() as scratch:
        content, sbom = layer([*debian(root), linked(root), *python(site)], Path(scratch))
    diff = f"sha256:{hashlib.sha256(content).hexdigest()}"
    blob = gzip.compress(content, 6, mtime=0) if compress else content
    settings = {
        "Entrypoint": ENTRYPOINT,
        "Env": ["PATH=/usr/bin"],
        "Labels": {"org.opencontainers.image.title": NAME, "org.opencontainers.image.licenses": "Apache-2.0"},
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    image.write_archive(output, name, blob, diff, settings, compressed=compress)
    output.with_suffix(".sbom.json").write_text(json.dumps(sbom, indent=1))
    return len(content)


def ensure(root: Path, installed: Installed) -> Path:
    """Return the image of an installation for the guest; build it if the installation or this code is new."""
    code = b"".join(Path(str(each)).read_bytes() for each in (__file__, image.__file__))
    name = f"image-{hashlib.sha256(code).hexdigest()[:12]}.tar"
    done = installed.top / name
    if not done.exists():
        with (
            step("building the DaemonSet's image"),
            tempfile.TemporaryDirectory(dir=installed.top) as scratch,
        ):
            build(root, installed.site, Path(scratch, name), compress=False)
            Path(scratch, name).rename(done)
    return done


def main() -> None:
    """Build the image of this checkout with the lab's tree."""
    parser = argparse.ArgumentParser(prog="python -m lab.node_image", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=OUTPUT, metavar="FILE")
    parser.add_argument("--name", default=REFERENCE, help="the image's name")
    args = parser.parse_args()
    place = tree.ensure()
    with tempfile.TemporaryDirectory() as scratch:
        installed = install.ensure(place, source.locate(None, Path(scratch)))
    size = build(place.root, installed.site, args.out, args.name)
    print(f"wrote {args.out}: {args.out.stat().st_size / 1e6:.1f} MB, unpacked {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
