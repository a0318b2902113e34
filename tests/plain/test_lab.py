"""The lab without a machine: the host's settings, requirements, sources, the image, and reports."""

from __future__ import annotations

import io
import os
import py_compile
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from lab import apt, cli, install, node_image, pipconf, requirements, source
from lab.errors import LabError
from lab.requirements import Lack
from lab.stream import Report

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""
ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] https://vendor.example/apt stable-tools main
deb-src http://mirror.example/debian trixie main
deb [trusted=yes] http://mirror.example/debian trixie main non-free # as installed
"""


# --- the host's apt


@pytest.mark.parametrize(("name", "text"), [("a.sources", DEB822), ("a.list", ONE_LINE)])
def test_mirror_in_either_form(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / name).write_text(text)
    (tmp_path / "sources.list.d" / "x.sources.disabled").write_text("Types: deb\nURIs: http://no.example\n")
    assert apt.mirror(apt.host_sources(tmp_path)) == "http://mirror.example/debian"


def test_mirror_missing_names_the_way_out() -> None:
    with pytest.raises(LabError, match=apt.MIRROR_VARIABLE) as caught:
        apt.mirror([apt.Source("http://x.example/ubuntu", "noble", ("main",))])
    assert caught.value.status == 3


def test_mirror_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(apt.MIRROR_VARIABLE, "http://chosen.example/debian")
    assert apt.mirror([]) == "http://chosen.example/debian"


def test_options_of_the_way_to_the_mirror() -> None:
    dump = 'Acquire "";\nAcquire::http::Proxy "http://p:1";\nAcquire::Check-Date "false";\nAPT::Color "1";\n'
    assert apt.select_options(dump) == ['Acquire::http::Proxy "http://p:1"', 'Acquire::Check-Date "false"']


# --- missing requirements


def test_missing_tools_and_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    text = requirements.explain(requirements.missing(building=True, cache=tmp_path / "not" / "there"))
    assert "root: run it as root" in text
    assert "the program mmdebstrap: apt-get install mmdebstrap" in text
    assert "all packages at once: apt-get install" in text


def test_missing_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(requirements, "DISK_TO_BUILD", 1 << 60)
    lacks = requirements.missing(building=True, cache=tmp_path)
    assert any("disk space" in lack.what and "SRIOV_FAST_LAB_DIR" in lack.remedy for lack in lacks)


def test_missing_becomes_exit_status_3(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Output
) -> None:
    monkeypatch.setenv("SRIOV_FAST_LAB_DIR", str(tmp_path))
    monkeypatch.setattr(requirements, "missing", lambda *_: [Lack("the moon", "wait")])
    assert cli.main(["run", "--", "true"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the moon: wait" in captured.err


Output = pytest.CaptureFixture[str]


# --- pip


def test_pip_configuration_is_taken_over() -> None:
    listing = [
        "global.find-links='/wheels https://x.example/w'",
        "global.timeout='10'",
        "install.extra-index-url='file:///srv/simple'",
        "global.target='/elsewhere'",
        ":env:.timeout='20'",
    ]
    result = pipconf.translate(
        pipconf.parse(listing), {"SSL_CERT_FILE": "/ca.pem", "https_proxy": "http://p:1"}
    )
    assert result["PIP_FIND_LINKS"] == "/mnt/host/wheels https://x.example/w"
    assert result["PIP_EXTRA_INDEX_URL"] == "file:///mnt/host/srv/simple"
    assert result["PIP_TIMEOUT"] == "20"
    assert result["SSL_CERT_FILE"] == "/mnt/host/ca.pem"
    assert result["https_proxy"] == "http://p:1"
    assert "PIP_TARGET" not in result


# --- the sources


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    top = tmp_path / "checkout"
    for name in ("src/sriov_fast/a.py", "tests/lab/test_a.py", "pyproject.toml", "README.md", ".gitignore"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    (top / "src/sriov_fast/a.so").write_text("x")
    (top / ".gitignore").write_text("*.so\n")
    return top


def names(paths: list[Path]) -> set[str]:
    return {str(path) for path in paths}


def test_what_is_packaged_and_what_tests_get(checkout: Path) -> None:
    everything = source.files(checkout)
    assert "tests/lab/test_a.py" not in names(source.packaged(everything))
    assert "src/sriov_fast/a.py" in names(source.packaged(everything))
    assert "src/sriov_fast/a.py" not in names(source.test_files(everything))


def test_digest_sees_content_name_and_mode(checkout: Path) -> None:
    def digest() -> str:
        return source.digest(checkout, source.files(checkout))

    seen = {digest()}
    (checkout / "README.md").write_text("other")
    seen.add(digest())
    (checkout / "README.md").chmod(0o755)
    seen.add(digest())
    (checkout / "README.md").rename(checkout / "READYOU.md")
    seen.add(digest())
    assert len(seen) == 4


def test_mirror_touches_only_what_differs(checkout: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    source.mirror(checkout, source.files(checkout), target)
    (target / "src/sriov_fast/a.c").write_text("a product of the build, kept")
    old = time.time() - 1000
    os.utime(target / "pyproject.toml", (old, old))
    (checkout / "src/sriov_fast/a.py").write_text("new")
    (checkout / "README.md").unlink()
    source.mirror(checkout, source.files(checkout), target)
    assert (target / "src/sriov_fast/a.py").read_text() == "new"
    assert (target / "pyproject.toml").stat().st_mtime == pytest.approx(old)
    assert (target / "src/sriov_fast/a.c").exists()
    assert not (target / "README.md").exists()


def test_locate(checkout: Path, tmp_path: Path) -> None:
    assert source.locate(checkout, tmp_path).path == checkout
    sdist = tmp_path / "x-1.tar.gz"
    with tarfile.open(sdist, "w:gz") as tar:
        tar.add(checkout, "x-1")
    (tmp_path / "scratch").mkdir()
    unpacked = source.locate(sdist, tmp_path / "scratch")
    assert unpacked.path.name == "x-1"
    assert unpacked.tests == unpacked.path
    (tmp_path / "x.whl").touch()
    assert source.locate(tmp_path / "x.whl", tmp_path).is_wheel
    with pytest.raises(LabError, match="neither a checkout"):
        source.locate(tmp_path / "nothing", tmp_path)


def test_products_of_deleted_sources_are_not_packaged(tmp_path: Path) -> None:
    for name in (
        "src/p/_x.pyx",
        "build/lib.linux/p/_x.so",
        "build/lib.linux/p/_gone.so",
        "build/lib.linux/p/a.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    install._drop_products(tmp_path)
    assert [path.name for path in tmp_path.glob("build/**/*") if path.is_file()] == ["_x.so"]


def test_old_installs_are_forgotten(tmp_path: Path) -> None:
    for age in range(install.KEPT + 2):
        directory = tmp_path / f"d-{age}"
        directory.mkdir()
        used = time.time() - age * install.SECONDS_IN_USE
        os.utime(directory, (used, used))
    install._forget_old(tmp_path, install.SECONDS_IN_USE)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"d-{age}" for age in range(install.KEPT)]


# --- the image


def test_the_nodes_image_has_bytecode_that_is_used(tmp_path: Path) -> None:
    """The image's bytecode is used although its sources have no modification time.

    Bytecode that names a modification time would be compiled again at each start.
    """
    source = tmp_path / "module.py"
    source.write_text("print('bytecode')")
    code = Path(py_compile.compile(str(source), doraise=True))
    source.write_text("print('source')")
    layer = node_image._tar({"module.py": source, f"__pycache__/{code.name}": code})
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        tar.extractall(tmp_path / "image")  # trusted; Python 3.11.2 has no ``filter``
    argv = [sys.executable, "-c", "import module"]
    done = subprocess.run(argv, cwd=tmp_path / "image", capture_output=True, text=True, check=True)
    assert done.stdout == "bytecode\n"


# --- reports of the guest


def test_report() -> None:
    report = Report()
    report.line("phase boot 7.5")
    before = report.started
    for line in ("phase cards 10.0", "nonsense", "phase command 12.0", "status 7"):
        report.line(line)
    assert (before, report.started) == (False, True)
    assert report.status == 7
    assert report.durations() == {"boot": 7.5, "cards": 2.5, "command": 2.0}


# --- the command line


def test_a_wrong_environment_is_refused() -> None:
    assert cli._environment(["A=b=c"]) == {"A": "b=c"}
    with pytest.raises(LabError, match="NAME=VALUE"):
        cli._environment(["A"])


def test_a_shell_needs_a_terminal(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.main(["shell"]) == 125
    assert "terminal" in capsys.readouterr().err
