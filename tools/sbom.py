"""Write a CycloneDX bill of materials and an in-toto provenance statement for a file of the release."""

from __future__ import annotations

import hashlib
import json
import platform
import tomllib
import uuid
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[1]
TOOLS = ("setuptools", "Cython", "ziglang", "build")
# Third-party code that is linked into the binaries of a wheel, with its licence (SPDX).
LINKED = (
    ("musl", "MIT", "the C library of client/sriov-client, static"),
    ("compiler-rt", "Apache-2.0 WITH LLVM-exception", "arithmetic that the processor lacks"),
    ("cython", "Apache-2.0", "Cython's support code in the compiled modules"),
)


def write(built: Path, commit: str, epoch: int) -> None:
    """Write ``NAME.cdx.json`` and ``NAME.provenance.json`` next to a wheel or an sdist."""
    for kind, document in (
        ("cdx", materials(built, epoch)),
        ("provenance", provenance(built, commit, epoch)),
    ):
        built.with_name(f"{built.name}.{kind}.json").write_text(json.dumps(document, indent=1) + "\n")


def materials(built: Path, epoch: int) -> dict[str, Any]:
    """Return the bill of materials (CycloneDX 1.6): the file, its linked code, its requirements."""
    digest = _digest(built)
    project = _project()
    released = built.name.split("-")[1].removesuffix(".tar.gz")
    whole = {
        "type": "library",
        "bom-ref": "sriov-fast",
        "name": "sriov-fast",
        "version": released,
        "purl": f"pkg:pypi/sriov-fast@{released}",
        "licenses": [{"license": {"id": project["license"]}}],
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }
    linked = [_linked(*each) for each in LINKED] if built.suffix == ".whl" else []
    required = [{"type": "library", "name": each, "bom-ref": each} for each in project["dependencies"]]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest)}",
        "version": 1,
        "metadata": {"timestamp": _time(epoch), "component": whole},
        "components": [*linked, *required],
        "dependencies": [
            {"ref": "sriov-fast", "dependsOn": [each["bom-ref"] for each in (*linked, *required)]}
        ],
    }


def _linked(name: str, licence: str, what: str) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": f"linked-{name}",
        "name": name,
        "description": what,
        "licenses": [{"expression": licence}],
    }


def provenance(built: Path, commit: str, epoch: int) -> dict[str, Any]:
    """Return the statement (in-toto 1, SLSA provenance 1): the source commit and the tools."""
    tools = {tool: version(tool) for tool in TOOLS} | {"python": platform.python_version()}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": built.name, "digest": {"sha256": _digest(built)}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "make wheels",
                "externalParameters": {"SOURCE_DATE_EPOCH": epoch},
                "resolvedDependencies": [{"name": "source", "digest": {"gitCommit": commit}}],
            },
            "runDetails": {"builder": {"id": "tools/wheels.py", "version": tools}},
        },
    }


def _project() -> dict[str, Any]:
    with (TOP / "pyproject.toml").open("rb") as file:
        found: dict[str, Any] = tomllib.load(file)["project"]
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _time(epoch: int) -> str:
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
