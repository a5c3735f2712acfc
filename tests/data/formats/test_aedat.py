import struct

import numpy as np
import pytest

from a2os2a_jax.data import formats

HEAD_2 = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
HEAD_3 = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"


def write_2(path, rows, head=HEAD_2):
    """rows: (t, raw x, raw y, polarity bit)."""
    body = b"".join(struct.pack(">II", y << 8 | x << 1 | p, t) for t, x, y, p in rows)
    path.write_bytes(head + body)
    return path


def packet(rows, *, kind=1, overflow=0, size=8, capacity=None, offset=4):
    """rows: (t, x, y, p, valid)."""
    body = b"".join(
        struct.pack("<II", x << 17 | y << 2 | p << 1 | valid, t)
        for t, x, y, p, valid in rows
    )
    number = len(rows)
    capacity = number if capacity is None else capacity
    valid = sum(row[-1] for row in rows)
    head = struct.pack(
        "<hhiiiiii", kind, 1, size, offset, overflow, capacity, number, valid
    )
    return head + body + bytes((capacity - number) * size)


def write_3(path, *packets, head=HEAD_3):
    path.write_bytes(head + b"".join(packets))
    return path


def test_version_2_by_hand(tmp_path):
    # address 0x1e0b = 0 0011110 0000101 1: y 30, x 5, polarity 1, darker
    body = bytes.fromhex("00001e0b 00000102 00007f00 80000000")
    (tmp_path / "a.aedat").write_bytes(HEAD_2 + body)
    e = formats.read(tmp_path / "a.aedat")
    assert e.t.tolist() == [258, 2**31]  # the clock is unsigned
    assert e.x.tolist() == [122, 127] and e.y.tolist() == [97, 0]
    assert e.p.tolist() == [0, 1]


def test_version_2_every_pixel_and_polarity(tmp_path):
    x, y, p = (a.ravel() for a in np.meshgrid(range(128), range(128), range(2)))
    rows = list(zip(range(len(x)), x.tolist(), y.tolist(), p.tolist(), strict=True))
    e = formats.read(write_2(tmp_path / "a.aedat", rows))
    np.testing.assert_array_equal(e.t, np.arange(len(x)))
    np.testing.assert_array_equal(e.x, 127 - x)
    np.testing.assert_array_equal(e.y, 127 - y)
    np.testing.assert_array_equal(e.p, 1 - p)


def test_version_2_leaves_out_what_no_pixel_sent_and_counts_it(tmp_path):
    # y bit 7 is bit 15, external; y bit 23 is bit 31, special, of any other bits
    special = [(2, 3, 4 + 128, 0), (3, 0, 1 << 23, 0), (4, 3, (1 << 23) + (1 << 14), 1)]
    rows = [(1, 3, 4, 0), *special, (5, 5, 6, 1)]
    with pytest.warns(UserWarning, match="a.aedat: left out 3 of 5 events, special"):
        e = formats.read(write_2(tmp_path / "a.aedat", rows))
    assert e.t.tolist() == [1, 5] and e.x.tolist() == [124, 122]
    # in front of all others, where a header might be
    with pytest.warns(UserWarning, match="left out 3 of 4 events"):
        e = formats.read(write_2(tmp_path / "a.aedat", rows[1:]))
    assert e.t.tolist() == [5]


def test_version_2_refuses_other_chips(tmp_path):
    rows = [(1, 3, 4, 0), (2, 3, 1 << 14, 0), (3, 3, 1 << 14, 0)]
    path = write_2(tmp_path / "davis.aedat", rows)
    at = len(HEAD_2) + 8
    with pytest.raises(
        ValueError, match=rf"davis.aedat: got address 0x400006 at byte {at}"
    ):
        formats.read(path)


def test_version_2_puts_a_stray_event_outside(tmp_path):
    for bit in (8, 14, 22):  # of y; above it is what says "special"
        rows = [(1, 3, 4, 0), (2, 3, (1 << bit) + 4, 0), (3, 3, 4, 1)]
        e = formats.read(write_2(tmp_path / "a.aedat", rows))
        assert e.t.tolist() == [1, 2, 3] and e.y[[0, 2]].tolist() == [123, 123]
        assert not 0 <= e.y[1] < 128


def test_version_2_clock_that_starts_again(tmp_path):
    t = [2**32 - 20, 2**32 - 10, 0, 10, 20]
    rows = [(each, x, 4, 0) for x, each in enumerate(t)]
    e = formats.read(write_2(tmp_path / "a.aedat", rows))
    assert e.t.tolist() == [2**32 + n for n in (-20, -10, 0, 10, 20)]
    assert e.x.tolist() == [127, 126, 125, 124, 123]


def test_version_2_header(tmp_path):
    # a line break alone ends a line, too; a body may hold what looks like a header
    rows = [(0x23232323, 0x11, 0x23, 1), (0x23230A0A, 5, 10, 0)]
    for head in (HEAD_2, HEAD_2.replace(b"\r\n", b"\n"), b"#!AER-DAT2.0\n"):
        e = formats.read(write_2(tmp_path / "a.aedat", rows, head))
        assert e.t.tolist() == [0x23230A0A, 0x23232323]
    (tmp_path / "b.aedat").write_bytes(b"#!AER-DAT2.0")
    assert len(formats.read(tmp_path / "b.aedat").t) == 0


@pytest.mark.parametrize(
    "line", [b"", b"#!AER-DAT1.0\r\n", b"#!AER-DAT3.0\r\n", b"#!AER-DAT4.0\r\n"]
)
def test_other_versions_are_refused(tmp_path, line):
    (tmp_path / "a.aedat").write_bytes(line + bytes(16))
    with pytest.raises(ValueError, match="a.aedat: got the first line .*2.0 or #!AER-"):
        formats.read(tmp_path / "a.aedat")


def test_version_3_by_hand(tmp_path):
    # 0x000a0007: valid, brighter, y = 1, x = 5; little-endian
    head = bytes.fromhex(
        "0100 0100 08000000 04000000 01000000 02000000 02000000 01000000"
    )
    body = bytes.fromhex("07000a00 0201000006000a00 03010000")  # the second invalid
    (tmp_path / "a.aedat").write_bytes(HEAD_3 + head + body)
    e = formats.read(tmp_path / "a.aedat")
    assert [column.tolist() for column in e] == [[2**31 + 258], [5], [1], [1]]


def test_version_3_packets(tmp_path):
    path = write_3(
        tmp_path / "a.aedat",
        packet([(10, 127, 3, 0, 1), (20, 1, 126, 1, 1), (30, 9, 9, 1, 0)]),
        packet([(5, 1, 1, 1, 1)], kind=0),  # special events are no changes
        packet([(40, 32767, 32766, 1, 1)], capacity=3),
        packet([]),
        packet([(1, 8, 7, 0, 1)], overflow=2),
    )
    e = formats.read(path)
    assert e.t.tolist() == [10, 20, 40, 2 * 2**31 + 1]
    assert e.x.tolist() == [127, 1, 32767, 8] and e.y.tolist() == [3, 126, 32766, 7]
    assert e.p.tolist() == [0, 1, 1, 0]


def test_version_3_skips_packets_of_any_size(tmp_path):
    frame = struct.pack("<hhiiiiii", 2, 1, 50, 12, 0, 1, 1, 1) + bytes(50)
    path = write_3(tmp_path / "a.aedat", frame, packet([(7, 1, 2, 1, 1)]), frame)
    assert formats.read(path).t.tolist() == [7]


def test_version_3_refuses_what_is_no_packet(tmp_path):
    one = [(10, 1, 3, 0, 1)]
    path = write_3(tmp_path / "a.aedat", packet(one), packet(one, size=16, capacity=2))
    with pytest.raises(ValueError, match="a.aedat: got polarity events of 16 bytes"):
        formats.read(path)
    swapped = struct.pack(">hhiiiiii", 1, 1, 8, 4, 0, 1, 1, 1)  # the other end first
    with pytest.raises(
        ValueError, match="a.aedat: got a packet of .* expected a header|cut"
    ):
        formats.read(write_3(tmp_path / "a.aedat", swapped, bytes(8)))
    with pytest.raises(ValueError, match=f"at byte {len(HEAD_3)}, expected a header"):
        formats.read(write_3(tmp_path / "a.aedat", b"\xff" * 64))
    head = b"#!AER-DAT3.1\r\n#Source 1: DVS128\r\n"
    with pytest.raises(ValueError, match="a.aedat: got no line #!END-HEADER"):
        formats.read(write_3(tmp_path / "a.aedat", packet(one), head=head))
    head = HEAD_3.replace(b"RAW", b"Compressed")
    with pytest.raises(ValueError, match="got the format Compressed, expected RAW"):
        formats.read(write_3(tmp_path / "a.aedat", packet(one), head=head))


def test_cut_files(tmp_path):
    two = write_2(tmp_path / "two.aedat", [(1, 2, 3, 0), (2, 2, 3, 0), (3, 2, 3, 0)])
    rows = [(t, 2, 3, 0, 1) for t in (1, 2, 3)]
    three = write_3(tmp_path / "three.aedat", packet(rows[:1]), packet(rows[1:]))
    for path in (two, three):
        data = path.read_bytes()
        for missing in (1, 3, 7):
            path.write_bytes(data[:-missing])
            at = len(data) - 8
            with pytest.raises(
                ValueError, match=f"{path.name}: got .* at byte {at}.*cut"
            ):
                formats.read(path)
    # between two events of a packet, and within the header of one
    data += packet(rows)
    for missing in (16, 30, 24):
        three.write_bytes(data[:-missing])
        with pytest.raises(ValueError, match="the file is cut"):
            formats.read(three)
