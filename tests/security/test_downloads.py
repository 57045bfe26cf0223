"""Downloads are https, held against a hash, whole or not there, gone on with, bounded, and can be switched off."""

import argparse
import hashlib
import logging
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from s2uniseg_d2 import downloads
from s2uniseg_d2.downloads import DownloadError, check_address, is_address, local_file, parse_address
from s2uniseg_d2.engine.checkpoint import SafeCheckpointer
from s2uniseg_d2.engine.evaluation_record import weights_record
from s2uniseg_d2.engine.run import prepare
from s2uniseg_d2.labeling.encoder import build_encoder
from tests.security.https_server import serve
from tests.tiny import tiny_config, write_pictures

CONTENT = bytes(range(256)) * 4000  # a megabyte
HASH = hashlib.sha256(CONTENT).hexdigest()
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the test's certificate")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificate")
    key, path = folder / "key.pem", folder / "certificate.pem"
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(["openssl", *words, *names, "-keyout", key, "-out", path], check=True, capture_output=True)
    return path, key


@pytest.fixture
def server(certificate, tmp_path, monkeypatch):
    monkeypatch.setenv("S2UNISEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.delenv("S2UNISEG_OFFLINE", raising=False)
    monkeypatch.setattr(downloads, "_PAUSE_S", 0.01)
    server = serve(certificate)
    server.files["/w.pth"] = CONTENT
    server.url = f"https://localhost:{server.server_port}"
    server.address = f"{server.url}/w.pth#sha256={HASH}"
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path):
    return SimpleNamespace(
        folder=tmp_path / "cache",
        file=tmp_path / "cache" / f"{HASH}.pth",
        partial=tmp_path / "cache" / f".{HASH}.pth.partial",
    )


@needs_openssl
def test_a_file_is_fetched_once_and_kept_by_its_hash(server, cache, caplog):
    with caplog.at_level(logging.INFO, logger="s2uniseg_d2"):
        path = local_file(server.address)
    assert path == str(cache.file)
    assert cache.file.read_bytes() == CONTENT
    assert not cache.partial.exists()
    assert f"fetching {server.url}/w.pth: 1.0 of 1.0 MiB" in caplog.text
    assert local_file(server.address) == path
    assert local_file(server.address.replace(HASH, HASH.upper())) == path
    assert server.asked == [("/w.pth", None)]


@needs_openssl
def test_another_file_is_refused_and_not_kept(server, cache):
    server.files["/w.pth"] = CONTENT[:-1] + b"x"
    found = hashlib.sha256(server.files["/w.pth"]).hexdigest()
    with pytest.raises(ValueError, match=rf"/w\.pth is not the file that was meant: .* must be {HASH}, got {found}"):
        local_file(server.address)
    assert not cache.file.exists()
    assert not cache.partial.exists()


@needs_openssl
def test_a_file_that_was_damaged_in_the_cache_is_fetched_anew(server, cache, caplog):
    local_file(server.address)
    cache.file.write_bytes(b"damaged")
    assert local_file(server.address) == str(cache.file)
    assert cache.file.read_bytes() == CONTENT
    assert "is damaged" in caplog.text


@needs_openssl
def test_a_connection_that_ends_is_taken_up_where_it_stopped(server, cache):
    server.cuts = [300_000, 0, 100_000]
    local_file(server.address)
    assert [part for _, part in server.asked] == [None, "bytes=300000-", "bytes=300000-", "bytes=400000-"]
    assert cache.file.read_bytes() == CONTENT


@needs_openssl
def test_a_later_call_goes_on_with_what_an_earlier_one_kept(server, cache):
    server.cuts = [300_000] + [0] * 9
    with pytest.raises(
        DownloadError, match=r"ended after 300,000 of 1,024,000 bytes; the 300,000 bytes that came are k"
    ):
        local_file(server.address)
    assert cache.partial.read_bytes() == CONTENT[:300_000]
    server.cuts, server.asked = [], []
    local_file(server.address)
    assert server.asked == [("/w.pth", "bytes=300000-")]
    assert cache.file.read_bytes() == CONTENT


@needs_openssl
def test_tries_that_come_no_further_end(server):
    server.knows_ranges = False
    server.cuts = [300_000, 100_000, 200_000] * 9
    with pytest.raises(DownloadError, match="could not be fetched: the connection ended after"):
        local_file(server.address)
    assert len(server.asked) == 5


def keep(cache, content):
    cache.folder.mkdir()
    cache.partial.write_bytes(content)


@needs_openssl
def test_a_server_that_knows_no_ranges_begins_anew(server, cache):
    keep(cache, CONTENT[:1000])
    server.knows_ranges = False
    local_file(server.address)
    assert cache.file.read_bytes() == CONTENT
    assert len(server.asked) == 1


@needs_openssl
@pytest.mark.parametrize("kept", [b"of another file", CONTENT + b"and more"], ids=["foreign", "longer"])
def test_what_does_not_go_on_is_thrown_away(server, cache, kept, caplog):
    keep(cache, kept)
    local_file(server.address)
    assert cache.file.read_bytes() == CONTENT
    assert "is no part of it; fetched anew" in caplog.text


@needs_openssl
def test_a_file_that_was_whole_before_a_kill_is_taken(server, cache):
    keep(cache, CONTENT)
    local_file(server.address)
    assert server.asked == [("/w.pth", f"bytes={len(CONTENT)}-")]
    assert cache.file.read_bytes() == CONTENT


@needs_openssl
def test_a_server_that_sends_another_part_is_asked_for_all(server, cache):
    keep(cache, CONTENT[:1000])
    server.shift = 7
    local_file(server.address)
    assert [part for _, part in server.asked] == ["bytes=1000-", None]
    assert cache.file.read_bytes() == CONTENT


@needs_openssl
def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server, cache):
    server.broken = [503, 503]
    local_file(server.address)
    assert cache.file.read_bytes() == CONTENT
    del server.asked[:]
    with pytest.raises(DownloadError, match=r"/none\.pth could not be fetched: 404 Not Found"):
        local_file(f"{server.url}/none.pth#sha256={'0' * 64}")
    assert len(server.asked) == 1


@needs_openssl
@pytest.mark.parametrize("says_length", [True, False])
def test_a_file_that_is_too_large_is_refused(server, cache, says_length):
    server.says_length = says_length
    with pytest.raises(DownloadError, match=r"/w\.pth must have at most 10,000 bytes, got 1,024,000"):
        local_file(server.address, most_bytes=10_000)
    assert not cache.file.exists()


@needs_openssl
def test_redirects_stay_on_https(server, cache, certificate):
    plain = serve(None)
    server.moved = {
        "/moved.pth": "/w.pth?x=1",
        "/plain.pth": f"http://localhost:{plain.server_port}/w.pth?secret",
        "/file.pth": f"file://{certificate[0]}",
        "/round.pth": "/round.pth",
    }
    try:
        local_file(f"{server.url}/moved.pth#sha256={HASH}")
        assert cache.file.read_bytes() == CONTENT
        cache.file.unlink()
        for name, said in {
            "plain": r"it leads to http://localhost:\d+/w\.pth, which is not https",
            "file": "302 .*not allowed",
            "round": "302 ",
        }.items():
            with pytest.raises(DownloadError, match=rf"/{name}\.pth could not be fetched: {said}"):
                local_file(f"{server.url}/{name}.pth#sha256={HASH}")
        assert plain.asked == []
    finally:
        plain.shutdown()
        plain.server_close()
    assert not cache.file.exists()


@needs_openssl
def test_a_certificate_that_nobody_knows_is_refused(server, cache, monkeypatch, tmp_path):
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with pytest.raises(DownloadError, match="its certificate is not trusted"):
        local_file(server.address)
    assert server.asked == []


def test_a_server_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("S2UNISEG_CACHE", str(tmp_path))
    monkeypatch.setattr(downloads, "_PAUSE_S", 0.001)
    with pytest.raises(DownloadError, match=r"https://localhost:9/w\.pth could not be fetched: the connection failed"):
        local_file(f"https://localhost:9/w.pth?secret#sha256={HASH}")


@needs_openssl
def test_a_folder_that_cannot_be_written_is_named(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("S2UNISEG_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match=r"could not be written: File exists; S2UNISEG_CACHE names another folder"):
        local_file(server.address)


CHILD = """
import sys
from s2uniseg_d2.downloads import local_file
print(local_file(sys.argv[1]))
"""


@needs_openssl
def test_several_processes_fetch_once(server, cache, repository):
    server.delay_s = 1.0
    command = [sys.executable, "-c", CHILD, server.address]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=repository) for _ in range(2)]
    try:
        for process in running:  # on a busy machine their imports take minutes
            assert process.communicate(timeout=600)[0].strip() == str(cache.file)
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert [path for path, _ in server.asked] == ["/w.pth"]
    assert cache.file.read_bytes() == CONTENT


@needs_openssl
def test_weights_are_loaded_from_an_address(server, cache, tmp_path):
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    server.files["/w.pth"] = content
    SafeCheckpointer(other).load(f"{server.url}/w.pth#sha256={hashlib.sha256(content).hexdigest()}")
    assert torch.equal(other.weight, model.weight)


@needs_openssl
def test_a_vit_is_loaded_from_an_address_by_the_config_and_by_the_label_command(server, tmp_path):
    vit = build_encoder(tiny_config(SEED=5), "").trunk.vit
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    server.files["/vit.pth"] = (tmp_path / "vit.pth").read_bytes()
    address = f"{server.url}/vit.pth#sha256={hashlib.sha256(server.files['/vit.pth']).hexdigest()}"
    for encoder in (build_encoder(tiny_config(), address), build_encoder(tiny_config(MODEL__VIT__WEIGHTS=address))):
        for name, value in vit.state_dict().items():
            assert torch.equal(encoder.trunk.vit.state_dict()[name], value), name
    assert len(server.asked) == 1


@needs_openssl
def test_an_evaluation_says_what_it_has_read(server):
    cfg = tiny_config(MODEL__WEIGHTS=server.address)
    assert weights_record(cfg, nn.Linear(1, 1)) == {"file": server.address, "sha256": HASH}


@pytest.mark.parametrize("key", ["MODEL", "MODEL.VIT", "MODEL.VIT_ADAPTER", "MODEL.QUERY_HEAD"])
def test_a_run_looks_at_addresses_before_it_begins(tmp_path, monkeypatch, key):
    write_pictures(tmp_path / "pictures", count=1, size=(48, 64))
    words = ["DATASETS.TRAIN", f"('folder:{tmp_path}/pictures',)", "OUTPUT_DIR", str(tmp_path / "run")]
    for address, said in (("https://host/w.pth", "must end in #sha256="), (f"https://host/w#sha256={HASH}", "OFFLINE")):
        monkeypatch.setenv("S2UNISEG_OFFLINE", "1")
        opts = [*words, f"{key}.WEIGHTS", address]
        args = argparse.Namespace(config_file="", opts=opts, eval_only=False, resume=False, num_gpus=1, num_machines=1)
        with pytest.raises(ValueError, match=said):
            prepare(args)


@needs_openssl
def test_offline_nothing_is_fetched_but_the_cache_is_read(server, cache, monkeypatch):
    monkeypatch.setenv("S2UNISEG_OFFLINE", "1")
    for look in (check_address, local_file):
        with pytest.raises(ValueError, match="must be in the cache while S2UNISEG_OFFLINE is set"):
            look(server.address)
    assert server.asked == []
    cache.folder.mkdir()
    cache.file.write_bytes(CONTENT)
    check_address(server.address)
    assert local_file(server.address) == str(cache.file)
    cache.file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="got no sound file"):
        local_file(server.address)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"http://host/w.pth#sha256={HASH}", "must be https://HOST/FILE#sha256=HEX"),
        (f"ftp://host/w.pth#sha256={HASH}", "must be https://"),
        (f"file:///etc/hostname#sha256={HASH}", "must be https://"),
        ("detectron2://w.pkl", "must be https://"),
        (f"https:///w.pth#sha256={HASH}", "must be https://"),
        (f"https://host:x/w.pth#sha256={HASH}", "must be https://"),
        (f"https://[host/w.pth#sha256={HASH}", "must be https://"),
        (f"https://host/w .pth#sha256={HASH}", "must be https://"),
        (f"https://host/w\r\nX: y.pth#sha256={HASH}", "must be https://"),
        (f"https://user:secret@host/w.pth#sha256={HASH}", "must hold no user and no password, got one of host"),
        ("https://host/w.pth", "must end in #sha256= and the 64 digits"),
        (f"https://host/w.pth#sha256={HASH[1:]}", "must end in #sha256="),
        (f"https://host/w.pth#md5={HASH}", "must end in #sha256="),
        (f"https://host/w.pth?sha256={HASH}", "must end in #sha256="),
    ],
)
def test_addresses_that_are_refused(text, said):
    assert is_address(text)
    for look in (parse_address, check_address, local_file):
        with pytest.raises(ValueError, match=said) as error:
            look(text)
        assert "secret" not in str(error.value)


def test_what_is_no_address_is_left_alone():
    for name in ("", "timm", "vit_small_patch8_224.dino", "a/b.pth", "/a/b.pth", "C:/w.pth", "a:b.pth"):
        assert not is_address(name)
        assert local_file(name) == name


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("S2UNISEG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert downloads.cache_folder() == tmp_path / "s2uniseg_d2"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert downloads.cache_folder() == tmp_path / ".cache" / "s2uniseg_d2"


def test_a_name_is_refused_offline_before_anything_is_fetched(monkeypatch):
    monkeypatch.setenv("S2UNISEG_OFFLINE", "1")
    monkeypatch.setattr(timm, "create_model", lambda *words, **more: pytest.fail("timm was asked"))
    for ask in (lambda cfg: build_encoder(cfg, "vit_tiny_patch16_224"), lambda cfg: build_encoder(cfg, "timm")):
        with pytest.raises(ValueError, match=r"must be a file while S2UNISEG_OFFLINE is set"):
            ask(tiny_config())


def test_files_and_random_weights_need_no_download(monkeypatch):
    monkeypatch.setenv("S2UNISEG_OFFLINE", "1")
    assert build_encoder(tiny_config(), "") is not None
