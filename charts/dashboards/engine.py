"""One deployment's replicas: where a request's time goes, how full batches and caches are, what the host costs."""

from dashboards.grafana import Dashboard, Panel, Query, Row, label_variable
from dashboards.words import CHOSEN, DEPLOYMENT, NAMESPACE, TTFT_SHARE, TTFT_TARGET, quantiles, rate, ratio

POD = label_variable("pod", "Replica", f"label_values(quire:num_requests_running{{{CHOSEN}}}, pod)")
POD_CHOSEN = 'pod=~"$pod"'
BY_POD = "namespace, pod"
POD_LEGEND = "{{pod}}"


def gauge(metric: str) -> str:
    return f"max by ({BY_POD}) ({metric}{{{CHOSEN}, {POD_CHOSEN}}})"


def pod_rate(metric: str, by: str = BY_POD) -> str:
    return rate(metric, by, POD_CHOSEN)


SLO = Row(
    "Service level",
    [
        Panel(
            "First token within the target",
            [Query(TTFT_SHARE, "within $ttft_target s")],
            "percentunit",
            "Share of requests in the chosen time whose first token came within the target chosen above.",
            kind="stat",
            thresholds=((None, "red"), (0.9, "orange"), (0.99, "green")),
            width=6,
            runbook="QuireTTFTHigh",
        ),
        Panel(
            "Time to first token",
            quantiles("quire:time_to_first_token_seconds", 0.5, 0.9, 0.99),
            "s",
            "From the request's arrival at the engine to its first token.",
            thresholds=((None, "green"), (10, "red")),
            width=6,
            runbook="QuireTTFTHigh",
        ),
        Panel(
            "Time between tokens",
            quantiles("quire:inter_token_latency_seconds", 0.5, 0.99),
            "s",
            "Between two tokens of one answer.",
            width=6,
        ),
        Panel(
            "Whole request",
            quantiles("quire:e2e_request_latency_seconds", 0.5, 0.99),
            "s",
            "From the request's arrival to its last token.",
            width=6,
        ),
    ],
)
TIME = Row(
    "Where the time goes",
    [
        Panel(
            "Queue, p99",
            quantiles("quire:request_queue_time_seconds", 0.99, by=BY_POD, legend=POD_LEGEND),
            "s",
            "From arrival until a request is first scheduled.",
            runbook="QuireQueueGrows",
        ),
        Panel(
            "Prefill, p99",
            quantiles("quire:request_prefill_time_seconds", 0.99, by=BY_POD, legend=POD_LEGEND),
            "s",
            "From the first step to the first token.",
        ),
        Panel(
            "Decode, p99",
            quantiles("quire:request_decode_time_seconds", 0.99, by=BY_POD, legend=POD_LEGEND),
            "s",
            "From the first token to the last.",
        ),
        Panel(
            "Time of a step",
            [
                Query(
                    ratio(pod_rate("quire:engine_step_seconds_total"), pod_rate("quire:engine_steps_total")),
                    f"{POD_LEGEND} whole step",
                ),
                Query(
                    ratio(pod_rate("quire:engine_python_seconds_total"), pod_rate("quire:engine_steps_total")),
                    f"{POD_LEGEND} host",
                ),
            ],
            "s",
            "Mean time of an engine step, and how much of it is the host's own work.",
        ),
        Panel(
            "Seconds since the engine spoke",
            [Query(gauge("quire:engine_heartbeat_age_seconds"), POD_LEGEND)],
            "s",
            "A loop that hangs stops speaking; liveness fails then.",
            thresholds=((None, "green"), (60, "red")),
            runbook="QuireEngineStalled",
        ),
        Panel(
            "Start",
            [Query(f"max by ({BY_POD}, phase) (quire:startup_seconds{{{CHOSEN}, {POD_CHOSEN}}})", "{{pod}} {{phase}}")],
            "s",
            "What the latest start of each engine took, by phase.",
        ),
    ],
)
BATCH = Row(
    "Batch",
    [
        Panel(
            "Running and waiting",
            [
                Query(gauge("quire:num_requests_running"), f"{POD_LEGEND} running"),
                Query(gauge("quire:num_requests_waiting"), f"{POD_LEGEND} waiting"),
            ],
            "short",
            "Sequences in the batch, and requests that wait for a place in it.",
            runbook="QuireQueueGrows",
        ),
        Panel(
            "Tokens of a step",
            [
                Query(
                    ratio(pod_rate("quire:engine_step_tokens_total"), pod_rate("quire:engine_steps_total")), POD_LEGEND
                )
            ],
            "short",
            "Mean number of tokens computed in a step.",
        ),
        Panel(
            "Tokens a second",
            [
                Query(pod_rate("quire:prompt_tokens_total"), f"{POD_LEGEND} prompt"),
                Query(pod_rate("quire:generation_tokens_total"), f"{POD_LEGEND} generated"),
            ],
            "short",
            "Prompt tokens include those found cached.",
        ),
        Panel(
            "Requests by end",
            [Query(pod_rate("quire:request_success_total", "finished_reason"), "{{finished_reason}}")],
            "reqps",
            "stop and length are whole answers; abort is a client that left; error is ours.",
            is_stacked=True,
            runbook="QuireErrorRatioHigh",
        ),
        Panel(
            "Refused at the door",
            [Query(pod_rate("quire:admission_rejections_total", "reason"), "{{reason}}")],
            "reqps",
            "Requests that an engine refused, by reason.",
        ),
        Panel(
            "Lengths, p90",
            [
                *quantiles("quire:request_prompt_tokens", 0.9, legend="prompt"),
                *quantiles("quire:request_generation_tokens", 0.9, legend="output"),
            ],
            "short",
            "Tokens of prompts and outputs.",
        ),
    ],
)
CACHE = Row(
    "KV cache",
    [
        Panel(
            "In use",
            [Query(gauge("quire:kv_cache_usage_perc"), POD_LEGEND)],
            "percentunit",
            "Blocks held by running requests over all blocks; cached blocks that nobody uses are free.",
            thresholds=((None, "green"), (0.9, "red")),
            ceiling=1,
            runbook="QuireKVCacheFull",
        ),
        Panel(
            "Preemptions",
            [Query(pod_rate("quire:num_preemptions_total"), POD_LEGEND)],
            "ops",
            "Sequences put back to be computed again, because blocks ran out.",
            runbook="QuirePreemptionStorm",
        ),
        Panel(
            "Prompt tokens found cached",
            [
                Query(
                    ratio(pod_rate("quire:prefix_cache_hits_total"), pod_rate("quire:prefix_cache_queries_total")),
                    POD_LEGEND,
                )
            ],
            "percentunit",
            "Share of prompt tokens that needed no computing.",
            ceiling=1,
        ),
        Panel(
            "Blocks",
            [
                Query(gauge("quire:kv_blocks_used"), f"{POD_LEGEND} used"),
                Query(gauge("quire:kv_blocks_total"), f"{POD_LEGEND} all"),
            ],
            "short",
            "Blocks of the KV cache.",
        ),
        Panel(
            "Waste",
            [Query(gauge("quire:kv_waste_ratio"), POD_LEGEND)],
            "percentunit",
            "Allocated slots that hold no token, over allocated ones.",
        ),
    ],
)
PROCESS = Row(
    "Process",
    [
        Panel(
            "Memory",
            [Query(f"max by ({BY_POD}) (process_resident_memory_bytes{{{CHOSEN}, {POD_CHOSEN}}})", POD_LEGEND)],
            "bytes",
            "Resident memory of the server process.",
            runbook="QuireCrashLoop",
        ),
        Panel(
            "CPU",
            [Query(pod_rate("process_cpu_seconds_total"), POD_LEGEND)],
            "short",
            "Cores that the server process uses.",
        ),
        Panel(
            "Corrupted requests",
            [Query(pod_rate("quire:corrupted_requests_total"), POD_LEGEND)],
            "ops",
            "Requests that ended because a value was not a number: a broken model or device.",
            thresholds=((None, "green"), (0.001, "red")),
            runbook="QuireErrorRatioHigh",
        ),
    ],
)

ENGINE = Dashboard(
    "quire-engine",
    "Quire / Engine",
    "Replicas of the chosen deployments: latencies and what they are made of, batches, KV caches.",
    [NAMESPACE, DEPLOYMENT, POD, TTFT_TARGET],
    [SLO, TIME, BATCH, CACHE, PROCESS],
)
