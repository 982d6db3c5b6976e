"""Arguments, addresses and conditions in the form that XAPI takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.xenapi.stub import StubHost, pool_of
from worker.errors import PermanentError
from worker.xenapi import query
from worker.xenapi.address import Address
from worker.xenapi.wire import arguments, is_read


@pytest.mark.parametrize(
    "method",
    [
        "VM.get_record",
        "VM.get_all_records_where",
        "VDI.get_by_uuid",
        "event.from",
        "event_from",
        "VM.assert_can_migrate",
    ],
)
def test_reads_are_known_by_their_names(method: str) -> None:
    assert is_read(method)


@pytest.mark.parametrize(
    "method",
    [
        "VM.clone",
        "VM.set_name_label",
        "Async.VM.get_record",
        "event.inject",
        "host.call_plugin",
        "SR.scan",
        "task.create",
        "session.login_with_password",
        "get_all.destroy",
    ],
)
def test_everything_else_changes_something(method: str) -> None:
    assert not is_read(method)


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (2**31 - 1, 2**31 - 1),
        (2**31, "2147483648"),
        (-(2**31), -(2**31)),
        (-(2**31) - 1, "-2147483649"),
        (True, True),
        (False, False),
        (1.5, 1.5),
        ("text", "text"),
        ({"a": {"b": [2**40, True, "x"]}}, {"a": {"b": ["1099511627776", True, "x"]}}),
        (("a", 1), ["a", 1]),
    ],
)
def test_arguments_fit_the_wire(value: object, sent: object) -> None:
    (converted,) = arguments("VM.create", [value])
    assert converted == sent
    assert type(converted) is type(sent)


@pytest.mark.parametrize("text", ["a\0b", "\x1b[0m", "\ud800", "\x0c"])
def test_text_that_xml_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(PermanentError, match=r"VM\.set_name_label cannot be sent"):
        arguments("VM.set_name_label", ["ref", {"nested": [text]}])


@pytest.mark.parametrize("key", ["a<b", "a&b", "a>b", "a\0b"])
def test_a_map_key_that_would_make_the_record_unreadable_is_refused(key: str) -> None:
    with pytest.raises(PermanentError, match="map key"):
        arguments("VM.set_other_config", ["ref", {key: "value"}])


@pytest.mark.parametrize("value", [None, b"bytes", object()])
def test_what_xapi_has_no_type_for_is_a_mistake_of_ours(value: object) -> None:
    with pytest.raises(TypeError, match="no type for"):
        arguments("VM.start", [value])


values = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("aé<>&\"' \n\t"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc/_-", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(sent=st.lists(values, max_size=4))
def test_converting_twice_changes_nothing_more(sent: list[Any]) -> None:
    once = arguments("VM.create", sent)
    assert arguments("VM.create", once) == once


def test_values_arrive_as_they_were_sent() -> None:
    sent = ["zwölf <b>&amp;</b> \"'\n\ttab", {"key": ["a", True, 1.5, 7]}, 2**40, ""]
    with StubHost() as host, pool_of(host.url) as pool:
        pool.session().call("VM.create", *sent)
        assert list(host.calls[-1].params[1:]) == [*sent[:2], str(2**40), ""]


def test_a_request_above_xapis_limit_is_refused_before_it_is_sent() -> None:
    with StubHost() as host, pool_of(host.url) as pool:
        with pytest.raises(PermanentError, match="XAPI takes 307200"):
            pool.session().call("VM.set_name_description", "ref", "x" * 310_000)
        assert host.counted["VM.set_name_description"] == 0


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://xen1", Address("http", "xen1", 80)),
        ("https://xen1/", Address("https", "xen1", 443)),
        ("https://10.0.0.1:8443", Address("https", "10.0.0.1", 8443)),
        ("http://[fe80::1]:8080", Address("http", "fe80::1", 8080)),
    ],
)
def test_a_url_is_an_address(url: str, address: Address) -> None:
    assert Address.of_url(url) == address
    assert Address.of_url(address.url) == address


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("10.0.0.2", "https://10.0.0.2:8443"),
        ("xen2.example", "https://xen2.example:8443"),
        ("xen2:443", "https://xen2:443"),
        ("fd00::2", "https://[fd00::2]:8443"),
        ("[fd00::2]", "https://[fd00::2]:8443"),
        ("[fd00::2]:443", "https://[fd00::2]:443"),
        ("http://xen2:80", "http://xen2:80"),
    ],
)
def test_another_host_is_spoken_to_like_the_master(text: str, url: str) -> None:
    assert Address("https", "xen1", 8443).sibling(text).url == url


def test_conditions_are_quoted_and_fully_in_parentheses() -> None:
    assert query.equal("name__label", "it's") == '(field "name__label" = "it\'s")'
    assert query.both("(a)", "(b)", "(c)") == "(((a) and (b)) and (c))"
    assert query.both("(a)") == "(a)"
    for text in ('a"b', "a\\b", "a\nb"):
        assert not query.can_quote(text)
        with pytest.raises(ValueError, match="cannot be written"):
            query.equal("name__label", text)
