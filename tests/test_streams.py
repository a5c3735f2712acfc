import io
import os
import subprocess
import sys

import pytest

from a2os2a_jax import streams


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_an_encoding_lacks_is_shown_with_backslashes(encoding):
    raw = io.BytesIO()
    stream = streams.Lasting(io.TextIOWrapper(raw, encoding, newline="\n"))
    print("鳥 and kiwi", file=stream, flush=True)
    stream.writelines(["\N{SNOWMAN}", "!"])
    stream.flush()
    assert raw.getvalue() == rb"\u9ce5 and kiwi" + b"\n" + rb"\u2603!"
    assert stream.encoding == encoding


def test_what_is_written_to_a_closed_stream_is_lost():
    stream = io.StringIO()
    lasting = streams.Lasting(stream)
    stream.close()
    print("nobody hears", file=lasting, flush=True)


def test_streams_are_those_of_before_afterwards(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as of a program without a console
    before = sys.stdout
    with streams.lasting():
        assert isinstance(sys.stdout, streams.Lasting) and sys.stderr is None
        print("lost", file=sys.stderr)
    assert sys.stdout is before


def test_a_pipe_whose_reader_ends_costs_nothing():
    """The exit code is that of the work, and the interpreter has nothing to say."""
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from a2os2a_jax import streams\n"
        "with streams.lasting():\n"
        "    for i in range(100_000): print('line', i)\n"
        "    print('worked', file=sys.stderr)\n"
    )
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    os.read(read, 10)
    os.close(read)
    assert process.communicate(timeout=60)[1] == "worked\n"
    assert process.returncode == 0
