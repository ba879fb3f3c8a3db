"""What the operator counts; served at /metrics."""

from prometheus_client import Counter, Gauge, Histogram

API_REQUESTS = Counter("quire_operator_api_requests", "Requests to the API server.", ["method", "code"])
RECONCILES = Counter("quire_operator_reconciles", "Reconciles of one LLMDeployment.", ["result"])
RECONCILE_SECONDS = Histogram(
    "quire_operator_reconcile_seconds",
    "Duration of one reconcile.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
QUEUE_DEPTH = Gauge("quire_operator_queue_depth", "LLMDeployments that wait for a reconcile.")
STATUS_WRITES = Counter("quire_operator_status_writes", "Patches of a status.")
IS_LEADER = Gauge("quire_operator_is_leader", "1 while this operator holds the lease.")
GATEWAYS = Gauge("quire_operator_gateways", "Gateways that report.")
TABLE_BYTES = Gauge("quire_operator_routing_table_bytes", "Size of the routing table; a Secret takes 1,000,000.")
TABLE_REFUSED = Gauge(
    "quire_operator_routing_table_refused",
    "LLMDeployments whose entry, or its change, has no room in the routing table.",
)
RENEWALS = Gauge(
    "quire_operator_renewals",
    "LLMDeployments with replicas that another version or other images made: being exchanged (running), or waiting.",
    ["state"],
)
DEPLOYMENTS = Gauge("quire_operator_llmdeployments", "LLMDeployments by their Ready condition.", ["ready", "reason"])
REPLICAS = Gauge(
    "quire_operator_llmdeployment_replicas",
    "Replicas of each LLMDeployment: wanted by its spec, existing, ready.",
    ["namespace", "deployment", "state"],
)
READY = Gauge(
    "quire_operator_llmdeployment_ready",
    "1 while an LLMDeployment is Ready, else 0; reason is that of the condition.",
    ["namespace", "deployment", "reason"],
)
