"""The gateway in front of a real engine: both see the same tokens in the same blocks."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from quire_api import wire

MODEL = Path(__file__).parents[2] / "models" / "quire-tiny"
KEY = "inner"


@pytest.fixture(scope="module")
def engine_url(tmp_path_factory, unused_tcp_port_factory):
    port = unused_tcp_port_factory()
    flags = ["--served-model-name", "m", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    sizes = ["--host", "127.0.0.1", "--num-gpu-blocks-override", "512", "--max-num-seqs", "16"]
    with (tmp_path_factory.mktemp("engine") / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "quire", "serve", str(MODEL), *flags, *sizes],
            env={**os.environ, "QUIRE_INTERNAL_KEY": KEY, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    try:
        process.wait(60)
    finally:
        process.kill()


@pytest.fixture
async def real(make_world, engine_url):
    world = await make_world({}, {"internal_key": KEY})
    world.table.deployments[0].replicas = [wire.Replica(id="real", url=engine_url)]
    world.publish()
    async with asyncio.timeout(240):
        while world.routable() != {"real"}:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return world


async def test_the_gateways_estimate_is_what_the_engine_found_in_its_cache(real):
    system = {"role": "system", "content": "You are Quire's small model. Answer in one sentence. " * 8}
    estimates, found, counted = [], [], []
    for question in ("What is a pod?", "What is a node?", "What is a pod?"):
        raw = await real.client().chat.completions.with_raw_response.create(
            model="m", messages=[system, {"role": "user", "content": question}], temperature=0, max_tokens=8
        )
        usage = raw.parse().usage
        details = usage.prompt_tokens_details
        estimates.append(int(raw.headers["x-quire-cached-tokens"]))
        found.append((details.cached_tokens or 0) if details else 0)
        counted.append(usage.prompt_tokens)
    assert estimates[0] == 0
    assert estimates[1] > 0
    # The engine always computes the last token, so of a prompt of whole blocks it reuses one block less.
    assert all(found <= estimate <= found + 16 for estimate, found in zip(estimates, found, strict=True))
    await real.until(lambda: len(real.log_lines()) == 3)
    assert [line["prompt_tokens"] for line in real.log_lines()] == counted


async def test_streaming_and_not_streaming_give_the_same_words(real):
    ask = [{"role": "user", "content": "What is a pod?"}]
    client = real.client()
    whole = await client.chat.completions.create(model="m", messages=ask, temperature=0, max_tokens=24)
    stream = await client.chat.completions.create(model="m", messages=ask, temperature=0, max_tokens=24, stream=True)
    words = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "".join(words) == whole.choices[0].message.content


@pytest.mark.parametrize("ask", [{"n": 2}, {"stop": ["pod"]}, {"n": 1, "max_tokens": 200}], ids=str)
async def test_of_a_stream_as_many_tokens_are_counted_as_its_usage_says(real, ask):
    messages = [{"role": "user", "content": "What is a pod?"}]
    settings = {"max_tokens": 24, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}, **ask}
    stream = await real.client().chat.completions.create(model="m", messages=messages, **settings)
    usage = [chunk.usage async for chunk in stream][-1]
    await real.until(lambda: len(real.log_lines()) == 1)
    assert real.log_lines()[0]["output_tokens"] == usage.completion_tokens


async def test_a_client_that_hangs_up_frees_the_engine(real, engine_url):
    async with real.http() as http:

        async def ended():
            """Choices that the engine has ended, by reason."""
            text = (await http.get(f"{engine_url}/metrics")).text
            lines = [line for line in text.splitlines() if line.startswith("quire:request_success_total")]
            return {line.split('finished_reason="')[1].split('"')[0]: float(line.split()[-1]) for line in lines}

        before = await ended()
        stream = await real.client().completions.create(
            model="m", prompt=[9] * 16, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            break
        await stream.close()
        await real.until(real.is_quiet)
        async with asyncio.timeout(60):
            while (after := await ended()) == before:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    assert after == {**before, "abort": before.get("abort", 0.0) + 1}


async def test_the_engines_refusals_pass(real):
    with pytest.raises(openai.BadRequestError):
        await real.client().completions.create(model="m", prompt="x", max_tokens=-1)
    with pytest.raises(openai.BadRequestError):
        await real.client().chat.completions.create(model="m", messages=[])


async def test_two_api_keys_do_not_see_each_others_cache(make_world, engine_url):
    world = await make_world({}, {"internal_key": KEY, "api_keys": ["alice", "bob"]})
    world.table.deployments[0].replicas = [wire.Replica(id="real", url=engine_url)]
    world.publish()
    async with asyncio.timeout(240):
        while world.routable() != {"real"}:  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    async def cached(key: str) -> int:
        answer = await world.client(key).completions.create(model="m", prompt=[7, 8, 9, 10] * 20, max_tokens=1)
        return answer.usage.prompt_tokens_details.cached_tokens

    assert [await cached("alice"), await cached("bob")] == [0, 0]
    assert await cached("alice") == await cached("bob") == 64
