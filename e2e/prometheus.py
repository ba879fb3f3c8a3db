"""A real Prometheus on the node, configured by the scrape file and rules that users get.

Where the cluster is not ours it runs here, and asks through a proxy in the visitors' pod.

Debian builds it without Kubernetes discovery, so its targets come from a file that carries the very labels which that
discovery would set; what the scrape file makes of them is what is tested.
"""

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from client import Client
from cluster.layout import REPOSITORY
from scenario import lacks
from tunnel import Tunnel

sys.path.insert(0, str(REPOSITORY / "charts"))

from dashboards import queries

PORT = 9390
DEADLINE_S = 180.0
SELDOM = {"quire_gateway_hedges_total", "quire_gateway_retries_total", "quire_gateway_streams_broken_total"}
"""Counters that have no series before something rare happens; that they are declared is enough."""


@dataclass(frozen=True)
class Target:
    """One port of one pod."""

    address: str
    component: str
    port: str
    namespace: str
    pod: str
    deployment: str = ""

    def entry(self) -> dict[str, Any]:
        words = {
            "pod_label_app_kubernetes_io_name": self.component,
            "pod_container_port_name": self.port,
            "pod_phase": "Running",
            "namespace": self.namespace,
            "pod_name": self.pod,
            "pod_label_quire_dev_deployment": self.deployment,
        }
        return {
            "targets": [self.address],
            "labels": {f"__meta_kubernetes_{name}": value for name, value in words.items() if value},
        }


class Prometheus:
    """Starts in the constructor; scrapes and evaluates every second."""

    def __init__(self, cluster: Client, folder: Path, targets: Iterable[Target]) -> None:
        if shutil.which("prometheus", path=cluster.environment["PATH"]) is None:
            lacks(cluster, "Prometheus is missing on this machine: apt-get install prometheus")
        self._cluster = cluster
        self._tunnel = Tunnel(cluster) if cluster.is_visiting else None
        proxy = {"proxy_url": self._tunnel.url} if self._tunnel else {}
        shutil.copy(queries.FOLDER / "rules.yaml", folder)
        config = yaml.safe_load((queries.FOLDER / "scrape.yaml").read_text())
        config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
        for job in config["scrape_configs"]:
            del job["kubernetes_sd_configs"]
            job |= proxy
            job["file_sd_configs"] = [{"files": [str(folder / "targets.json")]}]
        entries = [target.entry() for target in targets]
        # Every job gets them all, and drops those that are not its own.
        self._discovered = len(entries) * len(config["scrape_configs"])
        (folder / "targets.json").write_text(json.dumps(entries))
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        command = [
            *(*cluster.inside, "prometheus", f"--config.file={folder}/prometheus.yaml"),
            *(f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{PORT}"),
        ]
        self.log = folder / "prometheus.log"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        if self._tunnel:
            self._tunnel.stop()

    def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer; None where there is none."""
        given = [word for name, value in parameters.items() for word in ("--data-urlencode", f"{name}={value}")]
        command = [*self._cluster.inside, "curl", "-sG", f"http://127.0.0.1:{PORT}/api/v1/{path}", *given]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        # Before it is ready it answers with a line of text.
        answer = json.loads(done.stdout) if done.stdout.startswith("{") else {}
        assert answer.get("status") != "error", f"{parameters}: {answer['error']}"
        return answer.get("data")

    def have_data(self, asked: Sequence[str]) -> list[bool]:
        """For each query whether some number comes back that is one; one process asks them all."""
        url = f"http://127.0.0.1:{PORT}/api/v1/query"
        config = "\nnext\n".join(
            f'url = "{url}"\nget\nsilent\ndata-urlencode = {json.dumps("query=" + query)}' for query in asked
        )
        command = [*self._cluster.inside, "curl", "--config", "-"]
        done = subprocess.run(command, input=config, capture_output=True, text=True, timeout=120, check=False)
        found, rest, decoder = [], done.stdout, json.JSONDecoder()
        while rest:
            answer, end = decoder.raw_decode(rest)
            rest = rest[end:].lstrip()
            assert answer["status"] == "success", answer
            found.append(any(not math.isnan(float(sample["value"][1])) for sample in answer["data"]["result"]))
        assert len(found) == len(asked), done.stderr
        return found

    def silent(self) -> list[str]:
        """Panels, recording rules and alerts for which there is no data now."""
        wanted = [(where, query) for where, query in queries.panel_queries() if not self._is_seldom(query)]
        for name, query in queries.rules():
            parts = queries.metrics_of(query) if name in self.alerts() else {name}
            wanted += [(name, f"count({part})") for part in sorted(parts) if not self._is_seldom(part)]
        found = self.have_data([query for _, query in wanted])
        return [f"{where}: {query}" for (where, query), is_there in zip(wanted, found, strict=True) if not is_there]

    def alerts(self) -> set[str]:
        return {name for name, _ in queries.rules() if ":" not in name}

    def unhealthy(self) -> list[str]:
        """Targets that are not scraped and rules that are not evaluated, with their errors."""
        discovered = self.ask("targets") or {"activeTargets": [], "droppedTargets": []}
        groups = (self.ask("rules") or {}).get("groups", [])
        targets = discovered["activeTargets"]
        if not targets or not groups or len(targets) + len(discovered["droppedTargets"]) < self._discovered:
            return ["its targets and rules are not all loaded"]
        found = [f"{target['scrapeUrl']}: {target['lastError']}" for target in targets if target["health"] != "up"]
        rules = [rule for group in groups for rule in group["rules"]]
        return found + [f"{rule['name']}: {rule.get('lastError')}" for rule in rules if rule["health"] != "ok"]

    def wait(self, find: Callable[[], list[str]]) -> list[str]:
        """Poll until nothing is found, at most DEADLINE_S; what was found last."""
        end = time.monotonic() + DEADLINE_S
        while (found := find()) and time.monotonic() < end:
            assert self._process.poll() is None, self.log.read_text()
            if self._tunnel:
                self._tunnel.keep()
            time.sleep(1.0)
        return found

    def _is_seldom(self, query: str) -> bool:
        names = queries.metrics_of(query) & SELDOM
        return bool(names) and all(
            self.ask("metadata", metric=name.removesuffix("_total")) or self.ask("metadata", metric=name)
            for name in names
        )
