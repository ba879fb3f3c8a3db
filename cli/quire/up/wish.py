"""The resource file as it is now: read, checked for what this machine can do, and followed through edits."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from quire.up.commands import model_location
from quire_api.access import read_api_keys
from quire_api.errors import UserError
from quire_api.v1alpha1 import LLMDeployment
from quire_api.v1alpha1_documents import InvalidResource, Manifest, Secret, parse_manifest
from quire_operator.world import Key

LOCAL_SCHEMES = ("file://", "hf://", "s3://", "oci://")


class Wish:
    """Deployments and Secrets of one file, with the metadata an API server would keep."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.deployments: dict[Key, LLMDeployment] = {}
        self.secrets: Mapping[tuple[str, str], Secret] = {}
        self.ignored: list[str] = []
        self._seen: tuple[int, int, int] | None = None

    def is_current(self) -> bool:
        """Whether the file is the one that `read` saw last."""
        return self._signature() == self._seen

    def read(self) -> bool:
        """Take over what the file says now; True if that differs from before.

        Raises:
            UserError: the file cannot be read, understood or run here; nothing was taken over.
        """
        self._seen = self._signature()
        try:
            text = self.file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise UserError(f"{self.file} cannot be read: {why}") from None
        manifest = parse_manifest(text, str(self.file))
        secrets = {(secret.namespace, secret.name): secret for secret in manifest.secrets}
        if problems := _local_problems(manifest, secrets, self.file):
            raise InvalidResource(problems)
        before = (self.deployments, self.secrets)
        now = datetime.now(UTC)
        self.deployments = {
            Key.of(new): self._with_metadata(new, now + timedelta(microseconds=index))
            for index, new in enumerate(manifest.deployments)
        }
        self.secrets, self.ignored = secrets, manifest.ignored
        return before != (self.deployments, self.secrets)

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            stat = self.file.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _with_metadata(self, new: LLMDeployment, now: datetime) -> LLMDeployment:
        known = self.deployments.get(Key.of(new))
        if known is None:
            created = now.isoformat(timespec="microseconds").replace("+00:00", "Z")
            metadata = new.metadata.model_copy(update={"creation_timestamp": created, "generation": 1})
            return new.model_copy(update={"metadata": metadata})
        if new.spec.autoscaling and known.spec.autoscaling:
            new = with_replicas(new, known.spec.replicas)
        generation = known.metadata.generation + (known.spec != new.spec)
        kept = {"creation_timestamp": known.metadata.creation_timestamp, "generation": generation}
        return new.model_copy(update={"metadata": new.metadata.model_copy(update=kept), "status": known.status})

    def remarks(self) -> list[str]:
        """What the file asks for and this machine does not do."""
        said = []
        if self.ignored:
            said.append(f"without a cluster these have no effect: {', '.join(self.ignored)}")
        for key, deployment in self.deployments.items():
            spec = deployment.spec
            if spec.pod_template is not None:
                said.append(f"{key}: spec.podTemplate has no effect without a cluster")
        return said


def with_replicas(deployment: LLMDeployment, replicas: int) -> LLMDeployment:
    """The same deployment with another number in its one actuator of scale."""
    return deployment.model_copy(update={"spec": deployment.spec.model_copy(update={"replicas": replicas})})


def _local_problems(manifest: Manifest, secrets: Mapping[tuple[str, str], Secret], file: Path) -> list[str]:
    """What a cluster might have, and this machine has not."""
    problems = []
    for deployment in manifest.deployments:
        spec, namespace = deployment.spec, deployment.metadata.namespace
        where = f"{file}: {deployment.metadata.name}"
        source = spec.model.source
        if not source.startswith(LOCAL_SCHEMES):
            problems.append(
                f"{where}, spec.model.source: {source.split('://')[0]}:// needs a cluster; "
                "here file://, hf://, s3:// and oci:// can be served"
            )
        location = Path(model_location(deployment, file.parent))
        if source.startswith("file://") and not location.is_dir():
            what = "is no directory" if location.exists() else "does not exist"
            problems.append(f"{where}, spec.model.source: {location} {what}; paths are relative to the file's folder")
        for path, reference in (
            ("spec.access.apiKeysSecretRef", spec.access.api_keys_secret_ref),
            ("spec.model.auth.secretRef", spec.model.auth.secret_ref if spec.model.auth else None),
        ):
            if reference is None:
                continue
            secret = secrets.get((namespace, reference.name))
            if secret is None:
                problems.append(
                    f"{where}, {path}: add the Secret {reference.name} to the file as a document of its own"
                )
            elif not secret.values:
                problems.append(f"{where}, {path}: the Secret {reference.name} is empty; put a key under stringData")
            elif path == "spec.access.apiKeysSecretRef":
                found = read_api_keys(secret.values, spec.access)[1]
                problems += [f"{where}, {path}: the Secret {reference.name}, {problem}" for problem in found]
    return problems
