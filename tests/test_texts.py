import pytest

from a2os2a_jax import texts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plain", "plain"),
        ("  a\nb\r\n\tc ", "a b c"),
        ("red\x1b[31m\x07", "red [31m"),
        ("caf\udce9", r"caf\xe9"),
        ("\ud83d!", "\ufffd!"),
        ("日本 é", "日本 é"),
        ("", ""),
    ],
)
def test_a_line_can_be_printed_and_encoded(text, words):
    assert texts.line(text) == words
    assert texts.line(text).encode().isascii() or words


@pytest.mark.parametrize("most", [3, 4, 10, 39])
def test_a_long_line_keeps_both_ends(most):
    text = "a" + "x" * 38 + "z"
    short = texts.line(text, most)
    assert len(short) == most and short[0] == "a" and "…" in short
    assert short[-1] == ("z" if most > 3 else "…")
    assert texts.line(text, 40) == text
