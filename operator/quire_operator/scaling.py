"""From what gateways and replicas say to the scaling law's view, and the law's memory over all deployments."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from quire_api import wire
from quire_api.v1alpha1 import LLMDeployment
from quire_operator.autoscale import Decision, History, Load, ScalingLaw, desired_replicas
from quire_operator.decide import wanted_replicas
from quire_operator.world import Key, Phase, ReplicaState


def load_of(
    deployment: LLMDeployment, reports: Sequence[wire.GatewayLoad | None], replicas: Iterable[ReplicaState]
) -> Load:
    """One deployment's load: counts added up, latencies of the slowest gateway, idle as long as every gateway is.

    A gateway that has not answered is None; one that does not know the deployment yet has not told either.
    """
    key = Key.of(deployment)
    told = [entry for report in reports if report for entry in report.deployments if _key(entry) == key]
    mine = [
        replica
        for replica in replicas
        if replica.key == key and not replica.is_draining and replica.phase is not Phase.STOPPING
    ]
    ready = sum(replica.is_available for replica in mine)
    arrivals = [entry.arrivals_per_s for entry in told if entry.arrivals_per_s is not None]
    return Load(
        in_flight=sum(entry.in_flight for entry in told),
        held=sum(entry.held for entry in told),
        ready=ready,
        starting=len(mine) - ready,
        wanted=wanted_replicas(deployment),
        ttft_s=max((entry.ttft_p90_s for entry in told if entry.ttft_p90_s is not None), default=None),
        itl_s=max((entry.itl_p90_s for entry in told if entry.itl_p90_s is not None), default=None),
        arrivals_per_s=sum(arrivals) if arrivals and len(arrivals) == len(told) else None,
        service_s=max((entry.service_s for entry in told if entry.service_s is not None), default=None),
        idle_s=min((entry.idle_s for entry in told), default=0.0),
        admitted=sum(entry.requests for entry in told),
        is_complete=bool(reports) and len(told) == len(reports),
    )


class Scaler:
    """Applies the law to every deployment that has `autoscaling`, and remembers for it."""

    def __init__(self) -> None:
        self._histories: dict[Key, History] = {}
        self._contested: Mapping[Key, str] = {}
        self._objections: dict[Key, str] = {}

    def decide(
        self,
        deployments: Iterable[LLMDeployment],
        reports: Sequence[wire.GatewayLoad | None],
        replicas: Sequence[ReplicaState],
        now: float,
    ) -> Mapping[Key, Decision]:
        """The law's word on each of them; `now` is any clock that never goes back."""
        decisions = {}
        for deployment in deployments:
            if deployment.spec.autoscaling is None:
                continue
            key = Key.of(deployment)
            law = ScalingLaw.of(deployment.spec.autoscaling)
            seen = load_of(deployment, reports, replicas)
            decisions[key] = desired_replicas(seen, law, self._histories.get(key, History.empty()), now)
        self._histories = {key: decision.history for key, decision in decisions.items()}
        contested = {key: decision.reason for key, decision in decisions.items() if decision.is_contested}
        self._objections |= {key: reason for key, reason in contested.items() if key not in self._contested}
        self._contested = contested
        return decisions

    def take_objections(self) -> Mapping[Key, str]:
        """What is still to be said, once, of deployments whose number somebody else has begun to write."""
        taken, self._objections = self._objections, {}
        return taken

    def history(self, key: Key) -> History | None:
        """What the law remembers of it."""
        return self._histories.get(key)

    def histories(self) -> list[tuple[Key, History]]:
        return list(self._histories.items())

    def restore(self, key: Key, history: History) -> None:
        """Go on with what another remembered."""
        self._histories[key] = history

    def wrote(self, key: Key, replicas: int | None) -> None:
        """What was written of the last decision; None where nobody knows, so that the next number is no rival's."""
        self._histories[key] = replace(self._histories[key], wrote=replicas)


def _key(entry: wire.DeploymentLoad) -> Key:
    return Key(entry.namespace, entry.deployment)
