"""Who may ask: API keys from a Secret, exchanged while the endpoint serves."""

import json

from scenario import apply, serve


def keys(namespace: str, **entries: str) -> dict:
    metadata = {"name": "clients", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": entries}


def test_keys_of_a_secret_let_in_and_an_exchanged_one_needs_no_restart(cluster, namespace, tiny, soon):
    apply(cluster, keys(namespace, shop="sk-former"))
    model = serve(cluster, soon, tiny(access={"apiKeysSecretRef": {"name": "clients"}}))

    def answer(key: str) -> str:
        """The error's code, or `ok`."""
        body = {"model": model, "prompt": "Once", "max_tokens": 4}
        text = cluster.request(f"{cluster.gateway}/completions", body, {"authorization": f"Bearer {key}"})
        return json.loads(text).get("error", {}).get("code", "ok")

    soon(lambda: answer("sk-former") == "ok", "the key")
    assert answer("sk-newer") == "invalid_api_key"
    (pod,) = cluster.pods(namespace)
    cluster.kubectl("delete", "secret", "clients", "-n", namespace)
    apply(cluster, keys(namespace, shop="sk-newer"))
    soon(lambda: answer("sk-newer") == "ok", "the exchanged key")
    soon(lambda: answer("sk-former") == "invalid_api_key", "the former key to be refused")
    assert [pod["metadata"]["uid"] for pod in cluster.pods(namespace)] == [pod["metadata"]["uid"]]
