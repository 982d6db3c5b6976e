"""Wrong options of the simulator's command are refused in a sentence, before a pool is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.cli import main


@pytest.mark.parametrize(
    ("content", "listen", "said"),
    [
        (None, "127.0.0.1:0", "cannot be read: No such file or directory"),
        (b"\xff\xfe", "127.0.0.1:0", "cannot be read: it is no text"),
        (b"\n", "127.0.0.1:0", "is empty"),
        (b"secret", "127.0.0.1", "'127.0.0.1' is no HOST:PORT"),
        (b"secret", "127.0.0.1:65536", "a port from 0 to 65535"),
    ],
)
def test_a_wrong_option_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, listen: str, said: str
) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        main(["--password-file", str(path), "--listen", listen, "--state-dir", str(tmp_path / "state")])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "state").exists()
