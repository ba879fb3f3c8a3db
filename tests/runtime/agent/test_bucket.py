import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from quire_runtime.agent.errors import (
    DiskFull,
    SourceUnreachable,
    WeightsCorrupt,
    WeightsNotFound,
    WeightsUnauthorized,
)
from quire_runtime.agent.fetch import fetch_into, fetch_model
from quire_runtime.agent.retry import Retry
from quire_runtime.agent.source import parse_source

TINY = parse_source("s3://models/tiny")
SOON = Retry(attempts=4, first_s=0.01)


def held(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_the_model_comes_whole_and_nothing_else(bucket: Any, model_files: dict[str, bytes], tmp_path: Path):
    bucket.put({"README.md": b"#", "pytorch_model.bin": b"never", "nested/model.safetensors": b"never"})
    seen: list[tuple[int, int]] = []
    fetch_into(TINY, tmp_path / "m", progress=lambda done, total: seen.append((done, total)))
    assert held(tmp_path / "m") == model_files
    total = sum(map(len, model_files.values()))
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)


def test_a_second_fetch_asks_the_store_nothing(bucket: Any, tmp_path: Path):
    fetch_into(TINY, tmp_path / "m")
    before = bucket.link.received
    fetch_into(TINY, tmp_path / "m")
    assert bucket.link.received == before


def test_a_file_that_was_lost_is_all_that_is_fetched_again(bucket: Any, model_files: dict[str, bytes], tmp_path: Path):
    fetch_into(TINY, tmp_path / "m")
    (tmp_path / "m/tokenizer.json").unlink()
    gets = bucket.link.count("GET")
    fetch_into(TINY, tmp_path / "m")
    assert held(tmp_path / "m") == model_files
    assert bucket.link.count("GET") - gets == 2  # the listing and the file


def test_a_cut_connection_is_resumed_where_it_was_cut(bucket: Any, model_files: dict[str, bytes], tmp_path: Path):
    bucket.link.cut_after(3 << 20)
    fetch_into(TINY, tmp_path / "m", retry=SOON)
    assert held(tmp_path / "m") == model_files
    (start,) = bucket.link.ranges()
    assert 0 < start <= 3 << 20


def test_a_later_run_goes_on_from_the_partial_file(bucket: Any, model_files: dict[str, bytes], tmp_path: Path):
    bucket.link.cut_after(3 << 20)
    with pytest.raises(SourceUnreachable):
        fetch_into(TINY, tmp_path / "m")
    seen: list[int] = []
    fetch_into(TINY, tmp_path / "m", progress=lambda done, _: seen.append(done))
    assert held(tmp_path / "m") == model_files
    assert seen[0] >= 1 << 20
    assert bucket.link.ranges()
    assert not list((tmp_path / "m/.quire/partial").iterdir())


def test_a_partial_file_that_went_bad_is_fetched_anew(bucket: Any, model_files: dict[str, bytes], tmp_path: Path):
    bucket.link.cut_after(3 << 20)
    with pytest.raises(SourceUnreachable):
        fetch_into(TINY, tmp_path / "m")
    for partial in (tmp_path / "m/.quire/partial").iterdir():
        partial.write_bytes(bytes(partial.stat().st_size))
    fetch_into(TINY, tmp_path / "m")
    assert held(tmp_path / "m") == model_files


@pytest.mark.parametrize("algorithm", ["SHA256", "CRC32"])
def test_content_that_is_not_what_its_checksum_says_is_refused(bucket: Any, tmp_path: Path, algorithm: str):
    bucket.put({"tokenizer.json": b"{}"}, ChecksumAlgorithm=algorithm)
    fetch_into(TINY, tmp_path / "good")
    _spoil("tokenizer.json", b"[]")
    with pytest.raises(WeightsCorrupt, match=r"tokenizer\.json.*checksum"):
        fetch_into(TINY, tmp_path / "m")
    assert "tokenizer.json" not in held(tmp_path / "m")


def test_the_etag_of_a_plain_upload_is_its_checksum(bucket: Any, tmp_path: Path):
    fetch_into(TINY, tmp_path / "good")
    recorded = json.loads((tmp_path / "good/.quire/record.json").read_text())["files"]
    assert recorded["config.json"][1] == hashlib.md5((tmp_path / "good/config.json").read_bytes()).hexdigest()
    _spoil("config.json", b'{"model_type": "LLAMA"}')
    with pytest.raises(WeightsCorrupt, match="md5"):
        fetch_into(TINY, tmp_path / "m")


def _spoil(name: str, content: bytes) -> None:
    """Change an object in moto's own memory, so that the server's word about it stays."""
    from moto.s3.models import s3_backends

    (key,) = [
        key
        for account in s3_backends.values()
        for backend in account.values()
        for key in [backend.buckets["models"].keys.get(f"tiny/{name}")]
        if key is not None
    ]
    etag = key.etag
    key.value = content
    key._etag = etag.strip('"')


@pytest.mark.parametrize("algorithm", ["CRC32", "SHA256", None])
def test_an_upload_in_parts_has_no_checksum_to_hold_it_to(bucket: Any, tmp_path: Path, algorithm: str | None):
    large = bytes(range(256)) * (6 << 12)
    where = {"Bucket": "models", "Key": "parts/model.safetensors"}
    kind = {"ChecksumAlgorithm": algorithm} if algorithm else {}
    upload = bucket.client.create_multipart_upload(**where, **kind)["UploadId"]
    parts = []
    for number, body in ((1, large[: 5 << 20]), (2, large[5 << 20 :])):
        told = bucket.client.upload_part(**where, **kind, UploadId=upload, PartNumber=number, Body=body)
        parts.append({"PartNumber": number, **{key: told[key] for key in told if key.startswith(("ETag", "Checksum"))}})
    bucket.client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
    bucket.put({"config.json": b"{}"}, "parts/")
    fetch_into(parse_source("s3://models/parts"), tmp_path / "m")
    assert (tmp_path / "m/model.safetensors").read_bytes() == large


def test_wrong_credentials(bucket: Any, tmp_path: Path):
    bucket.demand_credentials()
    with pytest.raises(WeightsUnauthorized, match="accessKeyId and secretAccessKey"):
        fetch_into(TINY, tmp_path / "m", retry=SOON)


def test_no_credentials_at_all_read_what_is_public(
    bucket: Any, model_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bucket.put(model_files, ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fetch_into(TINY, tmp_path / "m")
    assert b"authorization" not in bucket.link.received.lower()


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("s3://models/absent", "nothing under s3://models/absent/"),
        ("s3://elsewhere/tiny", "no bucket elsewhere"),
        ("s3://models/bare", "no safetensors weights"),
    ],
)
def test_what_is_not_there(bucket: Any, tmp_path: Path, source: str, hint: str):
    bucket.put({"config.json": b"{}"}, "bare/")
    with pytest.raises(WeightsNotFound, match=hint):
        fetch_into(parse_source(source), tmp_path / "m", retry=SOON)


def test_a_server_that_does_not_answer_is_asked_a_few_times(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bucket.link.close()
    waits: list[float] = []
    with pytest.raises(SourceUnreachable, match="AWS_ENDPOINT_URL"):
        fetch_into(TINY, tmp_path / "m", retry=Retry(attempts=4, first_s=1.0, pause=waits.append))
    assert len(waits) == 3
    assert all(0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits))


def test_a_model_larger_than_the_disk_is_refused_before_the_first_byte(bucket: Any, small_disk: Path, tmp_path: Path):
    bucket.put({"model-00003-of-00003.safetensors": bytes(24 << 20)})
    with pytest.raises(DiskFull, match=r"needs 0.03 GB, but .* free"):
        fetch_into(TINY, small_disk)


def test_another_model_in_the_same_directory_replaces_the_first(
    bucket: Any, model_files: dict[str, bytes], tmp_path: Path
):
    fetch_into(TINY, tmp_path / "m")
    other = {"config.json": b"{}", "model.safetensors": b"other"}
    bucket.put(other, "other/")
    fetch_into(parse_source("s3://models/other"), tmp_path / "m")
    assert held(tmp_path / "m") == other


def test_an_engine_that_is_given_an_s3_address_finds_it_in_its_cache(
    bucket: Any, model_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = fetch_model("s3://models/tiny")
    assert place.parent == tmp_path / "quire/models"
    assert held(place) == model_files
    assert fetch_model("s3://models/tiny/") == place
