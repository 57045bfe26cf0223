"""Weights by address: fetched by https, held against their SHA-256, and kept in a cache."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from s2uniseg_d2.core.tensor_files import file_digest

logger = logging.getLogger(__name__)

OFFLINE = "S2UNISEG_OFFLINE"  # 1 in the environment switches downloads off
CACHE = "S2UNISEG_CACHE"  # the folder that downloads are kept in
FORM = "https://HOST/FILE#sha256=HEX"
MOST_BYTES = 20 << 30
_SUFFIXES = (".pth", ".pt", ".bin", ".pkl", ".safetensors")  # a file's ending says which reader takes it
_BLOCK = 1 << 20
_TIMEOUT_S = 60  # without a byte
_TRIES = 4  # in a row that bring nothing new
_PAUSE_S = 1.0  # before the second try, twice as long before each further one
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_LOG_SHARE = 0.1


class DownloadError(OSError):
    """A file could not be fetched or kept."""


class Address(NamedTuple):
    """Where a file is and what it is.

    Attributes:
        url: without the hash.
        sha256: of the file, 64 lower-case hexadecimal digits.
        suffix: what the file ends in, one of those that hold weights, or "".
    """

    url: str
    sha256: str
    suffix: str

    @property
    def shown(self) -> str:
        """For messages: without what stands behind the path, which may be a secret."""
        return self.url.partition("?")[0]


class _LostError(Exception):
    """A connection ended too early; another try may go on."""


def is_offline() -> bool:
    """Whether downloads are switched off."""
    return os.environ.get(OFFLINE, "0") not in ("", "0")


def is_address(weights: str) -> bool:
    """Whether weights are named by an address of any kind, sound or not."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", weights) is not None


def parse_address(text: str) -> Address:
    """What an address says.

    Raises:
        ValueError: unless it is of the form ``https://HOST/FILE#sha256=HEX``.
    """
    try:
        parts = urlsplit(text)
        is_sound = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_sound = False
    is_plain = re.fullmatch(r"[!-~]+", text) is not None  # no blanks, which parsers drop
    if not (is_sound and is_plain):
        raise ValueError(f"an address of weights must be {FORM}, got {text!r}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"an address of weights must hold no user and no password, got one of {parts.hostname}")
    digest = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", parts.fragment)
    if digest is None:
        raise ValueError(
            f"an address of weights must end in #sha256= and the 64 digits of the file's hash, got {text!r}: "
            f"what comes is held against it"
        )
    suffix = PurePosixPath(parts.path).suffix
    return Address(text.partition("#")[0], digest[1].lower(), suffix if suffix in _SUFFIXES else "")


def cache_folder() -> Path:
    """``$S2UNISEG_CACHE``, else ``s2uniseg_d2`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if chosen := os.environ.get(CACHE):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "s2uniseg_d2"


def check_address(text: str) -> None:
    """Look at an address as far as that costs nothing, and fetch nothing.

    Raises:
        ValueError: if its form is wrong, or downloads are off and it is not in the cache.
    """
    address = parse_address(text)
    if is_offline() and not _place(address).is_file():
        _refuse_offline(address)


def local_file(weights: str, *, most_bytes: int = MOST_BYTES) -> str:
    """The path of weights on the disk: an address is fetched unless the cache holds it, all else is returned as it is.

    A file is kept under its hash once it is whole and its hash is right, and is held against that again at each use.
    A connection that ends is taken up again where it stopped, in this call and in later ones. Of several processes one
    fetches and the others wait.

    Args:
        weights: a path, a name or an address.
        most_bytes: a file that is larger is refused.

    Raises:
        ValueError: if the form of an address is wrong, downloads are off, or the file is not the one of the hash.
        DownloadError: if it cannot be fetched or written.
    """
    if not is_address(weights):
        return weights
    address = parse_address(weights)
    path = _place(address)
    if _is_kept(path, address):
        return str(path)
    if is_offline():
        _refuse_offline(address)
    with _alone(path):
        if not _is_kept(path, address):  # another process may have fetched it
            partial = path.with_name(f".{path.name}.partial")
            _fetch(address, partial, most_bytes)
            with _named_faults(path):
                partial.replace(path)
            logger.info("%s is kept as %s", address.shown, path)
    return str(path)


def _place(address: Address) -> Path:
    return cache_folder() / f"{address.sha256}{address.suffix}"


def _is_kept(path: Path, address: Address) -> bool:
    if not path.is_file():
        return False
    if file_digest(path) == address.sha256:
        return True
    logger.warning("%s is damaged: its hash is not that of its name; it is fetched anew", path)
    return False


def _refuse_offline(address: Address) -> None:
    raise ValueError(
        f"weights {address.shown} must be in the cache while {OFFLINE} is set in the environment, got no sound file "
        f"{_place(address)}"
    )


@contextlib.contextmanager
def _named_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"{path} could not be written: {error.strerror or error}; {CACHE} names another folder"
        ) from error


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file of the cache; the system takes it back from a process that is killed."""
    with contextlib.ExitStack() as stack:
        with _named_faults(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(path.with_name(f".{path.name}.lock").open("ab"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("another process fetches %s; waiting for it", path)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(address: Address, partial: Path, most_bytes: int) -> None:
    """Fill ``partial``, going on from what is in it, until its hash is right."""
    resumed, fruitless, furthest = partial.is_file(), 0, _size(partial)
    while True:
        try:
            _fetch_rest(address, partial, most_bytes)
        except _LostError as error:
            # where a server knows no ranges a try begins anew, and is fruitless unless it comes further than all before
            fruitless = 0 if _size(partial) > furthest else fruitless + 1
            furthest = max(furthest, _size(partial))
            if fruitless == _TRIES:
                raise DownloadError(
                    f"{address.shown} could not be fetched: {error}; the {_size(partial):,} bytes that came are kept, "
                    f"and the same command goes on from there"
                ) from error
            logger.warning("%s: %s; trying again", address.shown, error)
            time.sleep(_PAUSE_S * 2 ** max(0, fruitless - 1))
            continue
        found = file_digest(partial)
        if found == address.sha256:
            return
        partial.unlink()
        if not resumed:
            raise ValueError(
                f"{address.shown} is not the file that was meant: its SHA-256 must be {address.sha256}, got {found}"
            )
        logger.warning("%s: what was kept of an earlier try is no part of it; fetched anew", address.shown)
        resumed, furthest = False, 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fetch_rest(address: Address, partial: Path, most_bytes: int) -> None:
    have = _size(partial)
    headers = {"User-Agent": "s2uniseg_d2", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with _opener().open(urllib.request.Request(address.url, headers=headers), timeout=_TIMEOUT_S) as answer:
            _take(answer, address, partial, have, most_bytes)
    except DownloadError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            return  # nothing is missing, or what is kept belongs to another file: its hash will tell
        if error.code in _TRY_AGAIN:
            raise _LostError(f"the server answers {error.code} {error.reason}") from error
        raise DownloadError(f"{address.shown} could not be fetched: {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DownloadError(
                f"{address.shown} could not be fetched: its certificate is not trusted ({reason.verify_message})"
            ) from error
        raise _LostError(f"the connection failed ({reason or type(error).__name__})") from error


class _StayOnHttps(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme != "https":
            raise DownloadError(
                f"{req.full_url.partition('?')[0]} could not be fetched: it leads to {newurl.partition('?')[0]}, which "
                f"is not https"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """For https alone: what urllib opens by itself, files, ftp and http, is left out."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        _StayOnHttps(),
    ):
        opener.add_handler(handler)
    return opener


def _take(answer: HTTPResponse, address: Address, partial: Path, have: int, most_bytes: int) -> None:
    """Write what a server sends behind what is kept, or in place of it if the server begins at the beginning."""
    if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        partial.unlink(missing_ok=True)
        raise _LostError("the server sends another part than was asked for")
    done = have if answer.status == 206 else 0
    total = done + int(answer.length) if answer.length is not None else None
    log = _Progress(address, total)
    with contextlib.ExitStack() as stack:
        with _named_faults(partial):
            file: Any = stack.enter_context(partial.open("ab" if done else "wb"))
        while True:
            if max(done, total or 0) > most_bytes:
                raise DownloadError(f"{address.shown} must have at most {most_bytes:,} bytes, got {total or done:,}")
            block = answer.read(_BLOCK)
            if not block:
                break
            with _named_faults(partial):
                file.write(block)
                file.flush()
            done += len(block)
            log.tell(done)
        with _named_faults(partial):
            os.fsync(file.fileno())
    if total is not None and done < total:
        raise _LostError(f"the connection ended after {done:,} of {total:,} bytes")


class _Progress:
    """Tells of every tenth, or of every 100 MiB where the server does not say how much there is."""

    def __init__(self, address: Address, total: int | None) -> None:
        self._shown, self._total = address.shown, total
        self._step = max(1, int(_LOG_SHARE * total)) if total else 100 << 20
        self._next = 0

    def tell(self, done: int) -> None:
        if done >= self._next:
            of = f" of {self._total / 2**20:.1f}" if self._total else ""
            logger.info("fetching %s: %.1f%s MiB", self._shown, done / 2**20, of)
            self._next = done + self._step
