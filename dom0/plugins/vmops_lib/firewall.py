"""vmops-firewall: security groups, enforced on the host whose VIFs they are for.

The worker says what shall be (`apply`); it is written down before it is done, so that what was cut off or lost with the
host's power is done again by the next call, or by the hook that XAPI calls for every VIF (`restore`).
"""

import bz2
import json

from vmops_lib import documents, firewall_bridge, firewall_ovs, limits, lock, place
from vmops_lib.arguments import Arguments
from vmops_lib.dispatch import Function
from vmops_lib.failures import BadArgument
from vmops_lib.firewall_document import Document, State

_FILE = "/var/lib/vmops/firewall/state.json"
_BACKENDS = {"ovs": firewall_ovs, "bridge": firewall_bridge}
#: Others wait so long for their turn, and a call takes so long at most.
_PATIENCE_S = 20
_DEADLINE_S = 120


def apply(args: Arguments) -> "dict[str, object]":
    """Take over the objects of a document and enforce all. Raises BadArgument, Busy, Unsupported, CommandFailed."""
    return _apply(Document(_document(args)))


def members(args: Arguments) -> "dict[str, object]":
    """As `apply`, for a document that has nothing but members of groups."""
    document = Document(_document(args))
    if document.gone or any(not key.startswith("members:") for key in document.set):
        raise BadArgument("The document holds more than members of groups.")
    return _apply(document)


def remove(args: Arguments) -> "dict[str, object]":
    """Forget VIFs, and filter them no more."""
    given = args.text("vif_uuids", "%s(,%s)*" % (limits.UUID, limits.UUID)).split(",")
    with lock.held("firewall", _PATIENCE_S):
        state = _state()
        generation = state.generation
        present = [uuid for uuid in given if uuid in state.vifs()]
        for uuid in present:
            state.objects["vif:" + uuid] = [generation, None]
        state.tidy()
        _keep(state)
        _enforce(state)
        return {"removed": len(present)}


def restore(_args: "Arguments | None" = None) -> "dict[str, object]":
    """Enforce again what is written down."""
    with lock.held("firewall", _PATIENCE_S):
        state = _state()
        return {"missing_bridges": _enforce(state), "vifs": len(state.vifs())}


def knows(vif_uuid: str) -> bool:
    """Tell whether a VIF is filtered."""
    return vif_uuid in _state().vifs()


def dump(_args: Arguments) -> "dict[str, object]":
    """Tell which objects there are, by their hashes, and whether they are enforced right now."""
    with lock.held("firewall", _PATIENCE_S):
        state = _state()
        is_live = not state.vifs() or _BACKENDS[state.backend].is_live(state)
        return {
            "backend": state.backend,
            "generation": state.generation,
            "is_live": is_live,
            "objects": state.digests(),
        }


def _document(args: Arguments) -> "object":
    """Return the document, base64(zlib(json)) or, as large ones come, base64(bz2(json)). Raises BadArgument."""
    if "doc_b64b" not in args:
        return args.document("doc_b64z")
    unpacker = bz2.BZ2Decompressor()
    try:
        text = unpacker.decompress(args.data("doc_b64b"), limits.DOCUMENT_BYTES)
        if unpacker.eof:
            return json.loads(text.decode("utf-8"))
    except (OSError, ValueError):
        pass
    raise BadArgument("Argument doc_b64b is not a document of at most %d bytes." % limits.DOCUMENT_BYTES)


def _apply(document: Document) -> "dict[str, object]":
    with lock.held("firewall", _PATIENCE_S):
        state = _state()
        changed = state.merge(document)
        _keep(state)
        missing = _enforce(state)
        return {"changed": changed, "generation": state.generation, "missing_bridges": missing}


def _state() -> State:
    return State(documents.read_json(place.path(_FILE)))


def _keep(state: State) -> None:
    documents.write_json(place.path(_FILE), state.stored())


def _enforce(state: State) -> "list[str]":
    return _BACKENDS[state.backend].enforce(state) if state.backend else []


FUNCTIONS = {
    "apply": Function(apply, takes=("doc_b64z", "doc_b64b"), deadline_s=_DEADLINE_S),
    "members": Function(members, takes=("doc_b64z", "doc_b64b"), deadline_s=_DEADLINE_S),
    "remove": Function(remove, needs=("vif_uuids",), deadline_s=_DEADLINE_S),
    "restore": Function(restore, deadline_s=_DEADLINE_S),
    "dump": Function(dump, deadline_s=_DEADLINE_S),
}
