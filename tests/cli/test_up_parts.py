"""Parts of `quire up` that need no process: GPUs, log lines, what gateway reports mean, ages."""

import io
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from quire.up.commands import Programs, serve_command, serve_environment
from quire.up.display import Display, age
from quire.up.findings import findings
from quire.up.gpus import Gpus, devices_of_this_machine
from quire.up.process import last_line
from quire.up.replica import LocalReplica
from quire_api import wire
from quire_api.v1alpha1 import Condition, LLMDeployment, from_object
from quire_operator.world import Key, Phase


def deployment(**spec) -> LLMDeployment:
    metadata = {"name": "tiny"}
    spec = {"model": {"source": "hf://a/b"}, **spec}
    return from_object(
        {"apiVersion": "quire.dev/v1alpha1", "kind": "LLMDeployment", "metadata": metadata, "spec": spec}
    )


def ready_replica() -> LocalReplica:
    replica = LocalReplica(Key("default", "tiny"), "tiny-0", "r", deployment(), 30.0)
    replica.started(None, "http://127.0.0.1:1")
    replica.ready_at = time.time()
    return replica


def report(*, is_routable: bool = True, in_flight: int = 0, reason: str = "") -> wire.ReplicaReport:
    return wire.ReplicaReport(
        deployment="tiny",
        namespace="default",
        replica="tiny-0",
        is_routable=is_routable,
        in_flight=in_flight,
        reason=reason,
    )


def test_gpus_are_held_by_one_replica_at_a_time():
    gpus = Gpus(["0", "1", "2"])
    assert gpus.take("a", 2) == ["0", "1"]
    assert gpus.take("b", 2) is None
    assert gpus.take("b", 1) == ["2"]
    gpus.release("a")
    assert gpus.take("c", 2) == ["0", "1"]
    assert gpus.take("c", 1) is not None  # a restart gives back what it held
    assert gpus.free == 1
    assert gpus.take("d", 0) == []


def test_replicas_that_start_are_told_beside_how_many_are_wanted():
    loading = deployment(replicas=2)
    loading.status.conditions.append(
        Condition(
            type="Ready",
            status="False",
            reason="Loading",
            message="the engine loads the model",
            last_transition_time="2026-01-01T00:00:00Z",
        )
    )
    said = io.StringIO()
    Display(Console(file=said)).show([loading], [])
    assert said.getvalue().split(" ", 1)[1] == "tiny Ready=False Loading 0/2: the engine loads the model\n"


def found(gpus: int = 0, **spec) -> list[tuple[str, str]]:
    return [(each.reason, each.message) for each in findings([deployment(**spec)], gpus).values()]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--nosuch", "3"], "spec.engine.extraArgs: no such option: --nosuch. See `quire serve --help`."),
        (["--max-num-seqs"], "--max-num-seqs"),
        (["--max-num-seqs", "0"], "max_num_seqs = 0: must be greater than or equal to 1"),
        (["--help"], "--help serves nothing"),
    ],
)
def test_flags_that_no_engine_takes_are_found_before_one_starts(arguments, says):
    [(reason, message)] = found(engine={"extraArgs": arguments})
    assert reason == "InvalidSpec"
    assert says.lower() in message.lower()


def test_flags_that_an_engine_takes_are_no_finding():
    assert not found(engine={"extraArgs": ["--max-num-seqs", "8", "--no-enable-prefix-caching"]})


@pytest.mark.parametrize(
    ("wanted", "gpus", "says"),
    [
        (1, 0, "a replica needs 1 GPU, but this machine has none; lower spec.resources.gpus"),
        (4, 2, "a replica needs 4 GPUs, but this machine has 2; lower spec.resources.gpus"),
    ],
)
def test_gpus_that_a_machine_has_not_are_found_before_a_replica_starts(wanted, gpus, says):
    assert found(gpus, resources={"gpus": wanted}) == [("GpuUnavailable", says)]
    assert not found(wanted, resources={"gpus": wanted})


@pytest.mark.parametrize(("variable", "devices"), [("", []), ("3,5", ["3", "5"]), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"])])
def test_the_machine_may_be_told_which_gpus_are_ours(monkeypatch, variable, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert devices_of_this_machine() == devices


def test_an_engine_sees_its_own_gpus_key_and_credentials_only(monkeypatch, tmp_path):
    monkeypatch.setenv("QUIRE_API_KEY", "of the shell")
    seen = serve_environment(deployment(), "key", ["1"], tmp_path / "end.json", {"token": "hf_x"})
    assert seen["CUDA_VISIBLE_DEVICES"] == "1"
    assert seen["QUIRE_INTERNAL_KEY"] == "key"
    assert seen["HF_TOKEN"] == "hf_x"
    assert "QUIRE_API_KEY" not in seen


def test_cores_go_by_the_request_else_they_are_shared(monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    asked = deployment(resources={"cpu": "2500m"})
    assert serve_environment(asked, "", [], tmp_path, {})["OMP_NUM_THREADS"] == "3"
    assert serve_environment(deployment(replicas=2), "", [], tmp_path, {})["OMP_NUM_THREADS"] == "4"


def test_memory_is_a_fraction_or_a_quantity_and_revision_goes_along():
    argv = serve_command(Programs(), deployment(engine={"kvCache": {"memory": "0.8"}}), "hf://a/b", 1)
    assert argv[argv.index("--gpu-memory-utilization") + 1] == "0.8"
    spec = {"model": {"source": "hf://a/b", "revision": "v1"}, "engine": {"kvCache": {"memory": "4Gi"}}}
    argv = serve_command(Programs(), deployment(**spec), "hf://a/b", 1)
    assert argv[argv.index("--kv-cache-memory") + 1] == "4Gi"
    assert argv[argv.index("--revision") + 1] == "v1"


def test_the_last_line_is_found_under_frames_and_blank_lines(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("first\n╭─ Error ──╮\n│ No such option: --x  │\n╰──────────╯\n\n")
    assert last_line(log) == "No such option: --x"
    assert last_line(tmp_path / "none.log") == ""


@pytest.mark.parametrize(
    "text", ['{"reason": "out of luck!", "message": "no luck"}', "[" * 4000, "null"], ids=["word", "nested", "nothing"]
)
def test_last_words_that_no_condition_can_hold_are_a_plain_exit(text):
    replica = ready_replica()
    replica.started(SimpleNamespace(exit_code=1, how_it_ended=lambda: "exited with code 1"), "http://127.0.0.1:1")
    assert replica.failure_found(text).reason == "EngineExited"


class TestReports:
    def test_a_report_from_before_the_restart_does_not_count(self):
        replica = ready_replica()
        replica.heard(report())
        assert not replica.is_routable
        replica.heard(None)
        replica.heard(report())
        assert replica.is_routable

    def test_once_routable_it_stays_so_until_it_ends(self):
        replica = ready_replica()
        replica.heard(None)
        replica.heard(report())
        replica.heard(report(is_routable=False))
        assert replica.state().is_available

    def test_a_count_says_nothing_of_a_drain_that_the_gateway_has_not_seen(self):
        replica = ready_replica()
        replica.heard(None)
        replica.heard(report(in_flight=0))
        replica.is_draining = True
        assert replica.state().in_flight is None
        replica.heard(report(in_flight=2, reason="Draining"))
        assert replica.state().in_flight == 2

    def test_nothing_is_believed_of_a_replica_that_is_not_ready(self):
        replica = ready_replica()
        replica.ready_at = None
        replica.heard(None)
        replica.heard(report())
        assert replica.phase is Phase.STARTING
        assert not replica.is_routable


@pytest.mark.parametrize(
    ("seconds", "shown"), [(5, "5s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (200000, "2d")]
)
def test_ages_read_as_kubectl_writes_them(seconds, shown):
    created = datetime.now(UTC) - timedelta(seconds=seconds)
    assert age(created.isoformat()) == shown


@pytest.mark.parametrize("created", [None, "soon", "2026-01-01"])
def test_an_age_that_nobody_knows_is_empty(created):
    assert age(created) == ""


def test_the_secret_of_a_source_reaches_only_its_engine(tmp_path):
    secret = {"accessKeyId": "id", "secretAccessKey": "key", "endpoint": "http://minio:9000", ".dockerconfigjson": "{}"}
    seen = serve_environment(deployment(), "", [], tmp_path / "end.json", secret)
    assert (seen["AWS_ACCESS_KEY_ID"], seen["AWS_SECRET_ACCESS_KEY"]) == ("id", "key")
    assert seen["AWS_ENDPOINT_URL_S3"] == "http://minio:9000"
    config = Path(seen["DOCKER_CONFIG"]) / "config.json"
    assert config.read_text() == "{}"
    assert config.stat().st_mode & 0o077 == 0
