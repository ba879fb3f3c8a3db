"""Scale-down takes the replica whose cache has saved least, and that costs the hit rate least."""

from gateway_bench.leaving import LEAVE_S, WINDOW_S, simulate
from gateway_bench.traffic import H200_BLOCKS, Workload
from gateway_bench.warming import personas


def test_the_coldest_replica_has_saved_less_than_its_share_and_is_missed_less_than_the_warmest():
    workload = Workload("personas", "", H200_BLOCKS, (), personas)
    scripts = workload.scripts(8.0, LEAVE_S + WINDOW_S, 3)
    coldest, warmest = (simulate(workload, 8.0, scripts, left) for left in ("coldest", "warmest"))
    assert coldest.left_saved < 0.2 < warmest.left_saved
    assert coldest.hit_rate > warmest.hit_rate
    assert coldest.requests == warmest.requests
