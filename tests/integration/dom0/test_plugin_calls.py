"""Calls of plugins: every end that a script can have is an error that says what to do (dom0-and-guest.md 2.3)."""

from __future__ import annotations

import sys
from functools import partial

import pytest

from tests.integration.dom0.conftest import Pool
from worker import retry
from worker.errors import (
    GuestRebooted,
    NotInDom0,
    PluginBusy,
    PluginFailed,
    PluginInterrupted,
    PluginMissing,
    PluginOutdated,
    PluginRefused,
    PluginTimeout,
    PluginUnsupported,
    TooLarge,
    UnknownResult,
    VmopsError,
    XenAPIFailure,
)
from worker.xenapi import plugin, xapi_task
from worker.xenapi.xapi_task import VANISHED, Outcome

#: A plugin that answers with what it is asked to, or not at all.
PUPPET = f"""\
#!{sys.executable} -IS
import os, signal, sys, xmlrpc.client
params, fn = xmlrpc.client.loads(sys.argv[1])
args = params[1]

def answer(struct):
    sys.stdout.write(xmlrpc.client.dumps((struct,), "", True))

def succeed(value):
    answer({{"Status": "Success", "Value": value}})

if fn == "succeed":
    succeed(args["value"])
elif fn == "number":
    succeed(5)
elif fn == "fail":
    answer({{"Status": "Failure", "ErrorDescription": [args[str(n)] for n in range(len(args) - 1)]}})
elif fn == "empty":
    answer({{"Status": "Failure", "ErrorDescription": []}})
elif fn == "chatty":
    print("hello")
    succeed("1")
elif fn == "fault":
    sys.stdout.write(xmlrpc.client.dumps(xmlrpc.client.Fault(1, "text"), methodresponse=True))
elif fn == "exit":
    sys.stderr.write("first\\nthe last line\\n")
    sys.exit(3)
elif fn == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""

TRANSIENT, PERMANENT = retry.Kind.TRANSIENT, retry.Kind.PERMANENT


@pytest.fixture(scope="module")
def puppet(pool: Pool) -> Pool:
    script = pool.plugins / "puppet"
    script.write_text(PUPPET, encoding="ascii")
    script.chmod(0o755)
    not_executable = pool.plugins / "inert"
    not_executable.write_text("#!/bin/sh\n", encoding="ascii")
    return pool


def ask(pool: Pool, fn: str, name: str = "puppet", **args: str) -> object:
    answer: object = plugin.call(pool.session, pool.host_refs[0], name, fn, args)
    return answer


def test_the_result_is_what_the_json_says_for_one_call(pool: Pool) -> None:
    host_ref = pool.host_refs[0]
    before = pool.calls.copy()
    answer = plugin.call(pool.session, host_ref, "vmops-info", "version", {})
    assert (answer["pack"], answer["api"]) == ("1.0.0", plugin.API)
    assert pool.calls - before == {"host.call_plugin": 1}


@pytest.mark.parametrize(
    ("code", "kind", "worth"),
    [
        ("VMOPS_BAD_ARGUMENT", PluginRefused, PERMANENT),
        ("VMOPS_NOT_FOUND", NotInDom0, PERMANENT),
        ("VMOPS_UNSUPPORTED", PluginUnsupported, PERMANENT),
        ("VMOPS_COMMAND_FAILED", PluginFailed, PERMANENT),
        ("VMOPS_NO_SPACE", PluginFailed, PERMANENT),
        ("VMOPS_INTERNAL", PluginFailed, PERMANENT),
        ("VMOPS_TOO_LARGE", TooLarge, PERMANENT),
        ("VMOPS_TIMEOUT", PluginTimeout, TRANSIENT),
        ("VMOPS_BUSY", PluginBusy, TRANSIENT),
        ("VMOPS_REBOOTED", GuestRebooted, TRANSIENT),
    ],
)
def test_a_failure_of_the_pack_is_its_sentence_and_worth_what_its_code_says(
    puppet: Pool, code: str, kind: type[VmopsError], worth: retry.Kind
) -> None:
    with pytest.raises(kind) as caught:
        ask(puppet, "fail", **{"0": code, "1": "What was wrong."})
    assert type(caught.value) is kind
    assert str(caught.value) == "What was wrong."
    assert retry.kind_of(caught.value) is worth


@pytest.mark.parametrize(
    ("fn", "kind", "text"),
    [
        ("exit", PluginFailed, r"puppet on host 'host-1' did not answer \(non-zero exit\): the last line\. "),
        ("kill", PluginInterrupted, "was ended by a signal: SIGKILL"),
        ("chatty", PluginFailed, r"did not answer \(failed to parse plugin output\)"),
        ("fault", PluginFailed, r"did not answer \(fault\)"),
        ("silent", PluginFailed, r"did not answer \(failed to parse plugin output\)"),
    ],
)
def test_a_script_that_does_not_answer_is_named_with_its_host(
    puppet: Pool, fn: str, kind: type[VmopsError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        ask(puppet, fn)


def test_what_a_script_says_before_it_breaks_off_is_not_repeated_but_for_its_last_complaint(puppet: Pool) -> None:
    with pytest.raises(PluginFailed) as caught:
        ask(puppet, "exit", secret="canary")
    assert "first" not in str(caught.value)
    assert "canary" not in repr(caught.value) + str(caught.value)


def test_a_host_without_the_pack_or_with_another_is_told_from_one_with_it(puppet: Pool) -> None:
    with pytest.raises(PluginMissing, match=r"Host 'host-1' has no plugin nonesuch\. Run `vmops doctor`"):
        ask(puppet, "x", "nonesuch")
    with pytest.raises(PluginOutdated, match=r"vmops-info on host 'host-1': Pack 1\.0\.0 has no such function"):
        ask(puppet, "nonesuch", "vmops-info")
    with pytest.raises(PluginOutdated, match="speaks version 1"):
        ask(puppet, "fail", **{"0": "VMOPS_VERSION", "1": "Pack 0.9 speaks version 1."})
    with pytest.raises(PluginOutdated, match="puppet on host 'host-1' is not vmops's own"):
        ask(puppet, "fail", **{"0": "UNKNOWN_XENAPI_PLUGIN_FUNCTION", "1": "fail"})
    with pytest.raises(PluginFailed, match="did not answer with JSON"):
        ask(puppet, "succeed", value="no json")
    with pytest.raises(PluginFailed, match="did not answer"):
        ask(puppet, "x", "inert")


@pytest.mark.parametrize("fn", ["number", "empty"])
def test_what_xapi_itself_cannot_read_is_its_own_failure(puppet: Pool, fn: str) -> None:
    with pytest.raises(XenAPIFailure) as caught:
        ask(puppet, fn)
    assert caught.value.code == "INTERNAL_ERROR"


def test_a_failure_that_is_not_the_plugins_stays_what_it_is(puppet: Pool) -> None:
    with pytest.raises(XenAPIFailure) as caught:
        ask(puppet, "fail", **{"0": "HOST_OFFLINE", "1": "OpaqueRef:x"})
    assert caught.value.code == "HOST_OFFLINE"
    assert retry.kind_of(caught.value) is TRANSIENT
    with pytest.raises(XenAPIFailure) as caught:
        plugin.call(puppet.session, "OpaqueRef:none", "puppet", "succeed", {})
    assert retry.kind_of(caught.value) is retry.Kind.GONE


def test_a_call_that_was_begun_ends_as_one_that_was_waited_for(puppet: Pool) -> None:
    host_ref = puppet.host_refs[1]
    begin = partial(plugin.begin, puppet.session, host_ref, "puppet")
    ended = []
    for fn, args in (("succeed", {"value": '{"a": "<&\\"\\u00e4"}'}), ("fail", {"0": "VMOPS_BUSY", "1": "Later."})):
        task_ref = begin(fn, args)
        ended.append(xapi_task.wait(puppet.session, task_ref, 30))
        xapi_task.finish(puppet.session, task_ref)
    result = partial(plugin.result, puppet.session, host_ref, "puppet")
    assert result(ended[0]) == {"a": '<&"ä'}
    with pytest.raises(PluginBusy, match=r"Later\."):
        result(ended[1])
    with pytest.raises(UnknownResult, match="forgotten"):
        result(VANISHED)
    with pytest.raises(XenAPIFailure):
        result(Outcome("failure", error=XenAPIFailure(["TASK_CANCELLED"])))


@pytest.mark.parametrize("char", ["x", "&", '"'])
def test_the_longest_call_that_is_sent_arrives_and_one_that_would_not_is_not_sent(puppet: Pool, char: str) -> None:
    longest = 131_000
    while True:
        try:
            plugin._checked("puppet", "succeed", {"value": '"' + char * longest})
        except TooLarge:
            longest -= 50
        else:
            break
    size = {"x": 130_000, "&": 26_000, '"': 21_600}[char]
    assert longest > size  # little room is given away
    before = puppet.calls["host.call_plugin"]
    with pytest.raises(PluginFailed, match="did not answer with JSON"):
        ask(puppet, "succeed", value='"' + char * longest)
    with pytest.raises(TooLarge, match="at most 131071 fit"):
        ask(puppet, "succeed", value='"' + char * (longest + 50))
    assert puppet.calls["host.call_plugin"] == before + 1


def test_text_that_dom0s_python_may_not_know_is_never_sent(puppet: Pool) -> None:
    before = puppet.calls["host.call_plugin"]
    with pytest.raises(ValueError, match="argument value is not ASCII"):
        ask(puppet, "succeed", value="ä")
    assert puppet.calls["host.call_plugin"] == before
