"""The age of this process, by what the system says of it."""

import time

import psutil

from quire_runtime.server.uptime import process_age_s


def test_a_process_is_as_old_as_the_system_says():
    began = psutil.Process().create_time()
    before = time.time() - began
    age = process_age_s()
    # Both clocks are coarse: create_time adds a machine's start, in whole seconds, to ticks since then.
    assert before - 2 <= age <= time.time() - began + 2
