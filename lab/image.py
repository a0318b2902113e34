"""Container images of one layer, written as OCI archives: the lab needs no registry."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from lab.errors import LabError

PAUSE = Path(__file__).with_name("pause.c")
_DIRECTORIES = ("bin", "dev", "etc", "proc", "run", "sys", "tmp")
_VENDOR = "application/vnd.oci.image"


def write(path: Path, name: str, program: Path) -> None:
    """Write an OCI archive with the image ``name`` to ``path``; a container runs ``program``."""
    layer = _layer(program)
    settings = {"Env": ["PATH=/bin"], "Cmd": [f"/bin/{program.name}"]}
    write_archive(path, name, layer, _digest(layer), settings)


def write_archive(  # noqa: PLR0913 (facts, each by its name)
    path: Path,
    name: str,
    layer: bytes,
    diff_id: str,
    settings: Mapping[str, object],
    *,
    compressed: bool = False,
) -> None:
    """Write an OCI archive of one layer; ``diff_id`` is the digest of the layer before compression."""
    rootfs = {"type": "layers", "diff_ids": [diff_id]}
    config = _json({"architecture": "amd64", "os": "linux", "config": settings, "rootfs": rootfs})
    kind = f"{_VENDOR}.layer.v1.tar{'+gzip' if compressed else ''}"
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_VENDOR}.manifest.v1+json",
            "config": _descriptor(f"{_VENDOR}.config.v1+json", config),
            "layers": [_descriptor(kind, layer)],
        }
    )
    entry = _descriptor(f"{_VENDOR}.manifest.v1+json", manifest)
    entry["annotations"] = {"io.containerd.image.name": name}
    index = _json({"schemaVersion": 2, "manifests": [entry]})
    blobs = [(f"blobs/sha256/{_digest(blob)[7:]}", blob) for blob in (layer, config, manifest)]
    layout = _json({"imageLayoutVersion": "1.0.0"})
    path.write_bytes(_tar([("oci-layout", layout), ("index.json", index), *blobs]))


def build_pause(path: Path) -> None:
    """Compile the pause program statically: the image has no libraries."""
    compiler = "musl-gcc" if shutil.which("musl-gcc") else "cc"
    command = [compiler, "-static", "-O2", "-o", str(path), str(PAUSE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command)} failed:\n{done.stderr}")


def _layer(program: Path) -> bytes:
    directories = [(name, None) for name in _DIRECTORIES]
    return _tar([*directories, (f"bin/{program.name}", program.read_bytes())])


def _tar(entries: Iterable[tuple[str, bytes | None]]) -> bytes:
    """Return an archive of files and of directories; a directory has None as its content."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in entries:
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            entry.size, entry.mode = len(data or b""), 0o755
            tar.addfile(entry, io.BytesIO(data or b""))
    return stream.getvalue()


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
