"""The cluster as the watches have told it: objects by kind, children by their deployment, served names by owner."""

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterator

from quire_api.v1alpha1 import KIND, LABEL_DEPLOYMENT
from quire_operator.merge import Manifest, place_of
from quire_operator.resource import Resource, read
from quire_operator.world import Key

_REMEMBERED_DELETIONS = 4096


class Store:
    """Answers of our own writes may be put in beside events: the newer version of an object stays."""

    def __init__(self) -> None:
        self.resources: dict[Key, Resource] = {}
        self._raw: dict[Key, Manifest] = {}
        self._children: dict[Key, dict[tuple[str, str], Manifest]] = defaultdict(dict)
        self._names: dict[str, set[Key]] = defaultdict(set)
        self._deleted: OrderedDict[tuple[str, str, str], int] = OrderedDict()

    def put(self, kind: str, body: Manifest) -> set[Key]:
        """Take in an object; the deployments that this concerns."""
        metadata = body["metadata"]
        identity = kind, *place_of(body)
        version = _version(body)
        if self._deleted.get(identity, -1) >= version:
            return set()
        body = {**body, "metadata": {name: value for name, value in metadata.items() if name != "managedFields"}}
        if kind == KIND:
            return self._put_resource(body, version)
        key = _owner(body)
        if key is None:
            return set()
        known = self._children[key].get((kind, identity[2]))
        if known is not None and _version(known) > version:
            return set()
        self._children[key][kind, identity[2]] = body
        return {key}

    def remove(self, kind: str, body: Manifest) -> set[Key]:
        """Forget an object, but not its successor of the same name; the deployments that this concerns."""
        identity = kind, *place_of(body)
        self._deleted[identity] = _version(body)
        self._deleted.move_to_end(identity)
        if len(self._deleted) > _REMEMBERED_DELETIONS:
            self._deleted.popitem(last=False)
        if kind == KIND:
            key = Key(identity[1], identity[2])
            if (known := self._raw.get(key)) is not None and _version(known) > _version(body):
                return set()
            rivals = self._rivals(key)
            self._raw.pop(key, None)
            self._forget_names(key)
            self.resources.pop(key, None)
            if not self._children.get(key):
                self._children.pop(key, None)
            return {key} | rivals
        owner = _owner(body)
        if owner is None or owner not in self._children:
            return set()
        known = self._children[owner].get((kind, identity[2]))
        if known is not None and _version(known) > _version(body):
            return set()
        self._children[owner].pop((kind, identity[2]), None)
        if not self._children[owner] and owner not in self.resources:
            del self._children[owner]
        return {owner}

    def gone(self, kind: str, namespace: str | None, listed: Collection[tuple[str, str]], as_of: int) -> list[Manifest]:
        """What we hold of a kind (in a namespace) that a list as of a resource version should hold and does not.

        listed: namespace and name of each of its objects.
        """
        children = (body for of in self._children.values() for (its, _), body in of.items() if its == kind)
        held = self._raw.values() if kind == KIND else children
        return [
            body
            for body in held
            if namespace in (None, place_of(body)[0]) and _version(body) <= as_of and place_of(body) not in listed
        ]

    def raw(self, key: Key) -> Manifest | None:
        """The LLMDeployment as the API server has it."""
        return self._raw.get(key)

    def child(self, key: Key, kind: str, name: str) -> Manifest | None:
        return self._children.get(key, {}).get((kind, name))

    def children(self, key: Key, kind: str) -> list[Manifest]:
        """All objects of that kind which belong to the deployment as it is now, by name."""
        raw = self._raw.get(key)
        uid = raw["metadata"].get("uid") if raw else None
        found = [body for (of, _), body in self._children.get(key, {}).items() if of == kind]
        if kind != "Pod":
            found = [body for body in found if owner_uid(body) == uid]
        return sorted(found, key=lambda body: str(body["metadata"]["name"]))

    def rivals(self, key: Key) -> list[Resource]:
        """Deployments that share a served name with this one, itself included."""
        return [self.resources[other] for other in sorted(self._rivals(key) | {key}) if other in self.resources]

    def keys(self) -> Iterator[Key]:
        yield from list(self.resources)

    def _put_resource(self, body: Manifest, version: int) -> set[Key]:
        resource = read(body)
        key = resource.key
        known = self._raw.get(key)
        if known is not None and _version(known) >= version:
            return {key} | self._rivals(key) if _version(known) == version else set()
        rivals = self._rivals(key)
        former = self.resources.get(key)
        self._raw[key], self.resources[key] = body, resource
        # A spec that is not understood any more keeps its names: what it served goes on.
        if former is not None and set(resource.served_names) == set(former.served_names):
            return {key}
        self._forget_names(key)
        for name in resource.served_names:
            self._names[name].add(key)
        return {key} | rivals | self._rivals(key)

    def _forget_names(self, key: Key) -> None:
        for name, keys in list(self._names.items()):
            keys.discard(key)
            if not keys:
                del self._names[name]

    def _rivals(self, key: Key) -> set[Key]:
        resource = self.resources.get(key)
        names = resource.served_names if resource else []
        return {other for name in names for other in self._names.get(name, ())}


def _version(body: Manifest) -> int:
    return int(body["metadata"].get("resourceVersion", 0))


def _owner(body: Manifest) -> Key | None:
    metadata = body["metadata"]
    name = (metadata.get("labels") or {}).get(LABEL_DEPLOYMENT)
    return Key(str(metadata.get("namespace", "")), str(name)) if name else None


def owner_uid(body: Manifest) -> str | None:
    """Uid of the deployment that a child belongs to."""
    for reference in body["metadata"].get("ownerReferences") or ():
        if reference.get("kind") == KIND:
            return str(reference.get("uid"))
    return None
