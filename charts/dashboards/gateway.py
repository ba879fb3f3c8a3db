"""The front door: what clients get, why a replica is chosen, what is retried, how well caches are known."""

from dashboards.grafana import Dashboard, Panel, Query, Row
from dashboards.words import (
    AVAILABILITY,
    BY,
    BY_LEGEND,
    CHOSEN,
    DEPLOYMENT,
    NAMESPACE,
    quantiles,
    rate,
    ratio,
)

SLO = Row(
    "Service level",
    [
        Panel(
            "Availability",
            [Query(AVAILABILITY, "answered without an error of ours")],
            "percentunit",
            "Share of requests in the chosen time that did not end with a status of 500 or above.",
            kind="stat",
            thresholds=((None, "red"), (0.99, "orange"), (0.999, "green")),
            width=6,
            runbook="QuireErrorRatioHigh",
        ),
        Panel(
            "Time to first byte",
            quantiles("quire_gateway_time_to_first_byte_seconds", 0.5, 0.99),
            "s",
            "From the whole request to the first byte of the answer. Without streaming that is the whole answer.",
            width=6,
            runbook="QuireTTFTHigh",
        ),
        Panel(
            "Whole request",
            quantiles("quire_gateway_request_duration_seconds", 0.5, 0.99),
            "s",
            "From the whole request to the end of the answer.",
            width=6,
        ),
        Panel(
            "Errors",
            [Query(f"deployment:quire_request_errors:ratio_rate5m{{{CHOSEN}}}", BY_LEGEND)],
            "percentunit",
            "Share of requests that end with a status of 500 or above, or break off in the middle; five minutes.",
            thresholds=((None, "green"), (0.05, "red")),
            width=6,
            runbook="QuireErrorRatioHigh",
        ),
    ],
)
ANSWERS = Row(
    "Answers",
    [
        Panel(
            "Requests by status",
            [Query(rate("quire_gateway_requests_total", "code"), "{{code}}")],
            "reqps",
            "As clients got them.",
            is_stacked=True,
            runbook="QuireErrorRatioHigh",
        ),
        Panel(
            "Refused by the gateway",
            [Query(rate("quire_gateway_refusals_total", "reason"), "{{reason}}")],
            "reqps",
            "Requests that the gateway answered with an error itself, by reason.",
            runbook="QuireErrorRatioHigh",
        ),
        Panel(
            "Sent again, and broken off",
            [
                Query(rate("quire_gateway_retries_total", "cause"), "sent to another replica: {{cause}}"),
                Query(rate("quire_gateway_hedges_total", "winner"), "hedged: {{winner}} began first"),
                Query(rate("quire_gateway_streams_broken_total", "cause"), "broken off: {{cause}}"),
            ],
            "reqps",
            "Before the first byte a request goes to another replica; a hedged one is at two, and the one that begins "
            "first goes on; answers that broke off later are lost.",
            runbook="QuireErrorRatioHigh",
        ),
    ],
)
REPLICAS = Row(
    "Replicas",
    [
        Panel(
            "Routable",
            [
                Query(f"min by ({BY}) (quire_gateway_replicas_routable{{{CHOSEN}}})", f"{BY_LEGEND} routable"),
                Query(f"max by ({BY}) (quire_gateway_replicas{{{CHOSEN}}})", f"{BY_LEGEND} known"),
            ],
            "short",
            "Replicas that get requests (the gateway that has fewest), and replicas that are known.",
            runbook="QuireGatewayNoReplicas",
        ),
        Panel(
            "In flight and held",
            [
                Query(f"sum by ({BY}) (quire_gateway_in_flight{{{CHOSEN}}})", f"{BY_LEGEND} in flight"),
                Query(f"sum by ({BY}) (quire_gateway_held{{{CHOSEN}}})", f"{BY_LEGEND} held"),
            ],
            "short",
            "Requests at replicas, and requests that wait for one.",
            runbook="QuireGatewayNoReplicas",
        ),
        Panel(
            "In flight by gateway",
            [Query(f"sum by (pod) (quire_gateway_in_flight{{{CHOSEN}}})", "{{pod}}")],
            "short",
            "How evenly clients are spread over the gateways.",
        ),
        Panel(
            "Bodies of requests",
            [Query("max by (pod) (quire_gateway_buffered_body_bytes)", "{{pod}}")],
            "bytes",
            "What arrives, waits or is being answered; --max-buffered-bytes bounds it, and slow senders give way.",
        ),
        Panel(
            "Routing table",
            [Query("max by (pod) (quire_gateway_routing_table_stale)", "{{pod}}")],
            "short",
            "1 while the newest routing table cannot be used.",
            kind="stat",
            thresholds=((None, "green"), (1, "red")),
            runbook="QuireRoutingTableStale",
        ),
    ],
)
ROUTING = Row(
    "Routing and prefixes",
    [
        Panel(
            "Choices by reason",
            [Query(rate("quire_gateway_picks_total", "reason"), "{{reason}}")],
            "reqps",
            "Why the replica was chosen.",
            is_stacked=True,
        ),
        Panel(
            "Prefix misses by reason",
            [Query(rate("quire_gateway_prefix_misses_total", "reason"), "{{reason}}")],
            "reqps",
            "Prompts not wholly cached where they went. `novel` is ordinary; other_* reasons tell of wrong keys.",
            is_stacked=True,
            runbook="QuireIndexNotExact",
        ),
        Panel(
            "Prompt tokens believed cached",
            [
                Query(
                    ratio(rate("quire_gateway_cached_prompt_tokens_total"), rate("quire_gateway_prompt_tokens_total")),
                    BY_LEGEND,
                )
            ],
            "percentunit",
            "Share of prompt tokens that the gateway believes cached where it sent them.",
            ceiling=1,
            runbook="QuireIndexNotExact",
        ),
        Panel(
            "How caches are known",
            [Query(f"sum by (mode) (quire_gateway_index_mode{{{CHOSEN}}})", "{{mode}}")],
            "short",
            "Replicas by mode, summed over gateways: EXACT is told by KV events, FALLBACK is guessed.",
            is_stacked=True,
            runbook="QuireIndexNotExact",
        ),
        Panel(
            "Replicas not known exactly",
            [
                Query(
                    f'max by (namespace, replica) (quire_gateway_index_mode{{{CHOSEN}, mode!="EXACT"}})', "{{replica}}"
                )
            ],
            "short",
            "1 while some gateway guesses what the cache of this replica holds.",
            thresholds=((None, "green"), (1, "orange")),
            runbook="QuireIndexNotExact",
        ),
        Panel(
            "Event streams lost",
            [Query(rate("quire_gateway_index_losses_total", "cause"), "{{cause}}")],
            "ops",
            "Times that a replica's cache ceased to be known exactly, by what happened to its KV events.",
            runbook="QuireIndexNotExact",
        ),
        Panel(
            "Blocks told of",
            [Query(rate("quire_gateway_index_blocks_told_total"), BY_LEGEND)],
            "ops",
            "Blocks that replicas' KV events told of as stored or removed, snapshots included.",
        ),
        Panel(
            "New replicas warmed",
            [Query(f"sum by (outcome) (quire_gateway_warmings_total{{{CHOSEN}}})", "{{outcome}}")],
            "short",
            "What came of giving new replicas their siblings' prefixes, since the gateways started.",
            is_stacked=True,
        ),
        Panel(
            "Kept back for warming",
            [
                Query(
                    ratio(
                        f"sum by ({BY}) (quire_gateway_warming_seconds_sum{{{CHOSEN}}})",
                        f"sum by ({BY}) (quire_gateway_warming_seconds_count{{{CHOSEN}}})",
                    ),
                    BY_LEGEND,
                )
            ],
            "s",
            "How long a new replica computed prefixes before it got requests, in the mean; --warm-timeout-s bounds it.",
        ),
        Panel(
            "Prompt tokens warmed",
            [Query(f"sum by ({BY}) (quire_gateway_warmed_tokens_total{{{CHOSEN}}})", BY_LEGEND)],
            "short",
            "Tokens of the prefixes that new replicas have computed beforehand, since the gateways started.",
        ),
        Panel(
            "Blocks in the index",
            [
                Query(f"max by ({BY}) (quire_gateway_index_blocks{{{CHOSEN}}})", f"{BY_LEGEND} distinct"),
                Query(f"max by (replica) (quire_gateway_index_replica_blocks{{{CHOSEN}}})", "{{replica}}"),
            ],
            "short",
            "Distinct blocks, and blocks of each replica.",
        ),
    ],
)

GATEWAY = Dashboard(
    "quire-gateway",
    "Quire / Gateway",
    "What clients get at the front door, and why each request went where it went.",
    [NAMESPACE, DEPLOYMENT],
    [SLO, ANSWERS, REPLICAS, ROUTING],
)
