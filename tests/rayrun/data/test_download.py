"""Downloads against a real HTTP server: resumed, verified, unpacked whole or not at all."""

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rayrun.config import ConfigError
from rayrun.data.download import DOWNLOADS, Download, download, verb
from rayrun.data.registry import PRESETS


class Publisher:
    """Serves `files`; `break_after` bytes it drops the connection once."""

    def __init__(self):
        self.files = {}
        self.break_after = None
        self.ranges = []
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                data = publisher.files.get(self.path)
                if data is None:
                    return self.send_error(404)
                wanted = self.headers.get("Range")
                publisher.ranges.append(wanted)
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
                if wanted and start >= len(data):
                    return self.send_error(416)
                body = data[start:]
                self.send_response(206 if wanted else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if publisher.break_after is not None:
                    body, publisher.break_after = body[: publisher.break_after], None
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def offer(self, name, data, **more):
        self.files["/" + name] = data
        url = f"http://127.0.0.1:{self.server.server_port}/{name}"
        more.setdefault("md5", hashlib.md5(data).hexdigest())
        return Download(url, "test", **more)


@pytest.fixture
def publisher():
    found = Publisher()
    yield found
    found.server.shutdown()
    found.server.server_close()


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return buffer.getvalue()


def tarred(name, text="x", kind=tarfile.REGTYPE):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        item = tarfile.TarInfo(name)
        item.type, item.size, item.linkname = kind, len(text), "/etc/passwd"
        archive.addfile(item, io.BytesIO(text.encode()))
    return buffer.getvalue()


def test_an_archive_is_verified_and_unpacked(publisher, tmp_path):
    source = publisher.offer("ml-1m.zip", zipped(ml__a="1"))
    place = download("movielens_1m_official", str(tmp_path), source)
    assert place == str(tmp_path / "movielens_1m_official")
    assert (tmp_path / "movielens_1m_official" / "ml" / "a").read_text() == "1"
    assert "licence: test" in (tmp_path / "movielens_1m_official" / "SOURCE.md").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["movielens_1m_official"]


def test_a_tar_is_unpacked_too(publisher, tmp_path):
    source = publisher.offer("a.tar.gz", tarred("K/data/log.csv", "a\n1\n"))
    download("kuairand_pure", str(tmp_path), source)
    assert (tmp_path / "kuairand_pure" / "K" / "data" / "log.csv").read_text() == "a\n1\n"


def test_a_broken_download_goes_on_where_it_stopped(publisher, tmp_path):
    data = bytes(range(256)) * 4096
    source = publisher.offer("a.csv", data)
    publisher.break_after = 300_000
    with pytest.raises(
        ConfigError, match=r"broke off after 300,000 bytes; call again|cannot be fetched"
    ):
        download("x", str(tmp_path), source)
    assert not (tmp_path / "x").exists()
    download("x", str(tmp_path), source)
    assert publisher.ranges == [None, "bytes=300000-"]
    assert (tmp_path / "x" / "a.csv").read_bytes() == data


def test_a_download_that_is_complete_but_not_unpacked_is_not_fetched_again(publisher, tmp_path):
    source = publisher.offer("a.csv", b"12345")
    (tmp_path / ".x.download").write_bytes(b"12345")
    download("x", str(tmp_path), source)
    assert (tmp_path / "x" / "a.csv").read_bytes() == b"12345"


def test_a_wrong_digest_or_size_deletes_the_file(publisher, tmp_path):
    with pytest.raises(ConfigError, match=r"is not the published file: MD5 .* instead of 00"):
        download("x", str(tmp_path), publisher.offer("a.csv", b"1", md5="00"))
    with pytest.raises(ConfigError, match="1 bytes instead of 2"):
        download("x", str(tmp_path), publisher.offer("a.csv", b"1", size_bytes=2))
    assert list(tmp_path.iterdir()) == []


def test_without_a_published_digest_ours_is_recorded(publisher, tmp_path, capsys):
    download("x", str(tmp_path), publisher.offer("a.csv", b"1", md5=""))
    digest = hashlib.sha256(b"1").hexdigest()
    assert digest in (tmp_path / "x" / "SOURCE.md").read_text()
    assert "no digest is published" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:/evil"])
def test_paths_out_of_the_target_are_refused(publisher, tmp_path, name):
    into = tmp_path / "into"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("good", "1")
        archive.writestr(name, "2")
    for file, data in (("a.zip", buffer.getvalue()), ("a.tar.gz", tarred(name))):
        with pytest.raises(ConfigError, match="unsafe path"):
            download("x", str(into), publisher.offer(file, data))
        (into / ".x.download").unlink()
    assert list(into.iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_links_in_an_archive_are_refused(publisher, tmp_path):
    source = publisher.offer("a.tar.gz", tarred("link", "", tarfile.SYMTYPE))
    with pytest.raises(ConfigError, match="neither file nor directory"):
        download("x", str(tmp_path), source)


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_what_is_no_archive_is_deleted(publisher, tmp_path, name):
    with pytest.raises(ConfigError, match=r"is no (zip|tar\.gz) archive"):
        download("x", str(tmp_path), publisher.offer(name, b"<html>sorry</html>"))
    assert list(tmp_path.iterdir()) == []


def test_a_publisher_that_does_not_answer_is_named(publisher, tmp_path, closed_port):
    with pytest.raises(ConfigError, match="answers 404"):
        download("x", str(tmp_path), Download(publisher.offer("a", b"").url + "bc", "test"))
    with pytest.raises(ConfigError, match="cannot be fetched .*check the network"):
        download("x", str(tmp_path), Download(f"http://127.0.0.1:{closed_port}/a", "test"))
    with pytest.raises(ConfigError, match="no download of 'x'; known: hillstrom_official"):
        download("x", str(tmp_path))


def test_a_set_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "kuairand_pure").mkdir()
    told = verb(str(tmp_path), "kuairand_pure")
    assert "CC BY-SA" in told
    assert f"INFNET_DATA={tmp_path}" in told


def test_every_download_is_a_registered_set_and_every_promise_is_kept():
    assert set(DOWNLOADS) == {p.download for p in PRESETS.values() if p.download}
    assert all(name in PRESETS for name in DOWNLOADS)
