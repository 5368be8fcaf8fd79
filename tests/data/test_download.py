import gzip
import hashlib
import io
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jaxvision.data import download as module
from jaxvision.data.download import download
from jaxvision.errors import UserError

BODY = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(module, "BACKOFF_SECONDS", 0.0)


@pytest.fixture
def serve(serve):
    return lambda **behaviour: serve(**{"files": {"w.bin": BODY}, **behaviour})


def in_folder(path):
    return sorted(p.name for p in path.parent.iterdir())


def fails(urls, path, **options):
    with pytest.raises(UserError) as caught:
        download(urls, path, progress=False, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_is_downloaded_checked_and_announced_in_one_line(serve, tmp_path, capsys):
    served = serve()
    path = download(served.url + "w.bin", tmp_path / "new" / "w.bin", sha256=SHA256)
    assert path.read_bytes() == BODY
    assert in_folder(path) == ["w.bin"]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "w.bin: 0.3 MB" in err


def test_a_cut_connection_is_resumed_where_it_broke(serve, tmp_path):
    served = serve(cut_after=[100_000, 50_000])
    path = download(served.url + "w.bin", tmp_path / "w.bin", progress=False)
    assert path.read_bytes() == BODY
    assert [r.get("Range") for r in served.requests] == [None, "bytes=100000-", "bytes=150000-"]
    assert served.requests[1]["If-Range"] == '"v1"'
    assert served.sent == len(BODY)


def test_a_failed_download_keeps_its_start_and_a_later_call_goes_on(serve, tmp_path):
    served = serve(cut_after=[100_000, 0, 0])
    path = tmp_path / "w.bin"
    message = fails(served.url + "w.bin", path)
    assert "100,000 bytes are kept" in message
    assert not path.exists()
    assert (tmp_path / "w.bin.part").read_bytes() == BODY[:100_000]
    download(served.url + "w.bin", path, progress=False)
    assert path.read_bytes() == BODY
    assert served.requests[-1]["Range"] == "bytes=100000-"
    assert in_folder(path) == ["w.bin"]


@pytest.mark.parametrize("why", ["ignores ranges", "another version", "no validator"])
def test_it_restarts_where_resuming_is_not_safe(serve, tmp_path, why):
    served = serve(cut_after=[100_000, 0, 0], etag=None if why == "no validator" else '"v1"')
    path = tmp_path / "w.bin"
    fails(served.url + "w.bin", path)
    new = BODY
    if why == "ignores ranges":
        served.ranges = False
    else:
        new = served.files["w.bin"] = BODY[::-1]
        served.etag = served.etag and '"v2"'
    assert download(served.url + "w.bin", path, progress=False).read_bytes() == new


def test_a_weak_etag_is_no_validator_but_the_date_is(serve, tmp_path):
    served = serve(cut_after=[100_000], etag='W/"v1"', headers={"Last-Modified": "yesterday"})
    download(served.url + "w.bin", tmp_path / "w.bin", progress=False)
    assert served.requests[1]["If-Range"] == "yesterday"


@pytest.mark.parametrize(("extra", "requests"), [(0, 1), (10, 2)])
def test_416_means_complete_or_too_long(serve, tmp_path, extra, requests):
    served = serve()
    (tmp_path / "w.bin.part").write_bytes(BODY + bytes(extra))
    path = download(served.url + "w.bin", tmp_path / "w.bin", sha256=SHA256, progress=False)
    assert path.read_bytes() == BODY
    assert len(served.requests) == requests
    assert served.sent == (len(BODY) if extra else 0)


def test_a_range_that_was_not_asked_for_is_not_appended(serve, tmp_path):
    served = serve(cut_after=[100_000], shift_range=7)
    path = download(served.url + "w.bin", tmp_path / "w.bin", progress=False)
    assert path.read_bytes() == BODY


def test_a_start_of_another_file_is_found_by_the_sha256_and_fetched_anew(serve, tmp_path):
    served = serve()
    (tmp_path / "w.bin.part").write_bytes(bytes(100_000))
    path = download(served.url + "w.bin", tmp_path / "w.bin", sha256=SHA256, progress=False)
    assert path.read_bytes() == BODY
    assert [r.get("Range") for r in served.requests] == ["bytes=100000-", None]


def test_a_wrong_sha256_leaves_nothing_behind(serve, tmp_path):
    served = serve()
    message = fails(served.url + "w.bin", tmp_path / "w.bin", sha256="0" * 64)
    assert f"expected sha256 {'0' * 64}, got {SHA256}" in message
    assert not (tmp_path / "w.bin").exists()
    assert not (tmp_path / "w.bin.part").exists()
    assert len(served.requests) == 1


def test_mirrors_are_tried_in_order_and_a_404_is_not_repeated(serve, tmp_path):
    first, second = serve(files={}), serve()
    path = download([first.url + "w.bin", second.url + "w.bin"], tmp_path / "w.bin", progress=False)
    assert path.read_bytes() == BODY
    assert len(first.requests) == 1


def test_a_busy_server_is_asked_again(serve, tmp_path):
    served = serve(statuses=[503, 429])
    path = download(served.url + "w.bin", tmp_path / "w.bin", progress=False)
    assert len(served.requests) == 3
    assert path.read_bytes() == BODY


def test_when_every_mirror_fails_the_error_names_each_with_its_reason(serve, tmp_path):
    gone, refused = serve(files={}), serve()
    nobody = "http://127.0.0.1:1/w.bin"
    refused.statuses = [500] * 9
    message = fails([gone.url + "w.bin", refused.url + "w.bin", nobody], tmp_path / "w.bin")
    assert f"{gone.url}w.bin: HTTP 404" in message
    assert f"{refused.url}w.bin: HTTP 500" in message
    assert f"{nobody}: no connection (Connection refused)" in message


def test_a_stalled_server_is_left_soon(serve, tmp_path):
    served = serve(cut_after=[40_000, None], stall_seconds=3)
    path = download(served.url + "w.bin", tmp_path / "w.bin", progress=False, timeout=(1.0, 0.2))
    assert path.read_bytes() == BODY
    assert served.requests[1]["Range"] == f"bytes={40_000 // module.BLOCK * module.BLOCK}-"


def test_offline_asks_nobody_but_keeps_what_is_there(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVISION_OFFLINE", "1")
    served = serve()
    assert "JAXVISION_OFFLINE=1" in fails(served.url + "w.bin", tmp_path / "w.bin")
    (tmp_path / "w.bin").write_bytes(BODY)
    assert download(served.url + "w.bin", tmp_path / "w.bin", sha256=SHA256).exists()
    assert served.requests == []


def test_only_http(tmp_path):
    (tmp_path / "x").write_text("secret")
    assert "http://" in fails(f"file://{tmp_path}/x", tmp_path / "y")


def test_an_existing_file_with_another_sha256_is_an_error_and_stays(serve, tmp_path):
    served = serve()
    path = tmp_path / "w.bin"
    path.write_text("mine")
    assert "delete the file" in fails(served.url + "w.bin", path, sha256=SHA256)
    assert path.read_text() == "mine"
    assert served.requests == []


def test_bytes_are_stored_as_served_not_unzipped(serve, tmp_path):
    zipped = gzip.compress(BODY)
    served = serve(files={"w.gz": zipped}, headers={"Content-Encoding": "gzip"})
    path = download(served.url + "w.gz", tmp_path / "w.gz", progress=False)
    assert path.read_bytes() == zipped
    assert served.requests[0]["Accept-Encoding"] == "identity"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_is_one_clear_error(serve, tmp_path):
    served = serve()
    (tmp_path / "w.bin.part").symlink_to("/dev/full")
    assert "the disk is full" in fails(served.url + "w.bin", tmp_path / "w.bin")


def test_what_was_written_before_the_disk_was_full_is_kept_and_resumed(serve, tmp_path):
    pytest.importorskip("resource")
    served = serve()
    path = tmp_path / "w.bin"
    # A limit on the size of a file stands in for the disk's: in a process of its own.
    code = f"""
        import resource
        from jaxvision.data.download import download
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        download({served.url + "w.bin"!r}, {str(path)!r})
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert "UserError" in ran.stderr
    assert "the disk is full" in ran.stderr
    kept = path.with_name("w.bin.part").stat().st_size
    assert 0 < kept <= 100_000
    download(served.url + "w.bin", path, progress=False)
    assert path.read_bytes() == BODY
    assert served.requests[-1]["Range"] == f"bytes={kept}-"


def test_a_folder_that_cannot_be_written_is_one_clear_error(serve, tmp_path):
    (tmp_path / "file").write_text("")
    assert "choose a folder" in fails(serve().url + "w.bin", tmp_path / "file" / "w.bin")


def test_two_at_once_fetch_it_once(serve, tmp_path):
    pytest.importorskip("fcntl")
    served = serve(cut_after=[150_000])
    with ThreadPoolExecutor(2) as pool:
        work = [
            pool.submit(download, served.url + "w.bin", tmp_path / "w.bin", sha256=SHA256)
            for _ in range(2)
        ]
    assert [w.result().read_bytes() == BODY for w in work] == [True, True]
    assert served.sent == len(BODY)


def test_a_terminal_gets_a_bar(serve, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    download(serve().url + "w.bin", tmp_path / "w.bin")
    assert "300.0/300.0 kB" in terminal.getvalue()
    assert os.linesep * 2 not in terminal.getvalue()
