"""What XAPI makes of a plugin's output, and how a script is run: without a pool around it."""

from __future__ import annotations

import sys
import threading
import time
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.core.failures import Failure
from simulator.dom0.answers import Ended, request, result
from simulator.dom0.root import Root
from simulator.dom0.scripts import Scripts

HEAD = "<?xml version='1.0'?>\n<methodResponse><params><param><value>"
TAIL = "</value></param></params></methodResponse>\n"


def success(value: str) -> str:
    member = f"<member><name>Value</name><value>{value}</value></member>"
    return f"{HEAD}<struct><member><name>Status</name><value>Success</value></member>{member}</struct>{TAIL}"


def failure(*values: str) -> str:
    array = "<array><data>" + "".join(f"<value>{value}</value>" for value in values) + "</data></array>"
    member = f"<member><name>ErrorDescription</name><value>{array}</value></member>"
    return f"{HEAD}<struct><member><name>Status</name><value>Failure</value></member>{member}</struct>{TAIL}"


def refused(ended: Ended) -> list[str]:
    with pytest.raises(Failure) as caught:
        result(ended)
    return caught.value.details


def type_error(found: str, wanted: str = "string") -> list[str]:
    return ["INTERNAL_ERROR", f"XMLRPC.RunTimeTypeError(\"unbox: Element={found} should contain '{wanted}'\", _)"]


# -- the argument


def test_the_argument_is_one_compact_line_without_type_tags() -> None:
    assert request("fn", "OpaqueRef:s", {"k": "a<b", "empty": ""}) == (
        "<methodCall><methodName>fn</methodName><params><param><value>OpaqueRef:s</value></param><param><value><struct>"
        "<member><name>k</name><value>a&lt;b</value></member><member><name>empty</name><value/></member>"
        "</struct></value></param></params></methodCall>"
    )


@given(st.dictionaries(st.text("ab \n<>&\"'é€", max_size=5), st.text("ab \t\n<>&\"'é€😀", max_size=9), max_size=4))
def test_pythons_own_parser_reads_the_argument(arguments: dict[str, str]) -> None:
    params, name = xmlrpc.client.loads(request("f", "OpaqueRef:s", arguments))
    assert (name, list(params)) == ("f", ["OpaqueRef:s", arguments])


# -- the output


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("<string>tagged</string>", "tagged"),
        ("", ""),
        ("<string/>", ""),
        ("a &lt;b&gt; &amp; ü", "a <b> & ü"),
        ("  spaces\n", "  spaces\n"),
    ],
)
def test_a_text_is_the_result(value: str, text: str) -> None:
    assert result(Ended(0, success(value), "said on stderr")) == text


@given(st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=50))
def test_whatever_pythons_dispatcher_prints_is_the_result(text: str) -> None:
    answer = xmlrpc.client.dumps(({"Status": "Success", "Value": text},), "", True)
    assert result(Ended(0, answer, "")) == text


@pytest.mark.parametrize(
    ("value", "tag"),
    [
        ("<int>1</int>", "int"),
        ("<boolean>1</boolean>", "boolean"),
        ("<base64>eA==</base64>", "base64"),
        ("<struct/>", "struct"),
        ("<array><data/></array>", "array"),
        ("<nil/>", "nil"),
    ],
)
def test_another_type_than_text_is_a_type_error(value: str, tag: str) -> None:
    assert refused(Ended(0, success(value), "")) == type_error(tag)


def test_a_failure_is_passed_on_as_it_is() -> None:
    assert refused(Ended(0, failure("VM_BAD_POWER_STATE", "", "<string>b</string>"), "")) == [
        "VM_BAD_POWER_STATE",
        "",
        "b",
    ]


def test_a_failure_of_other_things_than_texts_is_a_type_error() -> None:
    assert refused(Ended(0, failure(), "")) == type_error("array")
    assert refused(Ended(0, failure("CODE", "<int>1</int>"), "")) == type_error("int")
    assert refused(Ended(0, success("x").replace("Success", "Failure").replace("Value", "ErrorDescription"), "")) == (
        type_error("string", "array")
    )


@pytest.mark.parametrize(
    "output",
    [
        "",
        "hello\n",
        "hello\n" + success("x"),
        success("x") + "bye",
        success("x")[:-5],
        success("\x01"),
        " \n" + success("x"),
        "<!DOCTYPE a [<!ENTITY b 'c'>]>" + success("&b;"),
    ],
)
def test_output_that_is_no_xml_cannot_be_parsed(output: str) -> None:
    code, reason, shown, why = refused(Ended(0, output, "unseen"))
    assert (code, reason, shown) == ("XENAPI_PLUGIN_FAILURE", "failed to parse plugin output", output)
    assert why


@pytest.mark.parametrize(
    "output",
    [
        "<html/>",
        "<methodResponse/>",
        xmlrpc.client.dumps(("text",), "", True),
        xmlrpc.client.dumps(({"Value": "x"},), "", True),
        xmlrpc.client.dumps(({"Status": "Success"},), "", True),
        xmlrpc.client.dumps(({"Status": "Perhaps", "Value": "x"},), "", True),
        xmlrpc.client.dumps(({"Status": "Success", "Value": "x"},), "method"),
    ],
)
def test_other_xml_is_unexpected(output: str) -> None:
    assert refused(Ended(0, output, "")) == ["XENAPI_PLUGIN_FAILURE", "unexpected XMLRPC result", output]


def test_a_fault_is_named() -> None:
    fault = xmlrpc.client.dumps(xmlrpc.client.Fault(42, "the text"), methodresponse=True)
    assert refused(Ended(0, fault, "")) == ["XENAPI_PLUGIN_FAILURE", "fault", "42", "the text"]


@pytest.mark.parametrize(
    ("status", "manner"), [(1, "non-zero exit"), (126, "non-zero exit"), (-9, "signal: SIGKILL"), (-77, "signal: 77")]
)
def test_an_end_that_is_no_success_shows_both_outputs(status: int, manner: str) -> None:
    ended = Ended(status, success("ignored"), "why")
    assert refused(ended) == ["XENAPI_PLUGIN_FAILURE", manner, ended.output, "why"]


# -- running


@pytest.fixture
def scripts() -> Iterator[Scripts]:
    scripts = Scripts()
    yield scripts
    scripts.close()


def test_closing_ends_a_script_and_its_children_and_starts_no_other(scripts: Scripts, tmp_path: Path) -> None:
    mark = tmp_path / "began"
    code = "import pathlib, subprocess as s, sys; c = s.Popen(['sleep', '600']); "
    code += "pathlib.Path(sys.argv[1]).touch(); c.wait()"
    ended: list[Ended] = []
    command = [sys.executable, "-c", code, str(mark)]
    thread = threading.Thread(target=lambda: ended.append(scripts.run(command, {"PATH": "/usr/bin:/bin"}, tmp_path)))
    thread.start()
    deadline = time.monotonic() + 30
    while not mark.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    scripts.close()
    thread.join(30)
    assert [one.status for one in ended] == [-9]
    assert scripts.run(["/bin/true"], {}, tmp_path).status == -9


# -- the private root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "one").touch()
    return folder


def test_a_plugin_that_appears_later_is_found_and_a_removed_one_stays_away(tmp_path: Path, folder: Path) -> None:
    root = Root(tmp_path / "root", [folder])
    root.build({})
    assert root.has_plugin("one")
    assert root.has_plugin("echo")
    (folder / "two").touch()
    assert root.has_plugin("two")
    (root.plugins / "one").unlink()
    assert not root.has_plugin("one")
    (root.plugins / "own").touch()
    assert root.has_plugin("own")


@pytest.mark.parametrize("name", ["", ".", "..", "../plugins/echo", "/bin/true", "Echo", "echo/", "no\0pe"])
def test_only_the_exact_name_of_an_entry_is_a_plugin(tmp_path: Path, name: str) -> None:
    root = Root(tmp_path / "root", [])
    root.build({})
    assert not root.has_plugin(name)


def test_building_again_keeps_what_is_there(tmp_path: Path, folder: Path) -> None:
    Root(tmp_path / "root", [folder]).build({"A": "1"})
    (tmp_path / "root/var/log/xen/console.1.log").write_text("kept", encoding="utf-8")
    root = Root(tmp_path / "root", [folder])
    root.build({"A": "2"})
    assert (root.path / "var/log/xen/console.1.log").read_text(encoding="utf-8") == "kept"
    assert (root.path / "etc/xensource-inventory").read_text(encoding="utf-8") == "A='2'\n"
    assert (root.path / "var/run/sr-mount").is_dir()


def test_repositories_come_and_go_where_dom0_mounts_them(tmp_path: Path) -> None:
    root = Root(tmp_path / "root", [])
    root.build({})
    (tmp_path / "sr").mkdir()
    root.mount({"u1": tmp_path / "sr", "u2": tmp_path / "sr"})
    assert (root.path / "var/run/sr-mount/u1").resolve() == tmp_path / "sr"
    root.mount({"u2": tmp_path / "sr"})
    assert [found.name for found in (root.path / "run/sr-mount").iterdir()] == ["u2"]


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("/var/log/x", "var/log/x"),
        ("//var/log", "var/log"),
        ("/../../etc/passwd", "etc/passwd"),
        ("relative", "relative"),
    ],
)
def test_paths_of_dom0_never_leave_the_private_root(tmp_path: Path, path: str, inside: str) -> None:
    root = Root(tmp_path / "root", [])
    assert root.inside(path) == root.path / inside
    assert root.inside(str(root.path / inside)) == root.path / inside
