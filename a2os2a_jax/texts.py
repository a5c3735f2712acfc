"""Names from outside, which may hold anything, as words for people."""


def line(text: str, most: int | None = None) -> str:
    """The text on one line of printable characters, its middle cut out if it is long.

    Runs of blanks, line breaks and control characters become one blank, and a byte of a
    file's name that is no UTF-8 becomes \\xe9, say, so that it can be printed and
    drawn. Both ends of a long text stay, as names that begin alike often differ there.

    Args:
      most: characters of the result, 3 or more; None for any number.
    """
    words = "".join(_printable(c) for c in text).split()
    flat = " ".join(words)
    if most is None or len(flat) <= most:
        return flat
    end = (most - 1) // 3
    return f"{flat[: most - 1 - end]}…{flat[-end:] if end else ''}"


def _printable(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # as Python holds such a byte
        return f"\\x{ord(character) - 0xDC00:02x}"
    if "\ud800" <= character <= "\udfff":
        return "\ufffd"
    return character if character.isprintable() else " "
