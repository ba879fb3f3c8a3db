"""What an application sees through the gateway, asked with the official client."""

import asyncio
import json

import openai
import pytest

from quire_api import wire

ASK = [{"role": "user", "content": "w1 w2 w3"}]


async def test_a_stream_arrives_word_by_word_with_headers_that_say_who_answered(world):
    raw = await world.client().chat.completions.with_raw_response.create(model="m", messages=ASK, stream=True)
    words = [chunk.choices[0].delta.content async for chunk in raw.parse()]
    assert words == ["w0 ", "w1 ", "w2 ", "w3 ", "w4 "]
    assert raw.headers["x-quire-replica"] in world.engines
    assert raw.headers["x-quire-reason"] == "least-recent"
    assert raw.headers["x-quire-cached-tokens"] == "0"
    assert raw.headers["x-quire-attempts"] == "1"
    assert raw.headers["x-quire-index-mode"] == "FALLBACK"
    assert raw.headers["x-engine"] == "stub", "the engine's own headers pass"
    assert raw.headers["x-request-id"].startswith("req-")


async def test_whole_answers_pass_for_chat_and_completions(world):
    client = world.client()
    chat = await client.chat.completions.create(model="m", messages=ASK)
    assert chat.choices[0].message.content == "w0 w1 w2 w3 w4"
    text = await client.completions.create(model="m", prompt="w1")
    assert text.choices[0].text == "w0 w1 w2 w3 w4"


async def test_the_body_reaches_the_engine_unchanged_and_internal_headers_do_not(world):
    body = b'{"model": "m",  "prompt": "w1",\n "unknown_field": [1, 2.50]}'
    async with world.http() as http:
        await http.post(
            "/v1/completions",
            content=body,
            headers={
                "x-quire-cache-salt": "stolen",
                "x-quire-internal-key": "guess",
                "x-request-id": "mine-1",
                "connection": "keep-alive, x-secret",
                "x-secret": "hop",
                "traceparent": "00-1-2-01",
            },
        )
    seen = next(request for engine in world.engines.values() for request in engine.seen)
    assert seen.body == body
    assert seen.headers["x-request-id"] == "mine-1"
    assert seen.headers["traceparent"] == "00-1-2-01"
    assert not {"x-quire-cache-salt", "x-quire-internal-key", "x-secret"} & set(seen.headers)


async def test_with_an_internal_key_the_engine_gets_it_and_not_the_clients_key(make_world, make_engine):
    engine = await make_engine(internal_key="inner")
    world = await make_world({"a": engine}, {"internal_key": "inner", "api_keys": ["user-key"]})
    await world.client("user-key").completions.create(model="m", prompt="w1")
    assert engine.seen[0].headers["x-quire-internal-key"] == "inner"
    assert "authorization" not in engine.seen[0].headers


async def test_models_are_merged_over_deployments(make_world, make_engine):
    other = await make_engine(served_names=["n", "n-alias"])
    world = await make_world(1)
    deployment = type(world.table.deployments[0])(
        name="e",
        namespace="n",
        served_names=["n", "n-alias"],
        replicas=[type(world.table.deployments[0].replicas[0])(id="b", url=other.url)],
    )
    world.table.deployments.append(deployment)
    world.publish()
    await world.until_routable("r0", "b")
    client = world.client()
    assert [model.id async for model in client.models.list()] == ["m", "n", "n-alias"]
    assert (await client.models.retrieve("n")).model_dump()["max_model_len"] == 2048
    await client.completions.create(model="n-alias", prompt="w1")
    assert len(other.seen) == 1


@pytest.mark.parametrize("written", ["owner/name-8b", "owner%2Fname-8b", "owner%2fname%2D8b"])
async def test_a_model_with_a_slash_in_its_name_is_found_however_clients_write_it(make_world, make_engine, written):
    name = "owner/name-8b"
    world = await make_world({"a": await make_engine(served_names=[name])}, {"served_names": [name]})
    assert (await world.client().models.retrieve(name)).id == name
    async with world.http() as http:
        assert (await http.get(f"/v1/models/{written}")).json()["id"] == name


async def test_an_unknown_model_is_404_and_names_those_served(world):
    """In the words of the engine, wherever the name stands."""
    client = world.client()
    for asking in (client.chat.completions.create(model="nobody", messages=ASK), client.models.retrieve("nobody")):
        with pytest.raises(openai.NotFoundError) as caught:
            await asking
        assert (caught.value.code, caught.value.type) == ("model_not_found", "invalid_request_error")
        assert caught.value.body["message"] == "The model 'nobody' does not exist. Served here: m."


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[1]", "invalid_json"),
        (b'{"model": "\xff"}', "invalid_json"),
        (b'{"model": "m", "temperature": NaN}', "invalid_json"),
        (b'{"prompt": "x"}', "missing_model"),
        (b'{"model": 7}', "missing_model"),
        (b'{"model": ["m"]}', "missing_model"),
    ],
)
async def test_a_bad_body_is_refused_without_touching_a_replica(world, body, code):
    async with world.http() as http:
        answer = await http.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert not any(engine.seen for engine in world.engines.values())


async def test_a_body_over_the_limit_is_413_on_either_framing(make_world):
    world = await make_world(1, max_body_bytes=1000)

    async def chunks():
        for _ in range(20):
            yield b"x" * 100

    async with world.http() as http:
        for content in (b"x" * 1001, chunks()):
            answer = await http.post("/v1/completions", content=content)
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "body_too_large"
        fits = json.dumps({"model": "m", "prompt": "w1 " * 200}).encode()
        assert (await http.post("/v1/completions", content=fits)).status_code == 200


async def test_wrong_path_and_wrong_method(world):
    async with world.http() as http:
        assert (await http.get("/nothing")).json()["error"]["code"] == "unknown_url"
        wrong = await http.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")


async def test_engine_errors_pass_as_they_are(world):
    for engine in world.engines.values():
        engine.status = 422
    with pytest.raises(openai.UnprocessableEntityError, match="stub says no"):
        await world.client().chat.completions.create(model="m", messages=ASK)
    assert sum(len(engine.seen) for engine in world.engines.values()) == 1, "a client's mistake is not retried"


async def test_keys_open_only_their_own_deployment(make_world):
    world = await make_world(1, {"api_keys": ["right", "also-right"]})
    await world.client("also-right").chat.completions.create(model="m", messages=ASK)
    for key in ("wrong", "righ", "right2"):
        with pytest.raises(openai.AuthenticationError) as caught:
            await world.client(key).chat.completions.create(model="m", messages=ASK)
        assert caught.value.code == "invalid_api_key"
    async with world.http() as http:
        nobody = await http.post("/v1/completions", json={"model": "m", "prompt": "w1"})
        assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "missing_api_key")
        assert nobody.headers["www-authenticate"] == "Bearer"
        assert (await http.get("/v1/models")).status_code == 401
        hidden = await http.post("/v1/completions", json={"model": "other", "prompt": "w1"})
        assert (hidden.status_code, hidden.json()["error"]["code"]) == (401, "missing_api_key")
        assert "Served here" not in hidden.text


async def test_who_holds_one_deployments_key_learns_no_other_names(make_world):
    world = await make_world(1, {"api_keys": ["right"]})
    world.table.deployments.append(
        wire.Deployment(name="e", namespace="n", served_names=["s"], api_keys=["o"], replicas=[])
    )
    world.publish()
    await world.until(lambda: len(world.gateway.fleet.deployments) == 2)
    with pytest.raises(openai.NotFoundError, match="Served here: m"):
        await world.client("right").chat.completions.create(model="other", messages=ASK)
    with pytest.raises(openai.AuthenticationError):
        await world.client("right").chat.completions.create(model="s", messages=ASK)


@pytest.mark.parametrize(("models", "status"), [(("other", "m"), 200), (("m", "other"), 404)])
async def test_of_a_key_that_stands_twice_the_last_counts_at_the_gateway_as_at_the_engine(world, models, status):
    body = '{"model": "%s", "prompt": "w1", "model": "%s"}' % models  # noqa: UP031
    async with world.http() as http:
        answer = await http.post("/v1/completions", content=body)
    assert answer.status_code == status
    assert "error" in answer.json() or [seen.json["model"] for e in world.engines.values() for seen in e.seen] == ["m"]


@pytest.mark.parametrize(("token", "code"), [("", "missing_api_key"), ("wrong", "invalid_api_key")])
@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/debug/route"])
async def test_the_body_of_who_may_use_no_model_is_not_looked_at(make_world, token, code, path):
    world = await make_world(1, {"api_keys": ["right"]})
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with world.http() as http:
        answer = await http.post(path, content=b"{" * 100_000, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)
        answer = await http.post(path, content=b"{", headers={"authorization": "Bearer right"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


async def test_a_key_that_has_expired_everywhere_opens_nothing(make_world):
    keys = [wire.ApiKey(name="old", key="old", expires_at=1.0), wire.ApiKey(name="good", key="good")]
    world = await make_world(1, {"api_keys": keys})
    async with world.http() as http:
        answer = await http.post("/v1/completions", content=b"{", headers={"authorization": "Bearer old"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "expired_api_key")


async def test_a_key_that_left_the_table_opens_nothing_and_a_deployment_without_keys_everything(make_world):
    world = await make_world(1, {"api_keys": ["right"]})
    async with world.http() as http:

        async def refusal():
            answer = await http.post("/v1/completions", content=b"{", headers={"authorization": "Bearer right"})
            return answer.json()["error"]["code"]

        for keys, code in ([["other"], "invalid_api_key"], [[], "invalid_json"]):
            world.table.deployments[0].api_keys = keys
            world.publish()
            (deployment,) = world.gateway.fleet.deployments.values()
            await world.until(lambda deployment=deployment, keys=keys: deployment.table.api_keys == keys)
            assert await refusal() == code


@pytest.mark.parametrize("path", ["/v1/completions", "/debug/route"])
async def test_more_values_than_an_engine_would_take_are_refused_unread(world, path):
    async with world.http() as http:
        answer = await http.post(path, content=b'{"model": "m", "prompt": "w1", "x": [' + b"[[]]," * 40_000 + b"1]}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_many_values")
    assert not any(engine.seen for engine in world.engines.values())


async def test_tokenize_is_forwarded_and_needs_no_model_where_there_is_one(world):
    async with world.http() as http:
        answer = await http.post("/tokenize", json={"prompt": "w1"})
    assert answer.status_code == 200
    assert [seen.path for engine in world.engines.values() for seen in engine.seen] == ["/tokenize"]


async def test_own_pages(make_world):
    world = await make_world(1, internal_key="inner")
    await world.client().completions.create(model="m", prompt="w1 w2")
    async with world.http() as http:
        assert (await http.get("/health")).json() == {"status": "ok"}
        assert (await http.get("/ready")).json() == {"status": "ready"}
        assert (await http.head("/health")).content == b""
        assert "version" in (await http.get("/version")).json()
        assert (await http.get("/internal/v1/replicas")).status_code == 401
        report = await http.get("/internal/v1/replicas", headers={"x-quire-internal-key": "inner"})
        (told,) = report.json()["replicas"]
        expected = {"deployment": "d", "namespace": "n", "replica": "r0", "in_flight": 0, "reason": ""}
        assert told == told | expected | {"is_routable": True, "url": world.engines["r0"].url}
        metrics = (await http.get("/metrics")).text
    who = 'deployment="d",namespace="n"'
    assert f'quire_gateway_requests_total{{code="200",{who}}} 1.0' in metrics
    assert f'quire_gateway_picks_total{{{who},reason="only-replica"}} 1.0' in metrics
    assert f"quire_gateway_replicas_routable{{{who}}} 1.0" in metrics
    assert f"quire_gateway_prompt_tokens_total{{{who}}} 2.0" in metrics


async def test_the_access_log_tells_all_but_the_prompt(world):
    await world.client().completions.create(model="m", prompt="w7 w8 w9")
    await world.until(lambda: world.log_path.stat().st_size)
    (line,) = world.log_lines()
    assert line["status"] == 200
    assert line["outcome"] == "ok"
    assert line["prompt_tokens"] == 3
    assert line["replica"] in world.engines
    assert line["first_byte_ms"] <= line["duration_ms"]
    assert "w7" not in world.log_path.read_text()


async def test_a_client_that_hangs_up_stops_its_engine_and_is_counted_no_more(make_world):
    world = await make_world(1)
    engine = world.engines["r0"]
    engine.tokens, engine.token_delay_s = 100_000, 0.01
    stream = await world.client().chat.completions.create(model="m", messages=ASK, stream=True)
    async for _ in stream:
        break
    assert not world.is_quiet()
    await stream.close()
    await world.until(lambda: engine.hung_up == 1)
    await world.until(world.is_quiet)
    await world.until(lambda: [line["outcome"] for line in world.log_lines()] == ["client_gone"])


async def test_a_client_that_hangs_up_before_the_first_byte_stops_its_engine_too(make_world):
    world = await make_world(1)
    engine = world.engines["r0"]
    engine.first_delay_s = 1000.0
    asking = asyncio.ensure_future(world.client().chat.completions.create(model="m", messages=ASK))
    await world.until(lambda: engine.seen)
    asking.cancel()
    await world.until(lambda: engine.hung_up == 1)
    await world.until(world.is_quiet)
