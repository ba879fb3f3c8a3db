"""From the text of a YAML file to typed resources; from every mistake to one sentence with line, path and a hint."""

import base64
import binascii
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from quire_api.errors import UserError
from quire_api.v1alpha1 import API_VERSION, FREE_FORM_FIELDS, GROUP, KIND, LLMDeployment, from_object

MAX_DEPTH = 64
MAX_NODES = 50_000
_UNUSABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")

_TYPE_NAMES = {
    "string_type": "text (in quotes where it looks like a number)",
    "int_type": "a whole number without quotes",
    "int_from_float": "a whole number",
    "list_type": "a list",
    "dict_type": "a mapping (field: value)",
    "model_type": "a mapping (field: value)",
    "model_attributes_type": "a mapping (field: value)",
    "bool_type": "true or false",
}


@dataclass(frozen=True)
class Problem:
    """One mistake in a resource."""

    path: str
    """Field path, for example spec.autoscaling.minReplicas; empty for the whole document."""
    message: str
    """What is wrong and what to do."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class InvalidResource(UserError):
    """A resource, or a file of them, that cannot be understood; one line for each problem."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = list(lines)


@dataclass(frozen=True)
class Secret:
    """A Secret beside the deployments in one file."""

    namespace: str
    name: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """Everything that a file says."""

    deployments: list[LLMDeployment]
    secrets: list[Secret]
    ignored: list[str] = field(default_factory=list)
    """Documents of other kinds, as "Kind name": they mean something to a cluster only."""


def parse_documents(text: str, source: str) -> list[LLMDeployment]:
    """All LLMDeployments of a YAML text.

    Raises:
        InvalidResource: one line for each problem, over all documents.
    """
    return parse_manifest(text, source).deployments


def parse_manifest(text: str, source: str) -> Manifest:
    """All LLMDeployments and Secrets of a YAML text; `source` names it in errors.

    Raises:
        InvalidResource: one line for each problem, over all documents.
    """
    problems: list[str] = []
    deployments: list[LLMDeployment] = []
    secrets: list[Secret] = []
    ignored: list[str] = []
    first_seen: dict[Hashable, int] = {}
    for index, (node, data) in enumerate(_documents(text, source), start=1):
        place = _Place(source, index, node)
        if not isinstance(data, dict):
            problems.append(place.say("", f"is {_kind_of(data)}, not a resource; begin with apiVersion: {API_VERSION}"))
            continue
        problems += [place.say("", f"the key {key!r} stands twice", line) for key, line in _duplicate_keys(node)]
        api_version, kind = data.get("apiVersion"), data.get("kind")
        label = f"{kind} {_name_of(data)}"
        if kind == "Secret" and api_version == "v1":
            found = _read_secret(data)
            if isinstance(found, Problem):
                problems.append(place.say(found.path, found.message))
                continue
            secrets.append(found)
            identity: Hashable = (kind, found.namespace, found.name)
        elif kind == KIND or str(api_version).startswith(f"{GROUP}/"):
            try:
                deployment = from_object(data)
            except ValidationError as error:
                problems += [place.say(problem.path, problem.message) for problem in explain(error, data)]
                continue
            deployments.append(deployment)
            identity = (kind, deployment.metadata.namespace, deployment.metadata.name)
        elif isinstance(kind, str) and isinstance(api_version, str):
            ignored.append(label)
            continue
        else:
            missing = "kind" if isinstance(api_version, str) else "apiVersion"
            wanted = KIND if missing == "kind" else API_VERSION
            problems.append(place.say(missing, f"is missing; write {missing}: {wanted}"))
            continue
        line = node.start_mark.line + 1
        if identity in first_seen:
            problems.append(
                place.say("metadata.name", f"{label} is already on line {first_seen[identity]}; rename one")
            )
        first_seen.setdefault(identity, line)
    if not problems and not deployments:
        problems.append(f"{source}: holds no {KIND}; begin one with apiVersion: {API_VERSION} and kind: {KIND}")
    if problems:
        raise InvalidResource(problems)
    return Manifest(deployments, secrets, ignored)


def explain(error: ValidationError, data: Any) -> list[Problem]:
    """Each finding of pydantic as a sentence about the field a person wrote."""
    return [_explain_one(dict(finding), data) for finding in error.errors(include_url=False)]


def _explain_one(finding: dict[str, Any], data: Any) -> Problem:
    loc: tuple[int | str, ...] = finding["loc"]
    context = finding.get("ctx") or {}
    kind, path = finding["type"], list(loc)
    if "field" in context:
        path.append(context["field"])
    if kind in ("form", "rule"):
        message = finding["msg"]
    elif kind == "extra_forbidden":
        message = f"unknown field{_suggestion(loc)}"
    elif kind == "missing":
        message = "is missing and has no default"
        written = _at(data, loc[:-1])
        near = get_close_matches(str(loc[-1]), [str(key) for key in written], 1) if isinstance(written, dict) else []
        message += f"; did you mean it where you wrote `{near[0]}`?" if near else ""
    elif kind == "literal_error":
        message = f"is {finding['input']!r}, but must be {context['expected']}"
    elif kind in _TYPE_NAMES:
        message = f"is {_kind_of(finding['input'])}, but must be {_TYPE_NAMES[kind]}"
    elif kind == "greater_than_equal":
        message = f"is {finding['input']}, but must be {context['ge']} or more"
    elif kind == "less_than_equal":
        message = f"is {finding['input']}, but must be {context['le']} or less"
    else:
        message = finding["msg"][0].lower() + finding["msg"][1:]
    return Problem(_dotted(path), message)


def _suggestion(loc: Sequence[int | str]) -> str:
    known = _fields_at(loc[:-1])
    near = get_close_matches(str(loc[-1]), known, 1, cutoff=0.5)
    if near:
        return f"; did you mean `{near[0]}`?"
    elsewhere = [path for path in _all_paths(LLMDeployment) if path.rsplit(".", 1)[-1] == loc[-1]]
    if elsewhere:
        return f"; it belongs to {elsewhere[0]}"
    return f"; there is {', '.join(known)}" if known else ""


def _fields_at(loc: Sequence[int | str]) -> list[str]:
    model: type[BaseModel] | None = LLMDeployment
    for step in loc:
        model = _children(model).get(str(step)) if model else None
    return [info.alias or name for name, info in model.model_fields.items()] if model else []


def _children(model: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    return {info.alias or name: _model_in(info.annotation) for name, info in model.model_fields.items()}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _all_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, child in _children(model).items():
        if name != "status":
            yield prefix + name
            if child:
                yield from _all_paths(child, f"{prefix}{name}.")


def _dotted(path: Sequence[int | str]) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")


def _at(data: Any, loc: Sequence[int | str]) -> Any:
    for step in loc:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _kind_of(value: Any) -> str:
    match value:
        case None:
            return "empty"
        case bool():
            return "true" if value else "false"
        case str():
            return f'the text "{value}"'
        case int() | float():
            return f"the number {value}"
        case list():
            return "a list"
        case _:
            return "a mapping"


def _name_of(data: Mapping[str, Any]) -> str:
    name = _at(data, ("metadata", "name"))
    return name if isinstance(name, str) else "without a name"


def _read_secret(data: Mapping[str, Any]) -> Secret | Problem:
    metadata = data.get("metadata")
    name = _at(data, ("metadata", "name"))
    if not isinstance(metadata, dict) or not isinstance(name, str):
        return Problem("metadata.name", "a Secret needs a name")
    values: dict[str, str] = {}
    for key, encoded in (data.get("data") or {}).items():
        try:
            values[str(key)] = base64.b64decode(str(encoded), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return Problem(f"data.{key}", "is not base64 of UTF-8 text; plain text goes under stringData")
    for key, value in (data.get("stringData") or {}).items():
        if not isinstance(value, str):
            return Problem(f"stringData.{key}", f"is {_kind_of(value)}, but must be text; put it in quotes")
        values[str(key)] = value
    return Secret(str(metadata.get("namespace") or "default"), name, values)


class _Loader(yaml.SafeLoader):
    """Safe YAML whose timestamps stay text, as in JSON."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _documents(text: str, source: str) -> Iterator[tuple[yaml.Node, Any]]:
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                continue
            _refuse_bombs(node, source)
            data = loader.construct_document(node)
            if data is not None:
                yield node, data
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InvalidResource([f"{source}{line}: is not valid YAML: {error.problem or error.context}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidResource([f"{source}: is not valid YAML: {str(error).splitlines()[0]}"]) from None
    finally:
        if loader:
            loader.dispose()


def _refuse_bombs(root: yaml.Node, source: str) -> None:
    """Aliases that hold themselves, or that unfold into far more than was written, end here; so do characters that no
    command line, path or JSON can carry."""
    stack: list[tuple[yaml.Node, int]] = [(root, 1)]
    seen = 0
    while stack:
        node, depth = stack.pop()
        seen += 1
        if depth > MAX_DEPTH or seen > MAX_NODES:
            line = root.start_mark.line + 1
            raise InvalidResource([f"{source}:{line}: is too deep or too large for a resource; write its aliases out"])
        if isinstance(node, yaml.MappingNode):
            stack += [(part, depth + 1) for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            stack += [(item, depth + 1) for item in node.value]
        elif found := _UNUSABLE.search(node.value):
            line, code = node.start_mark.line + 1, ord(found[0])
            raise InvalidResource([f"{source}:{line}: holds the character U+{code:04X}, which is of no use; remove it"])


@dataclass(frozen=True)
class _Place:
    """Where a document stands, to say where a problem is."""

    source: str
    index: int
    node: yaml.Node

    def say(self, path: str, message: str, line: int | None = None) -> str:
        where = f"{self.source}:{line or _line_of(self.node, path)}: document {self.index}"
        return f"{where}, {path}: {message}" if path else f"{where}: {message}"


def _line_of(node: yaml.Node, path: str) -> int:
    """Line (from 1) of the deepest part of the path that was written."""
    line = node.start_mark.line
    for step in path.replace("[", ".").replace("]", "").split("."):
        if isinstance(node, yaml.MappingNode):
            entry = next((pair for pair in node.value if pair[0].value == step), None)
            if entry is None:
                break
            line, node = entry[0].start_mark.line, entry[1]
        elif isinstance(node, yaml.SequenceNode) and step.isdigit() and int(step) < len(node.value):
            node = node.value[int(step)]
            line = node.start_mark.line
        else:
            break
    return line + 1


def _duplicate_keys(node: yaml.Node) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                yield name, key.start_mark.line + 1
            seen.add(name)
            if name not in FREE_FORM_FIELDS:
                yield from _duplicate_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _duplicate_keys(item)
