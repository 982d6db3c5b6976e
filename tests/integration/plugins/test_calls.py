"""host.call_plugin runs real scripts in the dom0 of a simulated host (xapi.md 13, dom0-and-guest.md 1 and 2)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.plugins.support import RAW, Pool
from tests.support.simulator import SimulatorProcess

#: One argument may be this long, NUL not counted: the kernel's limit.
LONGEST_ARGUMENT = 131_071

SEEN = """\
import json, stat
facts = {
    "argc": len(sys.argv),
    "argument": sys.argv[1],
    "path": sys.argv[0],
    "environment": {key: value for key, value in os.environ.items() if key != "LC_CTYPE"},
    "stdin": sys.stdin.read(),
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
    "leads_session": os.getsid(0) == os.getpid(),
    "stdout_is_file": stat.S_ISREG(os.fstat(1).st_mode),
    "cwd": os.getcwd(),
}
succeed(json.dumps(facts))
"""

STOCK = """\
#!/usr/bin/env python3
import os, sys
import XenAPIPlugin

def echo(session, args):
    return "echo:" + repr(sorted(args.items()))

def fail(session, args):
    raise Exception("boom")

def failure(session, args):
    raise XenAPIPlugin.Failure("MY_CODE", ["a", "b"])

def nonstr(session, args):
    return {"a": "b"}

def none(session, args):
    return None

def leave(session, args):
    sys.stderr.write("leaving")
    sys.exit(3)

def whoami(session, args):
    return session.xenapi.session.get_originator(session.handle)

def missing(session, args):
    return session.xenapi.VM.get_record("OpaqueRef:nope")

if __name__ == "__main__":
    XenAPIPlugin.dispatch({name: value for name, value in globals().items() if callable(value)})
"""

SHELL = """\
#!/bin/sh
cat <<EOF
<methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value></member>
<member><name>Value</name><value>$(xenstore-read /local/domain/0/name) $(ls "$VMOPS_DOM0_ROOT/var/run/sr-mount")</value>
</member></struct></value></param></params></methodResponse>
EOF
"""


# -- what a script is given


def test_a_script_gets_one_argument_and_a_bare_environment(pool: Pool) -> None:
    facts = json.loads(pool.call(pool.raw("seen", SEEN), "the-function", key="a<b", empty=""))
    root = facts["environment"].pop("VMOPS_DOM0_ROOT")
    assert facts["argc"] == 2
    assert facts["argument"] == (
        f"<methodCall><methodName>the-function</methodName><params><param><value>{pool.client.ref}</value></param>"
        "<param><value><struct><member><name>key</name><value>a&lt;b</value></member>"
        "<member><name>empty</name><value/></member></struct></value></param></params></methodCall>"
    )
    assert facts["path"] == f"{root}/etc/xapi.d/plugins/seen"
    assert sorted(facts["environment"]) == ["PATH", "PYTHONPATH", "XENSTORED_PATH"]
    own, _, last = facts["environment"]["PATH"].partition(":/sbin:")
    assert all(folder.startswith(root + "/") for folder in own.split(":"))
    assert last == "/usr/sbin:/bin:/usr/bin"
    assert facts["stdin"] == ""
    assert facts["descriptors"][:3] == [0, 1, 2]
    assert len(facts["descriptors"]) == 4, "the fourth is the folder being listed"
    assert facts["leads_session"]
    assert facts["stdout_is_file"]
    assert facts["cwd"] == root


def test_arguments_and_results_of_any_letters_survive(pool: Pool) -> None:
    name = pool.raw("mirror", "succeed(repr(sorted(args.items())))")
    text = "ä€😀 <&>\"' \t\n line\r\nend"
    assert pool.call(name, k=text) == repr([("k", text.replace("\r\n", "\n"))])


def test_an_argument_may_be_as_long_as_the_kernel_allows(pool: Pool) -> None:
    name = pool.raw("long", "succeed(str(len(sys.argv[1])))")
    room = LONGEST_ARGUMENT - int(pool.call(name, k="x")) + 1
    assert pool.call(name, k="x" * room) == str(LONGEST_ARGUMENT)
    assert pool.error(name, k="x" * (room + 1)) == ["XENAPI_PLUGIN_FAILURE", "non-zero exit", "", ""]


def test_a_result_may_be_megabytes(pool: Pool) -> None:
    name = pool.raw("big", "succeed('r' * int(args['size']))")
    assert pool.call(name, size=str(5 << 20)) == "r" * (5 << 20)


def test_an_argument_that_is_no_text_is_refused_before_the_plugin_is_looked_for(pool: Pool) -> None:
    error = pool.client.error("host.call_plugin", pool.host_ref, "nosuch", "main", {"k": 1})
    assert error == ["INTERNAL_ERROR", "Failure(\"Expected string, got 'I(1)'\")"]


# -- how it can end


def test_a_plugin_that_is_not_there_is_missing(pool: Pool) -> None:
    for name in ("nosuch", "../plugins/echo", "/bin/true", ""):
        assert pool.error(name) == ["XENAPI_MISSING_PLUGIN", name]


def test_the_folder_is_read_at_each_call(pool: Pool) -> None:
    assert pool.error("late") == ["XENAPI_MISSING_PLUGIN", "late"]
    pool.raw("late", "succeed('one')")
    assert pool.call("late") == "one"
    pool.raw("late", "succeed('two')")
    assert pool.call("late") == "two"
    (pool.root / "etc/xapi.d/plugins/late").unlink()
    assert pool.error("late") == ["XENAPI_MISSING_PLUGIN", "late"]


@pytest.mark.parametrize(
    ("body", "details"),
    [
        ("sys.stdout.write('out'); sys.stderr.write('err'); sys.exit(7)", ["non-zero exit", "out", "err"]),
        ("print('hello'); sys.exit(1)", ["non-zero exit", "hello\n", ""]),
        ("succeed('x'); sys.stdout.flush(); os._exit(1)", None),
        ("sys.stdout.write('o'); sys.stdout.flush(); os.kill(os.getpid(), 9)", ["signal: SIGKILL", "o", ""]),
        ("os.kill(os.getpid(), 15)", ["signal: SIGTERM", "", ""]),
        ("sys.stdout.buffer.write(b'\\xff'); sys.exit(1)", ["non-zero exit", "\N{REPLACEMENT CHARACTER}", ""]),
    ],
)
def test_an_end_that_is_no_success_names_its_manner_and_both_outputs(
    pool: Pool, body: str, details: list[str] | None
) -> None:
    code, *rest = pool.error(pool.raw("ending", body))
    assert code == "XENAPI_PLUGIN_FAILURE"
    if details is None:
        assert rest[0] == "non-zero exit"
        assert "<value><string>x</string></value>" in rest[1]
    else:
        assert rest == details


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ("pass", ""),
        ("print('stray'); succeed('x')", None),
        ("succeed('x'); print('stray')", None),
        ("succeed('x\\x01y')", None),
        ("sys.stdout.buffer.write(b'\\xff\\xfe')", "\N{REPLACEMENT CHARACTER}" * 2),
    ],
)
def test_output_that_is_no_xml_cannot_be_parsed(pool: Pool, body: str, output: str | None) -> None:
    code, reason, shown, why = pool.error(pool.raw("stray", body))
    assert (code, reason) == ("XENAPI_PLUGIN_FAILURE", "failed to parse plugin output")
    assert why
    if output is not None:
        assert shown == output


def test_a_fault_and_another_answer_are_told_apart(pool: Pool) -> None:
    fault = pool.raw("fault", "print(xmlrpc.client.dumps(xmlrpc.client.Fault(9, 'text'), methodresponse=True))")
    assert pool.error(fault) == ["XENAPI_PLUGIN_FAILURE", "fault", "9", "text"]
    code, reason, shown = pool.error(pool.raw("other", "answer({'Other': 'x'})"))
    assert (code, reason) == ("XENAPI_PLUGIN_FAILURE", "unexpected XMLRPC result")
    assert "Other" in shown


def test_only_a_text_is_a_result(pool: Pool) -> None:
    for value, tag in (("1", "int"), ("{'a': 'b'}", "struct"), ("b'x'", "base64"), ("True", "boolean")):
        error = pool.error(pool.raw("typed", f"answer({{'Status': 'Success', 'Value': {value}}})"))
        text = f"XMLRPC.RunTimeTypeError(\"unbox: Element={tag} should contain 'string'\", _)"
        assert error == ["INTERNAL_ERROR", text]


def test_a_failure_of_any_code_is_passed_on(pool: Pool) -> None:
    body = "answer({'Status': 'Failure', 'ErrorDescription': ['VM_BAD_POWER_STATE', 'x', 'ä', '']})"
    assert pool.error(pool.raw("passed", body)) == ["VM_BAD_POWER_STATE", "x", "ä", ""]
    body = "answer({'Status': 'Failure', 'ErrorDescription': []})"
    assert pool.error(pool.raw("empty", body))[0] == "INTERNAL_ERROR"


@pytest.mark.parametrize(
    ("name", "text", "mode"),
    [
        ("helper.py", RAW + "succeed('x')", 0o644),
        ("no-shebang", "succeed('x')", 0o755),
        ("no-interpreter", "#!/nowhere/python3\n", 0o755),
        ("nothing", "", 0o755),
    ],
)
def test_what_cannot_be_started_ends_silently(pool: Pool, name: str, text: str, mode: int) -> None:
    assert pool.error(pool.write(name, text, mode)) == ["XENAPI_PLUGIN_FAILURE", "non-zero exit", "", ""]


def test_a_folder_of_helpers_is_importable_and_not_callable(pool: Pool) -> None:
    (pool.folder / "pack_lib").mkdir()
    (pool.folder / "pack_lib" / "words.py").write_text("WORD = 'imported'\n", encoding="utf-8")
    text = RAW.replace(" -IS", "") + "from pack_lib.words import WORD\nsucceed(WORD)\n"
    assert pool.call(pool.write("importing", text)) == "imported"
    assert pool.error("pack_lib") == ["XENAPI_PLUGIN_FAILURE", "non-zero exit", "", ""]


# -- scripts written for a real dom0


def test_the_stock_library_answers_as_observed(pool: Pool) -> None:
    name = pool.write("simtest", STOCK)
    assert pool.call(name, "echo", k="v") == "echo:[('k', 'v')]"
    assert pool.error(name, "fail") == ["XENAPI_PLUGIN_FAILURE", "fail", "Exception", "boom"]
    assert pool.error(name, "failure") == ["MY_CODE", "a", "b"]
    assert pool.error(name, "nosuch") == ["UNKNOWN_XENAPI_PLUGIN_FUNCTION", "nosuch"]
    assert pool.error(name, "none")[:3] == ["XENAPI_PLUGIN_FAILURE", "none", "TypeError"]
    assert pool.error(name, "leave") == ["XENAPI_PLUGIN_FAILURE", "non-zero exit", "", "leaving"]
    text = "XMLRPC.RunTimeTypeError(\"unbox: Element=struct should contain 'string'\", _)"
    assert pool.error(name, "nonstr") == ["INTERNAL_ERROR", text]


def test_a_plugin_may_use_the_session_of_its_caller(pool: Pool) -> None:
    name = pool.write("calling", STOCK)
    assert pool.call(name, "whoami") == "tests"
    details = "['HANDLE_INVALID', 'VM', 'OpaqueRef:nope']"
    assert pool.error(name, "missing") == ["XENAPI_PLUGIN_FAILURE", "missing", "Failure", details]


def test_every_host_has_echo(pool: Pool) -> None:
    assert pool.call("echo", k="v") == "args were: {'k': 'v'}"
    assert pool.error("echo", "other") == ["UNKNOWN_XENAPI_PLUGIN_FUNCTION", "other"]


def test_a_shell_script_finds_tools_and_files_in_the_private_root(pool: Pool) -> None:
    sr_uuid = pool.client("SR.get_uuid", pool.client("SR.get_all")[0])
    assert pool.call(pool.write("shell", SHELL)) == f"Domain-0 {sr_uuid}"
    assert list((pool.root / "var/run/sr-mount" / sr_uuid).glob("*.vhd"))


def test_the_inventory_names_host_and_dom0(pool: Pool) -> None:
    lines = (pool.root / "etc/xensource-inventory").read_text(encoding="utf-8").splitlines()
    assert f"INSTALLATION_UUID='{pool.client('host.get_uuid', pool.host_ref)}'" in lines
    dom0_ref = pool.client("host.get_control_domain", pool.host_ref)
    assert f"CONTROL_DOMAIN_UUID='{pool.client('VM.get_uuid', dom0_ref)}'" in lines


def test_a_pool_whose_folder_has_a_long_name_runs_plugins(tmp_path: Path) -> None:
    state_dir = tmp_path / ("long-" * 20)
    name = "calling"
    with SimulatorProcess("--plugins", str(tmp_path), state_dir=state_dir) as simulator, simulator.session() as client:
        pool = Pool(simulator, client, tmp_path)
        pool.write(name, STOCK)
        pool.write("shell", SHELL)
        assert pool.call(name, "whoami") == "tests"
        assert pool.call("shell").startswith("Domain-0 ")
        assert len(pool.dom0()["xenstore"]) < 100
