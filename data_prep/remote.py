"""Opens files that lie elsewhere, by fsspec's URLs: s3://, gs://, hf://, https:// and others.

    if is_url(path): ...
    with opened("s3://bucket/web/00001.jsonl.zst") as file: ...    # a file of this machine as well
    for file in files_below("s3://bucket/web"): file.path, file.size, file.changed
    upload(Path("runs/clean/…/00001.jsonl.zst"), "s3://bucket/clean/00001.jsonl.zst")

fsspec comes with datatrove; each kind of place needs its own package, which the error names: s3fs,
gcsfs, adlfs. Keys and endpoints are those that these packages find by themselves (environment,
configuration files); none stands in a URL.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self, cast

from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import shown

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_STATES = ("ETag", "etag", "md5Hash", "sha256", "mtime", "LastModified", "updated", "created")
# Of places that say none of these: hf://, and http:// without ETag.
_OTHERS = ("blob_id", "xet_hash", "Last-Modified", "Content-MD5", "Digest")


class RemoteFile(NamedTuple):
    """size in bytes; changed: a number that is another when the file has been written anew."""

    path: str
    size: int
    changed: int

    def below(self, url: str) -> str:
        """Its place below a URL that it was found by; "" where that is the file's own."""
        return _place(self.path).removeprefix(_place(url)).strip("/")


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether it names a place that fsspec opens, not a file of this machine."""
    return bool(_URL.match(os.fspath(path)))


def opened(path: str | os.PathLike[str]) -> BinaryIO:
    """A file here or elsewhere, to be read from any byte. OSError, ConfigError."""
    if not is_url(path):
        return open(path, "rb")
    url = os.fspath(path)
    with _errors(url):
        system, place = _system(url)
        return cast(BinaryIO, _RemoteReader(system.open(place, "rb"), url))


def files_below(url: str) -> list[RemoteFile]:
    """The file, or all files of the folder, by name; [] where there is none."""
    with _errors(url):
        system, place = _system(url)
        found = {
            name: about or system.info(name)  # where the place is one file
            for name, about in sorted(system.find(place, detail=True).items())
        }
        if unknown := [name for name, about in found.items() if about.get("size") is None]:
            raise ConfigError(f"{shown(unknown[0])}: nobody there tells its size; copy it here")
        return [
            RemoteFile(system.unstrip_protocol(name), int(about["size"]), _state(about))
            for name, about in found.items()
        ]


def upload(file: Path, url: str) -> None:
    """Copy a whole file there; stores of objects show it when all of it has arrived."""
    with _errors(url):
        system, place = _system(url)
        system.makedirs(place.rpartition("/")[0], exist_ok=True)
        system.put_file(str(file), place)


class _RemoteReader:
    """A file elsewhere, whose errors have a number: without one they would be those of a damaged
    file, of which the rest is left out."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self._url = file, url

    def read(self, size: int = -1) -> bytes:
        with _errors(self._url):
            return bytes(self._file.read(size))

    def readline(self, size: int = -1) -> bytes:
        with _errors(self._url):
            return bytes(self._file.readline(size))

    def seek(self, place: int, whence: int = 0) -> int:
        with _errors(self._url):
            return int(self._file.seek(place, whence))

    def tell(self) -> int:
        with _errors(self._url):
            return int(self._file.tell())

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _place(url: str) -> str:
    return url.partition("://")[2].strip("/")


def _system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ConfigError(
            f"{shown(url)} needs fsspec, which is not installed: python -m pip install fsspec"
        ) from None
    system, place = url_to_fs(url)
    return system, place


@contextmanager
def _errors(url: str) -> Iterator[None]:
    """Raise errors of fsspec and its packages in one line that names the place."""
    try:
        yield
    except (ConfigError, MemoryError):
        raise
    except ImportError as error:  # it says which package to install
        raise ConfigError(f"{shown(url)}: {shown(error)}") from None
    except ValueError as error:
        raise ConfigError(
            f"{shown(url)} is no place that fsspec knows ({shown(error)}); valid: a path, or a URL "
            "as s3://, gs://, hf://, https://"
        ) from None
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise OSError(error.errno or errno.EIO, f"{shown(url)}: {shown(reason)}") from None
    except Exception as error:  # of a client that wraps none of its own
        told = f"{shown(url)}: {type(error).__name__}: {shown(error)}"
        raise OSError(errno.EIO, told) from None


def _state(about: dict[str, Any]) -> int:
    """A listing's values on a file's contents and age, as one number."""
    said = [name for name in _STATES if about.get(name) is not None]
    said = said or [name for name in _OTHERS if about.get(name) is not None]
    told = {name: str(about[name]) for name in said}
    text = json.dumps(told, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest())
