"""podTemplate is merged as kubectl would."""

import pytest

from quire_operator.merge import BadTemplate, merge_template

BASE = {
    "metadata": {"labels": {"a": "1"}},
    "spec": {
        "containers": [
            {
                "name": "engine",
                "image": "i",
                "args": ["x"],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "tolerations": [{"key": "gpu"}],
    },
}


def merged(spec: dict) -> dict:
    return merge_template(BASE, {"spec": spec})["spec"]


def test_containers_and_their_variables_merge_by_name():
    spec = merged(
        {"containers": [{"name": "engine", "env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}]}]}
    )
    assert spec["containers"][0]["env"] == [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "3"},
        {"name": "C", "value": "4"},
    ]
    assert spec["containers"][0]["image"] == "i"


def test_lists_without_a_key_are_replaced():
    assert merged({"tolerations": [{"key": "other"}]})["tolerations"] == [{"key": "other"}]
    assert merged({"containers": [{"name": "engine", "args": ["y"]}]})["containers"][0]["args"] == ["y"]


def test_a_volume_has_one_source():
    spec = merged({"volumes": [{"name": "tmp", "persistentVolumeClaim": {"claimName": "c"}}]})
    assert spec["volumes"] == [{"name": "tmp", "persistentVolumeClaim": {"claimName": "c"}}]


def test_null_removes_and_unknown_fields_stay():
    spec = merged({"tolerations": None, "fromTheFuture": {"deep": [1]}})
    assert "tolerations" not in spec
    assert spec["fromTheFuture"] == {"deep": [1]}


def test_directives_delete_and_replace():
    spec = merged({"containers": [{"name": "engine", "env": [{"name": "A", "$patch": "delete"}]}]})
    assert spec["containers"][0]["env"] == [{"name": "B", "value": "2"}]
    spec = merged({"containers": [{"name": "engine", "$patch": "replace", "image": "j"}]})
    assert spec["containers"] == [{"name": "engine", "image": "j"}]
    spec = merged({"volumes": [{"$patch": "replace"}, {"name": "only", "emptyDir": {}}]})
    assert spec["volumes"] == [{"name": "only", "emptyDir": {}}]


def test_neither_side_is_changed():
    patch = {"spec": {"containers": [{"name": "engine", "image": "j"}]}}
    merge_template(BASE, patch)
    assert BASE["spec"]["containers"][0]["image"] == "i"
    assert patch == {"spec": {"containers": [{"name": "engine", "image": "j"}]}}


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"spec": {"containers": {}}}, "spec.containers: must be a list"),
        ({"spec": {"containers": ["x"]}}, r"spec.containers\[0\]: must be a mapping"),
        ({"spec": {"containers": [{"image": "x"}]}}, r"spec.containers\[0\]: name is missing"),
        ({"spec": []}, "spec: must be a mapping"),
        ({"spec": {"hostAliases": 3}}, "spec.hostAliases: must be a list"),
        ({"metadata": {"$patch": "hide"}}, "metadata: .patch must be"),
    ],
)
def test_another_shape_is_refused_with_its_path(patch, message):
    with pytest.raises(BadTemplate, match=message):
        merge_template(BASE, patch)
