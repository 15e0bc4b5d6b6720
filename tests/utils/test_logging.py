"""The logger: silent as a library, printed by the command line, only by the first process, whatever the streams do."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest

from sparkmim.utils.logging import log, print_line, printing


def test_a_library_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    log.info("progress")
    log.warning("skipped")
    assert capfd.readouterr() == ("", "")


def test_users_configure_it_as_any_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sparkmim"):
        log.info("progress")
    assert caplog.record_tuples == [("sparkmim", logging.INFO, "progress")]


def test_the_command_line_prints_messages_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with printing():
        log.debug("detail")
        log.info("100% of it")
        log.warning("skipped")
    log.warning("after")
    assert capsys.readouterr() == ("100% of it\n", "skipped\n")


def test_only_rank_zero_logs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with printing():
        for rank in range(3):
            monkeypatch.setenv("RANK", str(rank))
            log.info(f"rank {rank}")
    assert capsys.readouterr().out == "rank 0\n"


class Unread(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [None, io.StringIO(), Unread()], ids=["missing", "closed", "unread"])
def test_streams_that_nobody_reads(stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if stream is not None and not isinstance(stream, Unread):
        stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    with printing():
        log.info("nobody reads this")


def test_what_a_stream_cannot_encode_is_escaped() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_line("grün", stream)
    assert stream.buffer.getvalue() == b"gr\\xfcn\n"  # type: ignore[attr-defined]


def test_a_reader_that_ends_does_not_stop_the_program() -> None:
    """As `| head -1`: the pipe is closed after the first line, and Python does not complain at its end either."""
    program = (
        "import sys, time\nfrom sparkmim.utils.logging import log, printing\n"
        "with printing():\n"
        "    log.info('first')\n    sys.stdin.readline()\n"
        "    for _ in range(3): log.info('later')\n"
        "print('done', file=sys.stderr)"
    )
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "first\n"
    process.stdout.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.stderr.read() == "done\n"
    process.stderr.close()
    assert process.wait() == 0
