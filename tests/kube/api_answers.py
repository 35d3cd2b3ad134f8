"""What a Kubernetes API server says when it refuses: `Status` objects in its own words."""

from typing import Any

Json = Any

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class ApiError(Exception):
    """An answer other than 2xx; `status` is its body, or `text` where that is no Status."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        reason: str | None = None,
        details: Json = None,
        headers: dict[str, str] | None = None,
        text: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.text = text
        self.headers = headers or {}
        self.status: dict[str, Json] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
        }
        if reason := REASONS.get(code, "") if reason is None else reason:
            self.status["reason"] = reason
        if details:
            self.status["details"] = details
        self.status["code"] = code


def qualified(plural: str, group: str) -> str:
    """A resource as messages name it: `rayjobs.ray.io`, `pods`."""
    return f"{plural}.{group}" if group else plural


def details(name: str, group: str, kind: str, **more: Json) -> dict[str, Json]:
    """What a refusal is about, empty parts left out."""
    found: dict[str, Json] = {"name": name, "group": group, "kind": kind, **more}
    return {key: value for key, value in found.items() if value}


def not_found(group: str, plural: str, name: str) -> ApiError:
    return ApiError(
        404, f'{qualified(plural, group)} "{name}" not found', details=details(name, group, plural)
    )


def already_exists(group: str, plural: str, name: str) -> ApiError:
    return ApiError(
        409,
        f'{qualified(plural, group)} "{name}" already exists',
        reason="AlreadyExists",
        details=details(name, group, plural),
    )


def conflict(group: str, plural: str, name: str, why: str = "") -> ApiError:
    why = why or (
        "the object has been modified; please apply your changes to the latest version and try again"
    )
    return ApiError(
        409,
        f'Operation cannot be fulfilled on {qualified(plural, group)} "{name}": {why}',
        details=details(name, group, plural),
    )


def invalid(group: str, kind: str, name: str, causes: list[dict[str, str]]) -> ApiError:
    """422; each cause has `reason`, `message` and `field`."""
    said = [f"{cause['field']}: {cause['message']}" for cause in causes]
    text = said[0] if len(said) == 1 else f"[{', '.join(said)}]"
    return ApiError(
        422,
        f'{qualified(kind, group)} "{name}" is invalid: {text}',
        details=details(name, group, kind, causes=causes),
    )


def unknown_fields(kind: str, version: str, fields: list[str]) -> ApiError:
    """400 of fieldValidation=Strict."""
    said = ", ".join(f'unknown field "{field}"' for field in fields)
    return ApiError(
        400,
        f'{kind} in version "{version}" cannot be handled as a {kind}: '
        f"strict decoding error: {said}",
    )


def expired(asked: int, oldest: int) -> ApiError:
    return ApiError(410, f"too old resource version: {asked} ({oldest})")


def no_page() -> ApiError:
    """An address that nothing is served at."""
    return ApiError(404, "404 page not found", text="404 page not found\n")


def success(name: str, group: str, plural: str, uid: str) -> dict[str, Json]:
    """The answer to a deletion that is done."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details(name, group, plural, uid=uid),
    }
