"""Everything the router says no with, and how it looks to a caller.

    Refusal
    ├── BadRequest 400      ├── NotFound 404         ├── TooMany 429
    ├── Unauthorized 401    ├── WrongMethod 405      ├── BadAnswer 502
    ├── BudgetExceeded 402  ├── RunStopped 409       │
    ├── Denied 403          ├── TooSlowToSend 408    ├── Unavailable 503
    └── TooSlow 504         └── TooLarge 413 ── HeadersTooLarge 431

A message says what was asked, what is so and what to do next. It never carries an upstream's words, addresses or keys.
"""

from collections.abc import Mapping
from typing import Any

import msgspec


class Refusal(Exception):
    """No answer will come. Subclasses fix the HTTP status, OpenAI's `type` and `code`, and Anthropic's `type`."""

    status = 500
    type = "server_error"
    code = "internal_error"
    anthropic_type = "api_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code
        self.retry_after_s = retry_after_s

    def headers(self) -> Mapping[str, str]:
        """Headers that belong to the refusal itself."""
        return {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}

    def document(self, *, anthropic: bool = False) -> dict[str, Any]:
        """The error as OpenAI's clients, or Anthropic's, expect it."""
        if anthropic:
            return {"type": "error", "error": {"type": self.anthropic_type, "message": self.message}}
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def body(self, *, anthropic: bool = False) -> bytes:
        """`document` as JSON."""
        return msgspec.json.encode(self.document(anthropic=anthropic))


class BadRequest(Refusal):
    """The request itself is wrong."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request_error"
    anthropic_type = "invalid_request_error"


class Unauthorized(Refusal):
    """Nobody we know."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"
    anthropic_type = "authentication_error"
    cause = "token that is not taken"  # for the audit log: more than the caller may know
    who = ""  # whose key it was, where it was one of ours


class BudgetExceeded(Refusal):
    """The money, tokens or calls that somebody allowed are used up. Not 429: clients try that again."""

    status = 402
    type = "budget_exceeded"
    code = "budget_exceeded"
    anthropic_type = "billing_error"
    scope = ""  # whose budget: run, caller, team or task
    unit = ""


class RunStopped(Refusal):
    """The run was stopped, by a person, its deadline or its own loops; nothing more is done for it."""

    status = 409
    type = "run_stopped"
    code = "run_stopped"
    anthropic_type = "invalid_request_error"


class Denied(Refusal):
    """Known, and not allowed."""

    status = 403
    type = "permission_error"
    code = "access_denied"
    anthropic_type = "permission_error"


class NotFound(Refusal):
    """No such model, task or path."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"
    anthropic_type = "not_found_error"


class WrongMethod(Refusal):
    """The path exists, the method does not."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"
    anthropic_type = "invalid_request_error"


class TooSlowToSend(Refusal):
    """The request's body did not arrive in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"
    anthropic_type = "invalid_request_error"


class TooLarge(Refusal):
    """More bytes than a request may have."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"
    anthropic_type = "request_too_large"


class HeadersTooLarge(TooLarge):
    """More header bytes than a request may have."""

    status = 431


class TooMany(Refusal):
    """Every place is taken; later there may be one."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limited"
    anthropic_type = "rate_limit_error"


class BadAnswer(Refusal):
    """The model's answer was cut or made no sense."""

    status = 502
    code = "upstream_error"


class Unavailable(Refusal):
    """No model that may answer is up."""

    status = 503
    type = "service_unavailable"
    code = "no_healthy_model"
    anthropic_type = "overloaded_error"


class TooSlow(Refusal):
    """The model did not answer in time."""

    status = 504
    type = "timeout_error"
    code = "upstream_timeout"
    anthropic_type = "timeout_error"
