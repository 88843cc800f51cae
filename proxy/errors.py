"""Every way to say no, in OpenAI's shape. Status codes appear here only.

ApiError
├── the caller's     invalid_api_key 401, model_not_found 404, invalid_json 400, ... 413
├── policy's         no_backend_within_limits 422, budget_exceeded 429
└── the upstreams'   upstream_unreachable 503, upstream_timeout 504, upstream_failed 502
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from policies.types import Rejection

Headers = list[tuple[bytes, bytes]]
# Endpoints whose clients tell events by their names, and pass over those that have none.
NAMED_EVENTS = frozenset({"messages", "responses"})
# What Anthropic's clients know errors by; any other is a mistake in the request, or ours.
MESSAGES_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """An error for the client; everything it needs next is in the fields."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        retry_after_s: float | None = None,
        final: bool = False,
        details: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.kind = kind
        self.param = param
        self.retry_after_s = retry_after_s
        self.final = final  # trying again without a change cannot help
        self.details = details

    def _error(self) -> dict[str, object]:
        error: dict[str, object] = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        if self.details:
            error["joulegate"] = self.details
        return error

    def body(self, endpoint: str = "") -> bytes:
        """The error as clients of that endpoint's API look for it."""
        error = self._error()
        if endpoint.partition(".")[0] == "messages":
            return of_messages(self.status, error)
        return orjson.dumps({"error": error})

    def event(self, endpoint: str, number: int) -> bytes:
        """The error in a stream that has begun, as clients of that endpoint's API look for it;
        ``number`` typed events came before it."""
        if endpoint == "responses":
            told = {"type": "error", "code": self.code, "message": self.message}
            more = {"param": self.param, "sequence_number": number, "error": self._error()}
            body = orjson.dumps({**told, **more})
        else:
            body = self.body(endpoint)
        name = b"event: error\n" if endpoint in NAMED_EVENTS else b""
        return name + b"data: " + body + b"\n\n"

    def headers(self) -> Headers:
        headers: Headers = [(b"content-type", b"application/json")]
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(max(1, round(self.retry_after_s))).encode()))
        if self.final:
            headers.append((b"x-should-retry", b"false"))
        return headers


def of_messages(status: int, error: dict[str, object]) -> bytes:
    """An error in the shape of Anthropic's API, whose clients show no other's message."""
    kind = MESSAGES_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return orjson.dumps({"type": "error", "error": {**error, "type": kind}})


def invalid_api_key(message: str) -> ApiError:
    return ApiError(401, "invalid_api_key", message, final=True)


def forbidden(message: str) -> ApiError:
    return ApiError(403, "forbidden", message, kind="permission_error", final=True)


def model_not_found(model: str, known: Sequence[str]) -> ApiError:
    names = ", ".join(known[:20]) or "none"
    message = f"The model {model!r} does not exist here or you may not use it. Known: {names}."
    return ApiError(404, "model_not_found", message, param="model")


def not_found(message: str) -> ApiError:
    return ApiError(404, "not_found", message)


def for_no_backend(path: str) -> ApiError:
    message = (
        f"Joulegate itself has nothing at POST /v1{path}, and for a backend to be asked the "
        "request should name its 'model'."
    )
    return invalid_body(message, code="missing_required_parameter", param="model")


def method_not_allowed(method: str, allowed: str = "POST") -> ApiError:
    return ApiError(405, "method_not_allowed", f"{method} is not allowed here. Use {allowed}.")


def invalid_body(message: str, *, code: str = "invalid_json", param: str | None = None) -> ApiError:
    return ApiError(400, code, message, param=param)


def body_too_large(limit_bytes: int) -> ApiError:
    message = f"The request body is larger than {limit_bytes} bytes (server.max_body_bytes)."
    return ApiError(413, "request_too_large", message, final=True)


def not_http() -> ApiError:
    return ApiError(400, "invalid_http", "What was sent is not valid HTTP/1.1.", final=True)


def head_too_large(limit_bytes: int) -> ApiError:
    message = f"The request's headers are larger than {limit_bytes} bytes."
    return ApiError(431, "headers_too_large", message, final=True)


def request_timeout() -> ApiError:
    return ApiError(408, "request_timeout", "The request took too long to arrive. Try again.")


def invalid_header(name: str, message: str) -> ApiError:
    return ApiError(400, "invalid_header", f"{name}: {message}", param=name)


def no_backend_within_limits(message: str, rejections: Sequence[Rejection]) -> ApiError:
    details: dict[str, object] = {
        "rejections": [
            {"backend": r.backend, "code": r.code, "message": r.message} for r in rejections
        ]
    }
    return ApiError(
        422,
        "no_backend_within_limits",
        message,
        kind="policy_error",
        final=True,
        details=details,
    )


def over_budget(
    message: str, *, code: str, retry_after_s: float, details: dict[str, object] | None = None
) -> ApiError:
    return ApiError(
        429,
        code,
        message,
        kind="budget_error",
        retry_after_s=retry_after_s,
        final=True,
        details=details,
    )


def rate_limited(
    message: str, retry_after_s: float, details: dict[str, object] | None = None
) -> ApiError:
    return ApiError(
        429,
        "rate_limit_exceeded",
        message,
        kind="rate_limit_error",
        retry_after_s=retry_after_s,
        details=details,
    )


def too_many_failed_keys(retry_after_s: float) -> ApiError:
    return ApiError(
        429,
        "too_many_failed_keys",
        "Too many wrong API keys came from your address. Wait, and send a right one.",
        kind="rate_limit_error",
        retry_after_s=retry_after_s,
    )


def overloaded(message: str, retry_after_s: float = 1.0) -> ApiError:
    return ApiError(503, "overloaded", message, kind="server_error", retry_after_s=retry_after_s)


def upstream_unreachable(message: str) -> ApiError:
    return ApiError(503, "upstream_unreachable", message, kind="server_error", retry_after_s=2.0)


def upstream_failed(message: str) -> ApiError:
    return ApiError(502, "upstream_failed", message, kind="server_error")


def upstream_timeout(message: str) -> ApiError:
    return ApiError(504, "upstream_timeout", message, kind="timeout_error")


def internal() -> ApiError:
    message = "Joulegate failed at this request. Its log has the reason under the request's id."
    return ApiError(500, "internal_error", message, kind="server_error")
