import itertools
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quire_api.errors import UserError
from quire_runtime.agent.errors import (
    CacheNotWritable,
    DiskFull,
    InvalidSource,
    SourceUnreachable,
    UnsupportedScheme,
    WeightsNotFound,
    WeightsUnauthorized,
)
from quire_runtime.agent.fetch import fetch_model
from quire_runtime.agent.main import main
from quire_runtime.config import EngineConfig
from quire_runtime.engine.source import model_directory

NEEDED = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_directory_is_its_own_source(tmp_path: Path):
    assert fetch_model(str(tmp_path)) == tmp_path
    spaced = tmp_path / "my model"
    spaced.mkdir()
    assert fetch_model(f"file://{tmp_path}/my%20model") == spaced


@pytest.mark.parametrize(
    ("source", "error", "hint"),
    [
        ("/no/such/directory", WeightsNotFound, "does not exist"),
        ("file:///no/such/directory", WeightsNotFound, "does not exist"),
        (f"file://{__file__}", WeightsNotFound, "is not a directory"),
        ("file://host/dir", InvalidSource, "three slashes"),
        ("", InvalidSource, "hf://org/name"),
        ("hf://justname", InvalidSource, "hf://org/name"),
        ("hf://org/name@", InvalidSource, "hf://org/name"),
        ("hf://org/name/file", InvalidSource, "hf://org/name"),
        ("s3://", InvalidSource, "s3://bucket/prefix"),
        ("oci://registry", InvalidSource, "oci://registry/repository:tag"),
        ("oci://registry/Upper", InvalidSource, "lower case"),
        ("pvc://claim/model", UnsupportedScheme, "only in a cluster"),
        ("gopher://x/y", UnsupportedScheme, "is not known"),
    ],
)
def test_a_source_that_cannot_be_is_refused_with_a_next_step(source: str, error: type[UserError], hint: str):
    with pytest.raises(error, match=hint):
        fetch_model(source)


def test_two_different_revisions_are_refused():
    with pytest.raises(InvalidSource, match=r"v1.*v2"):
        fetch_model("hf://org/tiny@v1", revision="v2")


@pytest.mark.parametrize("source", ["s3://bucket/model", "oci://registry/model:v1", "pvc://claim/model"])
def test_only_the_hub_has_revisions(source: str):
    with pytest.raises(InvalidSource, match="only hf:// has them"):
        fetch_model(source, revision="main")


@pytest.mark.parametrize("source", ["hf://org/tiny", "hf://org/tiny@v1", "org/tiny"])
def test_the_hub_gives_config_tokenizer_and_safetensors_only(hub: Any, tmp_path: Path, source: str):
    seen: list[tuple[int, int]] = []
    directory = fetch_model(source, cache_dir=tmp_path, progress=lambda done, total: seen.append((done, total)))

    assert names(directory) == NEEDED
    assert all((directory / name).read_bytes() == hub.files[name] for name in NEEDED)
    total = sum(len(hub.files[name]) for name in NEEDED)
    assert seen[-1] == (total, total)
    assert all(a <= b for (a, _), (b, _) in itertools.pairwise(seen))


def test_a_second_fetch_downloads_nothing(hub: Any, tmp_path: Path):
    first = fetch_model("hf://org/tiny", cache_dir=tmp_path)
    hub.requests.clear()
    seen: list[tuple[int, int]] = []
    again = fetch_model("hf://org/tiny", cache_dir=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert again == first
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path or "/cdn/" in path]
    assert seen == [(0, 0)]


def test_a_connection_that_breaks_is_resumed_where_it_broke(hub: Any, tmp_path: Path):
    hub.break_after = 300_000
    directory = fetch_model("hf://org/tiny", cache_dir=tmp_path)
    assert (directory / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    (resumed,) = hub.ranges()
    assert 0 < int(resumed.removeprefix("bytes=").removesuffix("-")) <= 300_000


def test_a_private_model_wants_its_token(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub.token = "hf_right"
    with pytest.raises(WeightsUnauthorized, match="HF_TOKEN"):
        fetch_model("hf://org/tiny", cache_dir=tmp_path)
    with pytest.raises(WeightsUnauthorized, match="refuses access"):
        fetch_model("hf://org/tiny", token="hf_wrong", cache_dir=tmp_path)
    assert names(fetch_model("hf://org/tiny", token="hf_right", cache_dir=tmp_path / "a")) == NEEDED
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert names(fetch_model("hf://org/tiny", cache_dir=tmp_path / "b")) == NEEDED
    assert not hub.tokens_seen_by_cdn


def test_a_gated_model_says_that_its_terms_must_be_accepted(hub: Any, tmp_path: Path):
    hub.is_gated = True
    with pytest.raises(WeightsUnauthorized, match="accept the model's terms"):
        fetch_model("hf://org/tiny", token="hf_any", cache_dir=tmp_path)


def test_a_repository_or_revision_that_is_not_there(hub: Any, tmp_path: Path):
    with pytest.raises(WeightsNotFound, match="hf://org/absent was not found"):
        fetch_model("hf://org/absent", cache_dir=tmp_path)
    with pytest.raises(WeightsNotFound, match="no revision 'v9'"):
        fetch_model("hf://org/tiny@v9", cache_dir=tmp_path)


def test_pickles_are_not_downloaded_unless_asked_for(hub: Any, tmp_path: Path):
    del hub.files["model.safetensors"]
    with pytest.raises(WeightsNotFound, match="no safetensors"):
        fetch_model("hf://org/tiny", cache_dir=tmp_path)
    assert "pytorch_model.bin" in names(fetch_model("hf://org/tiny", cache_dir=tmp_path, allow_pickle=True))


def test_an_engine_that_loads_pickles_has_them_fetched(hub: Any, tmp_path: Path):
    del hub.files["model.safetensors"]
    wanted = {"model": "hf://org/tiny", "download_dir": str(tmp_path)}
    with pytest.raises(WeightsNotFound, match="no safetensors"):
        model_directory(EngineConfig.of(**wanted))
    assert "pytorch_model.bin" in names(model_directory(EngineConfig.of(**wanted, load_format="pt")))


def test_a_model_larger_than_the_disk_is_refused_before_the_first_byte(hub: Any, tmp_path: Path):
    hub.claimed_size = shutil.disk_usage(tmp_path).free * 2
    with pytest.raises(DiskFull, match=r"needs .* GB, but .* GB free"):
        fetch_model("hf://org/tiny", cache_dir=tmp_path)
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]


def test_a_disk_that_fills_up_on_the_way_is_reported(hub: Any, small_disk: Path):
    hub.files["model.safetensors"] = bytes(24 << 20)
    hub.claimed_size = 1  # the listing is wrong, so that only the write itself can fail
    with pytest.raises(DiskFull, match="was full before"):
        fetch_model("hf://org/tiny", cache_dir=small_disk)


def test_a_file_size_limit_counts_as_a_full_disk(hub: Any, tmp_path: Path):
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "from quire_runtime.agent.errors import DiskFull\n"
        "from quire_runtime.agent.fetch import fetch_model\n"
        "try:\n"
        "    fetch_model('hf://org/tiny', cache_dir=sys.argv[1])\n"
        "except DiskFull as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url}
    told = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, env=environment)
    assert "was full before hf://org/tiny was complete" in told.stdout, told.stderr


def test_a_cache_that_cannot_be_written_is_named(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "makedirs", refuse)
    with pytest.raises(CacheNotWritable, match=str(tmp_path)):
        fetch_model("hf://org/tiny", cache_dir=tmp_path)


def test_a_hub_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(SourceUnreachable, match="HF_ENDPOINT"):
            fetch_model("hf://org/tiny", cache_dir=tmp_path)


def test_a_hub_that_fails(hub: Any, tmp_path: Path):
    hub.failing_status = 500
    with pytest.raises(SourceUnreachable, match="answered 500"):
        fetch_model("hf://org/tiny", cache_dir=tmp_path)


def test_a_complete_earlier_download_serves_while_the_hub_is_down(hub: Any, tmp_path: Path):
    earlier = fetch_model("hf://org/tiny", cache_dir=tmp_path)
    hub.failing_status = 503
    assert fetch_model("hf://org/tiny", cache_dir=tmp_path) == earlier
    (earlier / "model.safetensors").unlink()
    with pytest.raises(SourceUnreachable, match="not complete on this machine"):
        fetch_model("hf://org/tiny", cache_dir=tmp_path)


def test_the_agent_runs_without_torch():
    modules = ", ".join(f"quire_runtime.agent.{name}" for name in ("main", "bucket", "registry"))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_stores_client_is_imported_for_its_own_sources_alone(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    code = (
        "import sys\n"
        "from quire_runtime.agent.main import main\n"
        "flags = ['--source', 'pvc://claim/model', '--once', '--host', '127.0.0.1', '--port', '0']\n"
        "main([*flags, '--destination', sys.argv[1]])\n"
        "print([name for name in ('httpx', 'huggingface_hub', 'boto3') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert "quire agent:" in done.stderr  # the model is not whole, and that was looked at
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr


def test_no_tries_at_all_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["--source", "hf://a/b", "--destination", str(tmp_path), "--attempts", "0"])
    assert caught.value.code == 2
    assert "--attempts: '0' is no whole number of at least 1" in capsys.readouterr().err
