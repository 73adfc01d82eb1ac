"""Files that a user names: read whole, or one sentence that says why not."""

import errno
import stat
from pathlib import Path


def expect_file(path: Path) -> None:
    """Raise an OSError unless `path` can be read to its end: pipes may keep a reader waiting, devices never end."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no ordinary file")


def words_by_line(path: Path, should: str) -> list[tuple[int, list[str]]]:
    """The words of each line that has any, with its number counted from 1.

    Raises a ValueError, "`should`, and cannot be read: ...", where the file is none, or no text.
    """
    try:
        expect_file(path)
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        reason = error.strerror or "it cannot be opened"
    except UnicodeDecodeError:
        reason = "it is no text"
    except ValueError:  # a null character
        reason = "no file can have this name"
    else:
        return [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    raise ValueError(f"{should}, and cannot be read: {reason}")
