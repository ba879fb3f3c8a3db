"""/debug/route: the data plane's own choice, re-run without sending anything."""

import asyncio

import httpx
import msgspec
import pytest

from quire_api import wire

TEXT = " ".join(f"w{n}" for n in range(30))
CHAT = {"model": "m", "messages": [{"role": "user", "content": TEXT}]}


def told(answer: httpx.Response) -> wire.RouteExplanation:
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=wire.RouteExplanation)


async def test_it_tells_where_the_next_request_goes(world):
    client = world.client()
    async with world.http() as http:
        for words in (TEXT, TEXT + " w40 w41", "w99 w98 w97", TEXT):
            body = {"model": "m", "messages": [{"role": "user", "content": words}]}
            expected = told(await http.post("/debug/route", json=body))
            answer = await client.chat.completions.with_raw_response.create(**body)
            assert answer.headers[wire.HEADER_REPLICA] == expected.chosen
            assert answer.headers[wire.HEADER_REASON] == expected.reason
            scores = {score.replica: score for score in expected.replicas}
            assert int(answer.headers[wire.HEADER_CACHED_TOKENS]) == scores[expected.chosen].cached_tokens
            assert answer.headers[wire.HEADER_INDEX_MODE] == expected.index_mode


async def test_scores_show_cache_and_load(world):
    answer = await world.client().chat.completions.with_raw_response.create(**CHAT)
    warm = answer.headers[wire.HEADER_REPLICA]
    async with world.http() as http:
        explanation = told(await http.post("/debug/route", json=CHAT))
    assert explanation.policy == "prefixCost"
    assert explanation.is_tokenised
    assert explanation.prompt_tokens == 32  # <s>, 30 words, <a>
    assert (explanation.chosen, explanation.reason) == (warm, "prefix-hit")
    first, second = explanation.replicas
    assert (first.replica, first.cached_tokens, first.uncached_tokens, first.cost) == (warm, 32, 1, 8.0)
    assert (second.cached_tokens, second.cost) == (0, 256.0)


async def test_asking_leaves_no_trace(world):
    async with world.http() as http:
        for _ in range(5):
            told(await http.post("/debug/route", json=CHAT))
        assert not any(engine.seen[1:] for engine in world.engines.values()), "only the probe was seen"
        (load,) = (await http.get("/internal/v1/load")).json()["deployments"]
    assert load["requests"] == 0
    assert all(replica.last_used == 0 for replica in world.gateway.fleet.replicas())
    assert len(next(iter(world.gateway.fleet.deployments.values())).index) == 0


@pytest.mark.parametrize(("query", "tokens"), [({"message": "w1 w2"}, 4), ({"prompt": "w1 w2 w3"}, 3)])
async def test_get_takes_a_message_or_a_raw_prompt(world, query, tokens):
    async with world.http() as http:
        explanation = told(await http.get("/debug/route", params={"model": "m", **query}))
    assert explanation.prompt_tokens == tokens
    assert explanation.chosen in world.engines


async def test_who_gets_nothing_is_listed_with_the_reason(world):
    world.table.deployments[0].replicas[0].is_draining = True
    world.publish()
    await world.until_routable("r1")
    async with world.http() as http:
        explanation = told(await http.post("/debug/route", json=CHAT))
    assert (explanation.chosen, explanation.reason) == ("r1", "only-replica")
    assert [(score.replica, score.cost, score.excluded) for score in explanation.replicas] == [
        ("r1", 256.0, ""),
        ("r0", None, "Draining"),
    ]


async def test_without_a_replica_it_would_be_held(make_world):
    world = await make_world({}, {"scales_from_zero": True})
    await world.until(lambda: world.gateway.fleet.deployments)
    ask = asyncio.create_task(world.client().chat.completions.create(**CHAT))
    (deployment,) = world.gateway.fleet.deployments.values()
    await world.until(lambda: deployment.held)
    async with world.http() as http:
        explanation = told(await http.post("/debug/route", json=CHAT))
    ask.cancel()
    assert (explanation.chosen, explanation.held, explanation.replicas) == ("", 1, [])
    assert not explanation.is_tokenised


async def test_the_internal_key_guards_it(make_world):
    world = await make_world(1, {"api_keys": ["secret"]}, internal_key="inner")
    async with world.http() as http:
        assert (await http.post("/debug/route", json=CHAT)).status_code == 401
        with_client_key = {"authorization": "Bearer secret"}
        assert (await http.post("/debug/route", json=CHAT, headers=with_client_key)).status_code == 401
        told(await http.post("/debug/route", json=CHAT, headers={wire.HEADER_INTERNAL_KEY: "inner"}))


async def test_beside_the_internal_key_a_clients_key_tells_what_that_client_gets(make_world):
    keys = [wire.ApiKey(name="alice", key="alice-key"), wire.ApiKey(name="bob", key="bob-key")]
    world = await make_world(2, {"api_keys": keys}, internal_key="inner")
    inner = {wire.HEADER_INTERNAL_KEY: "inner"}
    async with world.http() as http:
        for key in ("alice-key", "alice-key", "bob-key", "alice-key"):
            headers = inner | {"authorization": f"Bearer {key}"}
            expected = told(await http.post("/debug/route", json=CHAT, headers=headers))
            answer = await world.client(key).chat.completions.with_raw_response.create(**CHAT)
            scores = {score.replica: score for score in expected.replicas}
            assert answer.headers[wire.HEADER_REPLICA] == expected.chosen
            assert answer.headers[wire.HEADER_REASON] == expected.reason
            assert int(answer.headers[wire.HEADER_CACHED_TOKENS]) == scores[expected.chosen].cached_tokens
        assert (expected.reason, expected.miss) == ("prefix-hit", "")
        unknown = inner | {"authorization": "Bearer guessed"}
        assert (await http.post("/debug/route", json=CHAT, headers=unknown)).status_code == 401
        nobodys = told(await http.post("/debug/route", json=CHAT, headers=inner))
    assert all(score.cached_tokens == 0 for score in nobodys.replicas)


async def test_where_keys_share_their_prefixes_the_internal_key_alone_finds_them(make_world):
    world = await make_world(2, {"api_keys": ["secret"], "shares_cache": True}, internal_key="inner")
    body = {**CHAT, "cache_salt": "s"}
    client = world.client("secret").chat.completions.with_raw_response
    asked = await client.create(**CHAT, extra_body={"cache_salt": "s"})
    async with world.http() as http:
        explanation = told(await http.post("/debug/route", json=body, headers={wire.HEADER_INTERNAL_KEY: "inner"}))
    assert (explanation.chosen, explanation.reason) == (asked.headers[wire.HEADER_REPLICA], "prefix-hit")


async def test_without_one_the_models_keys_do(make_world):
    world = await make_world(1, {"api_keys": ["secret"]})
    async with world.http() as http:
        assert (await http.post("/debug/route", json=CHAT)).status_code == 401
        told(await http.post("/debug/route", json=CHAT, headers={"authorization": "Bearer secret"}))


@pytest.mark.parametrize(
    ("method", "query", "body", "status"),
    [
        ("GET", {"model": "m"}, None, 400),
        ("GET", {"model": "x", "prompt": "w1"}, None, 404),
        ("GET", {"prompt": "w1"}, None, 404),
        ("POST", {}, b"", 400),
        ("POST", {}, b"[1]", 400),
        ("POST", {}, b'{"model": 3}', 404),
        ("POST", {}, b'{"model": "m"}', 200),
        ("POST", {}, b'{"model": "m", "messages": 7}', 200),
        ("DELETE", {}, None, 405),
    ],
)
async def test_bad_input(world, method, query, body, status):
    async with world.http() as http:
        answer = await http.request(method, "/debug/route", params=query, content=body)
    assert answer.status_code == status
    if status != 200:
        assert answer.json()["error"]["message"]
