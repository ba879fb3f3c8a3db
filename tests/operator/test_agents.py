"""Real agents' pages on real sockets, asked as the operator asks them."""

import asyncio

import pytest

from quire_api import wire
from quire_operator.agents import Agents, is_fetching, loading_of, loadings
from quire_operator.world import Key, Loading
from quire_runtime.agent.pages import Pages
from quire_runtime.agent.progress import Meter, Phase

KEY = Key("models", "tiny")
GiB = 2**30
DEADLINE_S = 60
SHAPE = wire.ModelShape(
    architecture="LlamaForCausalLM", weight_bytes=10, value_bytes=2, kv_values_per_token=8, max_positions=64
)


@pytest.fixture
def meter():
    return Meter("hf://org/tiny", "/models")


@pytest.fixture
def pages(meter):
    served = Pages("127.0.0.1", 0, meter, "sesame")
    yield served
    served.close()


def pod(name="tiny-r-1", ip="127.0.0.1", *, agent=None, ready=False):
    return {
        "metadata": {"name": name},
        "status": {
            "podIP": ip,
            "conditions": [{"type": "ContainersReady", "status": str(ready)}],
            "initContainerStatuses": [{"name": "agent", "state": {"running": {}}} if agent is None else agent],
        },
    }


@pytest.fixture
async def agents(pages):
    changes = asyncio.Queue()
    asking = Agents(changes.put_nowait, int(pages.url.rsplit(":", 1)[1]))
    asking.changes = changes
    running = asyncio.create_task(asking.run())
    yield asking
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await asking.close()


async def change(agents) -> wire.AgentProgress | None:
    assert await asyncio.wait_for(agents.changes.get(), DEADLINE_S) == [KEY]
    return agents.heard[KEY]["tiny-r-1"]


async def test_what_an_agent_says_is_heard_and_wakes_its_deployment(agents, meter):
    agents.watch(KEY, [pod()], "sesame")
    assert (await change(agents)).phase == "starting"
    meter.report(3 * GiB, 15 * GiB)
    said = await change(agents)
    assert (said.phase, said.bytes_done, said.bytes_total) == ("fetching", 3 * GiB, 15 * GiB)
    meter.describe(SHAPE)
    assert (await change(agents)).shape == SHAPE
    meter.ended(Phase.COMPLETE)
    assert (await change(agents)).phase == "complete"


async def test_a_key_that_no_header_can_carry_keeps_nobody_else_from_being_asked(agents):
    other = Key("models", "other")
    agents.watch(other, [pod("other-r-1")], "two\nlines")
    agents.watch(KEY, [pod()], "sesame")
    assert (await change(agents)).phase == "starting"
    assert not agents.heard[other]


async def test_nobody_is_asked_once_the_weights_are_there_and_what_was_said_is_kept_while_the_engine_loads(
    agents, meter
):
    meter.describe(SHAPE)
    meter.ended(Phase.COMPLETE)
    agents.watch(KEY, [pod()], "sesame")
    await change(agents)
    agents.watch(KEY, [pod()], "sesame")
    assert agents._targets[KEY] == []
    assert agents.heard[KEY]["tiny-r-1"].shape == SHAPE
    agents.watch(KEY, [pod(ready=True)], "sesame")
    assert KEY not in agents.heard
    assert KEY not in agents._targets


async def test_a_wrong_key_and_an_address_where_nobody_is_say_nothing(agents, meter):
    agents.watch(KEY, [pod("a"), pod("b", "127.0.0.9"), pod("c", "::1"), pod("d", "nonsense:x")], "wrong")
    agents.watch(Key("models", "other"), [pod("tiny-r-1")], "sesame")
    assert await asyncio.wait_for(agents.changes.get(), DEADLINE_S) == [Key("models", "other")]
    assert agents.heard[KEY] == {}


def test_who_is_worth_asking():
    assert is_fetching(pod())
    assert not is_fetching(pod(ready=True))
    assert not is_fetching(pod(ip=""))
    assert not is_fetching(pod(agent={"name": "agent", "state": {"waiting": {}}}))
    assert not is_fetching(pod(agent={"name": "other", "state": {"running": {}}}))
    assert not is_fetching({"metadata": {"name": "x", "deletionTimestamp": "t"}, "status": pod()["status"]})
    assert not is_fetching({"metadata": {"name": "x"}})


def test_progress_in_words():
    def of(**said):
        return loading_of(wire.AgentProgress(**said))

    assert of(phase="fetching", bytes_done=int(3.1 * GiB), bytes_total=15 * GiB, bytes_per_second=120e6) == Loading(
        "Downloading", "3.1 of 15.0 GiB, 120 MB/s", int(3.1 * GiB) / (15 * GiB)
    )
    assert of(phase="fetching", bytes_done=1 << 20, bytes_total=1 << 23).message == "0.001 of 0.008 GiB, 0 MB/s"
    assert of(phase="starting").reason == "Downloading"
    assert of(phase="waiting", message="another process fetches").message == "another process fetches"
    retried = of(phase="starting", reason="SourceUnreachable", message="The Hub does not answer.")
    assert retried == Loading("SourceUnreachable", "The Hub does not answer. It tries again.", 0.0)
    assert of(phase="complete") is None
    assert of(phase="failed", message="x") is None
    assert loadings({"a": wire.AgentProgress(phase="complete"), "b": wire.AgentProgress(phase="starting")}).keys() == {
        "b"
    }
