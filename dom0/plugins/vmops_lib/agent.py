"""vmops-agent: one question to the agent inside a guest, and its answer (dom0-and-guest.md 6).

A question is a node `data/host/<id>`, its answer `data/guest/<id>`; both folders belong to the guest, so nothing there
is certain. A mark that the guest can only read, `vmops/<id>` in the domain's folder, says when a question was asked:

- A repeated call with the same id asks only once and finds the answer, which stays until `cancel`, `sweep` or
  `SWEEP_S` later another call removes it.
- The question is removed at the end of its time, never before: an agent that had just listed it dies of its absence.

An agent that reads a malformed question dies of it, at each of its starts, while the question is there: it is checked
before it is written.
"""

import json
import time

from vmops_lib import domains, limits, lock
from vmops_lib.arguments import Arguments
from vmops_lib.dispatch import Function
from vmops_lib.failures import BadArgument, TimedOut
from vmops_lib.xenstore import Again, Store, check_size

#: Answers and marks that nobody has removed are removed by the next call after this time.
SWEEP_S = 600
_DEFAULT_WAIT_S = 30
#: An agent does one thing at a time; who comes second is told so soon.
_PATIENCE_S = 3
_NEEDS = (*domains.NEEDS, "request_id")


class _Exchange:
    """The nodes of one question."""

    def __init__(self, domid: int, request_id: str) -> None:
        home = domains.folder(domid)
        self.question = "%s/data/host/%s" % (home, request_id)
        self.answer = "%s/data/guest/%s" % (home, request_id)
        self.mark = "%s/vmops/%s" % (home, request_id)


def call(args: Arguments) -> "dict[str, str]":
    """Ask the agent and return its answer as it is. Raises TimedOut, Rebooted, TooLarge, BadArgument, Busy."""
    domid, vm_uuid, request_id = args.domid(), args.uuid("vm_uuid"), args.uuid("request_id")
    payload = _checked(args.text("payload", r"[\x20-\x7e]+"))
    wait_s = args.number("timeout", 1, limits.WAIT_S, _DEFAULT_WAIT_S)
    exchange = _Exchange(domid, request_id)
    check_size(exchange.question, payload)
    with lock.held("agent-%d" % domid, _PATIENCE_S), Store() as store:
        domains.check(store, domid, vm_uuid)
        _sweep(store, domid, SWEEP_S, spared=request_id)
        store.watch(exchange.answer)
        store.watch("@releaseDomain")
        try:
            _ask(store, exchange, payload)
            answer = _await(store, exchange, (domid, vm_uuid), wait_s)
        finally:
            _withdraw(exchange)
        if answer is None:
            answer = store.find(exchange.answer)  # it may have come while the question was withdrawn
        domains.check(store, domid, vm_uuid)
        if not answer:
            was_taken = store.find(exchange.mark) is not None
            what = "took the question and did not answer" if was_taken else "did not look at the question"
            raise TimedOut("The guest's agent %s within %d s." % (what, wait_s))
    return {"response": answer.decode("utf-8", "replace")}


def cancel(args: Arguments) -> "dict[str, bool]":
    """Remove a question and its answer."""
    domid = args.domid()
    exchange = _Exchange(domid, args.uuid("request_id"))
    with Store() as store:
        domains.check(store, domid, args.uuid("vm_uuid"))
        removed = [store.remove(path) for path in (exchange.question, exchange.answer, exchange.mark)]
    return {"removed": any(removed)}


def sweep(args: Arguments) -> "dict[str, int]":
    """Remove the questions and answers that are older than `older_than` seconds, also those of other programs."""
    domid = args.domid()
    with lock.held("agent-%d" % domid, _PATIENCE_S), Store() as store:
        domains.check(store, domid, args.uuid("vm_uuid"))
        return {"removed": _sweep(store, domid, args.number("older_than", 0, 10**9), are_others_meant=True)}


def _checked(text: str) -> bytes:
    """Return a question as bytes. Raises BadArgument for one that would kill an agent."""
    try:
        question = json.loads(text)
    except ValueError:
        question = None
    if not isinstance(question, dict) or set(question) != {"name", "value"}:
        raise BadArgument("Argument payload must be a JSON object with name and value.")
    if not isinstance(question["name"], str) or not isinstance(question["value"], (str, dict)):
        raise BadArgument("In argument payload the name must be a text, the value a text or an object.")
    return text.encode("ascii")


def _ask(store: Store, exchange: _Exchange, payload: bytes) -> None:
    """Write the question, unless it was written before."""
    while True:
        store.begin()
        if store.find(exchange.mark) is None and not store.find(exchange.answer):
            store.write(exchange.question, payload)
            store.write(exchange.mark, b"%d" % time.time())
        try:
            store.commit()
        except Again:
            continue
        return


def _await(store: Store, exchange: _Exchange, owner: "tuple[int, str]", wait_s: float) -> "bytes | None":
    """Return the answer, None when none has come in time. Raises Rebooted."""
    deadline_s = time.monotonic() + wait_s
    while True:
        answer = store.find(exchange.answer)
        if answer:
            return answer
        domains.check(store, *owner)
        if not store.wait(deadline_s - time.monotonic()):
            return None


def _withdraw(exchange: _Exchange) -> None:
    """Remove the question in the end; its mark too, if no agent has taken it. An interrupted connection is no use."""
    with Store() as store:
        while True:
            store.begin()
            if store.remove(exchange.question):
                store.remove(exchange.mark)
            try:
                store.commit()
            except Again:
                continue
            return


def _sweep(store: Store, domid: int, older_s: float, spared: str = "", *, are_others_meant: bool = False) -> int:
    """Remove what is older; questions of others have no mark and so no age. Returns how many exchanges there were."""
    marks = _names(store, domains.folder(domid) + "/vmops")
    others: set[str] = set()
    if are_others_meant:
        for name in ("host", "guest"):
            others.update(_names(store, "%s/data/%s" % (domains.folder(domid), name)))
    removed = 0
    for request_id in sorted({*marks, *others} - {spared}):
        exchange = _Exchange(domid, request_id)
        asked_s = store.text(exchange.mark) if request_id in marks else "0"
        if asked_s.isdigit() and time.time() - int(asked_s) >= older_s:
            found = [store.remove(path) for path in (exchange.question, exchange.answer, exchange.mark)]
            removed += any(found)
    return removed


def _names(store: Store, path: str) -> "list[str]":
    return store.names(path) if store.find(path) is not None else []


FUNCTIONS = {
    "call": Function(call, (*_NEEDS, "payload"), ("timeout",), deadline_s=limits.WAIT_S + 10),
    "cancel": Function(cancel, _NEEDS, deadline_s=20),
    "sweep": Function(sweep, domains.NEEDS, ("older_than",), deadline_s=30),
}
