"""The World of one deployment in a cluster: observes through the store, gathers intentions, writes them together."""

import hashlib
import json
import logging
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from quire_api.access import read_api_keys
from quire_api.v1alpha1 import LLMDeployment, ModelFacts
from quire_api.wire import AgentProgress, ModelShape
from quire_operator.agents import Agents, is_fetching, loadings
from quire_operator.build import (
    LABEL_MANAGED_BY,
    LABEL_REVISION,
    MANAGER,
    internal_name,
    revision_deployment,
    standing_objects,
    weights_claim,
)
from quire_operator.build_pod import ROUTABLE_GATE, Settings, claim_name
from quire_operator.credentials import missing_entries
from quire_operator.drift import excess
from quire_operator.fits import fit_of, memory_of, worst
from quire_operator.gateways import Gateways
from quire_operator.kube import ApiError, Kube
from quire_operator.merge import BadTemplate, Manifest
from quire_operator.nodes import Nodes
from quire_operator.plan import covers, forgotten_revisions, left_over, plan_of
from quire_operator.pods import gates_to_open, replicas_of
from quire_operator.record import ENTRY as RECORD
from quire_operator.renewal import Target
from quire_operator.routing import Routing
from quire_operator.served import decoded
from quire_operator.store import Store
from quire_operator.world import (
    Finding,
    Fit,
    Intention,
    Key,
    Observed,
    Phase,
    ReplicaState,
    ServeRoute,
    WithdrawRoute,
)

log = logging.getLogger(__name__)

TRY_REFUSED_AGAIN_S = 10.0
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


@dataclass(frozen=True)
class Refusal:
    """An object that the API server did not take; believed for a while, unless the spec changes or it is taken."""

    kind: str
    name: str
    wish: str
    """Hash of the spec that it was made for."""
    until: float
    """Of the monotonic clock: when to try again."""
    finding: Finding

    @property
    def holds(self) -> bool:
        """Whether pods cannot do without it: an eviction without a budget is better than no replica."""
        return self.kind != "PodDisruptionBudget"


@dataclass
class Memory:
    """What a deployment's world remembers between reconciles; losing it costs a few needless requests."""

    applied: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    """By kind and name: what was asked for (hash), and the version or generation it led to."""
    refused: Refusal | None = None
    rehearsed: str = ""
    """The revision whose Deployment the API server would take."""
    shapes: dict[str, ModelShape] = field(default_factory=dict)
    """By revision, what an agent has told of the model's size."""
    weights: tuple[str, str | None, int] | None = None
    """Source and revision of a model, and the size of its weights in bytes."""
    formers: dict[str, tuple[str, Manifest]] = field(default_factory=dict)
    """By name, uid and pods of a Deployment that waits for its exchange, as they were seen first."""
    bad_keys: frozenset[str] = frozenset()
    """What is wrong with entries of the API keys' Secret, as the log has it already."""


@dataclass
class Cluster:
    """What the worlds of all deployments share."""

    kube: Kube
    store: Store
    gateways: Gateways
    agents: Agents
    nodes: Nodes
    routing: Routing
    settings: Settings
    url: str


class KubernetesWorld:
    """Made anew for every reconcile. `flush` carries out what was applied."""

    def __init__(
        self,
        cluster: Cluster,
        deployment: LLMDeployment,
        target: Target,
        memory: Memory,
        complaint: Finding | None = None,
    ) -> None:
        self._cluster = cluster
        self._deployment = deployment
        self._complaint = complaint
        self._revision = target.revision
        self._template = target.template
        self._memory = memory
        self._key = Key.of(deployment)
        self._replicas: list[ReplicaState] = []
        self._intentions: list[Intention] = []
        self._secrets: dict[str, dict[str, str] | None] = {}

    async def observe(self) -> Observed:
        cluster, key = self._cluster, self._key
        words = cluster.gateways.words.get(key, {})
        deployments, pods = cluster.store.children(key, "Deployment"), cluster.store.children(key, "Pod")
        cluster.agents.watch(key, pods, self._internal_key() if any(map(is_fetching, pods)) else "")
        heard = cluster.agents.heard.get(key, {})
        self._replicas = replicas_of(
            key, deployments, pods, words, time.time(), loadings(heard), cluster.settings.gpu_resource
        )
        fit = await self._fit(pods, heard)
        await self._read_secrets()
        refused = self._refusal()
        finding = refused.finding if refused is not None and refused.holds else None
        finding = finding or self._finding() or await self._claim_finding() or await self._rehearse()
        complaint = self._complaint or cluster.routing.refusals.get(key)
        if complaint is None and refused is not None and not refused.holds:
            complaint = refused.finding
        facts = self._facts()
        return Observed(
            replicas=self._replicas,
            routes={key: cluster.routing.routes[key]} if key in cluster.routing.routes else {},
            findings={key: finding} if finding else {},
            complaints={key: complaint} if complaint else {},
            facts={key: facts} if facts else {},
            fits={key: fit} if fit else {},
            revisions={key: self._revision},
            waiting=frozenset({key} if self._template is None else ()),
            gateways=cluster.gateways.count,
            url=cluster.url,
        )

    def _facts(self) -> ModelFacts | None:
        """What an engine of the newest revision says; the status keeps it while none does.

        Gateways still tell of pods that are leaving, of a former deployment of this name among them.
        """
        told = self._cluster.gateways.facts.get(self._key, {})
        mine = (r.id for r in self._replicas if r.revision == self._revision and r.phase is not Phase.STOPPING)
        return next((told[name] for name in mine if name in told), None)

    async def apply(self, intention: Intention) -> None:
        self._intentions.append(intention)

    async def prepare(self, wanted: int) -> None:
        """Write what pods stand on, drift included, before anything is decided: what is refused shows as a finding.

        Raises:
            ApiError, ApiUnavailable, NotLeading
        """
        await self._apply_standing(wanted)
        await self._apply_claim()

    async def restore(self) -> None:
        """Bring back what follows from the name alone, as somebody may have changed or deleted it.

        The Secret is left alone where it is, and has the key that gateways and engines know where it is made anew.

        Raises:
            ApiError, ApiUnavailable, NotLeading
        """
        store, key, internal_key = self._cluster.store, self._key, self._cluster.routing.internal_key(self._key)
        wanted = sum(live.get("spec", {}).get("replicas", 1) for live in store.children(key, "Deployment"))
        for manifest in standing_objects(self._deployment, wanted, internal_key, self._cluster.settings):
            if manifest["kind"] == "Secret":
                if not internal_key or store.child(key, "Secret", internal_name(key.name)) is not None:
                    continue
                manifest["data"].pop(RECORD)
            await self._ensure(manifest)

    async def flush(self) -> None:
        """Write what was decided, drift included.

        Raises:
            ApiError, ApiUnavailable, NotLeading
        """
        self._route(self._internal_key())
        plan = plan_of(self._intentions, self._replicas)
        for pod, annotations in plan.marks.items():
            await patch_pod(self._cluster, self._key, pod, {"metadata": {"annotations": annotations}})
        await open_gates(self._cluster, self._key)
        await self._apply_revision(plan.replicas.get(self._revision, 0))
        await self._keep_former()
        await self._scale_former(plan.replicas)
        await self._tidy()

    async def _apply_standing(self, wanted: int) -> None:
        """One that is refused keeps no other from being applied."""
        refusals: list[Refusal] = []
        for manifest in standing_objects(self._deployment, wanted, self._internal_key(), self._cluster.settings):
            try:
                await self._ensure(manifest)
            except ApiError as error:
                finding = refusal(f"the {manifest['kind']} {manifest['metadata']['name']}", error)
                refusals.append(self._refuse(manifest, finding))
        refusals.sort(key=lambda refused: not refused.holds)
        if refusals:
            self._memory.refused = refusals[0]
        name = self._key.name
        if wanted <= 1 and self._cluster.store.child(self._key, "PodDisruptionBudget", name):
            await self._cluster.kube.delete("policy/v1", "PodDisruptionBudget", self._key.namespace, name)

    async def _apply_claim(self) -> None:
        manifest = weights_claim(self._deployment)
        if manifest is None:
            return
        name = manifest["metadata"]["name"]
        try:
            if self._cluster.store.child(self._key, "PersistentVolumeClaim", name) is None:
                there = await self._cluster.kube.get("v1", "PersistentVolumeClaim", self._key.namespace, name)
                if there is not None and there["metadata"].get("labels", {}).get(LABEL_MANAGED_BY) != MANAGER:
                    # Owning it would mean to delete it one day.
                    message = f"the volume claim {name} exists and belongs to somebody else; rename one of the two"
                    self._refuse(manifest, Finding("NameConflict", message))
                    return
            await self._ensure(manifest)
        except ApiError as error:
            finding = refusal(f"the claim {name}", error, "change it back, or delete the claim first")
            self._refuse(manifest, replace(finding, message=f"spec.model.volume: {finding.message}"))

    async def _rehearse(self) -> Finding | None:
        """What the API server says of a new revision's Deployment, before anything is done towards it.

        Else a former replica might have gone already for a template that nobody takes.
        """
        live = self._cluster.store.child(self._key, "Deployment", f"{self._key.name}-{self._revision}")
        if live is not None or self._memory.rehearsed == self._revision:
            return None
        try:
            manifest = self._revision_deployment(1, None)
        except BadTemplate as error:
            return Finding("InvalidSpec", f"spec.podTemplate.{error}")
        try:
            await self._cluster.kube.apply(manifest, force=False, is_rehearsal=True)
        except ApiError as error:
            # Some admission webhook; what it says shows when the Deployment is written.
            if "does not support dry run" not in error.message:
                return self._refuse(manifest, self._template_refusal(error)).finding
        self._memory.rehearsed = self._revision
        return None

    def _template_refusal(self, error: ApiError) -> Finding:
        """
        Raises:
            ApiError: the error itself, where it tells nothing of the object.
        """
        finding = refusal("the pods of this spec", error)
        if self._deployment.spec.pod_template is None:
            return finding
        return replace(finding, message=finding.message.replace("spec.template.", "spec.podTemplate."))

    async def _apply_revision(self, replicas: int) -> None:
        name = f"{self._key.name}-{self._revision}"
        live = self._cluster.store.child(self._key, "Deployment", name)
        if self._template is None or (live is None and replicas == 0):
            return
        try:
            manifest = self._revision_deployment(replicas, live)
        except BadTemplate:  # said when it was rehearsed
            return
        try:
            await self._ensure(manifest)
        except ApiError as error:
            self._refuse(manifest, self._template_refusal(error))

    def _revision_deployment(self, replicas: int, live: Manifest | None) -> Manifest:
        """
        Raises:
            BadTemplate
        """
        model, weights = self._deployment.spec.model, self._memory.weights
        size = weights[2] if weights and weights[:2] == (model.source, model.revision) else None
        settings = self._cluster.settings
        return revision_deployment(
            self._deployment, self._revision, replicas, settings, live, size, self._template or ""
        )

    def _refuse(self, manifest: Manifest, finding: Finding) -> Refusal:
        """Let the finding stand until the spec changes, the object is taken or it is time to try again."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        refused = Refusal(kind, name, self._wish(), time.monotonic() + TRY_REFUSED_AGAIN_S, finding)
        self._memory.refused = refused
        return refused

    def _refusal(self) -> Refusal | None:
        """What was refused last and not taken since."""
        refused = self._memory.refused
        if refused is not None and (refused.wish != self._wish() or time.monotonic() >= refused.until):
            self._memory.refused = None
        return self._memory.refused

    def _wish(self) -> str:
        return hashlib.sha256(self._deployment.spec.model_dump_json().encode()).hexdigest()

    async def _scale_former(self, counts: Mapping[str, int]) -> None:
        for live in self._cluster.store.children(self._key, "Deployment"):
            revision = live["metadata"].get("labels", {}).get(LABEL_REVISION, "")
            count = counts.get(revision, 0)
            is_former = revision != self._revision or self._template is None
            if is_former and live.get("spec", {}).get("replicas", 1) != count:
                name = live["metadata"]["name"]
                change = {"spec": {"replicas": count}}
                after = await self._cluster.kube.patch("apps/v1", "Deployment", self._key.namespace, name, change)
                self._cluster.store.put("Deployment", after)

    async def _keep_former(self) -> None:
        """Take back what others change in the pods of a Deployment that another operator made and that waits.

        How that one made them nobody knows here: they are kept as they were when this operator came.
        """
        if self._template is not None:
            self._memory.formers.clear()
            return
        name = f"{self._key.name}-{self._revision}"
        live = self._cluster.store.child(self._key, "Deployment", name)
        if live is None:
            return
        uid, pods = live["metadata"]["uid"], live["spec"]["template"]["spec"]
        first_uid, first = self._memory.formers.setdefault(name, (uid, pods))
        if first_uid != uid:
            self._memory.formers[name] = uid, pods
        elif pods != first:
            change = {"spec": {"template": {"spec": {**first, "$patch": "replace"}}}}
            after = await self._cluster.kube.patch("apps/v1", "Deployment", self._key.namespace, name, change)
            self._cluster.store.put("Deployment", after)
            log.info("took back what was changed in the Deployment %s/%s", self._key.namespace, name)

    async def _tidy(self) -> None:
        cluster, key = self._cluster, self._key
        deployments, pods = cluster.store.children(key, "Deployment"), cluster.store.children(key, "Pod")
        for live in deployments:
            for pod in left_over(live, pods):
                await cluster.kube.delete("v1", "Pod", key.namespace, pod)
        for name in forgotten_revisions(deployments, self._revision):
            await cluster.kube.delete("apps/v1", "Deployment", key.namespace, name)

    async def _ensure(self, manifest: Manifest) -> None:
        """Apply what is not there as wished. An object of that name which is not ours is left alone.

        Raises:
            ApiError: 409 where somebody else's object stands in the way.
        """
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        live = self._cluster.store.child(self._key, kind, name)
        wish = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        # A default or a webhook that says otherwise is asked once, not for ever.
        if live is not None and self._memory.applied.get((kind, name)) == (wish, _mark(live)):
            return
        is_whole = live is not None and covers(live, manifest)
        if is_whole and live is not None and excess(live, manifest) is None:
            return
        kube = self._cluster.kube
        after = live if is_whole and live is not None else await kube.apply(manifest, force=live is not None)
        if (change := excess(after, manifest)) is not None:
            after = await kube.patch(manifest["apiVersion"], kind, self._key.namespace, name, change)
        self._cluster.store.put(kind, after)
        self._memory.applied[kind, name] = wish, _mark(after)
        log.info("applied %s %s/%s", kind, self._key.namespace, name)
        refused = self._memory.refused
        if refused is not None and (refused.kind, refused.name) == (kind, name):
            self._memory.refused = None

    async def _fit(self, pods: Sequence[Manifest], heard: Mapping[str, AgentProgress]) -> Fit | None:
        """The arithmetic for pods of the newest revision that have a node and do not serve yet."""
        shapes, settings = self._memory.shapes, self._cluster.settings
        starting = {replica.id for replica in self._replicas if replica.phase in (Phase.STARTING, Phase.EXITED)}
        mine = [pod for pod in pods if pod["metadata"].get("labels", {}).get(LABEL_REVISION) == self._revision]
        for pod in mine:
            said = heard.get(pod["metadata"]["name"])
            if said is not None and said.shape is not None:
                self._memory.shapes = shapes = {self._revision: said.shape}
                model = self._deployment.spec.model
                self._memory.weights = model.source, model.revision, said.shape.weight_bytes
        shape = shapes.get(self._revision)
        if shape is None:
            return None
        fits = []
        for pod in mine:
            node = pod.get("spec", {}).get("nodeName")
            if node and pod["metadata"]["name"] in starting:
                labels = await self._cluster.nodes.labels(node) if self._deployment.spec.resources.gpus else {}
                fits.append(fit_of(self._deployment, shape, memory_of(pod, labels, settings.gpu_resource)))
        return worst(fits)

    def _internal_key(self) -> str:
        secret = self._cluster.store.child(self._key, "Secret", internal_name(self._key.name))
        kept = decoded(secret).get("key", "").strip() if secret else ""
        return kept or secrets.token_urlsafe(24)

    def _route(self, internal_key: str) -> None:
        routing, key = self._cluster.routing, self._key
        access = self._deployment.spec.access.api_keys_secret_ref
        for intention in self._intentions:
            match intention:
                case WithdrawRoute():
                    routing.withdraw(key)
                case ServeRoute(_, route):
                    routing.routes[key] = route
                case _:
                    pass
        if key in routing.routes:
            values = self._secrets.get(access.name) if access else None
            keys, problems = read_api_keys(values or {}, self._deployment.spec.access)
            for problem in set(problems) - self._memory.bad_keys:
                log.warning("%s: the Secret %s: %s", key, access.name if access else "", problem)
            self._memory.bad_keys = frozenset(problems)
            routing.serve(key, routing.routes[key], internal_key, None if access and not keys else keys)

    async def _read_secrets(self) -> None:
        spec = self._deployment.spec
        references = [spec.access.api_keys_secret_ref, spec.model.auth.secret_ref if spec.model.auth else None]
        for name in {reference.name for reference in references if reference} - self._secrets.keys():
            secret = await self._cluster.kube.get("v1", "Secret", self._key.namespace, name)
            self._secrets[name] = decoded(secret) if secret is not None else None

    def _finding(self) -> Finding | None:
        spec = self._deployment.spec
        for path, reference in (
            ("access.apiKeysSecretRef", spec.access.api_keys_secret_ref),
            ("model.auth.secretRef", spec.model.auth.secret_ref if spec.model.auth else None),
        ):
            if reference is not None and not self._secrets.get(reference.name):
                state = "does not exist" if self._secrets.get(reference.name) is None else "holds nothing"
                message = f"spec.{path}: the Secret {reference.name} {state} in namespace {self._key.namespace}"
                return Finding("SecretNotFound", f"{message}; create it")
        if spec.model.auth is not None:
            name = spec.model.auth.secret_ref.name
            if missing := missing_entries(spec.model.source, self._secrets[name] or {}):
                message = f"spec.model.auth.secretRef: the Secret {name} lacks {' and '.join(missing)}"
                return Finding("SecretNotFound", f"{message}; add {'it' if len(missing) == 1 else 'them'}")
        return None

    async def _claim_finding(self) -> Finding | None:
        """What keeps the model's volume claim from being mounted; not asked while something serves."""
        model = self._deployment.spec.model
        if any(replica.is_available for replica in self._replicas):
            return None
        kube, namespace = self._cluster.kube, self._key.namespace
        if model.volume is not None:
            name = claim_name(self._deployment)
            claim = self._cluster.store.child(self._key, "PersistentVolumeClaim", name) or weights_claim(
                self._deployment
            )
        elif model.source.startswith("pvc://"):
            name = model.source.removeprefix("pvc://").split("/")[0]
            claim = await kube.get("v1", "PersistentVolumeClaim", namespace, name)
            if claim is None:
                text = f"the volume claim {name} does not exist in namespace {namespace}"
                return Finding("WeightsNotFound", f"{text}; create it, or correct spec.model.source")
        else:
            return None
        if claim is None or claim.get("status", {}).get("phase") == "Bound":
            return None
        wanted = claim.get("spec", {}).get("storageClassName")
        try:
            return await self._class_finding(name, wanted, has_own=model.volume is not None)
        except ApiError as error:
            # Roles in single namespaces reach no storage classes; the scheduler's words tell instead.
            if error.status not in (401, 403):
                raise
            return None

    async def _class_finding(self, claim: str, wanted: str | None, *, has_own: bool) -> Finding | None:
        kube = self._cluster.kube
        if wanted:
            if await kube.get("storage.k8s.io/v1", "StorageClass", None, wanted) is not None:
                return None
            message = f"the volume claim {claim} asks for the storage class {wanted}, which does not exist"
            return Finding("StorageClassMissing", f"{message}; create it or name another")
        if wanted is None and has_own:
            classes = await kube.list("storage.k8s.io/v1", "StorageClass", None)
            if not any((c["metadata"].get("annotations") or {}).get(DEFAULT_CLASS) == "true" for c in classes):
                message = f"the volume claim {claim} names no storage class, and the cluster has no default one"
                return Finding("StorageClassMissing", f"{message}; set spec.model.volume.storageClassName")
        return None


async def open_gates(cluster: Cluster, key: Key) -> None:
    """Let the pods through which gateways have got answers count as ready.

    Raises:
        ApiError, ApiUnavailable, NotLeading
    """
    for pod in gates_to_open(cluster.store.children(key, "Pod"), cluster.gateways.words.get(key, {})):
        gate = {"type": ROUTABLE_GATE, "status": "True", "reason": "Probed"}
        await patch_pod(cluster, key, pod, {"status": {"conditions": [gate]}}, "status")


async def patch_pod(cluster: Cluster, key: Key, name: str, change: Manifest, subresource: str = "") -> None:
    """Write to a pod, if it is still there.

    Raises:
        ApiError, ApiUnavailable, NotLeading
    """
    try:
        pod = await cluster.kube.patch("v1", "Pod", key.namespace, name, change, subresource)
        cluster.store.put("Pod", pod)
    except ApiError as error:
        if error.status != 404:
            raise


def refusal(what: str, error: ApiError, correction: str = "correct the spec") -> Finding:
    """What an owner can do about an object that the API server does not take.

    Raises:
        ApiError: the error itself, where it tells nothing of the object.
    """
    if error.status == 409:
        message = f"{what} exists and belongs to somebody else: {error.message}; rename or delete one of the two"
        return Finding("NameConflict", message)
    if error.status not in (400, 403, 422) or "is being terminated" in error.message:
        raise error
    message = f"the API server refuses {what}: {error.message}"
    if "exceeded quota" in error.message:
        return Finding("QuotaExceeded", f"{message}; raise the quota, or delete what is not needed")
    if re.search(r'User "[^"]*" cannot ', error.message):
        return Finding("Forbidden", f"{message}; give the operator the role of its version's chart")
    if error.status == 403 or re.search(r"denied (the )?request", error.message):
        return Finding("Forbidden", f"{message}; ask for an exception from whoever set this policy, or follow it")
    return Finding("InvalidSpec", f"{message}; {correction}")


def _mark(live: Manifest) -> str:
    """Changes when somebody changes what was wished for: the generation, or for kinds without one the version."""
    metadata = live["metadata"]
    labels = json.dumps([metadata.get("labels"), metadata.get("ownerReferences")], sort_keys=True)
    return f"{metadata.get('generation') or metadata.get('resourceVersion')} {labels}"
