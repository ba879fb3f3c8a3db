"""s3://: a model in a bucket of any server that speaks S3."""

import base64
import contextlib
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import boto3
import urllib3
from botocore import UNSIGNED
from botocore import exceptions as boto
from botocore.config import Config

from quire_api.errors import UserError
from quire_runtime.agent.errors import (
    InvalidSource,
    SourceChanged,
    SourceUnreachable,
    WeightsNotFound,
    WeightsUnauthorized,
)
from quire_runtime.agent.source import BucketSource
from quire_runtime.agent.store import CHUNK_BYTES, Digest, RemoteFile

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 30
CONNECTIONS = 16
REFUSED = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestTimeTooSkewed", "InvalidAccessKeyId")
CREDENTIALS_AT_FAULT = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.SSOError,
    boto.ProfileNotFound,
)
NETWORK_AT_FAULT = (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, urllib3.exceptions.HTTPError)


class BucketStore:
    """Endpoint, region and credentials come from where AWS clients look for them; without any, requests go unsigned.

    Checksums: SHA-256 or CRC-32 of the whole object where it was uploaded with one, else the MD5 that the ETag of a
    plain upload is. Objects of several parts without a whole checksum are held by size and ETag only.
    """

    def __init__(self, source: BucketSource) -> None:
        self._source = source
        self._prefix = f"{source.prefix}/" if source.prefix else ""
        with _told(source):
            session = boto3.Session(region_name=os.environ.get("AWS_REGION") or None)
            self._client: Any = session.client("s3", config=_config(is_signed=session.get_credentials() is not None))

    def files(self) -> list[RemoteFile]:
        with _told(self._source):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._source.bucket, Prefix=self._prefix, Delimiter="/"
            )
            objects = [entry for page in pages for entry in page.get("Contents", ())]
        if not objects:
            raise WeightsNotFound(
                f"There is nothing under {self._source}/ in the bucket. Check the prefix; it names the model's folder."
            )
        return [
            RemoteFile(entry["Key"].removeprefix(self._prefix), entry["Size"], entry["ETag"].strip('"'))
            for entry in objects
            if not entry["Key"].endswith("/")
        ]

    def digest(self, file: RemoteFile) -> Digest | None:
        with _told(self._source, file.name):
            head = self._client.head_object(**self._object(file), ChecksumMode="ENABLED")
        # A checksum over the checksums of parts is not the content's; servers that do not name the kind are not trusted
        # to mean the whole of an upload in parts.
        if head.get("ChecksumType", "COMPOSITE" if "-" in file.identity else "FULL_OBJECT") == "FULL_OBJECT":
            for field, algorithm in (("ChecksumSHA256", "sha256"), ("ChecksumCRC32", "crc32")):
                if value := head.get(field):
                    with contextlib.suppress(ValueError):
                        return Digest(algorithm, base64.b64decode(value, validate=True).hex())
        is_md5 = len(file.identity) == 32 and head.get("ServerSideEncryption", "AES256") == "AES256"
        return Digest("md5", file.identity) if is_md5 and "SSECustomerAlgorithm" not in head else None

    @contextlib.contextmanager
    def read(self, file: RemoteFile, offset: int) -> Iterator[Iterator[bytes]]:
        with _told(self._source, file.name):
            answer = self._client.get_object(**self._object(file), Range=f"bytes={offset}-")
            with contextlib.closing(answer["Body"]) as body:
                yield body.iter_chunks(CHUNK_BYTES)

    def close(self) -> None:
        self._client.close()

    def _object(self, file: RemoteFile) -> dict[str, str]:
        return {
            "Bucket": self._source.bucket,
            "Key": self._prefix + file.name,
            "IfMatch": f'"{file.identity}"',
        }


def _config(*, is_signed: bool) -> Config:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    is_elsewhere = bool(endpoint) and not (urlsplit(endpoint).hostname or "").endswith(".amazonaws.com")
    options: dict[str, Any] = {} if is_signed else {"signature_version": UNSIGNED}
    return Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=CONNECTIONS,
        retries={"total_max_attempts": 1},
        # Servers of one's own rarely have a DNS name for each bucket.
        s3={"addressing_style": "path"} if is_elsewhere else None,
        response_checksum_validation="when_required",
        **options,
    )


@contextlib.contextmanager
def _told(source: BucketSource, file: str = "") -> Iterator[None]:
    try:
        yield
    except boto.ClientError as error:
        raise _refused(error, source, file) from error
    except CREDENTIALS_AT_FAULT as error:
        raise WeightsUnauthorized(f"No usable credentials for {source}: {error}. {CREDENTIALS_HINT}") from error
    except (*NETWORK_AT_FAULT, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
            raise
        raise SourceUnreachable(f"{source} could not be fetched ({error}). {NETWORK_HINT}") from error
    except (boto.BotoCoreError, ValueError) as error:
        raise InvalidSource(f"{source} cannot be asked for: {error}") from error


CREDENTIALS_HINT = (
    "Give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (in the Secret: accessKeyId and secretAccessKey) of somebody "
    "who may list and read it."
)
NETWORK_HINT = "Check the network and AWS_ENDPOINT_URL, then start again."


def _refused(error: boto.ClientError, source: BucketSource, file: str) -> UserError:
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(error.response.get("Error", {}).get("Code", ""))
    if status in (401, 403) or code in REFUSED:
        return WeightsUnauthorized(f"The server refuses access to {source} ({code}). {CREDENTIALS_HINT}")
    if code == "NoSuchBucket":
        return WeightsNotFound(f"There is no bucket {source.bucket}. Check its name and AWS_ENDPOINT_URL.")
    if status == 412 or (status == 404 and file):
        return SourceChanged(f"{file} of {source} was replaced while it was fetched. Start again.")
    if status == 404:
        return WeightsNotFound(f"{source} was not found ({code}). Check the bucket, the prefix and AWS_ENDPOINT_URL.")
    return SourceUnreachable(f"{source} could not be fetched: the server answered {status} {code}. {NETWORK_HINT}")
