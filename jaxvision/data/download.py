"""Downloads one file: resumed where it stopped, checked, and put in place only when complete.

The bytes go to `<path>.part`, which survives a failure; `<path>.part.json` beside it remembers
which version of the file it is the start of. Nothing is ever at `path` but the whole file.
"""

import contextlib
import errno
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxvision.errors import UserError

OFFLINE_VARIABLE = "JAXVISION_OFFLINE"
CONNECT_SECONDS, STALL_SECONDS = 5.0, 20.0
ATTEMPTS, BACKOFF_SECONDS = 3, 0.5
BLOCK = 1 << 14  # what is lost of a block when the connection stalls is small


def download(
    url_or_urls: str | Sequence[str],
    path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    progress: bool = True,
    timeout: tuple[float, float] = (CONNECT_SECONDS, STALL_SECONDS),
) -> Path:
    """Downloads a file to `path` from the first of the URLs (mirrors) that has it; returns `path`.

    A file that is already at `path` is kept and nothing is fetched. A download that broke off goes
    on where it stopped, as long as the server still has the same file. `sha256` is that of the
    file as it is served. `timeout` is (seconds to connect, seconds without a byte). With `progress`
    a bar is shown on a terminal and one line is printed elsewhere, both on stderr.

    Raises `UserError` if no URL gave the file, if its sha256 is wrong, if the disk is full, or if
    the environment variable JAXVISION_OFFLINE is set to 1.

    >>> download("https://example.org/weights.pth", "weights.pth")  # doctest: +SKIP
    """
    urls = [url_or_urls] if isinstance(url_or_urls, str) else list(url_or_urls)
    path = Path(path)
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"expected a URL that begins with http:// or https://, got {url}")
    if path.exists():
        _check_existing(path, sha256)
        return path
    if is_offline():
        raise UserError(
            f"{path.name} would have to be downloaded, but {OFFLINE_VARIABLE}=1 forbids it: "
            f"unset it, or put the file at {path}"
        )
    part = path.with_name(path.name + ".part")
    with _writing(part):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.with_name(path.name + ".lock")):
            if not path.exists():  # another process may have finished it while this one waited
                _download_from_any(urls, path, part, sha256, progress, timeout)
    _check_existing(path, sha256)
    return path


def is_offline() -> bool:
    """Whether the environment variable JAXVISION_OFFLINE forbids every download."""
    return os.environ.get(OFFLINE_VARIABLE, "").lower() not in ("", "0", "false", "no")


def _download_from_any(
    urls: Sequence[str],
    path: Path,
    part: Path,
    sha256: str | None,
    progress: bool,
    timeout: tuple[float, float],
) -> None:
    failures = []
    for url in urls:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(BACKOFF_SECONDS * 2**attempt)
            try:
                resumed = _fetch(url, part, sha256 is not None, progress, timeout)
                if sha256 is not None and (got := _sha256(part)) != sha256:
                    _forget(part)
                    # The start may have been another file's: worth one whole download.
                    raise _Failure(f"expected sha256 {sha256}, got {got}", again=resumed)
            except _Failure as failure:
                if not failure.again or attempt == ATTEMPTS - 1:
                    failures.append(f"{url}: {failure}")
                    break
            else:
                os.replace(part, path)
                _validator_file(part).unlink(missing_ok=True)
                return
    kept = f"; {part.stat().st_size:,} bytes are kept and it goes on there" if part.exists() else ""
    raise UserError(
        f"could not download {path.name}: {'; '.join(failures)}: check the connection and try again"
        f"{kept}, or put the file at {path}"
    )


class _Failure(Exception):
    """This attempt failed; `again` says whether the same URL is worth another one."""

    def __init__(self, reason: str, *, again: bool):
        super().__init__(reason)
        self.again = again


def _fetch(
    url: str, part: Path, hashed: bool, progress: bool, timeout: tuple[float, float]
) -> bool:
    """One request. Leaves the complete file in `part`; returns whether it had a start there."""
    import requests
    import urllib3

    have, validator = _resume_point(url, part, hashed)
    # Identity, because a server that gzips on the way changes what lengths and ranges mean.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    started = time.monotonic()
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            total = _content_range_total(response.headers)
            if response.status_code == 416 and have and have == total:
                return True
            if response.status_code == 416:
                _forget(part)
                raise _Failure("the server no longer has the file it began with", again=True)
            if response.status_code not in (200, 206):
                again = response.status_code >= 500 or response.status_code in (408, 429)
                raise _Failure(f"HTTP {response.status_code} {response.reason}", again=again)
            if response.status_code == 206 and _content_range_start(response.headers) != have:
                _forget(part)
                raise _Failure("the server sent another range than asked for", again=True)
            if response.status_code == 200:
                have, total = 0, None
                _remember(url, part, response.headers)
            if (length := response.headers.get("Content-Length", "")).isdigit():
                total = have + int(length)
            with (
                open(part, "ab" if have else "wb") as file,
                _progress(part.stem, have, total, progress) as advance,
            ):
                for block in response.raw.stream(BLOCK, decode_content=False):
                    file.write(block)
                    advance(len(block))
                file.flush()
                os.fsync(file.fileno())
    except requests.ConnectTimeout as error:
        raise _Failure(f"no connection within {timeout[0]:g} s", again=False) from error
    except requests.ConnectionError as error:
        raise _Failure(f"no connection ({_root(error)})", again=_is_reset(error)) from error
    except requests.Timeout as error:
        raise _Failure(f"no answer for {timeout[1]:g} s", again=True) from error
    except urllib3.exceptions.ReadTimeoutError as error:
        raise _Failure(f"stalled: not a byte for {timeout[1]:g} s", again=True) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _Failure(f"broke off ({_root(error)})", again=True) from error
    size = part.stat().st_size
    if total is not None and size != total:
        raise _Failure(f"truncated: expected {total:,} bytes, got {size:,}", again=True)
    if progress and not sys.stderr.isatty():
        seconds = time.monotonic() - started
        print(f"downloaded {part.stem}: {size / 1e6:.1f} MB in {seconds:.1f} s", file=sys.stderr)
    return have > 0


def _resume_point(url: str, part: Path, hashed: bool) -> tuple[int, str | None]:
    """How many bytes of `part` to keep, and the validator that says the server's file is the same.

    Without a validator from this very URL only a final sha256 can tell, so without one it restarts.
    """
    try:
        have = part.stat().st_size
    except FileNotFoundError:
        return 0, None
    try:
        known = json.loads(_validator_file(part).read_text())
        validator = known["validator"] if known["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        validator = None
    return (have, validator) if validator or hashed else (0, None)


def _remember(url: str, part: Path, headers: Any) -> None:
    etag = headers.get("ETag", "")
    # RFC 9110, 13.1.5: a weak entity tag must not be used in If-Range.
    validator = etag if etag.startswith('"') else headers.get("Last-Modified")
    _validator_file(part).write_text(json.dumps({"url": url, "validator": validator}))


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator_file(part).unlink(missing_ok=True)


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _content_range_start(headers: Any) -> int | None:
    start = headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(start) if start.isdigit() else None


def _content_range_total(headers: Any) -> int | None:
    total = headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdigit() else None


def _check_existing(path: Path, sha256: str | None) -> None:
    if sha256 is not None and (got := _sha256(path)) != sha256:
        raise UserError(
            f"{path}: expected sha256 {sha256}, got {got}: delete the file and it is fetched again"
        )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _root(error: BaseException) -> str:
    """The innermost reason; what requests wraps around it repeats the URL and object addresses."""
    while isinstance(
        inner := getattr(error, "reason", None) or error.__cause__ or error.__context__,
        BaseException,
    ):
        error = inner
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _is_reset(error: BaseException) -> bool:
    """Whether the server closed a connection that it had accepted: not so if it refused it."""
    seen: BaseException | None = error
    while seen is not None:
        # http.client's RemoteDisconnected is a ConnectionResetError too.
        if isinstance(seen, ConnectionResetError | BrokenPipeError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextlib.contextmanager
def _writing(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason = "the disk is full: free some space and try again; the download goes on there"
        else:
            reason = f"{error.strerror or error}: choose a folder that can be written"
        raise UserError(f"{part}: could not write the download: {reason}") from error


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time may append to a .part file. No lock where the system has no flock."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "w") as file:
        # Some network file systems refuse it; a sha256 still catches what two writers would mix up.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
        # Only now: after a failure, removing it would let two others lock two different files.
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _progress(
    name: str, have: int, total: int | None, enabled: bool
) -> Iterator[Callable[[int], None]]:
    if not (enabled and sys.stderr.isatty()):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(name, total=total, completed=have)
        yield lambda count: bar.advance(task, count)
