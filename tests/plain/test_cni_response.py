"""cni.response: one JSON object on stdout for every outcome."""

import errno
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriov_fast.cni import config, response, result
from sriov_fast.common import errors


def printed(exc: BaseException, version: str = "1.1.0") -> dict[str, object]:
    """Return the error object as a runtime reads it."""
    data = response.error(exc, version)
    assert data.endswith(b"}\n")
    found = json.loads(data)
    assert list(found)[:3] == ["cniVersion", "code", "msg"]
    assert isinstance(found, dict)
    return found


def test_what_the_machine_lacks_is_no_fault_of_ours() -> None:
    """An unreadable module is an I/O failure (5), a lack of memory asks for a retry (11).

    Neither is an internal error.
    """
    unreadable = ImportError("cannot import name 'x' from 'y'")
    assert printed(unreadable)["code"] == 5
    assert "'x' from 'y'" in str(printed(unreadable)["msg"])
    assert printed(MemoryError())["code"] == 11
    assert [response.is_internal(error) for error in (unreadable, MemoryError(), OSError(), KeyError())] == [
        *(False, False, False),
        True,
    ]


def test_our_errors() -> None:
    assert printed(errors.ConfigError("vlan = 5000: no", "give less"), "0.4.0") == {
        "cniVersion": "0.4.0",
        "code": 7,
        "msg": "vlan = 5000: no",
        "details": "give less",
    }
    assert printed(errors.TryAgainError("later"), "") == {"cniVersion": "1.1.0", "code": 11, "msg": "later"}


def test_facts_are_in_the_details() -> None:
    exc = errors.KernelError("no", "look", errno=errno.EPERM, interface="eth1", vf=0, extack="VF is odd")
    details = str(printed(exc)["details"])
    assert details.startswith("look; interface eth1, VF 0, errno EPERM (")
    assert details.endswith("the kernel said: VF is odd")


def test_extack_is_not_said_twice() -> None:
    exc = errors.NetlinkError(errno.EINVAL, "VF is odd", operation="set VF")
    found = printed(exc)
    assert found["code"] == 100
    assert found["msg"] == "set VF: VF is odd"
    assert str(found["details"]).startswith("errno EINVAL")
    assert "VF is odd" not in str(found["details"])


def test_os_errors() -> None:
    found = printed(FileNotFoundError(errno.ENOENT, "No such file or directory", "/run/x"))
    assert (found["code"], found["msg"]) == (5, "/run/x: No such file or directory")
    assert str(found["details"]).startswith("ENOENT")
    assert printed(OSError(errno.EXDEV, "no", "/a", None, "/b"))["msg"] == "/a -> /b: no"
    assert printed(OSError(errno.EIO, "no", b"/\xff"))["msg"] == "/\\udcff: no"
    assert printed(OSError("odd"))["msg"] == "odd"
    assert printed(OSError())["msg"] == "OSError"
    assert printed(OSError(errno.EIO, "no", 7))["msg"] == "no"  # the number of a descriptor is left out


def test_our_bugs() -> None:
    found = printed(KeyError("x"))
    assert (found["code"], found["msg"]) == (999, "internal error: KeyError: 'x'")
    assert "report" in str(found["details"])
    assert printed(RecursionError())["msg"] == "internal error: RecursionError"

    class BrokenError(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert printed(BrokenError())["msg"] == "internal error: BrokenError"


@pytest.mark.parametrize("exc", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_what_is_no_error(exc: BaseException) -> None:
    with pytest.raises(type(exc)):
        response.error(exc, "1.1.0")


@given(st.text(st.characters()), st.text(st.characters()))
def test_any_text(msg: str, details: str) -> None:
    found = printed(errors.ConfigError(msg, details))
    assert found["msg"]
    json.dumps(found, ensure_ascii=False).encode()  # no lone surrogates


def test_success() -> None:
    found = result.Result(ips=(result.IpConfig(address="10.55.206.46/26", gateway="10.55.206.1"),))
    assert response.success(found, config.NetConf()) == (
        b'{\n  "ip4": {\n    "ip": "10.55.206.46/26",\n    "gateway": "10.55.206.1"\n  },\n  "dns": {}\n}\n'
    )
    declared = json.loads(response.success(found, config.NetConf(cni_version="0.1.0")))
    assert declared["cniVersion"] == "0.1.0"
    newest = json.loads(response.success(found, config.NetConf(cni_version="1.1.0", version="1.1.0")))
    assert newest == {
        "cniVersion": "1.1.0",
        "ips": [{"address": "10.55.206.46/26", "gateway": "10.55.206.1"}],
        "dns": {},
    }


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b"", "1.1.0"),
        (b"\n", "1.1.0"),
        (b"{}", "1.1.0"),
        (b'{"cniVersion": "0.3.1"}', "0.3.1"),
        (b'{"cniVersion": "9.0.0", "name": "x"}', "9.0.0"),
    ],
)
def test_version_info(stdin: bytes, version: str) -> None:
    assert json.loads(response.version_info(stdin)) == {
        "cniVersion": version,
        "supportedVersions": ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


@pytest.mark.parametrize("stdin", [b"{", b"[]", b'{"cniVersion": 1}', b"\xff"])
def test_version_info_of_nonsense(stdin: bytes) -> None:
    with pytest.raises(errors.DecodeError):
        response.version_info(stdin)


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b"", "1.1.0"),
        (b"{", "1.1.0"),
        (b"[]", "1.1.0"),
        (b"{}", "0.1.0"),
        (b'{"cniVersion": ""}', "0.1.0"),
        (b'{"cniVersion": 1}', "1.1.0"),
        (b'{"cniVersion": "0.4.0"}', "0.4.0"),
        (b'{"cniVersion": "9.9.9"}', "1.1.0"),
    ],
)
def test_the_version_of_an_error(stdin: bytes, version: str) -> None:
    assert response.spoken_version(stdin) == version
