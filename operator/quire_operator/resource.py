"""From an object of the API server to the typed resource, or to the problems that keep it from being one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from quire_api.v1alpha1 import LLMDeployment, LLMDeploymentStatus, from_object
from quire_api.v1alpha1_documents import Problem, explain
from quire_operator.world import Key


@dataclass(frozen=True)
class Resource:
    """One object as read: understood, or not."""

    key: Key
    generation: int
    deployment: LLMDeployment | None
    problems: tuple[Problem, ...] = ()
    previous: LLMDeploymentStatus | None = None
    """Status as written last, where that much could be read."""
    created: str = ""

    @property
    def served_names(self) -> list[str]:
        """Of the spec or, where that is not understood, of the last one that was."""
        if self.deployment is not None:
            return self.deployment.served_names
        return self.previous.served_names if self.previous is not None else []

    @property
    def message(self) -> str:
        """All problems as one sentence each."""
        return "; ".join(str(problem) for problem in self.problems)


def read(data: Mapping[str, Any]) -> Resource:
    """Reads any object, however wrong, without raising; a status that cannot be read is dropped."""
    metadata = data.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    key = Key(str(metadata.get("namespace") or "default"), str(metadata.get("name") or ""))
    written = metadata.get("generation")
    generation = written if isinstance(written, int) else 0
    status = _read_status(data.get("status"))
    created = str(metadata.get("creationTimestamp") or "")
    wish = {name: value for name, value in data.items() if name != "status"}
    try:
        deployment = from_object(wish)
    except ValidationError as error:
        return Resource(key, generation, None, tuple(explain(error, wish)), status, created)
    except RecursionError:
        return Resource(key, generation, None, (Problem("", "is nested too deep"),), status, created)
    deployment = deployment.model_copy(update={"status": status or LLMDeploymentStatus()})
    return Resource(key, generation, deployment, (), status, created)


def _read_status(status: Any) -> LLMDeploymentStatus | None:
    try:
        return LLMDeploymentStatus.model_validate(status, by_alias=True, by_name=False)
    except (ValidationError, RecursionError):
        return None
