"""What the Secret of a model's source holds, by scheme: the same entries in a cluster and under `quire up`."""

from collections.abc import Collection

HUB = {"token": "HF_TOKEN"}
BUCKET = {
    "accessKeyId": "AWS_ACCESS_KEY_ID",
    "secretAccessKey": "AWS_SECRET_ACCESS_KEY",
    "sessionToken": "AWS_SESSION_TOKEN",
    "region": "AWS_REGION",
    "endpoint": "AWS_ENDPOINT_URL_S3",
}
VARIABLES = HUB | BUCKET
"""Variables that the agent reads, by the entry of the Secret."""
REGISTRY_CONFIG = ".dockerconfigjson"


def missing_entries(source: str, entries: Collection[str]) -> list[str]:
    """Entries without which the Secret is of no use for this source.

    A bucket's Secret may hold an endpoint alone, for buckets that everybody may read, but no half of a key.
    """
    if source.startswith("hf://"):
        needed = ["token"]
    elif source.startswith("oci://"):
        needed = [REGISTRY_CONFIG]
    elif source.startswith("s3://"):
        pair = ["accessKeyId", "secretAccessKey"]
        is_public = not any(entry in entries for entry in (*pair, "sessionToken"))
        needed = [] if is_public and any(entry in entries for entry in BUCKET) else pair
    else:
        needed = []
    return [entry for entry in needed if entry not in entries]
