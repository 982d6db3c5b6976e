"""A vt100 console: the screen's terminal as text, without a picture."""

from __future__ import annotations

from simulator.console.channel import Channel, Reader
from simulator.console.rfb import View

_TICK_S = 0.1
_ESCAPE = "\x1b"


class TerminalSession(Reader):
    """One viewer of the text."""

    def __init__(self, channel: Channel, view: View) -> None:
        super().__init__(channel, _TICK_S)
        self._out = channel
        self._view = view
        self._position = 0
        self._is_in_sequence = False

    def run(self) -> None:
        """Serve the viewer until the end. Raises Ended and OSError."""
        self.tick()
        while True:
            character = self.take(1).decode("latin-1")
            self._view.active()
            self._take(character)
            self.tick()

    def tick(self) -> None:
        """Send what the terminal printed."""
        self._view.check()
        text, self._position = self._view.screen.since(self._position)
        if text:
            shown = text.replace("\b", "\b \b").replace("\n", "\r\n")
            self._out.send(shown.encode("latin-1", "replace"))

    def _take(self, character: str) -> None:
        """Take a typed character; the sequences that cursor keys send are left out."""
        if self._is_in_sequence:
            self._is_in_sequence = character in "[O;" or character.isdigit()
        elif character == _ESCAPE:
            self._is_in_sequence = True
        elif character in "\r\n":
            self._view.screen.type("\n")
        elif character in "\b\x7f":
            self._view.screen.type("\b")
        elif character < " ":
            self._view.screen.type(f"^{chr(ord(character) + 64)}")
        else:
            self._view.screen.type(character)
