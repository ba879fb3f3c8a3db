"""All deployments at a glance: are promises kept, are they Ready, where is it full, does the operator work."""

from dashboards.grafana import Dashboard, Panel, Query, Row
from dashboards.words import (
    AVAILABILITY,
    BY,
    BY_LEGEND,
    CHOSEN,
    DEPLOYMENT,
    NAMESPACE,
    TTFT_SHARE,
    TTFT_TARGET,
    quantile,
    quantiles,
    rate,
    ratio,
)

OBJECTIVE = ((None, "red"), (0.99, "orange"), (0.999, "green"))

SLO = Row(
    "Service level",
    [
        Panel(
            "Availability",
            [Query(AVAILABILITY, "answered without an error of ours")],
            "percentunit",
            "Share of requests in the chosen time that did not end with a status of 500 or above.",
            kind="stat",
            thresholds=OBJECTIVE,
            width=6,
            runbook="QuireErrorRatioHigh",
        ),
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
            "Time to first token, p99",
            [Query(quantile(0.99, "quire:time_to_first_token_seconds"), BY_LEGEND)],
            "s",
            "As the engines measure it, from a request's arrival at the engine.",
            thresholds=((None, "green"), (10, "red")),
            width=6,
            runbook="QuireTTFTHigh",
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
DEPLOYMENTS = Row(
    "Deployments",
    [
        Panel(
            "State",
            [
                Query(f"max by ({BY}, reason) (quire_operator_llmdeployment_ready{{{CHOSEN}}})", "Ready"),
                Query(f'max by ({BY}) (quire_operator_llmdeployment_replicas{{{CHOSEN}, state="wanted"}})', "wanted"),
                Query(f'max by ({BY}) (quire_operator_llmdeployment_replicas{{{CHOSEN}, state="ready"}})', "ready"),
            ],
            "short",
            "Ready (1 or 0) with its reason, replicas wanted, replicas ready: what `kubectl get llmd` shows.",
            kind="table",
            width=12,
            runbook="QuireNoReadyReplica",
        ),
        Panel(
            "Replicas missing",
            [
                Query(
                    f"deployment:quire_replicas_wanted:max{{{CHOSEN}}}"
                    f" - deployment:quire_replicas_ready:max{{{CHOSEN}}}",
                    BY_LEGEND,
                )
            ],
            "short",
            "Wanted replicas that are not ready.",
            thresholds=((None, "green"), (1, "red")),
            width=6,
            runbook="QuireNoReadyReplica",
        ),
        Panel(
            "LLMDeployments by state",
            [Query("max by (ready, reason) (quire_operator_llmdeployments)", "{{ready}} {{reason}}")],
            "short",
            "Ready condition and reason over all namespaces that the operator works in.",
            width=6,
            is_stacked=True,
            runbook="QuireCrashLoop",
        ),
    ],
)
TRAFFIC = Row(
    "Traffic",
    [
        Panel("Requests", [Query(rate("quire_gateway_requests_total"), BY_LEGEND)], "reqps", "Answered by gateways."),
        Panel(
            "Tokens generated",
            [Query(rate("quire:generation_tokens_total"), BY_LEGEND)],
            "short",
            "Tokens a second, all replicas together.",
        ),
        Panel(
            "In flight and held",
            [
                Query(f"sum by ({BY}) (quire_gateway_in_flight{{{CHOSEN}}})", f"{BY_LEGEND} in flight"),
                Query(f"sum by ({BY}) (quire_gateway_held{{{CHOSEN}}})", f"{BY_LEGEND} held"),
            ],
            "short",
            "Requests at replicas now, and requests that wait at a gateway for a replica.",
            runbook="QuireGatewayNoReplicas",
        ),
        Panel(
            "Time between tokens",
            quantiles("quire:inter_token_latency_seconds", 0.5, 0.99),
            "s",
            "Within one answer.",
        ),
    ],
)
ROOM = Row(
    "Room left",
    [
        Panel(
            "KV cache in use",
            [Query(f"deployment:quire_kv_cache_usage:avg{{{CHOSEN}}}", BY_LEGEND)],
            "percentunit",
            "Blocks held by running requests over all blocks, mean of the replicas.",
            thresholds=((None, "green"), (0.9, "red")),
            ceiling=1,
            runbook="QuireKVCacheFull",
        ),
        Panel(
            "Waiting at each replica",
            [Query(f"deployment:quire_requests_waiting:avg{{{CHOSEN}}}", BY_LEGEND)],
            "short",
            "Requests that an engine has and has not begun.",
            thresholds=((None, "green"), (50, "red")),
            runbook="QuireQueueGrows",
        ),
        Panel(
            "Prompt tokens found cached",
            [Query(ratio(rate("quire:prefix_cache_hits_total"), rate("quire:prefix_cache_queries_total")), BY_LEGEND)],
            "percentunit",
            "Share of prompt tokens that needed no computing.",
            ceiling=1,
            runbook="QuireIndexNotExact",
        ),
    ],
)
OPERATOR = Row(
    "Operator",
    [
        Panel(
            "Leaders",
            [Query("sum(quire_operator_is_leader)", "operators that lead")],
            "short",
            "Exactly one operator writes.",
            kind="stat",
            thresholds=((None, "red"), (1, "green"), (2, "red")),
            width=4,
            runbook="QuireOperatorNotReconciling",
        ),
        Panel(
            "Gateways heard",
            [Query("max(quire_operator_gateways)", "gateways that report")],
            "short",
            "Gateways whose reports the operator gets; without one no replica becomes Ready.",
            kind="stat",
            thresholds=((None, "red"), (1, "green")),
            width=4,
            runbook="QuireGatewayDown",
        ),
        Panel(
            "Reconciles",
            [
                Query("sum by (result) (rate(quire_operator_reconciles_total[$__rate_interval]))", "{{result}}"),
                Query("sum(rate(quire_operator_status_writes_total[$__rate_interval]))", "status written"),
            ],
            "ops",
            "By result; a status is written only when it changes.",
            runbook="QuireReconcileErrors",
        ),
        Panel(
            "Reconcile time and queue",
            [
                Query(
                    "histogram_quantile(0.99, sum by (le) (rate(quire_operator_reconcile_seconds_bucket[10m])))",
                    "p99 (s)",
                ),
                Query("sum(quire_operator_queue_depth)", "waiting"),
            ],
            "short",
            "How long one reconcile takes, and how many deployments wait for theirs.",
            runbook="QuireOperatorNotReconciling",
        ),
        Panel(
            "Routing table",
            [
                Query("max(quire_operator_routing_table_bytes)", "bytes"),
                Query("max(quire_operator_routing_table_refused)", "deployments without room"),
            ],
            "short",
            "One Secret of at most 1,000,000 bytes holds all routes and API keys.",
            runbook="QuireRoutingTableFull",
        ),
        Panel(
            "Requests to the API server",
            [
                Query(
                    "sum by (method, code) (rate(quire_operator_api_requests_total[$__rate_interval]))",
                    "{{method}} {{code}}",
                )
            ],
            "reqps",
            "By method and status.",
            is_stacked=True,
        ),
    ],
)

FLEET = Dashboard(
    "quire-fleet",
    "Quire / Fleet",
    "All deployments: service level, state, traffic, room left, and the operator.",
    [NAMESPACE, DEPLOYMENT, TTFT_TARGET],
    [SLO, DEPLOYMENTS, TRAFFIC, ROOM, OPERATOR],
)
