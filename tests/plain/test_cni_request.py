"""cni.request and common.cni_args: valid environments, and the variables that each verb requires."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriov_fast.cni import request
from sriov_fast.common import cni_args as args
from sriov_fast.common.errors import EnvError, SriovError

ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "1234",
    "CNI_NETNS": "/var/run/netns/1234",
    "CNI_IFNAME": "eth1",
    "CNI_PATH": "/opt/cni/bin:/usr/lib/cni",
    "CNI_ARGS": "IgnoreUnknown=1;PodID=1234;HostIP=10.55.206.20;CORES=1,2,3,4",
}


def env(**changes: str) -> dict[str, str]:
    """Return the environment with some variables changed."""
    return ENV | {f"CNI_{name}": value for name, value in changes.items()}


def test_add() -> None:
    got = request.read(ENV | {"PATH": "/bin", "CNI_NETNS_OVERRIDE": "1"}, b"{}")
    assert got == request.Request(
        command="ADD",
        container_id="1234",
        netns="/var/run/netns/1234",
        ifname="eth1",
        args={"IGNOREUNKNOWN": "1", "PODID": "1234", "HOSTIP": "10.55.206.20", "CORES": "1,2,3,4"},
        args_text=ENV["CNI_ARGS"],
        path=("/opt/cni/bin", "/usr/lib/cni"),
        stdin=b"{}",
    )


@pytest.mark.parametrize("command", ["STATUS", "GC", "VERSION"])
def test_verbs_without_an_attachment(command: str) -> None:
    got = request.read({"CNI_COMMAND": command}, b"{}")
    assert got == request.Request(command=command, stdin=b"{}")
    # The variables of an attachment are ignored, even if they are invalid.
    odd = request.read(env(COMMAND=command, CONTAINERID="../x", IFNAME="a/b", NETNS="x", ARGS="junk"), b"")
    assert (odd.container_id, odd.ifname, odd.netns, odd.args) == ("", "", "", {})
    assert odd.path == ("/opt/cni/bin", "/usr/lib/cni")


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("ADD", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("CHECK", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("DEL", ["CNI_CONTAINERID", "CNI_IFNAME"]),
    ],
)
def test_missing_variables_are_all_named(command: str, needed: list[str]) -> None:
    for environ in ({"CNI_COMMAND": command}, {"CNI_COMMAND": command} | dict.fromkeys(needed, "")):
        with pytest.raises(EnvError) as caught:
            request.read(environ, b"")
        assert caught.value.code == 4
        assert [name for name in needed if name in caught.value.msg] == needed
        assert ("CNI_NETNS" in caught.value.msg) == ("CNI_NETNS" in needed)


@pytest.mark.parametrize("command", ["", "add", "UPDATE", "ADD ", "CNI_ADD"])
def test_command(command: str) -> None:
    with pytest.raises(EnvError) as caught:
        request.read(env(COMMAND=command), b"")
    assert "CNI_COMMAND" in caught.value.msg
    assert command in caught.value.msg
    assert all(verb in caught.value.details for verb in request.VERBS)


@pytest.mark.parametrize(
    "value", ["../etc", "a/b", "-a", ".a", "_a", "a b", "a\nb", "é", "aé", "a" * 201, "a\udc80", "a:b", "a\0"]
)
@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
def test_container_id(command: str, value: str) -> None:
    with pytest.raises(EnvError) as caught:
        request.read(env(COMMAND=command, CONTAINERID=value), b"")
    assert f"CNI_CONTAINERID={value!r}" in caught.value.msg
    assert caught.value.details


@pytest.mark.parametrize("value", ["a", "0", "A_b.c-d", "a" * 200])
def test_container_id_good(value: str) -> None:
    assert request.read(env(CONTAINERID=value), b"").container_id == value


@pytest.mark.parametrize(
    "value",
    [".", "..", "a/b", "a:b", "a b", "a\tb", "a\u00a0b", "a" * 16, "é" * 8, "a\0b", "\n", "e%d", "\udcff"],
)
@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
def test_ifname(command: str, value: str) -> None:
    with pytest.raises(EnvError) as caught:
        request.read(env(COMMAND=command, IFNAME=value), b"")
    assert f"CNI_IFNAME={value!r}" in caught.value.msg
    assert caught.value.details


@pytest.mark.parametrize("value", ["a", "eth0.100", "a" * 15, "é" * 7, "...", "-x"])
def test_ifname_good(value: str) -> None:
    assert request.read(env(IFNAME=value), b"").ifname == value


@pytest.mark.parametrize("value", ["netns", "./x", "../x", "/a\0b", " /a", "fd:3"])
def test_netns(value: str) -> None:
    for command in ("ADD", "CHECK"):
        with pytest.raises(EnvError) as caught:
            request.read(env(COMMAND=command, NETNS=value), b"")
        assert f"CNI_NETNS={value!r}" in caught.value.msg
        assert caught.value.details
    assert request.read(env(COMMAND="DEL", NETNS=value), b"").netns == ""


def test_del_without_namespace() -> None:
    assert request.read(env(COMMAND="DEL", NETNS=""), b"").netns == ""
    assert request.read({k: v for k, v in env(COMMAND="DEL").items() if k != "CNI_NETNS"}, b"").netns == ""


def test_path_drops_what_would_be_the_current_directory() -> None:
    assert request.read(env(PATH=":/a::/b:"), b"").path == ("/a", "/b")
    assert request.read(env(PATH=""), b"").path == ()
    assert request.read(env(PATH="bin:/a/../b/"), b"").path == (f"{os.getcwd()}/bin", "/a/../b/")


# --- CNI_ARGS ---------------------------------------------------------------------------------------------


def test_args_any_case() -> None:
    assert args.parse("vf=0;Vlan=100;mAC=02:00:00:00:00:01;podid=a=b;k8s_pod_name=web") == {
        "VF": "0",
        "VLAN": "100",
        "MAC": "02:00:00:00:00:01",
        "PODID": "a=b",
        "K8S_POD_NAME": "web",
    }


def test_args_of_the_runtimes() -> None:
    text = "IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u"
    assert set(args.parse(text.replace("IgnoreUnknown=1;", ""))) == {
        "K8S_POD_NAMESPACE",
        "K8S_POD_NAME",
        "K8S_POD_INFRA_CONTAINER_ID",
        "K8S_POD_UID",
    }
    assert args.parse(text)["IGNOREUNKNOWN"] == "1"


@pytest.mark.parametrize("text", ["", ";", ";;VF=;", "VLAN=", "IgnoreUnknown="])
def test_args_unset(text: str) -> None:
    assert args.parse(text) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("VF", "'VF' is not KEY=value"),
        ("VF=1;junk", "'junk' is not KEY=value"),
        ("=1", "'=1' is not KEY=value"),
        ("VF=1;vf=2", "vf='2': the key was given before, with the value '1'"),
        ("VF=1;VF=;vf=01", "vf='01': the key was given before, with the value '1'"),
        ("IgnoreUnknown=1;ignoreunknown=0;color=red", "unknown key 'color'"),
        ("IgnoreUnknown=1;IgnoreUnknown=maybe", "IgnoreUnknown='maybe'"),
        ("color=red", "unknown key 'color' (value 'red')"),
        ("IgnoreUnknown=0;color=red", "unknown key 'color'"),
        ("IgnoreUnknown=false;color=red", "unknown key 'color'"),
        ("IgnoreUnknown=maybe", "IgnoreUnknown='maybe'"),
        ("IgnoreUnknown=2;VF=1", "IgnoreUnknown='2'"),
        (" VF=1", "unknown key ' VF'"),
        ("IgnoreUnknown=1;VF", "'VF' is not KEY=value"),
    ],
)
def test_args_wrong(text: str, words: str) -> None:
    with pytest.raises(EnvError) as caught:
        args.parse(text)
    assert words in caught.value.msg
    assert caught.value.msg.startswith("CNI_ARGS")
    assert caught.value.details
    # A DEL only warns of the same text.
    got = request.read(env(COMMAND="DEL", ARGS=text), b"")
    assert words in "\n".join(got.warnings)


@pytest.mark.parametrize("key", args.OURS)
def test_a_key_of_ours_has_one_value(key: str) -> None:
    assert args.parse(f"{key}=1;{key.lower()}=1;{key}=") == {key.upper(): "1"}
    with pytest.raises(EnvError, match=f"{key}='2'"):
        args.parse(f"{key}=1;{key}=2")


def test_of_other_repeated_keys_the_last_counts() -> None:
    text = "IgnoreUnknown=0;K8S_POD_UID=a;color=red;IgnoreUnknown=true;K8S_POD_UID=b;color=blue;K8S_POD_UID="
    assert args.parse(text) == {"IGNOREUNKNOWN": "true", "K8S_POD_UID": "b"}


@pytest.mark.parametrize("word", ["1", "true", "TRUE", "Yes"])
def test_ignore_unknown(word: str) -> None:
    for text in (f"IgnoreUnknown={word};color=red;Color=blue;VF=1", f"color=red;VF=1;ignoreunknown={word}"):
        assert {k: v for k, v in args.parse(text).items() if k != "IGNOREUNKNOWN"} == {"VF": "1"}


def test_del_keeps_what_can_be_read() -> None:
    got = request.read(env(COMMAND="DEL", ARGS="junk;VF=3;color=red;VF=4"), b"")
    assert got.args == {"VF": "3"}
    assert len(got.warnings) == 3


@given(st.text(max_size=60))
def test_args_never_raise_anything_else(text: str) -> None:
    try:
        found = args.parse(text)
    except EnvError:
        return
    assert set(found) <= {name.upper() for name in args.KNOWN}
    assert all(found.values())


@given(st.dictionaries(st.sampled_from(sorted(ENV)), st.text(max_size=30)))
def test_environment_never_raises_anything_else(environ: dict[str, str]) -> None:
    try:
        got = request.read(environ, b"")
    except SriovError as error:
        assert (error.code, bool(error.msg), bool(error.details)) == (4, True, True)  # noqa: PT017
    else:
        assert got.command in request.VERBS
