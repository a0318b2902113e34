"""The value types: frozen, compared by value, without unknown fields."""

from __future__ import annotations

import pytest

from sriov_fast.common.record import Record, Route


class Base(Record):
    first: int
    second: str = "two"


class Derived(Base):
    third: tuple[int, ...] = (1,)


def test_defaults_and_order() -> None:
    assert Derived(first=1).as_dict() == {"first": 1, "second": "two", "third": (1,)}
    assert list(Derived(third=(), first=1).as_dict()) == ["first", "second", "third"]


def test_missing_and_unknown_fields() -> None:
    with pytest.raises(TypeError, match="Derived needs 'first'"):
        Derived()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Derived has no fourth"):
        Derived(first=1, fourth=4)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Base(1)  # type: ignore[call-arg]


def test_frozen() -> None:
    one = Derived(first=1)
    for change in ("first", "third", "fourth"):
        with pytest.raises(AttributeError, match="frozen"):
            setattr(one, change, 2)
        with pytest.raises(AttributeError, match="frozen"):
            delattr(one, change)
    assert one == Derived(first=1)


def test_equality_is_by_type_and_value() -> None:
    assert Derived(first=1) == Derived(first=1, second="two")
    assert Derived(first=1) != Derived(first=2)
    assert Base(first=1) != Derived(first=1)
    assert Base(first=1) != 1


def test_replace_leaves_the_original() -> None:
    one = Derived(first=1)
    assert one.replace(second="x", third=()) == Derived(first=1, second="x", third=())
    assert one == Derived(first=1)
    with pytest.raises(TypeError, match="has no nope"):
        one.replace(nope=1)


def test_repr_shows_every_field() -> None:
    assert repr(Base(first=1)) == "Base(first=1, second='two')"
    assert eval(repr(Route(dst="::/0", mtu=5))) == Route(dst="::/0", mtu=5)
