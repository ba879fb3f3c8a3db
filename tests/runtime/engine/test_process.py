"""The engine process, real sockets and real signals."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import pytest_asyncio

from quire_api.sampling import SamplingParams
from quire_runtime.config import EngineConfig
from quire_runtime.engine.client import AsyncEngineClient
from quire_runtime.engine.errors import EngineDied, EngineStartFailed, RequestRefused
from quire_runtime.engine.request import EngineRequest
from quire_runtime.engine.stream import ChoiceDelta, Stream
from quire_runtime.scheduler.request import FinishReason

pytestmark = pytest.mark.asyncio(loop_scope="module")
DEADLINE_S = 180


@pytest.fixture(scope="module")
def config(tiny_model_dir: Callable[..., Path]) -> EngineConfig:
    return EngineConfig.of(
        model=str(tiny_model_dir("llama")),
        device="cpu",
        dtype="float32",
        max_num_seqs=8,
        max_model_len=256,
        num_gpu_blocks_override=64,
        max_num_queued_reqs=20,
    )


@asynccontextmanager
async def started(config: EngineConfig) -> AsyncIterator[AsyncEngineClient]:
    client = AsyncEngineClient(config)
    try:
        await client.ready()
        yield client
    finally:
        await client.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(config: EngineConfig) -> AsyncIterator[AsyncEngineClient]:
    async with started(config) as client:
        yield client


async def collect(client: AsyncEngineClient, prompt: list[int], params: SamplingParams) -> list[ChoiceDelta]:
    with closing(client.open(EngineRequest(prompt, params, "test"))) as stream:
        return await rest(stream)


async def rest(stream: Stream) -> list[ChoiceDelta]:
    return [delta async for deltas in stream for delta in deltas]


async def until(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not is_true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def idle(client: AsyncEngineClient) -> None:
    await until(lambda: client.stats.kv_blocks_used == client.stats.num_running == client.stats.num_waiting == 0)


async def test_ready_says_what_was_loaded(client):
    info = await client.ready()
    assert (info.num_blocks, info.block_size, info.max_model_len, info.max_num_seqs) == (64, 16, 256, 8)
    assert len(info.model_revision) == 32
    assert {"import", "fetch", "weights", "memory", "kernels", "graphs", "total"} <= set(info.startup_s)


async def test_concurrent_answers_equal_transformers(client, greedy, prompts):
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    answers = await asyncio.gather(*(collect(client, prompt, params) for prompt in prompts))
    for prompt, deltas in zip(prompts, answers, strict=True):
        assert [token for delta in deltas for token in delta.token_ids] == greedy("llama", prompt, 12)
        assert [delta.finish for delta in deltas] == [FinishReason.NONE] * 11 + [FinishReason.LENGTH]
        assert deltas[0].cached_tokens is not None
        assert all(delta.cached_tokens is None for delta in deltas[1:])


async def test_requests_that_come_while_steps_overlap_are_answered_the_same(config, greedy, prompts):
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    async with started(config.model_copy(update={"async_scheduling": True})) as client:
        tasks = []
        for prompt in prompts:
            tasks.append(asyncio.create_task(collect(client, prompt, params)))
            await asyncio.sleep(0.01)
        for prompt, deltas in zip(prompts, await asyncio.gather(*tasks), strict=True):
            assert [token for delta in deltas for token in delta.token_ids] == greedy("llama", prompt, 12)


async def test_choices_and_logprobs_arrive(client, prompts):
    params = SamplingParams(n=3, seed=1, max_tokens=4, ignore_eos=True, logprobs=2, prompt_logprobs=1)
    deltas = await collect(client, prompts[3], params)
    assert sorted(delta.choice for delta in deltas) == [0] * 4 + [1] * 4 + [2] * 4
    assert all(len(delta.logprobs[0].token_ids) == 3 for delta in deltas)
    assert deltas[0].prompt_logprobs[0] is None
    assert [entry.token_ids[0] for entry in deltas[0].prompt_logprobs[1:]] == prompts[3][1:]


async def test_closing_the_stream_frees_everything(client, prompts):
    params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    with closing(client.open(EngineRequest(prompts[2], params, "left early"))) as stream:
        async for _ in stream:
            break
    await idle(client)
    assert client.num_requests == 0


@pytest.mark.parametrize(
    ("prompt", "params", "code"),
    [
        ([5] * 256, SamplingParams(), "context_length_exceeded"),
        ([], SamplingParams(), "invalid"),
        ([400], SamplingParams(), "invalid"),
        ([2**40], SamplingParams(), "invalid"),
        ([5], SamplingParams(logit_bias={9999: 1.0}), "invalid"),
    ],
)
async def test_refusals_have_a_code_and_a_sentence(client, prompt, params, code):
    with pytest.raises(RequestRefused) as refusal:
        await collect(client, prompt, params)
    assert refusal.value.code == code
    assert str(refusal.value).endswith(".")
    assert client.is_alive


async def test_a_full_queue_refuses(client, prompts):
    params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    results = await asyncio.gather(*(collect(client, prompts[0], params) for _ in range(60)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, RequestRefused)]
    assert {refusal.code for refusal in refused} == {"queue_full"}
    assert len(refused) < len(results)
    await idle(client)


async def test_an_idle_engine_beats_and_sleeps(client):
    await idle(client)
    for _ in range(2):
        heard_at = client._heard_at
        await until(lambda heard_at=heard_at: client._heard_at != heard_at)
    # A loop that spins is runnable at every moment.
    await until(lambda: state_of(client.pid) == "S")


async def test_kill_of_the_engine_fails_requests_with_a_clear_error(config, prompts):
    async with started(config) as client:
        params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
        with closing(client.open(EngineRequest(prompts[0], params, "test"))) as doomed:
            await anext(aiter(doomed))
            os.kill(client.pid, signal.SIGKILL)
            with pytest.raises(EngineDied, match="killed by signal 9"):
                await asyncio.wait_for(rest(doomed), DEADLINE_S)
        assert not client.is_alive
        with pytest.raises(EngineDied):
            await collect(client, prompts[0], params)


async def test_drain_finishes_what_runs_and_refuses_the_rest(config, prompts):
    async with started(config) as client:
        params = SamplingParams(temperature=0, max_tokens=150, ignore_eos=True)
        has_begun = asyncio.Event()

        async def run() -> int:
            with closing(client.open(EngineRequest(prompts[0], params, "test"))) as stream:
                count = 0
                async for deltas in stream:
                    has_begun.set()
                    count += len(deltas)
                return count

        running = asyncio.create_task(run())
        running.add_done_callback(lambda _: has_begun.set())
        await has_begun.wait()
        drained = asyncio.create_task(client.drain(DEADLINE_S))
        await asyncio.sleep(0)
        with pytest.raises(RequestRefused) as refusal:
            await collect(client, prompts[1], params)
        assert refusal.value.code == "draining"
        assert await drained
        assert await running == 150


async def test_a_model_that_is_not_there_is_the_users_error(tmp_path):
    client = AsyncEngineClient(EngineConfig.of(model=str(tmp_path / "nothing")))
    with pytest.raises(EngineStartFailed, match="nothing"):
        await client.ready()
    assert not is_running(client.pid)


async def test_an_engine_that_falls_at_its_imports_is_told(config, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'quire_runtime.engine.process' in sys.orig_argv:\n    sys.modules['torch'] = None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(EngineDied, match="torch"):
        async with started(config):
            pass


async def test_the_engine_ends_with_its_parent(config):
    program = (
        "import asyncio, sys, time\n"
        "from quire_runtime.config import EngineConfig\n"
        "from quire_runtime.engine.client import AsyncEngineClient\n"
        "async def main():\n"
        "    client = AsyncEngineClient(EngineConfig.model_validate_json(sys.argv[1]))\n"
        "    await client.ready()\n"
        "    print(client.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, config.model_dump_json(), stdout=asyncio.subprocess.PIPE
    )
    engine = int(await asyncio.wait_for(parent.stdout.readline(), DEADLINE_S))
    assert is_running(engine)
    parent.kill()
    await parent.wait()
    await until(lambda: not is_running(engine))


def is_running(pid: int) -> bool:
    return state_of(pid) not in ("Z", "")


def state_of(pid: int) -> str:
    """R: its main thread runs or wants to, S: it sleeps, Z: it has ended; "" once it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""
