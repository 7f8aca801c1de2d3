"""Names of fields as they can be shown: any text may be one."""

from __future__ import annotations

LABEL_LETTERS = 28  # of a name in a chart


def shown(name: str) -> str:
    r"""Return a name whose letters can all be seen; others are written as in Python.

    >>> print(shown("a\nb\x00\u202e"))
    a\nb\x00\u202e
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in name
    )


def shortened(name: str) -> str:
    """Return a name for a chart: its beginning and its end where it is long.

    >>> shortened("item"), len(shortened("x" * 200))
    ('item', 28)
    """
    text = shown(name)
    if len(text) <= LABEL_LETTERS:
        return text
    begin = LABEL_LETTERS // 2
    return f"{text[:begin]}…{text[begin + 1 - LABEL_LETTERS :]}"
