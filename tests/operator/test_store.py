"""The store keeps the newest of each object, whoever brings it."""

from quire_operator.store import Store
from quire_operator.world import Key

KEY = Key("models", "tiny")


def resource(name="tiny", version=1, names=None, uid="u", **spec):
    model = {"source": "file://m", **({"servedNames": names} if names else {})}
    return {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": name, "namespace": "models", "uid": uid, "resourceVersion": str(version), "generation": 1},
        "spec": {"model": model, **spec},
    }


def child(name="tiny", version=1, uid="u"):
    return {
        "metadata": {
            "name": name,
            "namespace": "models",
            "resourceVersion": str(version),
            "labels": {"quire.dev/deployment": "tiny"},
            "ownerReferences": [{"kind": "LLMDeployment", "uid": uid}],
        }
    }


def test_an_older_version_does_not_overwrite_a_newer_one():
    store = Store()
    store.put("LLMDeployment", resource())
    assert store.put("Service", child(version=5)) == {KEY}
    assert store.put("Service", child(version=3)) == set()
    assert store.child(KEY, "Service", "tiny")["metadata"]["resourceVersion"] == "5"


def test_an_event_that_was_known_from_our_own_write_still_wakes():
    store = Store()
    store.put("Service", child(version=5))
    assert store.put("Service", child(version=5)) == {KEY}


def test_a_late_answer_does_not_raise_the_dead():
    store = Store()
    store.put("Service", child(version=5))
    store.remove("Service", child(version=6))
    store.put("Service", child(version=5))
    assert store.child(KEY, "Service", "tiny") is None


def test_children_of_a_former_owner_of_the_name_do_not_count():
    store = Store()
    store.put("LLMDeployment", resource(uid="second"))
    store.put("Deployment", child(uid="first"))
    assert store.children(KEY, "Deployment") == []


def test_who_shares_a_name_is_woken_and_known():
    store = Store()
    store.put("LLMDeployment", resource("one", names=["gpt"]))
    assert store.put("LLMDeployment", resource("two", 2, names=["gpt"])) == {Key("models", "one"), Key("models", "two")}
    assert [rival.key.name for rival in store.rivals(Key("models", "two"))] == ["one", "two"]
    assert store.remove("LLMDeployment", resource("one", 3, names=["gpt"])) == {
        Key("models", "one"),
        Key("models", "two"),
    }
    assert [rival.key.name for rival in store.rivals(Key("models", "two"))] == ["two"]
