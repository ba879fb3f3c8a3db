"""Streams whose replica breaks go on elsewhere, and nobody sees a seam."""

import asyncio
import json

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_api import replay
from quire_api.replay import ChoiceSoFar, MalformedReplay, Resume, read_comments, token_comment, usage_comment
from quire_gateway.replay import Record, resumed_body

ASK = [{"role": "user", "content": "w1 w2 w3"}]
WHOLE = "".join(f"w{number} " for number in range(12))


async def read(world, **more):
    """Words and what must not differ between chunks."""
    stream = await world.client().chat.completions.create(model="m", messages=ASK, stream=True, **more)
    words, facts = [], set()
    async for chunk in stream:
        words.append(chunk.choices[0].delta.content)
        facts.add((chunk.id, chunk.created, chunk.model))
    return "".join(words), facts


@pytest.fixture
async def pair(make_world, make_engine):
    """Two engines that know replay; the first is asked first."""
    engines = {f"r{number}": await make_engine(replays=True, tokens=12, token_delay_s=0.005) for number in range(2)}
    return await make_world(engines)


FAULTS = [
    {"dies_after_tokens": 5},
    {"dies_after_tokens": 5, "dies_after_partial_event": True},
    {"ends_after_tokens": 5},
    {"fails_after_tokens": 5},
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: "-".join(fault))
async def test_a_stream_that_breaks_goes_on_elsewhere(pair, fault):
    bad, good = pair.engines.values()
    for name, value in fault.items():
        setattr(bad, name, value)
    answers = [await read(pair) for _ in "ab"]
    assert [text for text, _ in answers] == [WHOLE, WHOLE]
    assert all(len(facts) == 1 for _, facts in answers)
    resumed = [seen.json[replay.RESUME_FIELD] for seen in good.seen if replay.RESUME_FIELD in seen.json]
    wanted = {"choices": [{"output_token_ids": list(range(5)), "has_begun": True}], "sequence": 5}
    assert resumed
    assert all(each == wanted for each in resumed)
    await pair.until(lambda: len(pair.log_lines()) == 2)
    assert [line["outcome"] for line in pair.log_lines()] == ["ok", "ok"]
    assert [line["output_tokens"] for line in pair.log_lines()] == [pair.engines["r0"].tokens] * 2
    assert sum(line["moves"] for line in pair.log_lines()) == len(resumed)
    assert pair.is_quiet()


async def test_seed_and_time_are_those_of_the_first_stream(pair):
    bad, good = pair.engines.values()
    bad.dies_after_tokens = 3
    await read(pair)
    await read(pair)
    first = next(seen for seen in bad.seen if replay.RESUME_FIELD not in seen.json)
    then = next(seen for seen in good.seen if seen.headers["x-request-id"] == first.headers["x-request-id"])
    began, went_on = (json.loads(seen.headers[replay.HEADER_REPLAY]) for seen in (first, then))
    assert went_on == {**began, "resumes": True}
    assert {**then.json, replay.RESUME_FIELD: None} == {**first.json, replay.RESUME_FIELD: None}


async def test_the_client_sees_nothing_of_it(pair):
    async with pair.http() as http:
        body = {"model": "m", "messages": ASK, "stream": True}
        answer = await http.post("/v1/chat/completions", json=body)
    assert ": quire" not in answer.text
    assert replay.HEADER_REPLAY not in answer.headers
    assert answer.text.count("data: ") == 13


async def test_a_clients_own_word_of_resuming_is_overruled(pair):
    bad, _ = pair.engines.values()
    bad.dies_after_tokens = 3
    own = {replay.RESUME_FIELD: {"choices": [{"output_token_ids": [9, 9, 9]}]}}
    headers = {replay.HEADER_REPLAY: '{"seed": 1, "created": 1, "resumes": true}'}
    for _ in "ab":
        text, _ = await read(pair, extra_body=own, extra_headers=headers)
        assert text == WHOLE
    assert bad.seen


async def test_the_replica_that_goes_on_dies_too(make_world, make_engine):
    engines = {
        f"r{number}": await make_engine(replays=True, tokens=12, dies_after_tokens=dies)
        for number, dies in enumerate((3, 5, 8, None))
    }
    world = await make_world(engines)
    for _ in range(4):
        text, facts = await read(world)
        assert (text, len(facts)) == (WHOLE, 1)
    assert max(line["moves"] for line in world.log_lines()) >= 1


async def test_when_all_die_the_stream_waits_for_one_that_comes_back(pair):
    first, second = pair.engines.values()
    first.token_delay_s = second.token_delay_s = 0.05
    reading = asyncio.ensure_future(read(pair))
    await pair.until(lambda: max(first.written, second.written) >= 3)
    first.kill()
    second.kill()
    await pair.until(lambda: pair.gateway.fleet.load().deployments[0].held == 1)
    await second.start()
    text, facts = await reading
    assert (text, len(facts)) == (WHOLE, 1)


async def test_replicas_that_come_back_at_other_addresses_are_taken(pair, make_engine):
    first, second = pair.engines.values()
    first.token_delay_s = second.token_delay_s = 0.05
    # It fails on the first, goes on with the second, and fails there too.
    reading = asyncio.ensure_future(read(pair))
    await pair.until(lambda: max(first.written, second.written) >= 3)
    (begun,) = [engine for engine in (first, second) if engine.streaming]
    (other,) = [engine for engine in (first, second) if not engine.streaming]
    begun.kill()
    await pair.until(lambda: other.written >= 6)
    other.kill()
    await pair.until(lambda: pair.gateway.fleet.load().deployments[0].held == 1)
    replicas = pair.table.deployments[0].replicas
    pair.table.deployments[0].replicas = []
    pair.publish()
    await pair.until(lambda: not list(pair.gateway.fleet.replicas()))
    for replica in replicas:
        replica.url = (await make_engine(replays=True, tokens=12)).url
    pair.table.deployments[0].replicas = replicas
    pair.publish()
    text, facts = await reading
    assert (text, len(facts)) == (WHOLE, 1)


async def test_a_stream_that_has_begun_is_held_though_as_many_wait_as_may(make_world, make_engine):
    engine = await make_engine(replays=True, tokens=12, token_delay_s=0.05)
    world = await make_world({"r0": engine}, max_held=1)
    reading = asyncio.ensure_future(read(world))
    await world.until(lambda: engine.written >= 3)
    (replica,) = world.table.deployments[0].replicas
    replica.is_draining = True
    world.publish()
    await world.until(lambda: not world.routable())
    waiting = asyncio.ensure_future(world.client().chat.completions.create(model="m", messages=ASK))
    (deployment,) = world.gateway.fleet.deployments.values()
    await world.until(lambda: deployment.held == 1)
    engine.kill()
    await world.until(lambda: deployment.held == 2 or reading.done())
    with pytest.raises(openai.InternalServerError, match="requests wait for one already"):
        await world.client().chat.completions.create(model="m", messages=ASK)
    replica.is_draining = False
    await engine.start()
    world.publish()
    text, facts = await reading
    assert (text, len(facts)) == (WHOLE, 1)
    assert (await waiting).choices[0].message.content == WHOLE.strip()


async def test_when_none_comes_back_in_time_the_stream_ends_with_an_error(make_world, make_engine):
    world = await make_world({"r0": await make_engine(replays=True, tokens=12, token_delay_s=0.05)}, hold_timeout_s=0.3)
    engine = world.engines["r0"]
    reading = asyncio.ensure_future(read(world))
    await world.until(lambda: engine.written >= 3)
    engine.kill()
    with pytest.raises(openai.APIError, match="No replica of d became ready"):
        await reading
    await world.until(lambda: world.log_lines())
    assert (world.log_lines()[0]["outcome"], world.log_lines()[0]["moves"]) == ("broken", 1)


async def test_a_stream_is_moved_no_more_often_than_allowed(make_world, make_engine):
    engines = {
        f"r{n}": await make_engine(replays=True, tokens=12, dies_after_tokens=n + 2, token_delay_s=0.01)
        for n in range(4)
    }
    world = await make_world(engines, max_moves=1)
    for engine in engines.values():
        engine.tokens = 1000
    with pytest.raises(openai.APIError, match="had been moved 1 times"):
        await read(world)


async def test_a_stream_ends_with_an_error_though_the_last_replica_never_answered(make_world, make_engine):
    """`dies_before_first_byte` of who is to go on: not even a head has come that says what kind of answer it is."""
    engines = {f"r{n}": await make_engine(replays=True, tokens=12, token_delay_s=0.05) for n in range(2)}
    world = await make_world(engines, max_moves=1)
    reading = asyncio.ensure_future(read(world))
    await world.until(lambda: any(engine.written >= 3 for engine in engines.values()))
    first, second = sorted(engines.values(), key=lambda engine: -engine.written)
    second.dies_before_first_byte = True
    first.kill()
    with pytest.raises(openai.APIError, match="had been moved 1 times"):
        await reading
    assert second.seen


async def test_zero_moves_turns_it_off(make_world, make_engine):
    engines = {f"r{n}": await make_engine(replays=True, tokens=12, dies_after_tokens=3) for n in range(2)}
    world = await make_world(engines, max_moves=0)
    with pytest.raises(openai.APIError, match="failed while it was answering"):
        await read(world)
    seen = [seen for engine in engines.values() for seen in engine.seen]
    assert not any(replay.HEADER_REPLAY in each.headers for each in seen)


async def test_a_replica_that_cannot_go_on_is_not_mistaken_for_one_that_does(make_world, make_engine):
    engines = {
        "r0": await make_engine(replays=True, tokens=12, dies_after_tokens=3),
        "r1": await make_engine(replays=False, tokens=12),
        "r2": await make_engine(replays=True, tokens=12),
    }
    world = await make_world(engines)
    for _ in range(3):
        text, _ = await read(world)
        assert text == WHOLE


async def test_a_stream_goes_on_only_with_the_same_model(make_world, make_engine):
    engines = {
        "r0": await make_engine(replays=True, tokens=12, token_delay_s=0.05),
        "r1": await make_engine(replays=True, tokens=12, revision="other"),
    }
    world = await make_world(engines, {"policy": "roundRobin"}, hold_timeout_s=0.3)
    reading = [asyncio.ensure_future(read(world)) for _ in "ab"]
    await world.until(lambda: engines["r0"].written >= 3)
    engines["r0"].kill()
    outcomes = await asyncio.gather(*reading, return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["APIError", "tuple"]
    assert not any(replay.RESUME_FIELD in seen.json for seen in engines["r1"].seen)


async def test_a_whole_answer_that_breaks_off_is_asked_for_again(world):
    bad, good = world.engines.values()
    bad.raw_answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
    for _ in "ab":
        answer = await world.client().chat.completions.create(model="m", messages=ASK)
        assert answer.choices[0].message.content == "w0 w1 w2 w3 w4"
    assert len(good.seen) == 2
    assert bad.seen


async def test_kill_9_under_many_streams_breaks_none(make_world, make_engine):
    # Every stream stands in its midst until all have begun.
    engines = {f"r{n}": await make_engine(replays=True, tokens=12, stalls_after_tokens=4) for n in range(3)}
    world = await make_world(engines)
    reading = [asyncio.ensure_future(read(world)) for _ in range(30)]
    *victims, survivor = engines.values()
    await world.until(lambda: sum(engine.streaming for engine in engines.values()) == 30)
    assert all(victim.streaming for victim in victims)
    for victim in victims:
        victim.kill()
    survivor.stalls_after_tokens = None
    answers = await asyncio.gather(*reading)
    assert {text for text, _ in answers} == {WHOLE}
    assert all(len(facts) == 1 for _, facts in answers)
    await world.until(world.is_quiet)


# The pure parts

ids = st.lists(st.integers(0, 2**31 - 1), max_size=4)
event = st.tuples(st.integers(0, 3), ids, st.booleans())
texts = st.text(max_size=20)


@given(st.lists(st.tuples(event, texts), max_size=30), st.data())
def test_however_a_stream_is_cut_into_pieces_its_events_pass_and_its_lines_are_kept(events, data):
    ended: set[int] = set()
    wanted = Resume()
    stream, shown = [], []
    for (choice, token_ids, ends), text in events:
        if choice in ended:
            continue
        wanted.sequence += 1
        while len(wanted.choices) <= choice:
            wanted.choices.append(ChoiceSoFar())
        mine = wanted.choices[choice]
        mine.output_token_ids += token_ids
        mine.has_begun, mine.has_ended = True, ends
        if ends:
            ended.add(choice)
        body = b"data: " + json.dumps({"text": text, "trap": ": quire 1 0 5"}, ensure_ascii=False).encode() + b"\n\n"
        stream.append(token_comment(wanted.sequence, choice, token_ids, ends=ends) + body)
        shown.append(body)
    record = Record()
    passed = b""
    while stream:
        count = data.draw(st.integers(1, len(stream)))
        passed += record.strip(b"".join(stream[:count]))
        del stream[:count]
    assert passed == b"".join(shown)
    assert record.read() == wanted
    assert record.take_tokens() == record.output_tokens() == wanted.output_tokens
    assert record.take_tokens() == 0


@given(
    st.dictionaries(texts, st.integers() | texts, min_size=1),
    st.lists(ids, max_size=3),
    st.sampled_from(["", " ", "\r\n\t "]),
)
def test_what_is_resumed_is_the_bodys_last_word(body, outputs, trailing):
    resume = Resume(choices=[ChoiceSoFar(output_token_ids=output, has_begun=True) for output in outputs], sequence=3)
    made = json.loads(resumed_body((json.dumps(body) + trailing).encode(), resume))
    told = made.pop(replay.RESUME_FIELD)
    assert made == {name: value for name, value in body.items() if name != replay.RESUME_FIELD}
    assert [choice.get("output_token_ids", []) for choice in told.get("choices", [])] == outputs


@pytest.mark.parametrize(
    "lines",
    [
        b": quire 2 0 5",
        b": quire 1 0 5\n: quire 1 0 5",
        b": quire 1 0 5 end\n: quire 2 0 5",
        b": quire 1 0 x",
        b": quire 1 0",
        b": quire one 0 5",
        b": quire 1 -1 5",
        b": quire 1 0 5 what",
        b": quire 1 99999999 5",
        b"data: {}",
        b": quire 1 0 \xff",
    ],
)
def test_lines_that_are_not_of_the_contract_are_refused(lines):
    with pytest.raises(MalformedReplay):
        read_comments(lines)


def test_lines_go_on_from_what_was_there():
    before = Resume(choices=[ChoiceSoFar(output_token_ids=[1], has_begun=True)], sequence=4, cached_tokens=16)
    after = read_comments(token_comment(5, 0, [2, 3], ends=True) + usage_comment(6), before)
    assert after.choices == [ChoiceSoFar(output_token_ids=[1, 2, 3], has_begun=True, has_ended=True)]
    assert (after.sequence, after.cached_tokens, after.has_usage) == (6, 16, True)
    assert before.choices[0].output_token_ids == [1]
