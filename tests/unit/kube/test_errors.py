"""from_status: each error of the API server as a type with the server's words."""

from __future__ import annotations

import pytest

from hugetlb_quota.kube import errors
from hugetlb_quota.kube.errors import from_status


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (403, "Forbidden", errors.Forbidden),
        (404, "NotFound", errors.NotFound),
        (409, "Conflict", errors.Conflict),
        (409, "AlreadyExists", errors.AlreadyExists),
        (410, "Gone", errors.Gone),
        (410, "Expired", errors.Gone),
        (429, "TooManyRequests", errors.ApiError),
        (500, "InternalError", errors.ApiError),
    ],
)
def test_an_error_has_the_type_of_its_status_and_reason(
    status: int, reason: str, kind: type[errors.ApiError]
) -> None:
    error = from_status(status, {"kind": "Status", "reason": reason, "message": "the sentence"})
    assert type(error) is kind
    assert (error.status, error.reason, error.message) == (status, reason, "the sentence")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"reason": "Conflict", "message": "the sentence"}, "the sentence"),
        ({"reason": "Conflict", "message": ""}, "Conflict"),
        ({"reason": None}, "HTTP status 409"),
    ],
)
def test_an_error_is_printed_as_the_most_that_the_server_says(
    body: dict[str, str | None], text: str
) -> None:
    assert str(from_status(409, body)) == text


def test_no_response_has_no_status() -> None:
    error = errors.ApiUnreachable("No answer.")
    assert (error.status, error.reason, str(error)) == (0, "Unreachable", "No answer.")
