"""The numbers of the gateway: routing and its traces, autoscaling, warming, decisions, convergence, overhead, chaos.

    make bench-gateway                                      everything, up to 40 minutes on two free cores
    PYTHONPATH=bench .venv/bin/python -m gateway_bench quality --workloads ladder-73 --seconds 30
    PYTHONPATH=bench .venv/bin/python -m gateway_bench decision

Results go to bench/results/gateway-PART.json; the page bench/results/gateway.md and its plots are made of all of them.
"""

import argparse
import asyncio
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from gateway_bench import step_cost
from gateway_bench.chaos import KINDS as CHAOS
from gateway_bench.fleet import POLICIES
from gateway_bench.scaling import LAWS, SHAPES
from gateway_bench.traffic import REPLICAS, WORKLOADS


def main() -> None:
    parser = argparse.ArgumentParser(
        "gateway_bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    names = [each.name for each in WORKLOADS]
    quality = parts.add_parser("quality", help="policies on 8 simulated replicas, in virtual time")
    quality.add_argument("--workloads", nargs="+", choices=names, default=names)
    quality.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    quality.add_argument("--seconds", type=float, default=120.0, help="measured, after the warm-up")
    quality.add_argument("--every", type=int, default=1, help="2: every other load, and so on")
    quality.add_argument("--processes", type=int, default=2)
    trace = parts.add_parser("trace", help="choices one by one where another policy is ahead, or of one load")
    trace.add_argument("--workload", choices=names, help="with --load and --policies; default: every loss of the page")
    trace.add_argument("--load", type=float, default=8.0)
    trace.add_argument("--policies", nargs="+", choices=POLICIES, default=["prefixCost", "llm-d"])
    trace.add_argument("--seconds", type=float, default=120.0)
    trace.add_argument("--seeds", type=int, default=4, help="other ones, for the means of small losses")
    scaling = parts.add_parser("scaling", help="scaling laws on shaped traffic, in virtual time")
    shapes = [each.name for each in SHAPES]
    scaling.add_argument("--shapes", nargs="+", choices=shapes, default=shapes)
    scaling.add_argument("--laws", nargs="+", choices=LAWS, default=LAWS)
    scaling.add_argument("--processes", type=int, default=2)
    parts.add_parser("warming", help="a new replica, cold and warmed, and one that leaves, in virtual time")
    decision = parts.add_parser("decision", help="time of a choice, memory of the index")
    decision.add_argument("--replicas", type=int, default=100)
    decision.add_argument("--blocks", type=int, default=100_000, help="of each replica")
    convergence = parts.add_parser("convergence", help="how soon gateways know of one another")
    convergence.add_argument("--rounds", type=int, default=10)
    overhead = parts.add_parser("overhead", help="beside nginx and LiteLLM's proxy over real HTTP")
    overhead.add_argument("--seconds", type=float, default=4.0, help="of each load")
    overhead.add_argument("--rounds", type=int, default=3)
    overhead.add_argument("--without-litellm", action="store_true", help="needs no package registry")
    chaos = parts.add_parser("chaos", help="what clients notice while engines, networks and gateways die")
    chaos.add_argument("--seconds", type=float, default=360.0, help="over all kinds")
    chaos.add_argument("--streams", type=int, default=200)
    chaos.add_argument("--kinds", nargs="+", choices=CHAOS, default=list(CHAOS[1:]))
    fit = parts.add_parser("fit", help="the cost of a step from bench/results/h200.jsonl")
    fit.add_argument("--model", default="m-8b")
    fit.add_argument("--run", default="", help="default: the latest that measured decodes of all sizes")
    parts.add_parser("report", help="the page and the plots from the results that are there")
    parts.add_parser("all", help="every part, then the report")
    given = parser.parse_args()
    failed: list[str] = []
    if given.part == "all":
        failed = run_all(parser)
    elif given.part == "fit":
        for sample in step_cost.write(given.model, given.run)["samples"]:
            print("{step:24} measured {measured_ms:9.3f} ms   fitted {fitted_ms:9.3f} ms".format(**sample))
        return
    elif given.part != "report":
        _run(given.part, given)
    from gateway_bench import report

    report.write()
    print(f"written: {report.PAGE}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the page says of them what an earlier run did")


def run_all(parser: argparse.ArgumentParser) -> list[str]:
    """Run every part, whatever becomes of the others; those that failed."""
    failed, began = [], time.time()
    for number, part in enumerate(PARTS, 1):
        so_far, left = (time.time() - began) / 60, sum(list(MINUTES.values())[number - 1 :])
        print(f"{number} of {len(PARTS)}, {so_far:.1f} min so far, about {left:.0f} left: ", end="")
        try:
            _run(part, parser.parse_args([part]))
        except Exception:
            traceback.print_exc()
            print(f"{part}: failed", flush=True)
            failed.append(part)
    print(f"all parts: {(time.time() - began) / 60:.1f} min, of 40", flush=True)
    return failed


def _run(part: str, given: argparse.Namespace) -> None:
    from gateway_bench import report

    began, before = time.time(), os.getloadavg()[0]
    print(f"{part} ...", flush=True)
    result = PARTS[part](given)
    arguments = " ".join(sys.argv[2:]) if sys.argv[1:2] == [part] else ""
    result["command"] = f"python -m gateway_bench {part} {arguments}".strip()
    load = f"load average {before:.1f} before and {os.getloadavg()[0]:.1f} after, {time.time() - began:.0f} s"
    result["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {load}"
    report.save(part, result)
    print(f"{part}: {time.time() - began:.0f} s", flush=True)


def _quality(given: argparse.Namespace) -> dict[str, Any]:
    from gateway_bench import quality

    runs = quality.sweep(given.workloads, given.policies, given.seconds, given.every, given.processes)
    return {
        "notes": [
            f"{REPLICAS} simulated replicas of an 8B model on one H200 each (`step-cost.json`, fitted to a run of "
            "`h200.jsonl` that it names), in virtual time; the gateway's own choice, cost, index and counts; the same "
            "requests for every policy. prefixCost: exact events; prefixCost-fallback: none; chwbl: KubeAI's "
            "consistent hashing with bounded loads; llm-d: its default scorers (`rivals.py` cites the sources). Each "
            "run warms up until what has come fills the fleet's caches once, were nothing kept twice, and a minute "
            f"longer; the {given.seconds:g} s after that count."
        ],
        "workloads": {each.name: each.title for each in WORKLOADS if each.name in given.workloads},
        "runs": runs,
    }


def _trace(given: argparse.Namespace) -> dict[str, Any]:
    from gateway_bench import quality, report, trace

    behind, close = report.points_behind(), report.points_behind(most=0.3)
    if given.workload:
        behind = close = [(given.workload, given.load, policy) for policy in given.policies if policy != report.OURS]
    own = [(workload, load, report.OURS) for workload, load, _ in behind]
    seeds = range(quality.SEED + 1, quality.SEED + 1 + given.seeds)
    return {
        "notes": [
            "Means over the measured requests and seconds. Uncached tokens of a prompt, when its replica was chosen: "
            "`elsewhere`, another replica held them; `nowhere`, none did. Sent away: requests that went past the "
            "replica with most of their prompt. In flight and waiting (for the engine to admit them): at the busiest "
            "and the least busy replica, each second. Copies: replicas that hold a block of a prompt, where one does."
        ],
        "gap_notes": [
            f"The same loads with requests of other seeds ({seeds[0]} and following; the tables have {quality.SEED}), "
            "where the loss is at most 30 %: means, and twice their standard error."
        ],
        "gaps": trace.gaps(close, report.OURS, given.seconds, seeds),
        "rows": trace.traces(sorted({*own, *behind}), given.seconds, quality.SEED),
    }


def _scaling(given: argparse.Namespace) -> dict[str, Any]:
    from gateway_bench import scaling

    return {
        "notes": [
            f"Targets: TTFT {scaling.TTFT_SLO_S * 1e3:g} ms and TPOT {scaling.TPOT_SLO_S * 1e3:g} ms. A replica serves "
            f"{scaling.STARTUP_S:g} s after the decision; ours and the first of KubeAI's aim at {scaling.TARGET} "
            "requests in flight each, the other at KubeAI's default of 100. Replica-hours count from start to end, "
            "drains included.",
            "",
            "Of the fixed fleets two are as large as our law is in the mean, by replica-hours: the largest that takes "
            "no more, and the next one. For the same hours a ramp, a spike and a day are served better by the law, as "
            "the load is far from its mean for long. Bursts that come again within scaleDownDelay (5 minutes) are not: "
            "what the second one needs is kept by then, so there is nothing to save, and the first one is nearly over "
            "(30 s) when a replica that is started at its beginning serves.",
            "",
            "Against us, where a load jumps: what comes in the 23 s before the first new replica serves (3 s until it "
            "is asked for) is 10.5 % of all requests of the spike, 6.8 % of the bursts' (the first alone), 19 % from "
            "zero, and misses the target under any law that learns of a load when it comes. From zero the rest is what "
            "waits behind them, in the order of coming, and that no start has been timed before the first burst. As "
            "many start as serve what piled up, 12 where the rate needs 4 to 7; what is not needed for good leaves a "
            "minute after the backlog has gone.",
        ],
        "outcomes": scaling.sweep(given.shapes, given.laws, given.processes),
    }


def _warming(given: argparse.Namespace) -> dict[str, Any]:
    from gateway_bench import leaving, warming

    return {
        "notes": [
            f"One replica joins {warming.REPLICAS} simulated ones {warming.START_S:g} s after the first request; "
            f"requests of the {warming.WINDOW_S:g} s from then on count, whoever answers them. Warmed, it first "
            "computes what the sibling with the warmest cache is asked for most, and gets requests afterwards."
        ],
        "rows": warming.sweep(),
        "leaving_notes": [
            f"Four serve, a fifth joins after {leaving.JOIN_S:g} s, unwarmed, and one of the five is drained after "
            f"{leaving.LEAVE_S:g}; requests of the {leaving.WINDOW_S:g} s from then on count. The coldest is whom the "
            "operator takes; the others are for comparison. Saved: its share of the prompt tokens that caches have "
            "saved, which fade."
        ],
        "leaving": leaving.sweep(),
    }


def _decision(given: argparse.Namespace) -> dict[str, Any]:
    from gateway_bench import decision

    return decision.measure(given.replicas, given.blocks)


def _convergence(given: argparse.Namespace) -> dict[str, Any]:
    from gateway_bench import convergence

    return asyncio.run(convergence.measure(given.rounds))


def _overhead(given: argparse.Namespace) -> dict[str, Any]:
    from gateway_bench import overhead

    return overhead.measure(given.seconds, given.rounds, not given.without_litellm)


def _chaos(given: argparse.Namespace) -> dict[str, Any]:
    from gateway_bench import chaos

    return asyncio.run(chaos.measure(given.seconds, given.kinds, given.streams))


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "quality": _quality,
    "trace": _trace,
    "scaling": _scaling,
    "warming": _warming,
    "decision": _decision,
    "convergence": _convergence,
    "overhead": _overhead,
    "chaos": _chaos,
}

MINUTES = {
    "quality": 15.0,
    "trace": 3.5,
    "scaling": 1.0,
    "warming": 0.7,
    "decision": 0.4,
    "convergence": 0.7,
    "overhead": 8.6,
    "chaos": 8.0,
}
"""What each of `PARTS`, in their order, takes on two free cores, about."""


if __name__ == "__main__":
    main()
