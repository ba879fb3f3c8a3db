"""`quire up` with stand-ins for engine and gateway: replicas start, fall, change and end as the file says."""

import asyncio
import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from quire.up import run_up
from quire.up.commands import Programs
from quire.up.display import Display
from quire.up.gpus import Gpus
from quire.up.replica import free_port
from quire.up.session import Options, Session
from quire.up.state import StateDir
from quire.up.wish import Wish
from quire_api.errors import UserError

STAND_INS = Path(__file__).parent / "stand_ins.py"
DEADLINE_S = 90.0

RESOURCE = """
apiVersion: quire.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: tiny}}
spec:
  model: {{source: "file://models/tiny"}}
  replicas: {replicas}
  {more}
"""


class Running:
    """A `quire up` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "tiny.yaml"
        self.state = folder / "state"
        (folder / "models/tiny").mkdir(parents=True)
        self.behave()
        self.process: subprocess.Popen[bytes] | None = None

    def behave(self, **behaviour) -> None:
        (self.folder / "models/tiny/behaviour.json").write_text(json.dumps(behaviour))

    def write(self, replicas: int = 1, more: str = "", extra: str = "") -> None:
        beside = self.folder / "tiny.yaml.new"
        beside.write_text(RESOURCE.format(replicas=replicas, more=more) + extra)
        beside.rename(self.file)

    def start(self, port: int = 0) -> None:
        with (self.folder / "up.log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, STAND_INS, "up", str(self.file), str(port), str(self.state)],
                stdout=output,
                stderr=output,
                env={**os.environ, "XDG_STATE_HOME": str(self.folder / "xdg")},
            )

    def output(self) -> str:
        return (self.folder / "up.log").read_text()

    def wait(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not what():
            assert time.monotonic() < deadline, self.output()
            assert self.process is None or self.process.poll() is None, self.output()
            time.sleep(0.05)

    def status(self) -> dict:
        try:
            items = json.loads((self.state / "status.json").read_text())["items"]
            return items[0]["status"] if items else {}
        except FileNotFoundError:
            return {}

    def condition(self, kind: str = "Ready") -> tuple[str, str]:
        found = [c for c in self.status().get("conditions", ()) if c["type"] == kind]
        return (found[0]["status"], found[0]["reason"]) if found else ("", "")

    def serves(self, count: int) -> bool:
        status = self.status()
        return self.condition()[0] == "True" and status["readyReplicas"] == status["replicas"] == count

    def table(self) -> dict:
        return json.loads((self.state / "routing-table.json").read_text())["deployments"][0]

    def pids(self, role: str = "") -> dict[int, str]:
        """Our processes, engines and gateway, by pid: their command lines."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                is_zombie = ") Z " in (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if (
                f"{STAND_INS} {role or ''}" in line
                and str(self.folder) in line
                and " up " not in line
                and not is_zombie
            ):
                found[int(entry.name)] = line
        return found

    def end(self, how: signal.Signals = signal.SIGINT) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def up(tmp_path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    if running.process and running.process.poll() is None:
        running.process.terminate()
        try:
            running.process.wait(DEADLINE_S)
        finally:
            running.process.kill()
    for pid in running.pids():
        os.kill(pid, signal.SIGKILL)


def test_replicas_come_up_and_ctrl_c_leaves_nothing_behind(up):
    up.write(replicas=2)
    up.start()
    up.wait(lambda: up.serves(2))
    assert len(up.pids("engine")) == 2
    assert len(up.pids("gateway")) == 1
    assert up.status()["model"] == {"contextLength": 512, "revision": "rev-1"}
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", up.status()["url"])
    assert up.end() == 0
    assert not up.pids()
    assert "everything has stopped" in up.output()


def test_the_fields_of_the_spec_reach_the_engine(up):
    up.write(
        more="""engine: {device: cpu, dtype: float32, maxModelLen: 99, kvCache: {memory: 64Mi, blockSize: 32},
    extraArgs: [--max-num-seqs, "4"]}"""
    )
    up.start()
    up.wait(lambda: up.serves(1))
    (line,) = up.pids("engine").values()
    assert f" {up.folder}/models/tiny --host 127.0.0.1 --port " in line
    for part in (
        "--served-model-name tiny",
        "--device cpu --dtype float32 --block-size 32",
        "--max-model-len 99",
        "--kv-cache-memory 64Mi --max-num-seqs 4",
    ):
        assert part in line


def test_a_killed_engine_is_back_by_itself(up):
    up.write(replicas=2)
    up.start()
    up.wait(lambda: up.serves(2))
    victim, other = up.pids("engine")
    os.kill(victim, signal.SIGKILL)
    up.wait(lambda: "is down" in up.output())
    up.wait(lambda: up.serves(2) and len(up.pids("engine")) == 2)
    assert other in up.pids("engine")
    assert "was ended by SIGKILL" in up.output()


def test_a_killed_gateway_is_back_by_itself(up):
    up.write()
    up.start()
    up.wait(lambda: up.serves(1))
    (gateway,) = up.pids("gateway")
    engines = up.pids("engine")
    os.kill(gateway, signal.SIGKILL)
    up.wait(lambda: up.pids("gateway") and gateway not in up.pids("gateway"))
    up.wait(lambda: up.serves(1))
    assert up.pids("engine") == engines


def test_an_edit_scales_up_and_down_with_a_drain(up):
    up.write(replicas=1)
    up.start()
    up.wait(lambda: up.serves(1))
    (first,) = (replica["id"] for replica in up.table()["replicas"])
    up.write(replicas=2)
    up.wait(lambda: up.serves(2))
    ids = {replica["id"] for replica in up.table()["replicas"]}
    (up.state / "in-flight.json").write_text(json.dumps(dict.fromkeys(ids, 1)))
    up.write(replicas=1)
    up.wait(lambda: any(replica["is_draining"] for replica in up.table()["replicas"]))
    assert len(up.pids("engine")) == 2  # its request has not ended
    (up.state / "in-flight.json").write_text("{}")
    up.wait(lambda: len(up.pids("engine")) == 1 and up.serves(1))
    assert {replica["id"] for replica in up.table()["replicas"]} < ids
    assert first in ids


def test_a_drain_does_not_outlast_its_timeout(up):
    up.write(replicas=1, more="rollout: {drainTimeout: 1s}")
    up.start()
    up.wait(lambda: up.serves(1))
    (replica,) = up.table()["replicas"]
    (up.state / "in-flight.json").write_text(json.dumps({replica["id"]: 7}))
    up.write(replicas=0, more="rollout: {drainTimeout: 1s}")
    up.wait(lambda: not up.pids("engine"))
    up.wait(lambda: up.condition() == ("True", "ScaledToZero"))


def test_an_edit_that_cannot_be_used_keeps_the_last_good_state(up):
    up.write(replicas=1)
    up.start()
    up.wait(lambda: up.serves(1))
    engines = up.pids("engine")
    up.write(replicas=2, more="rollOut: {}")
    up.wait(lambda: "the edit is not used, what runs goes on" in up.output())
    assert "spec.rollOut: unknown field; did you mean `rollout`?" in up.output()
    assert up.pids("engine") == engines
    up.write(replicas=2)
    up.wait(lambda: up.serves(2))


def test_a_revision_that_fails_is_named_and_the_former_one_serves_on(up):
    up.write(replicas=1)
    up.start()
    up.wait(lambda: up.serves(1))
    before = up.pids("engine")
    up.write(replicas=1, more="engine: {maxModelLen: 13}")
    up.wait(lambda: up.condition("Loaded") == ("False", "CrashLoop"))
    (message,) = (c["message"] for c in up.status()["conditions"] if c["type"] == "Ready")
    assert "13 is an unlucky length" in message
    assert "1 of the former revision serve on" in message
    assert up.condition("Available")[0] == "True"
    assert set(before) <= set(up.pids("engine"))
    up.write(replicas=1)
    up.wait(lambda: up.serves(1))
    up.wait(lambda: up.pids("engine") == before)


def test_a_new_revision_replaces_the_old_one(up):
    up.write(replicas=2)
    up.start()
    up.wait(lambda: up.serves(2))
    before = up.pids("engine")
    up.write(replicas=2, more="engine: {maxModelLen: 100}")
    up.wait(lambda: up.serves(2) and up.status()["updatedReplicas"] == 2 and up.status()["observedGeneration"] == 2)
    up.wait(lambda: len(up.pids("engine")) == 2 and not set(up.pids("engine")) & set(before))
    assert all("--max-model-len 100" in line for line in up.pids("engine").values())
    up.wait(lambda: up.status()["model"]["contextLength"] == 100)


def test_keys_come_from_a_secret_in_the_file(up):
    secret = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: keys}\nstringData: {alice: key-a, bob: key-b}\n"
    up.write(more="access: {apiKeysSecretRef: {name: keys}}", extra=secret)
    up.start()
    up.wait(lambda: up.serves(1))
    assert [key["key"] for key in up.table()["api_keys"]] == ["key-a", "key-b"]
    assert (up.state / "routing-table.json").stat().st_mode & 0o077 == 0
    up.write(more="access: {apiKeysSecretRef: {name: keys}}", extra=secret.replace("key-b", "key-c"))
    up.wait(lambda: [key["key"] for key in up.table()["api_keys"]] == ["key-a", "key-c"])


def test_two_deployments_share_a_file_and_the_second_owner_of_a_name_is_refused(up):
    other = RESOURCE.format(replicas=1, more="").replace("name: tiny", "name: other")
    up.write(extra="---" + other.replace('"file://models/tiny"', '"file://models/tiny", servedNames: [tiny]'))
    up.start()
    up.wait(lambda: up.serves(1))
    items = json.loads((up.state / "status.json").read_text())["items"]
    assert [c["reason"] for c in items[1]["status"]["conditions"] if c["type"] == "Ready"] == ["NameConflict"]
    assert len(up.pids("engine")) == 1


def start_in_terminal(up) -> int:
    """Begins `up` as a session of its own, led from a terminal; the terminal's other end."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    up.process = subprocess.Popen(
        [sys.executable, STAND_INS, "up", str(up.file), "0", str(up.state)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env={**os.environ, "XDG_STATE_HOME": str(up.folder / "xdg"), "TERM": "xterm", "COLUMNS": "160"},
    )
    os.close(theirs)
    return ours


def test_a_closed_terminal_ends_everything_in_order(up):
    up.write(replicas=1)
    ours = start_in_terminal(up)

    def serves() -> bool:
        while select.select([ours], [], [], 0)[0]:
            os.read(ours, 65536)
        return up.serves(1)

    up.wait(serves)
    os.close(ours)
    assert up.process.wait(DEADLINE_S) == 0
    assert json.loads((up.state / "status.json").read_text())["items"] == []
    assert not up.pids()


def test_an_up_under_nohup_outlives_its_terminal(up):
    up.write(replicas=1)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        up.start()
    finally:
        signal.signal(signal.SIGHUP, before)
    up.wait(lambda: up.serves(1))
    up.process.send_signal(signal.SIGHUP)
    up.write(replicas=2)
    up.wait(lambda: up.serves(2))
    assert up.end() == 0


def test_nothing_outlives_a_killed_up(up):
    up.write(replicas=2)
    up.start()
    up.wait(lambda: up.serves(2))
    up.process.kill()
    up.process.wait()
    up.process = None
    up.wait(lambda: not up.pids())


def test_a_start_that_ends_after_the_signal_leaves_nothing(up, monkeypatch):
    """As when a cancellation comes together with what was waited for, and Python 3.11 forgets it."""
    up.write(replicas=2)
    wish = Wish(up.file)
    wish.read()
    here = (sys.executable, str(STAND_INS))
    programs = Programs(serve=(*here, "engine"), gateway=(*here, "gateway"))
    state = StateDir.open(up.state)
    options = Options(up.file, "127.0.0.1", free_port(), programs)

    async def scene():
        session = Session(options, wish, state, Gpus([]), Display(Console(quiet=True)))
        apply = session.world.apply

        async def deaf(intention):
            if not session._ending.is_set():
                session._on_signal()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(DEADLINE_S)
            await apply(intention)

        monkeypatch.setattr(session.world, "apply", deaf)
        async with asyncio.timeout(DEADLINE_S):
            await session.run()

    asyncio.run(scene())
    state.close()
    assert not up.pids()


def test_a_disk_that_is_full_for_a_while_ends_nothing(up):
    up.write()
    up.start()
    up.wait(lambda: up.serves(1))
    in_the_way = up.state / f".routing-table.json.{up.process.pid}"
    in_the_way.mkdir()
    up.write(replicas=2)
    up.wait(lambda: "routing-table.json cannot be written" in up.output())
    (engine,) = list(up.pids("engine"))[:1]
    os.kill(engine, signal.SIGKILL)
    up.wait(lambda: "starts again" in up.output())
    in_the_way.rmdir()
    up.wait(lambda: up.serves(2))
    assert len(up.table()["replicas"]) == 2
    assert up.end() == 0
    assert not up.pids()


class TestRefusedAtTheStart:
    def refusal(self, up, port: int = 0) -> str:
        up.start(port)
        assert up.process.wait(DEADLINE_S) == 2
        assert not up.pids()
        return up.output()

    def test_a_missing_file(self, up):
        assert "tiny.yaml cannot be read: No such file or directory" in self.refusal(up)

    def test_a_wrong_field(self, up):
        up.write(more="replica: 2")
        said = self.refusal(up)
        assert said.endswith("document 1, spec.replica: unknown field; did you mean `replicas`?\n")
        assert said.count("\n") == 1

    def test_a_model_that_is_not_there(self, up):
        (up.folder / "models/tiny/behaviour.json").unlink()
        (up.folder / "models/tiny").rmdir()
        up.write()
        assert f"spec.model.source: {up.folder}/models/tiny does not exist" in self.refusal(up)

    def test_a_source_that_needs_a_cluster(self, up):
        up.write()
        up.file.write_text(up.file.read_text().replace("file://models/tiny", "pvc://claim/model"))
        assert "pvc:// needs a cluster; here file://, hf://, s3:// and oci:// can be served" in self.refusal(up)

    def test_a_secret_that_is_not_in_the_file(self, up):
        up.write(more="access: {apiKeysSecretRef: {name: keys}}")
        assert "spec.access.apiKeysSecretRef: add the Secret keys to the file" in self.refusal(up)

    @pytest.mark.parametrize("port", [-1, 65536, 10**30])
    def test_a_port_that_is_none(self, up, port):
        up.write()
        assert self.refusal(up, port) == f"quire: {port} is no port; use --port with 1 to 65535, or 0 for a free one\n"

    @pytest.mark.parametrize("host", ["192.0.2.1", "no.such.invalid", "a" * 70])
    def test_a_host_that_is_not_ours(self, up, host):
        up.write()
        with pytest.raises(UserError, match="is no address of this machine"):
            run_up(up.file, host=host, port=0, state_dir=up.state)

    def test_a_state_folder_on_a_full_disk(self, up):
        up.state.mkdir()
        (up.state / "lock").symlink_to("/dev/full")
        with pytest.raises(UserError, match="cannot be used for state: "):
            StateDir.open(up.state)

    def test_a_port_in_use(self, up):
        up.write()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            said = self.refusal(up, port)
        assert f"port {port} of 127.0.0.1 cannot be used: Address already in use" in said
        assert said.count("\n") == 1

    def test_a_second_up_on_the_same_state(self, up):
        up.write()
        up.start()
        up.wait(lambda: up.serves(1))
        second = Running.__new__(Running)
        second.__dict__.update(up.__dict__, process=None)
        second.start()
        assert second.process.wait(DEADLINE_S) == 2
        assert "another `quire up` already works in" in up.output()
        assert up.serves(1)


def test_status_shows_conditions_and_formats(up, monkeypatch, capsys):
    import yaml

    from quire.cluster.choice import Where
    from quire.status import run_status

    monkeypatch.setenv("XDG_STATE_HOME", str(up.folder / "xdg"))
    up.write(replicas=1)
    up.start()
    up.wait(lambda: up.serves(1))
    assert run_status() == 0
    shown = capsys.readouterr().out
    assert re.search(r"NAME +MODEL +READY +REPLICAS +REASON +URL", shown)
    for leaf in ("Ready", "Resolved", "Fits", "Loaded", "Available", "Routable"):
        assert re.search(rf"^{leaf} +True", shown, re.MULTILINE)
    run_status(output="json")
    assert json.loads(capsys.readouterr().out)["items"][0]["metadata"]["name"] == "tiny"
    run_status(Where(state_dir=up.state), output="yaml")
    assert yaml.safe_load(capsys.readouterr().out)["kind"] == "List"
    up.end()
    assert run_status() == 1
    assert "`quire up` is not running" in capsys.readouterr().out


def test_logs_and_doctor_of_a_running_up(up, capsys):
    from quire.cluster.choice import Where
    from quire.doctor import run_doctor
    from quire.logs import NoLogs, run_logs

    where = Where(state_dir=up.state)
    up.write(replicas=1)
    up.start()
    up.wait(lambda: up.serves(1))
    run_logs("tiny", where, tail=-1)
    assert "argv" in capsys.readouterr().out
    with pytest.raises(NoLogs, match="serves no absent; it has: tiny"):
        run_logs("absent", where)
    with pytest.raises(NoLogs, match="leave --previous"):
        run_logs("tiny", where, is_previous=True)
    assert run_doctor(where, output="json") == 0
    found = {finding["code"]: finding["level"] for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert found["QD001"] == found["QD005"] == found["QD012"] == "ok"
    up.end()
    assert run_doctor(where) == 1
    assert "QD001 error" in capsys.readouterr().out


def test_status_without_any_run_says_how_to_start_one(tmp_path, monkeypatch):
    from quire.status import run_status
    from quire_api.errors import UserError

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"start one with: quire up FILE\.yaml"):
        run_status()


def test_an_edit_made_before_anybody_watches_is_seen(up):
    up.write(replicas=1)
    up.start()
    up.wait(lambda: "gateway at" in up.output())
    up.write(replicas=2)
    up.wait(lambda: up.serves(2))


def test_a_terminal_shows_a_table_that_is_kept_current(up):
    up.write(replicas=1)
    ours = start_in_terminal(up)
    shown = b""
    deadline = time.monotonic() + DEADLINE_S
    while not re.search(rb"tiny-[0-9a-f]+-0 +serving", shown):
        assert time.monotonic() < deadline, shown
        shown += os.read(ours, 65536)
    assert re.search(rb"NAME +MODEL +READY +REPLICAS +REASON +URL +AGE", shown)
    up.process.send_signal(signal.SIGINT)
    try:
        while os.read(ours, 65536):
            pass
    except OSError:
        pass
    assert up.process.wait(DEADLINE_S) == 0
