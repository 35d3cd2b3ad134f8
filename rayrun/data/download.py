"""Fetch public sets from their publishers: resumed, verified, unpacked, put in place whole.

    infnet download kuairand_pure --out DIR        # then INFNET_DATA=DIR

Only sets whose licence lets anyone download them stand here. The MD5 digests of KuaiRand and
MovieLens are the publishers'. Hillstrom's publisher gives none. The SHA-256 of what was fetched is
recorded in SOURCE.md beside the files.
"""

import hashlib
import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path, PurePosixPath
from typing import Any

from rayrun import storage
from rayrun.config import ConfigError
from rayrun.progress import progress

BLOCK_BYTES = 1 << 20
TIMEOUT_S = 60


@dataclass(frozen=True)
class Download:
    """One file of a publisher."""

    url: str
    licence: str
    md5: str = ""
    """As published; empty where the publisher gives none."""
    size_bytes: int = 0
    """As published; 0 where it is not."""


ZENODO = "https://zenodo.org/records/10439422/files"
CC_BY_SA = "CC BY-SA 4.0: cite Gao et al., CIKM 2022; share derivatives under the same licence"
DOWNLOADS = {
    "kuairand_pure": Download(
        f"{ZENODO}/KuaiRand-Pure.tar.gz", CC_BY_SA, md5="0820331067a3784d9691136f772b35a7"
    ),
    "kuairand_1k": Download(
        f"{ZENODO}/KuaiRand-1K.tar.gz", CC_BY_SA, md5="6b0b9c8222d67fcd4c676218edca3f1f"
    ),
    "kuairand_27k": Download(
        f"{ZENODO}/KuaiRand-27K.tar.gz",
        CC_BY_SA,
        md5="3e3c799a24e2d23a4d2c757fbf9adf59",
        size_bytes=9_892_191_178,
    ),
    "movielens_1m_official": Download(
        "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        "research only; no redistribution; cite Harper and Konstan 2015",
        md5="c4d9eecfca2ab87c1945afe126590906",
    ),
    "hillstrom_official": Download(
        "http://www.minethatdata.com/Kevin_Hillstrom_MineThatData_E-MailAnalytics_"
        "DataMiningChallenge_2008.03.20.csv",
        "published for open analysis, no licence text",
    ),
}


def download(name: str, into: str, source: Download | None = None) -> str:
    """Put a set at `into`/`name`, where `data.source: NAME` finds it with INFNET_DATA=`into`.

    A broken download goes on where it stopped when it is called again. What does not have the
    published digest is deleted. Nothing stands at `into`/`name` before everything is there. A set
    that is already there is left alone.

    Args:
        name: a key of `DOWNLOADS`.
        into: directory or URI.
        source: another place to fetch from (a mirror).

    Returns:
        `into`/`name`.

    Raises:
        ConfigError: unknown name, no connection, wrong digest or size, or an unsafe archive.
    """
    if source is None:
        if name not in DOWNLOADS:
            raise ConfigError(f"no download of {name!r}; known: {', '.join(sorted(DOWNLOADS))}")
        source = DOWNLOADS[name]
    target = storage.join(into, name)
    if storage.exists(target):
        return target
    kept = Path(into) if storage.is_local(into) else Path(tempfile.gettempdir())
    kept.mkdir(parents=True, exist_ok=True)
    part = kept / f".{name}.download"
    _fetch(source, part)
    sha256 = _verify(source, part)
    with storage.output(target) as staging:
        file_name = PurePosixPath(source.url).name
        if file_name.endswith(".zip"):
            _unzip(part, staging)
        elif file_name.endswith((".tar.gz", ".tgz")):
            _untar(part, staging)
        else:
            shutil.copyfile(part, staging / file_name)
        note = f"{sha256}  {file_name}\nfrom {source.url}\nlicence: {source.licence}\n"
        (staging / "SOURCE.md").write_text(note, encoding="utf-8")
    part.unlink()
    return target


def _fetch(source: Download, part: Path) -> None:
    """Append to `part` what is still missing of it."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(source.url, headers={"User-Agent": "infnet-ray"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            goes_on = answer.status == 206
            missing = _length(answer.headers)
            with part.open("ab" if goes_on else "wb") as file:
                written = _copy(answer, file, missing, part.name)
            if missing and written < missing:
                raise ConfigError(
                    f"{source.url} broke off after {part.stat().st_size:,} bytes; "
                    "call again to go on"
                )
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing, or the file has become shorter
            return
        raise ConfigError(
            f"{source.url} answers {error.code} {error.reason}; see the publisher's page, or "
            "fetch the file by hand"
        ) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"{source.url} cannot be fetched ({reason}); check the network and call again: what "
            "has arrived is kept"
        ) from None


def _copy(answer: Any, file: Any, missing: int, title: str) -> int:
    written = 0
    with progress(missing, title.strip("."), unit="bytes") as bar:
        while block := answer.read(BLOCK_BYTES):
            file.write(block)
            written += len(block)
            bar.advance(len(block))
    return written


def _length(headers: HTTPMessage) -> int:
    text = headers.get("Content-Length", "")
    return int(text) if text.isdigit() else 0


def _verify(source: Download, part: Path) -> str:
    """The SHA-256 of the file; the file is deleted when it is not what was published."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with part.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            md5.update(block)
            sha256.update(block)
    size = part.stat().st_size
    wrong = ""
    if source.size_bytes and size != source.size_bytes:
        wrong = f"{size:,} bytes instead of {source.size_bytes:,}"
    elif source.md5 and md5.hexdigest() != source.md5:
        wrong = f"MD5 {md5.hexdigest()} instead of {source.md5}"
    if wrong:
        part.unlink()
        raise ConfigError(
            f"{source.url} is not the published file: {wrong}. It has been deleted; call again, "
            "or ask the publisher"
        )
    if not source.md5:
        print(
            f"{source.url}: no digest is published; SHA-256 {sha256.hexdigest()} "
            "is recorded in SOURCE.md",
            file=sys.stderr,
        )
    return sha256.hexdigest()


def _safe(name: str, archive: Path) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name[1:2]:  # C: is a drive
        raise ConfigError(
            f"{archive.name} holds the unsafe path {name!r}, which would be written outside the "
            "target; nothing was unpacked. Do not use this file"
        )


def _unzip(archive: Path, into: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as file:
            for item in file.infolist():
                _safe(item.filename, archive)
            file.extractall(into)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        archive.unlink()
        raise ConfigError(
            f"{archive.name} is no zip archive ({error}); it has been deleted"
        ) from None


def _untar(archive: Path, into: Path) -> None:
    try:
        with tarfile.open(archive, "r:gz") as file:
            for item in file:
                _safe(item.name, archive)
                if not (item.isreg() or item.isdir()):
                    raise ConfigError(
                        f"{archive.name} holds {item.name!r}, which is neither file nor directory; "
                        "nothing was unpacked. Do not use this file"
                    )
                file.extract(item, into, filter="data")
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        archive.unlink()
        raise ConfigError(
            f"{archive.name} is no tar.gz archive ({error}); it has been deleted"
        ) from None


def verb(out: str, name: str) -> str:
    """`infnet download NAME --out DIR`: fetch the set, and say what to do next.

    Raises:
        ConfigError: as `download`.
    """
    place = download(name, out)
    return f"{place}\nlicence: {DOWNLOADS[name].licence}\nnext: export INFNET_DATA={out}"
