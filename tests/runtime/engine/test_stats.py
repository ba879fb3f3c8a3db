"""What the engine says of itself: times of requests, sizes of steps."""

import time

from quire_api.sampling import SamplingParams
from quire_runtime.engine.messages import STEP_SIZE_BOUNDS, RequestTimes

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def times_of(driver) -> dict[int, RequestTimes]:
    """By handle; a request has at most one entry."""
    found: dict[int, RequestTimes] = {}
    while driver.engine.has_work:
        outputs = driver.engine.step()
        if outputs is not None:
            for times in outputs.times:
                assert times.handle not in found
                found[times.handle] = times
    return found


def test_a_request_that_waits_for_a_row_has_queued_for_as_long_as_the_other_ran(drive, prompts):
    driver = drive(max_num_seqs=1)
    hour = 3600.0
    driver.engine.add(0, prompts[3], GREEDY, arrived_s=time.monotonic() - hour)
    driver.engine.add(1, prompts[5], GREEDY)
    times = times_of(driver)
    assert times[0].queue_s >= hour
    assert times[0].prefill_s < hour
    # The second was asked for before the first ran, and ran after it had ended.
    assert times[1].queue_s > times[0].prefill_s > 0


def test_choices_and_preemptions_do_not_tell_the_time_twice(drive, prompts):
    driver = drive(num_gpu_blocks_override=16, max_num_seqs=4)
    for handle in range(4):
        params = SamplingParams(seed=handle, n=2 if handle == 0 else 1, max_tokens=50, ignore_eos=True)
        driver.engine.add(handle, prompts[4], params)
    assert times_of(driver).keys() == {0, 1, 2, 3}
    assert driver.engine.stats.num_preemptions > 0


def test_steps_are_counted_by_their_tokens(drive, prompts):
    driver = drive()
    driver.engine.add(0, prompts[5], GREEDY)
    driver.run()
    stats = driver.engine.stats
    counts = dict(zip([*STEP_SIZE_BOUNDS, "more"], stats.step_sizes, strict=True))
    # A prompt of 90 tokens in one step, then three tokens one by one.
    assert {bound: count for bound, count in counts.items() if count} == {128: 1, 1: 3}
    assert (stats.steps, stats.step_tokens) == (4, 93)
