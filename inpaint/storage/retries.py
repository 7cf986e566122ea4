"""Which S3 failures are worth another attempt, how long to wait before it, and what to tell when there is none."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from http.client import responses
from typing import Any

from inpaint.errors import StorageError
from inpaint.storage.objects import MissingObject, Unavailable

WHO_ANSWERS = "see which service or proxy answers at AWS_ENDPOINT_URL"
ATTEMPTS = 6
BACKOFF_SECONDS = 0.2  # before the second attempt; doubles each time, with jitter
LONGEST_BACKOFF_SECONDS = 10.0

UNEXPLAINED_CODES = {"400", "403"}  # the answer to a HEAD has no body: these may say that credentials have expired
PASSING_STATUS = {408, 429, *range(500, 600)} - {501, 505}  # proxies have numbers of their own, such as 520 to 530
PASSING_CODES = {
    "SlowDown", "RequestTimeout", "InternalError", "Throttling", "ThrottlingException", "ServiceUnavailable",
    "OperationAborted", "ConditionalRequestConflict", "RequestTimeTooSkewed", "BadDigest",
}  # fmt: skip
EXPIRED_CODES = {
    "ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired", "InvalidAccessKeyId",
}  # fmt: skip


class WrongAnswer(ConnectionError):
    """The server is there, and sent something else than was asked for: worth another attempt, but not much patience."""


class Retries:
    """The attempts of one operation on one object."""

    def __init__(self, url: str, action: str, *, on_retry: Callable[[], None]):
        self.url, self.action, self.failures, self._on_retry = url, action, 0, on_retry
        self._renewed = False

    def progressed(self) -> None:
        """Forget earlier failures: bytes are arriving."""
        self.failures = 0

    def failed(self, error: Exception) -> bool:
        """Wait for the next attempt; True when it needs fresh credentials.

        Raises:
            StorageError: the failure will not pass, or there were ATTEMPTS of them.
        """
        if isinstance(error, StorageError):
            raise error
        expired = code_of(error) in EXPIRED_CODES or (code_of(error) in UNEXPLAINED_CODES and not self._renewed)
        if not expired and not _passes(error):
            raise _explained(error, self.url, self.action) from error
        self.failures, self._renewed = self.failures + 1, self._renewed or expired
        if self.failures >= ATTEMPTS:
            raise _given_up(error, self.url, self.action) from error
        self._on_retry()
        longest = min(LONGEST_BACKOFF_SECONDS, BACKOFF_SECONDS * 2 ** (self.failures - 1))
        time.sleep(max(longest * random.uniform(0.5, 1), min(LONGEST_BACKOFF_SECONDS, _asked_wait(error))))
        return expired


def status_of(error: Exception) -> int:
    """HTTP status of an S3 answer, 0 when there was none."""
    return _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def code_of(error: Exception) -> str:
    """S3's own word for an error, empty when there was no answer."""
    return _answer(error).get("Error", {}).get("Code", "")


def _asked_wait(error: Exception) -> float:
    """Seconds after which a busy store wants to be asked again, 0 when it says none."""
    said = _answer(error).get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")
    return float(said) if said.isdecimal() else 0.0


def _text(error: Exception) -> str:
    """An error's words in one line, or its name when it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _named(error: Exception) -> str:
    """The status of an answer and its name; one without a body repeats the number as its code."""
    status, code = status_of(error), code_of(error)
    return f"{status} {responses.get(status, '') if code == str(status) else code}".rstrip()


def _answer(error: Exception) -> dict[str, Any]:
    """What S3 answered; botocore gives a lost connection the answer None, and some errors have none at all."""
    return getattr(error, "response", None) or {}


def _passes(error: Exception) -> bool:
    from http.client import HTTPException

    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    if _is_endless(error):
        return False
    if isinstance(error, boto.ClientError):
        code = code_of(error)
        return status_of(error) in PASSING_STATUS or code in PASSING_CODES
    network = (
        boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, boto.ResponseStreamingError,
        ResponseParserError, boto.CredentialRetrievalError, HTTPError, HTTPException, OSError,
    )  # fmt: skip
    return isinstance(error, network) and not isinstance(error, boto.ProxyConnectionError)


def _is_endless(error: BaseException | None) -> bool:
    """Whether the AWS client was sent from place to place, which it follows, until its stack was full."""
    while error and not isinstance(error, RecursionError):
        error = error.__cause__ or error.__context__
    return error is not None


def _explained(error: Exception, url: str, action: str) -> StorageError:
    from botocore import exceptions as boto

    status, code = status_of(error), code_of(error)
    if code == "NoSuchBucket":
        return MissingObject(f"{url}: there is no such bucket; make it or correct the name")
    if code == "NoSuchUpload":
        return MissingObject(f"{url}: the store forgot this upload before its end; upload it again")
    if status == 404:
        return MissingObject(f"{url}: there is no such object; check the URL")
    if status in (401, 403) or code in UNEXPLAINED_CODES:
        return StorageError(
            f"{url}: S3 refuses to {action} it ({_named(error)}); check the policy of the bucket and "
            "whose credentials this process finds (AWS_PROFILE, the service account, the environment)"
        )
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return StorageError(f"{url}: no AWS credentials found; set AWS_PROFILE or AWS_ACCESS_KEY_ID and its secret")
    if status in range(300, 400) or _is_endless(error):
        return StorageError(
            f"{url}: the server sends to another place ({_named(error) if status else 'again and again'}); "
            "set AWS_ENDPOINT_URL (is it https?) and AWS_DEFAULT_REGION to where the bucket is"
        )
    if isinstance(error, KeyError):
        return StorageError(f"{url}: cannot {action} it: the server's answer has no {error.args[0]}; {WHO_ANSWERS}")
    return StorageError(f"{url}: cannot {action} it: {_text(error)}; check the URL and AWS_ENDPOINT_URL")


def _given_up(error: Exception, url: str, action: str) -> StorageError:
    from botocore.exceptions import SSLError

    said = _named(error) if status_of(error) else _text(error)
    if code_of(error) in EXPIRED_CODES:
        return StorageError(f"{url}: the AWS credentials have expired ({code_of(error)}); renew them and start again")
    advice = "see whether AWS_ENDPOINT_URL is right and the service is up"
    if isinstance(error, SSLError):
        advice = "see whether AWS_CA_BUNDLE names the right certificates, and AWS_ENDPOINT_URL the right port"
    kind = StorageError if isinstance(error, WrongAnswer) else Unavailable
    return kind(f"{url}: could not {action} it in {ATTEMPTS} attempts, the last one said: {said}; {advice}")
