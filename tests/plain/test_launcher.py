"""The executables that ``sriov-fast install`` writes, run as a runtime runs them."""

from __future__ import annotations

import configparser
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import sriov_fast
from sriov_fast import client
from sriov_fast.cli import install, main, units

UNITS = (units.SERVICE, units.SOCKET, units.WARM)
SOURCES = str(Path(sriov_fast.__file__).parents[1])
VERSION = {"CNI_COMMAND": "VERSION", "SRIOV_FAST_SOCKET": "none"}
# Environment variables that change the behaviour of an interpreter or a program.
HOSTILE = {
    "PYTHONHOME": "/nonexistent",
    "PYTHONSTARTUP": "/nonexistent",
    "PYTHONWARNINGS": "error",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONIOENCODING": "utf-16",
    "PYTHONUTF8": "0",
    "PYTHONVERBOSE": "1",
    "PYTHONOPTIMIZE": "2",
    "PATH": "/nonexistent",
    "LANG": "xx_YY.nonsense",
    "LC_ALL": "C",
    "HOME": "/nonexistent",
}


@pytest.fixture(scope="session", params=install.LAUNCHERS)
def sriov(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin, installed with each launcher. Without a server, all launchers behave alike."""
    directory = tmp_path_factory.mktemp(request.param)
    assert main(["install", "--no-server", "--bin-dir", str(directory), "--launcher", request.param]) == 0
    return directory / "sriov"


def call(program: Path, env: dict[str, str], **options: object) -> subprocess.CompletedProcess[str]:
    stdin = '{"cniVersion": "1.0.0"}'
    return subprocess.run([program], env=env, input=stdin, capture_output=True, text=True, **options)  # type: ignore[call-overload, no-any-return]


def assert_answers(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stderr) == (0, "")
    assert "1.0.0" in json.loads(done.stdout)["supportedVersions"]


@pytest.fixture
def poison(tmp_path: Path) -> Path:
    """A directory of modules that must not be imported."""
    for name in ("sriov_fast", "os", "select", "sitecustomize", "usercustomize", "encodings"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('poisoned')\n")
    return tmp_path


@pytest.mark.parametrize("environment", [{}, HOSTILE], ids=["empty", "hostile"])
def test_environment_and_directory_change_nothing(
    sriov: Path, poison: Path, environment: dict[str, str]
) -> None:
    hostile = environment | {"PYTHONPATH": str(poison)} if environment else {}
    assert_answers(call(sriov, hostile | VERSION, cwd=poison))


def test_a_directory_that_is_gone(sriov: Path, tmp_path: Path) -> None:
    script = 'mkdir "$1" && cd "$1" && rmdir "$1" && exec "$2"'
    argv = ["/bin/sh", "-c", script, "sh", str(tmp_path / "gone"), str(sriov)]
    assert_answers(subprocess.run(argv, env=VERSION, input="{}", capture_output=True, text=True, check=False))


def test_errors_are_cni_errors(sriov: Path) -> None:
    done = call(sriov, VERSION | {"CNI_COMMAND": "NONSENSE"})
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == 4


@pytest.mark.parametrize("name", install.DEFAULT)
def test_a_plugin_that_cannot_be_imported_says_so(tmp_path: Path, name: str) -> None:
    """stdout has one CNI error if the package cannot be imported."""
    package = tmp_path / 'a"b\\c' / "sriov_fast"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"raise ImportError({str(package)!r})")
    program = ["-c", install.code(install.PROGRAMS[name], [str(package.parent)])]
    done = subprocess.run([sys.executable, "-IS", *program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    said = json.loads(done.stdout)
    assert said["code"] == 5
    assert "sriov_fast" in said["msg"]


@contextmanager
def private_umask() -> Iterator[None]:
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("launcher", install.LAUNCHERS)
def test_the_words_of_the_call_arrive(tmp_path: Path, launcher: str) -> None:
    (tmp_path / "shows.py").write_text("import sys\ndef main(): print(*sys.argv, sep='|'); sys.exit(3)\n")
    program = install.Program("shows", "-ISXutf8", resident=True)
    if launcher == "client":
        content = client.binary().read_bytes()  # type: ignore[union-attr]
        content += install.trailer(program, sys.executable, [str(tmp_path)])
    else:
        content = install.script(program, sys.executable, [str(tmp_path)]).encode()
    path = tmp_path / "a program"
    install.write_executable(path, content)
    done = subprocess.run([path, "one", "two words", ""], env=VERSION, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout == f"{path}|one|two words|\n"


def test_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "opt/cni/bin"
    words = ["--bin-dir", str(directory), "--name", "sriov", "--name", "sriov-fast"]
    with private_umask():
        assert main(["install", "--no-server", *words]) == 0
    assert sorted(os.listdir(directory)) == ["sriov", "sriov-fast"]
    said = capsys.readouterr().out
    for name in os.listdir(directory):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o755
        assert f"wrote {directory / name} (runs {sys.executable})" in said
    done = subprocess.run([directory / "sriov-fast", "--version"], env={}, capture_output=True, text=True)
    assert done.stdout.startswith(f"sriov-fast {sriov_fast.__version__} (backend ")


def test_what_is_written_without_names(tmp_path: Path) -> None:
    assert main(["install", "--no-server", "--bin-dir", str(tmp_path)]) == 0
    assert sorted(os.listdir(tmp_path)) == ["sriov", "txipam"]
    assert (tmp_path / "sriov").read_bytes().startswith(b"\x7fELF")
    assert (tmp_path / "txipam").read_text().startswith(f"#!{sys.executable} -ISXutf8\n")


def test_without_a_compiled_client_it_is_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "binary", lambda: None)
    assert main(["install", "--no-server", "--bin-dir", str(tmp_path)]) == 0
    assert_answers(call(tmp_path / "sriov", VERSION))
    assert (tmp_path / "sriov").read_bytes().startswith(b"#!")
    assert main(["install", "--no-server", "--bin-dir", str(tmp_path), "--launcher", "client"]) == 1
    assert "without the client" in capsys.readouterr().err


def test_writing_again_replaces_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "sriov"
    path.write_text("old")
    with open(path) as running:
        install.write_executable(path, "new")
        assert running.read() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["sriov"]


def test_a_failed_write_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "sriov"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        install.write_executable(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["sriov"]


def test_a_directory_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["install", "--no-server", "--bin-dir", str(tmp_path / "file/bin")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


# --- interpreter paths that a "#!" line cannot contain


@pytest.mark.parametrize(
    "directory",
    [
        "with blank",
        "tab\there",
        "x" * 130,
        'quote\'d "twice"',
        "a$HOME `id` \\n b",
        " ''",
        "trailing \\",
        "é ü",
    ],
)
def test_awkward_interpreters(tmp_path: Path, directory: str) -> None:
    interpreter = tmp_path / directory / "python"
    interpreter.parent.mkdir()
    interpreter.symlink_to(sys.executable)
    text = install.script(install.PROGRAMS["sriov"], str(interpreter), install.search_path())
    assert text.startswith("#!/bin/sh\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an invalid escape sequence is a warning
        compile(text, "sriov", "exec")
    install.write_executable(tmp_path / "sriov", text)
    assert_answers(call(tmp_path / "sriov", VERSION))


def test_a_line_break_in_the_interpreters_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="line break"):
        install.script(install.PROGRAMS["sriov"], "/a\nb/python", [])
    monkeypatch.setattr(sys, "executable", "/a\nb/python")
    with pytest.raises(ValueError, match="line break"):
        units.text(units.SERVICE)


def test_awkward_package_directory(tmp_path: Path) -> None:
    directory = tmp_path / 'it\'s "here" \\n é'
    directory.symlink_to(SOURCES)
    paths = [str(directory), *install.search_path()[1:]]
    text = install.script(install.PROGRAMS["sriov"], sys.executable, paths)
    install.write_executable(tmp_path / "sriov", text)
    assert_answers(call(tmp_path / "sriov", VERSION))


# --- the units of the resident server


def parsed(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(
        strict=False, delimiters=("=",), comment_prefixes=("#",), interpolation=None
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text())
    return parser


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The directory of the units, written with a umask that denies others all access."""
    directory = tmp_path / "etc/systemd/system"
    with private_umask():
        assert main(["install", "--bin-dir", str(tmp_path / "bin"), "--unit-dir", str(directory)]) == 0
    return directory


@pytest.mark.parametrize("name", ["an environment", "in $HOME"])
def test_the_service_starts_the_command_of_this_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    directory = tmp_path / name
    assert main(["install", "--no-server", "--bin-dir", str(directory), "--name", "sriov-fast"]) == 0
    monkeypatch.setattr(sys, "executable", str(directory / "python"))
    units.write(tmp_path)
    words = shlex.split(parsed(tmp_path / "sriov-fast.service")["Service"]["ExecStart"])
    assert words == [str(directory / "sriov-fast"), "serve"]
    done = subprocess.run([words[0], "--version"], env={}, capture_output=True, text=True, check=True)
    assert sriov_fast.__version__ in done.stdout
    assert_understood(*(tmp_path / unit for unit in UNITS))


def assert_understood(*paths: Path) -> None:
    # Without systemd-analyze, only the other tests verify the units.
    argv = [shutil.which("systemd-analyze") or "true", "verify", *map(str, sorted(paths))]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert len(argv) == 5
    assert (done.returncode, done.stdout) == (0, "")
    assert "sriov-fast" not in done.stderr


def test_systemd_understands_the_units(written: Path) -> None:
    assert_understood(*written.iterdir())


def test_the_units_keep_what_is_in_run(written: Path) -> None:
    service = parsed(written / "sriov-fast.service")["Service"]
    assert "RuntimeDirectory" not in service  # systemd would remove the journal at a stop
    assert not [key for key in service if key.startswith(("Private", "Protect", "RestrictNamespaces"))]


def test_the_units_are_for_everyone_to_read(written: Path) -> None:
    assert sorted(os.listdir(written)) == sorted(UNITS)
    assert {stat.S_IMODE(path.stat().st_mode) for path in written.iterdir()} == {0o644}


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that records the commands of a simulated systemctl, on a machine where systemd runs."""
    calls, program = tmp_path / "systemctl.calls", tmp_path / "path/systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >>{calls}\n')
    program.chmod(0o755)
    calls.touch()
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("SRIOV_FAST_RUN", str(tmp_path / "run"))
    monkeypatch.setattr(units, "_RUNNING", tmp_path)
    monkeypatch.setattr(units, "DIRECTORY", tmp_path / "units")
    return calls


def test_the_server_is_set_up_where_systemd_runs(tmp_path: Path, systemctl: Path) -> None:
    assert main(["install", "--bin-dir", str(tmp_path / "bin")]) == 0
    assert sorted(os.listdir(tmp_path / "units")) == sorted(UNITS)
    assert systemctl.read_text().splitlines() == [
        "--quiet --no-reload enable sriov-fast.socket sriov-fast.service",
        "--quiet daemon-reload",
        "--quiet start sriov-fast.socket",
        "--quiet restart sriov-fast.service",
    ]


@pytest.mark.parametrize("more", [["--no-server"], ["--name", "txipam"]])
def test_no_server_where_none_is_wanted(tmp_path: Path, systemctl: Path, more: list[str]) -> None:
    assert main(["install", "--bin-dir", str(tmp_path / "bin"), *more]) == 0
    assert (systemctl.read_text(), (tmp_path / "units").exists()) == ("", False)


def test_without_systemd_it_says_how_to_run_the_server(
    tmp_path: Path, systemctl: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(units, "_RUNNING", tmp_path / "nothing")
    assert main(["install", "--bin-dir", str(tmp_path / "bin")]) == 0
    assert "sriov-fast serve" in capsys.readouterr().out
    assert (systemctl.read_text(), (tmp_path / "units").exists()) == ("", False)


def test_a_server_that_cannot_be_started_is_told(
    tmp_path: Path, systemctl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "path/systemctl").write_text("#!/bin/sh\nexit 1\n")
    assert main(["install", "--bin-dir", str(tmp_path / "bin")]) == 1
    command = "systemctl --quiet --no-reload enable sriov-fast.socket sriov-fast.service"
    assert f"{command} failed" in capsys.readouterr().err
    assert (tmp_path / "bin/sriov").exists()


def test_another_plugin_is_kept_and_put_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only ``--replace`` replaces another plugin, and ``--rollback`` restores it byte for byte."""
    words = ["install", "--no-server", "--bin-dir", str(tmp_path)]
    plugin, kept = tmp_path / "sriov", tmp_path / "sriov.replaced"
    plugin.write_bytes(b"\x7fELF of the other one")
    plugin.chmod(0o755)
    assert main(words) == 1
    assert f"{plugin} is another plugin's" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["sriov"]
    for _ in range(2):  # the second time replaces this plugin itself
        assert main([*words, "--replace"]) == 0
        assert install.is_ours(plugin)
        assert kept.read_bytes() == b"\x7fELF of the other one"
    assert main([*words, "--rollback"]) == 0
    assert (plugin.read_bytes(), kept.exists()) == (b"\x7fELF of the other one", False)
    assert plugin.stat().st_mode & 0o777 == 0o755
    assert main([*words, "--rollback"]) == 1
    assert "nothing in" in capsys.readouterr().err


def test_the_link_and_the_mode_of_another_plugin_are_put_back(tmp_path: Path) -> None:
    """``--rollback`` restores the mode of a plugin, or its symbolic link, as of a distribution."""
    (tmp_path / "bin").mkdir()
    words = ["install", "--no-server", "--bin-dir", str(tmp_path / "bin")]
    link, program = tmp_path / "bin/sriov", tmp_path / "bin/txipam"
    link.symlink_to("../sriov")
    for path in (tmp_path / "sriov", program):
        path.write_bytes(b"\x7fELF of the other one")
        path.chmod(0o700)
    assert main([*words, "--replace"]) == 0
    assert all(map(install.is_ours, (link, program)))
    assert not install.is_ours(tmp_path / "sriov")
    assert main([*words, "--rollback"]) == 0
    assert (os.readlink(link), program.stat().st_mode & 0o777) == ("../sriov", 0o700)
    assert sorted(os.listdir(tmp_path / "bin")) == ["sriov", "txipam"]


def test_concurrent_installs_keep_the_other_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other plugin is kept if a second install replaces it after the check of the first one."""
    words = ["install", "--no-server", "--bin-dir", str(tmp_path), "--name", "sriov", "--replace"]
    (tmp_path / "sriov").write_bytes(b"\x7fELF of the other one")
    keep = install._keep

    def late(path: Path) -> None:
        monkeypatch.setattr(install, "_keep", keep)
        assert main(words) == 0
        keep(path)

    monkeypatch.setattr(install, "_keep", late)
    assert main(words) == 0
    assert (tmp_path / "sriov.replaced").read_bytes() == b"\x7fELF of the other one"


def test_uninstall_takes_everything_back(tmp_path: Path, systemctl: Path) -> None:
    (tmp_path / "bin").mkdir()
    words = ["--bin-dir", str(tmp_path / "bin")]
    assert main(["install", *words]) == 0
    (tmp_path / "bin/bridge").write_text("another plugin")
    (tmp_path / "bin/txipam").write_text("another plugin of that name")
    systemctl.write_text("")
    assert main(["uninstall", *words, "--unit-dir", str(tmp_path / "units")]) == 0
    assert sorted(os.listdir(tmp_path / "bin")) == ["bridge", "txipam"]
    assert os.listdir(tmp_path / "units") == []
    assert systemctl.read_text().splitlines() == [
        "--quiet stop sriov-fast.service sriov-fast.socket sriov-fast-warm@*.service",
        "--quiet --no-reload disable sriov-fast.service sriov-fast.socket sriov-fast-warm@.service",
        "--quiet daemon-reload",
    ]
    assert main(["uninstall", *words, "--unit-dir", str(tmp_path / "units")]) == 0


@pytest.mark.parametrize("is_masked", [False, True])
def test_install_keeps_the_administrators_units(
    tmp_path: Path, systemctl: Path, is_masked: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """``install`` writes nothing if a unit was written by others or is masked by ``systemctl mask``."""
    unit = tmp_path / "units/sriov-fast.service"
    unit.parent.mkdir()
    if is_masked:
        unit.symlink_to(os.devnull)
    else:
        unit.write_text("[Unit]\n")
    assert main(["install", "--bin-dir", str(tmp_path / "bin")]) == 1
    assert f"{unit} is not of sriov-fast install" in capsys.readouterr().err
    assert (os.listdir(unit.parent), unit.is_symlink(), systemctl.read_text()) == ([unit.name], is_masked, "")
    assert not (tmp_path / "bin").exists()
    assert main(["install", "--no-server", "--bin-dir", str(tmp_path / "bin")]) == 0


def test_uninstall_from_an_image_leaves_this_machines_server_alone(tmp_path: Path, systemctl: Path) -> None:
    """``uninstall --unit-dir`` runs no systemctl, since ``install --unit-dir`` has started nothing."""
    words = ["--bin-dir", str(tmp_path / "image/bin"), "--unit-dir", str(tmp_path / "image/units")]
    assert main(["install", *words]) == 0
    assert main(["uninstall", *words]) == 0
    assert systemctl.read_text() == ""
    assert not any(path.is_file() for path in (tmp_path / "image").rglob("*"))


def test_uninstall_leaves_the_administrators_units(tmp_path: Path, systemctl: Path) -> None:
    (tmp_path / "units").mkdir()
    (tmp_path / "units/sriov-fast.service").write_text("[Unit]\n")
    assert main(["uninstall", "--bin-dir", str(tmp_path), "--unit-dir", str(tmp_path / "units")]) == 0
    assert (os.listdir(tmp_path / "units"), systemctl.read_text()) == (["sriov-fast.service"], "")


def test_uninstall_refuses_while_pods_have_vfs(
    tmp_path: Path, systemctl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--bin-dir", str(tmp_path / "bin")]
    assert main(["install", "--no-server", *words]) == 0
    (tmp_path / "run/vfs").mkdir(parents=True)
    (tmp_path / "run/vfs/0000:03:10.0~pod~eth0").touch()
    assert main(["uninstall", *words]) == 1
    assert "1 VFs are attached" in capsys.readouterr().err
    assert (tmp_path / "bin/sriov").exists()
    assert main(["uninstall", *words, "--force"]) == 0
    assert not (tmp_path / "bin/sriov").exists()


@pytest.mark.parametrize(
    "path", ["/bin/py", "/with blank/py", "/a$HOME/%n/py", '/"quoted"/\\back/py', "/semi;colon"]
)
def test_awkward_paths_in_a_unit(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", path)
    (line,) = (line for line in units.text(units.SERVICE).splitlines() if line.startswith("ExecStart="))
    # systemd's unquoting of these arguments: quotes and backslashes as in sh, then %% and $$
    words = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line.partition("=")[2])]
    assert words == [path, "-IXutf8", "-m", "sriov_fast.cli", "serve"]


# --- the operator's command


def test_the_shells_complete_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as caught:
        main(["--print-completion", "bash"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("doctor", "--repair", "--watch", "ipam"))
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


@pytest.mark.parametrize("words", [["vfs", "--watch"], ["serve", "--timeout"]])
@pytest.mark.parametrize("text", ["nan", "inf", "-1", "soon"])
def test_a_time_that_is_none(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words, text])
    assert caught.value.code == 2
    assert f"'{text}' is not from 0 to 3600" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["tune"], ["tune", "--json"]])
def test_a_reader_that_leaves_is_no_error(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "sriov_fast.cli", *words]
    env = os.environ | {"PYTHONPATH": SOURCES}
    done = subprocess.run(argv, env=env, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
