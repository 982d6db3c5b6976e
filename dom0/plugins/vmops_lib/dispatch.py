"""From XAPI's argument to a function, and from its result or failure to what XAPI reads.

What XAPI wants: one XML document on standard output and exit status 0, also for a failure: the fork daemon logs the
whole command line, arguments included, of a script that exits otherwise. The result must be a text, so it is JSON;
everything is ASCII, since XAPI sets no locale and Python 3.6 then knows nothing else. XAPI ends no plugin, so each ends
itself.
"""

import json
import os
import platform
import signal
import sys
import time
import xmlrpc.client
from collections.abc import Callable
from xml.parsers.expat import ExpatError

from vmops_lib import API, PACK, limits, log
from vmops_lib.arguments import Arguments
from vmops_lib.failures import BadArgument, Failure, TimedOut, TooLarge, UnknownFunction, WrongVersion

#: Any call may name the version that the caller speaks; one of another version is refused, but for `version`.
_VERSION_KEY = "api"


class Function:
    """A function of a plugin: what carries it out, the arguments it needs and may take, and its time."""

    def __init__(
        self,
        body: "Callable[[Arguments], object]",
        needs: "tuple[str, ...]" = (),
        takes: "tuple[str, ...]" = (),
        deadline_s: int = limits.DEADLINE_S,
    ) -> None:
        self.body = body
        self.needs = needs
        self.takes = takes
        self.deadline_s = deadline_s


def version(_args: Arguments) -> "dict[str, object]":
    """Tell which pack this is; every plugin has this function."""
    return {"pack": PACK, "api": API, "python": platform.python_version()}


def serve(functions: "dict[str, Function]") -> None:
    """Carry out the call in this process's argument and print its answer."""
    began_s = time.time()
    output = sys.stdout.buffer
    sys.stdout = sys.stderr  # a stray print must not spoil the answer
    name = "?"
    args: dict[str, str] = {}
    try:
        name, args = _call(sys.argv)
        answer, ending = _success(_result(functions, name, args)), "done"
    except Failure as failure:
        answer, ending = _failure(failure.code, log.redacted(str(failure), args)), failure.code
    except Exception as error:  # noqa: BLE001 - the caller is to see every bug, and the exit status must be 0
        text = log.redacted("%s: %s" % (type(error).__name__, error), args)
        answer, ending = _failure(Failure.code, text), "%s %s" % (Failure.code, text)
    taken_ms = (time.time() - began_s) * 1000
    log.say(os.path.basename(sys.argv[0]), "%s %s: %s, %d ms" % (name, log.shown(args), ending, taken_ms))
    output.write(answer)
    output.flush()


def _call(argv: "list[str]") -> "tuple[str, dict[str, str]]":
    """Read what XAPI gives: the function's name and its arguments. Raises BadArgument."""
    if len(argv) != 2:  # noqa: PLR2004 - the program and its argument
        raise BadArgument("A plugin takes one argument, the XML of the call.")
    try:
        params, name = xmlrpc.client.loads(os.fsencode(argv[1]))
    except (ValueError, LookupError, TypeError, ExpatError, xmlrpc.client.Error):
        raise BadArgument("The argument is not the XML of a call.") from None
    args = params[1] if len(params) == 2 else None  # noqa: PLR2004 - the session and the arguments
    if not isinstance(name, str) or not isinstance(args, dict):
        raise BadArgument("The argument is not the XML of a call to a plugin.")
    texts = {key: value for key, value in args.items() if isinstance(value, str)}
    if len(texts) < len(args):
        raise BadArgument("Every argument must be a text.")
    return name, texts


def _result(functions: "dict[str, Function]", name: str, args: "dict[str, str]") -> str:
    """Return a function's result as JSON. Raises Failure, and whatever a bug raises."""
    function = Function(version) if name == "version" else functions.get(name)
    if name != "version" and args.get(_VERSION_KEY, str(API)) != str(API):
        raise WrongVersion("Pack %s speaks version %d, the caller another one." % (PACK, API))
    if function is None:
        raise UnknownFunction("Pack %s has no such function here." % PACK)
    given = set(args) - {_VERSION_KEY}
    missing, unknown = set(function.needs) - given, given - set(function.needs) - set(function.takes)
    if missing or unknown:
        names = ascii(", ".join(sorted(missing or unknown)))[1:-1]
        raise BadArgument("%s: %s." % ("Arguments are missing" if missing else "Unknown arguments", names))
    result = json.dumps(_in_time(function, Arguments(args)))
    if len(result) > 2 * limits.RESULT_BYTES:
        raise TooLarge("The result has %d bytes: ask for less." % len(result))
    return result


def _in_time(function: Function, args: Arguments) -> "object":
    """Call a function, for as long as it may take. Raises TimedOut."""
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(function.deadline_s)
    try:
        return function.body(args)
    finally:
        signal.alarm(0)


def _stop(_number: int, _frame: "object") -> None:
    raise TimedOut("The plugin did not come to an end in time.")


def _success(result: str) -> bytes:
    return _document({"Status": "Success", "Value": result})


def _failure(code: str, text: str) -> bytes:
    return _document({"Status": "Failure", "ErrorDescription": [code, ascii(text)[1:-1]]})


def _document(answer: "dict[str, object]") -> bytes:
    return xmlrpc.client.dumps((answer,), methodresponse=True).encode("ascii", "xmlcharrefreplace")
