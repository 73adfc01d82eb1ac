"""What is said of a name that does not exist, and of the name that may have been meant."""

import difflib
from collections.abc import Iterable, Sequence


def nearest(given: str, known: Iterable[str]) -> str:
    """The end of an error's sentence: "; did you mean ...?" where a known name is close to the given one, else "".

    >>> nearest("rings", ["ring", "star"])
    '; did you mean ring?'
    """
    close = difflib.get_close_matches(given.lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def expect_choice(name: str, given: str, known: Sequence[str]) -> None:
    """Raise a ValueError unless `given` is one of `known`."""
    if given not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {given!r}{nearest(str(given), known)}")
