"""Queries that several dashboards ask, over what the variables choose."""

from dashboards.grafana import Query, choice_variable, label_variable

TTFT_TARGETS = ("0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0")
"""Bounds of the histogram's buckets: a share below a target is exact only there."""

NAMESPACE = label_variable("namespace", "Namespace", "label_values(quire_gateway_replicas, namespace)")
DEPLOYMENT = label_variable(
    "deployment", "Deployment", 'label_values(quire_gateway_replicas{namespace=~"$namespace"}, deployment)'
)
TTFT_TARGET = choice_variable("ttft_target", "TTFT target (s)", TTFT_TARGETS, "2.5")

CHOSEN = 'namespace=~"$namespace", deployment=~"$deployment"'
BY = "namespace, deployment"
BY_LEGEND = "{{namespace}}/{{deployment}}"


def rate(metric: str, by: str = BY, *more: str, window: str = "$__rate_interval") -> str:
    """Per-second rate of a counter, summed `by` labels; `more` are further label matchers."""
    matchers = ", ".join((CHOSEN, *more))
    return f"sum by ({by}) (rate({metric}{{{matchers}}}[{window}]))"


def quantile(share: float, metric: str, by: str = BY) -> str:
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', f'{by}, le')})"


def quantiles(metric: str, *shares: float, by: str = BY, legend: str = BY_LEGEND) -> list[Query]:
    return [Query(quantile(share, metric, by), f"{legend} p{share * 100:g}") for share in shares]


def ratio(part: str, whole: str) -> str:
    return f"{part} / {whole}"


AVAILABILITY = (
    f'1 - (sum(increase(quire_gateway_requests_total{{{CHOSEN}, code=~"5.."}}[$__range])) or vector(0))'
    f" / sum(increase(quire_gateway_requests_total{{{CHOSEN}}}[$__range]))"
)
TTFT_SHARE = (
    f'sum(increase(quire:time_to_first_token_seconds_bucket{{{CHOSEN}, le="$ttft_target"}}[$__range]))'
    f" / sum(increase(quire:time_to_first_token_seconds_count{{{CHOSEN}}}[$__range]))"
)
