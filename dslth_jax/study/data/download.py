"""Data sets over the network: whole files, checked by their hashes, or none."""

import contextlib
import http.client
import os
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from dslth_jax.study.system.console import notice
from dslth_jax.study.system.machine import lock

SECONDS_TO_CONNECT, SECONDS_TO_ANSWER = 3.0, 60.0


def download(name: str, address: str, digests: Mapping[str, str], folder: Path) -> None:
    """Download the files of a data set that `folder` lacks, each with its SHA-256. A ValueError if that cannot be.

    Of several processes that share a disk one downloads, and the others wait for it. An interrupted download leaves no
    file of these names.
    """
    import pooch

    if not reachable(address):
        raise ValueError(f"{address} cannot be reached to download it")
    pooch.get_logger().setLevel("ERROR")
    # A bar is drawn over itself, which makes a long line of a log.
    fetch = pooch.HTTPDownloader(sys.stderr.isatty(), timeout=(SECONDS_TO_CONNECT, SECONDS_TO_ANSWER))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone_in(folder):
            for file, digest in digests.items():
                if not (folder / file).is_file():
                    notice(f"downloading {name}: {address}/{file}")
                pooch.retrieve(f"{address}/{file}", f"sha256:{digest}", file, folder, downloader=fetch)
    except Exception as error:  # of many kinds: no disk, no such file any more, another file than it was
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"downloading it from {address} into {folder} failed ({reason})") from error


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is within this block with the same folder."""
    (folder / ".lock").touch()
    held = lock(folder / ".lock", wait=True)
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def reachable(address: str, seconds: float = SECONDS_TO_CONNECT) -> bool:
    """Whether a host answers within `seconds`, name look-up included (which has no limit of its own)."""
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            try:
                urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds).close()
            except urllib.error.HTTPError:  # an answer, too
                pass
            except urllib.error.URLError as error:
                if not isinstance(error.reason, ssl.SSLError):  # which only this Python's certificates may not know
                    raise
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
