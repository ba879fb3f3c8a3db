"""While the device is at work the next step can wait for requests, as long as the device need not wait for it."""

from types import SimpleNamespace

import pytest

from quire_api.sampling import SamplingParams
from quire_runtime.engine import engine as engine_module
from quire_runtime.engine.engine import LEAD_S

LONG = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
STEP_S = 0.01


class Device:
    """Makes each step take `step_s` on a clock that stands still else."""

    def __init__(self, runner) -> None:
        self.now, self.step_s = 100.0, STEP_S
        self._launch = runner.launch
        runner.launch = self._launched

    def _launched(self, plan):
        pending = self._launch(plan)
        return SimpleNamespace(wait=lambda: self._wait(pending))

    def _wait(self, pending):
        self.now += self.step_s
        return pending.wait()


@pytest.fixture
def make(drive, monkeypatch):
    def make(**settings):
        engine = drive(async_scheduling=True, **settings).engine
        device = Device(engine._runner)
        clock = SimpleNamespace(perf_counter=lambda: device.now, monotonic=lambda: device.now)
        monkeypatch.setattr(engine_module, "time", clock)
        return engine, device

    return make


def step(engine, times):
    for _ in range(times):
        engine.step()


def test_a_step_waits_as_long_as_the_one_before_it_will_take(make, prompts):
    engine, device = make()
    engine.add(0, prompts[3], LONG)
    step(engine, 5)
    assert engine.spare_s == pytest.approx(STEP_S - LEAD_S)
    device.now += STEP_S
    assert engine.spare_s == 0.0


def test_who_comes_until_then_has_a_first_token_two_steps_later(make, prompts):
    engine, _ = make()
    engine.add(0, prompts[3], LONG)
    step(engine, 5)
    engine.add(1, prompts[4], LONG)
    assert engine.step().handles.tolist() == [0]
    assert sorted(engine.step().handles.tolist()) == [0, 1]


def test_nothing_waits_where_no_more_can_run(make, prompts):
    engine, _ = make(max_num_seqs=1)
    engine.add(0, prompts[3], LONG)
    step(engine, 5)
    assert engine.spare_s == 0.0


def test_nothing_waits_where_the_device_was_done_before_anyone_looked(make, prompts):
    engine, device = make()
    engine.add(0, prompts[3], LONG)
    step(engine, 5)
    device.step_s = 0.0
    engine.step()
    assert engine.spare_s == 0.0
    device.step_s = STEP_S
    step(engine, 3)
    assert engine.spare_s == pytest.approx(STEP_S - LEAD_S)


def test_an_idle_engine_waits_for_nothing(make, prompts):
    engine, _ = make()
    engine.add(0, prompts[3], SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    while engine.has_work:
        engine.step()
    assert engine.spare_s == 0.0
