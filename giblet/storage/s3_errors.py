"""What an S3 failure means to a person: which error, with which remedy. Never a secret in it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from botocore import exceptions
from botocore.exceptions import ClientError

from giblet.errors import GibletError, OutOfSpaceError, StorageDeniedError, StorageUnavailableError

_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile, or workload identity) for this endpoint"
AUTHORITY_REMEDY = (
    "name a PEM file with the authority that signed it in checkpoint.ca_file or AWS_CA_BUNDLE (in the chart: s3.ca), "
    "and in checkpoint.endpoint_url a host that the certificate is for"
)
_REMEDIES = {
    "NoSuchBucket": "create the bucket, or correct checkpoint.url",
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": "the secret does not belong to the access key; " + _CREDENTIALS,
    "ExpiredToken": "renew the session token",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "AccessDenied": "give these credentials leave to read, write, list and delete in the bucket",
    "PermanentRedirect": "set checkpoint.region to the bucket's region",
    "AuthorizationHeaderMalformed": "set checkpoint.region to the bucket's region",
}
_FULL = {"InsufficientStorage", "XMinioStorageFull", "QuotaExceeded", "StorageQuotaExceeded"}
_RETRYABLE = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
_NO_CREDENTIALS = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.ProfileNotFound,
    exceptions.TokenRetrievalError,
    exceptions.NoRegionError,
)


@dataclass(frozen=True, slots=True)
class Where:
    """Which bucket at which endpoint, for messages."""

    bucket: str
    endpoint: str

    def __str__(self) -> str:
        return f"bucket {self.bucket} at {self.endpoint}"


def explain(error: Exception, doing: str, key: str, where: Where) -> GibletError:
    """The giblet error for a boto3 one: denied, out of space, or unavailable."""
    attempt = f"{where}: cannot {doing} {key}".rstrip()
    if isinstance(error, ClientError):
        return _explain_answer(error, attempt)
    if isinstance(error, _NO_CREDENTIALS):
        remedy = "set checkpoint.region" if isinstance(error, exceptions.NoRegionError) else _CREDENTIALS
        return StorageDeniedError(f"{attempt}: {error}", remedy=remedy)
    if isinstance(error, exceptions.SSLError) and (denied := _explain_tls(str(error), attempt)) is not None:
        return denied
    if isinstance(error, exceptions.ParamValidationError | ValueError | exceptions.InvalidEndpointConfigurationError):
        return StorageDeniedError(f"{attempt}: {error}", remedy="check checkpoint.url and checkpoint.endpoint_url")
    kinds = {
        exceptions.EndpointConnectionError: "nothing answers at this address",
        exceptions.ConnectTimeoutError: "no connection within checkpoint.connect_timeout_seconds",
        exceptions.ReadTimeoutError: "no answer within checkpoint.read_timeout_seconds",
        exceptions.ConnectionClosedError: "the connection was closed without an answer",
    }
    what = next((text for kind, text in kinds.items() if isinstance(error, kind)), type(error).__name__)
    return StorageUnavailableError(
        f"{attempt}: {what}", remedy="check checkpoint.endpoint_url, the network between, and that the server runs"
    )


def _explain_tls(said: str, attempt: str) -> GibletError | None:
    """What no retry mends; None for a handshake that merely broke off."""
    if "WRONG_VERSION_NUMBER" in said:
        remedy = "the server speaks plain HTTP there: write http:// in checkpoint.endpoint_url, or name its HTTPS port"
        return StorageDeniedError(f"{attempt}: no TLS at this address", remedy=remedy)
    reason = re.search(r"certificate verify failed: (.+?)(?: \(_ssl\.c|$)|(hostname .* doesn't match .*)", said)
    if reason is None:
        return None
    why = reason[1] or reason[2]
    return StorageDeniedError(f"{attempt}: the endpoint's certificate is not trusted: {why}", remedy=AUTHORITY_REMEDY)


def _explain_answer(error: ClientError, attempt: str) -> GibletError:
    answer = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(answer.get("Code", "")) or str(status)
    if status == 404:
        code = "NoSuchBucket"
    what = f"{attempt}: {code} (HTTP {status})"
    if code in _FULL or status == 507:
        return OutOfSpaceError(what, remedy="free space on the server, lower checkpoint.keep_last, or raise the quota")
    if (status >= 500 and status != 501) or status == 429 or code in _RETRYABLE:
        return StorageUnavailableError(
            what, remedy="the server has trouble of its own; look at its log, then try again"
        )
    if code in ("403", "Forbidden"):
        code = "AccessDenied"  # HEAD has no body to say which
    remedy = _REMEDIES.get(code, _CREDENTIALS if status in (401, 403) else "see the server's log for this request")
    return StorageDeniedError(what, remedy=remedy)
