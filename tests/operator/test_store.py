"""The store keeps the newest of each object, whoever brings it."""

from hypothesis import given
from hypothesis import strategies as st

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


def test_who_is_no_longer_understood_keeps_the_name_also_for_an_operator_that_has_just_started():
    one, two = Key("models", "one"), Key("models", "two")
    invalid = {**resource("one", 2, names=["gpt"], replicas=-1), "status": {"servedNames": ["gpt"]}}
    for first in ([resource("one", names=["gpt"])], []):
        store = Store()
        for body in (*first, invalid):
            store.put("LLMDeployment", body)
        assert store.put("LLMDeployment", resource("two", 3, names=["gpt"])) == {one, two}
        assert [(rival.key, rival.served_names) for rival in store.rivals(two)] == [(one, ["gpt"]), (two, ["gpt"])]
        assert store.remove(
            "LLMDeployment", invalid | {"metadata": {**invalid["metadata"], "resourceVersion": "4"}}
        ) == {
            one,
            two,
        }
        assert [rival.key for rival in store.rivals(two)] == [two]


names = st.sampled_from("abc")
numbers = st.integers(1, 9)


@given(st.dictionaries(names, numbers), st.dictionaries(names, numbers), numbers)
def test_gone_is_what_a_list_as_new_as_it_lacks(held, listed, as_of):
    store = Store()
    for name, version in held.items():
        store.put("Service", child(name, version))
    places = {("models", name) for name in listed}
    gone = {body["metadata"]["name"] for body in store.gone("Service", None, places, as_of)}
    assert gone == {name for name, version in held.items() if name not in listed and version <= as_of}
    assert store.gone("Service", "models", places, as_of) == store.gone("Service", None, places, as_of)
    assert not store.gone("Service", "elsewhere", (), as_of)
    assert not store.gone("Pod", None, (), as_of)


def test_a_deployment_that_is_gone_frees_its_name_and_wakes_who_waits_for_it():
    store = Store()
    store.put("LLMDeployment", resource("first", 1, names=["m"]))
    store.put("LLMDeployment", resource("second", 2, names=["m"]))
    (body,) = store.gone("LLMDeployment", None, [("models", "second")], 3)
    assert store.remove("LLMDeployment", body) == {Key("models", "first"), Key("models", "second")}
    assert list(store.keys()) == [Key("models", "second")]


def test_a_late_deletion_does_not_take_the_successor_of_the_same_name():
    store = Store()
    store.put("LLMDeployment", resource(version=9, uid="second"))
    store.put("Service", child(version=10, uid="second"))
    assert store.remove("Service", child(version=6, uid="first")) == set()
    assert store.remove("LLMDeployment", resource(version=7, uid="first")) == set()
    assert store.child(KEY, "Service", "tiny") is not None
    assert KEY in store.resources
    assert store.remove("Service", child(version=11, uid="second")) == {KEY}
    assert store.child(KEY, "Service", "tiny") is None
