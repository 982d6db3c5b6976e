"""What plugins of dom0 import as `XenAPIPlugin`: `dispatch`, `Failure`, and the texts that XAPI reads.

It works with every Python from 3.6 on, since a plugin's first line chooses that. See dom0-and-guest.md 2.2 and 2.3 for
what it must answer.
"""

import importlib
import sys
import xmlrpc.client


class Failure(Exception):
    """A plugin's own failure: the caller gets the code and the parameters."""

    def __init__(self, code: str, params: "list[str]") -> None:
        Exception.__init__(self, code, params)
        self.code = code
        self.params = params

    def __str__(self) -> str:
        return str([self.code, *self.params])


def success_message(result: object) -> str:
    """Return the answer that carries a result. Raises TypeError for None."""
    return _answer({"Status": "Success", "Value": result})


def failure_message(description: "list[object]") -> str:
    """Return the answer that carries a failure: its code, then its parameters."""
    return _answer({"Status": "Failure", "ErrorDescription": description})


def _answer(struct: "dict[str, object]") -> str:
    return xmlrpc.client.dumps((struct,), "", True)


def dispatch(functions: "dict[str, object]") -> None:
    """Call the function that XAPI asks for as `function(session, args)`, and print its answer."""
    if len(sys.argv) != 2:  # noqa: PLR2004 - the program and its argument
        sys.exit("XenAPIPlugin: expected one argument")
    params, name = xmlrpc.client.loads(sys.argv[1])
    xenapi = importlib.import_module("XenAPI")  # not known to the simulator itself
    session = xenapi.xapi_local()
    session._session = params[0]  # noqa: SLF001 - how the session of a call is handed on
    if name not in functions:
        print(failure_message(["UNKNOWN_XENAPI_PLUGIN_FUNCTION", name]))  # noqa: T201 - XAPI reads it
        return
    try:
        text = success_message(functions[name](session, params[1]))  # type: ignore[operator] # a plugin's own function
    except Failure as failure:
        text = failure_message([failure.code, *failure.params])
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises becomes its answer
        text = failure_message(["XENAPI_PLUGIN_FAILURE", name, type(error).__name__, str(error)])
    print(text)  # noqa: T201 - XAPI reads it
