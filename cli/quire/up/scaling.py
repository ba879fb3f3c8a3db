"""The scaling law at work on this machine: asks the gateway each second, writes `replicas`, survives a restart."""

import json
import time
from collections.abc import Callable, MutableMapping
from dataclasses import replace

from quire.up.state import StateDir, write_atomically
from quire.up.wish import with_replicas
from quire.up.world import LocalWorld
from quire_api.v1alpha1 import AutoscalingSpec, LLMDeployment
from quire_api.v1alpha1_values import duration_seconds
from quire_operator.scaling import Scaler
from quire_operator.scaling_memory import from_text, to_text
from quire_operator.world import Key

EVERY_S = 1.0
SAVE_EVERY_S = 10.0


class Scaling:
    """Owns `replicas` of the deployments that have `autoscaling`."""

    def __init__(self, world: LocalWorld, state: StateDir, announce: Callable[[str], None]) -> None:
        self._world = world
        self._file = state.path / "scaling.json"
        self._announce = announce
        self._scaler = Scaler()
        self._saved_at = float("-inf")

    def restore(self, deployments: MutableMapping[Key, LLMDeployment]) -> None:
        """Begin with the numbers of the run before, as far as the law would not have changed its mind since."""
        try:
            saved = json.loads(self._file.read_text())
            for key, deployment in list(deployments.items()):
                spec, entry = deployment.spec.autoscaling, saved.get(str(key))
                if spec is not None and entry is not None and time.time() - float(entry["at"]) < _remembered_s(spec):
                    deployments[key] = with_replicas(deployment, int(entry["replicas"]))
                    history = from_text(str(entry.get("memory", "")), time.monotonic(), time.time())
                    if history is not None:
                        # Its replicas are gone, and none has been ready for any time.
                        self._scaler.restore(key, replace(history, ready=0, wrote=int(entry["replicas"])))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return

    async def step(self, deployments: MutableMapping[Key, LLMDeployment]) -> None:
        """Look once, and write what the law says into `deployments`."""
        if not any(deployment.spec.autoscaling for deployment in deployments.values()):
            return
        load = await self._world.ask_load()
        observed = await self._world.observe()
        decisions = self._scaler.decide(deployments.values(), [load], observed.replicas, time.monotonic())
        for key, reason in self._scaler.take_objections().items():
            self._announce(f"{key.name} {reason}")
        has_changed = False
        for key, decision in decisions.items():
            if decision.replicas != deployments[key].spec.replicas:
                deployments[key] = with_replicas(deployments[key], decision.replicas)
                has_changed = True
                self._announce(f"{key.name} scales {decision.reason}")
        if has_changed or time.monotonic() - self._saved_at >= SAVE_EVERY_S:
            self._save(deployments)
        if has_changed:
            self._world.changed.set()

    def _save(self, deployments: MutableMapping[Key, LLMDeployment]) -> None:
        entries = {}
        for key, deployment in deployments.items():
            history = self._scaler.history(key)
            if deployment.spec.autoscaling and history is not None:
                memory = to_text(history, time.monotonic(), time.time())
                entries[str(key)] = {"replicas": deployment.spec.replicas, "at": time.time(), "memory": memory}
        write_atomically(self._file, json.dumps(entries, indent=1))
        self._saved_at = time.monotonic()


def _remembered_s(spec: AutoscalingSpec) -> float:
    return max(duration_seconds(spec.scale_down_delay), duration_seconds(spec.idle_timeout))
