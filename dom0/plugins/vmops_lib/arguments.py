"""A call's arguments, all text, read as what they mean. Everything here raises BadArgument, naming the argument."""

import base64
import binascii
import json
import re
import zlib

from vmops_lib import limits
from vmops_lib.failures import BadArgument


class Arguments:
    """The arguments of one call."""

    def __init__(self, values: "dict[str, str]") -> None:
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str, pattern: str = r"[\x20-\x7e]*", default: str = "") -> str:
        """Return a text that matches `pattern` completely; `default` when it is not given."""
        value = self._values.get(key, default)
        if key in self._values and not re.match("(?:%s)\\Z" % pattern, value):
            raise BadArgument("Argument %s is malformed." % key)
        return value

    def number(self, key: str, least: int, most: int, default: int = 0) -> int:
        """Return a whole number between two bounds; `default` when it is not given."""
        if key not in self._values:
            return default
        number = int(self.text(key, "[0-9]{1,15}"))
        if not least <= number <= most:
            raise BadArgument("Argument %s must be from %d to %d, not %d." % (key, least, most, number))
        return number

    def domid(self) -> int:
        """Return `dom_id`."""
        return int(self.text("dom_id", limits.DOMID))

    def uuid(self, key: str) -> str:
        """Return a uuid."""
        return self.text(key, limits.UUID)

    def data(self, key: str) -> bytes:
        """Return the bytes of a base64 text."""
        try:
            return base64.b64decode(self._values.get(key, "").encode("ascii"), validate=True)
        except (ValueError, binascii.Error):
            raise BadArgument("Argument %s is not base64." % key) from None

    def document(self, key: str) -> "object":
        """Return the value of base64(zlib(json)); large ones are sent so."""
        unpacker = zlib.decompressobj()
        try:
            text = unpacker.decompress(self.data(key), limits.DOCUMENT_BYTES)
        except zlib.error:
            raise BadArgument("Argument %s is not compressed by zlib." % key) from None
        if not unpacker.eof:
            reason = "is longer than %d bytes" % limits.DOCUMENT_BYTES if unpacker.unconsumed_tail else "is cut off"
            raise BadArgument("Argument %s %s." % (key, reason))
        try:
            return json.loads(text.decode("utf-8"))
        except ValueError:
            raise BadArgument("Argument %s is not JSON." % key) from None
