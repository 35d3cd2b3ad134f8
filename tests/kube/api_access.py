"""Who asks, and what they may: tokens, roles, and refusals in the API server's words."""

from dataclasses import dataclass, field
from typing import Any

from tests.kube.api_answers import ApiError, details, qualified
from tests.kube.api_store import Store

Json = Any

EVERYTHING = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"], "nonResourceURLs": ["*"]}]
OPEN_PATHS = ("/api", "/apis", "/healthz", "/livez", "/openapi", "/readyz", "/version")
RBAC = "rbac.authorization.k8s.io"


@dataclass
class User:
    """Who a token stands for."""

    name: str
    groups: tuple[str, ...] = ("system:authenticated",)
    rules: list[Json] | None = None
    """What they may, as a Role has it, in every namespace; None: what roles in the store say."""


ADMIN = User("kubernetes-admin", ("system:masters",), EVERYTHING)
NOBODY = User("system:anonymous", ("system:unauthenticated",))


@dataclass(frozen=True)
class Attempt:
    """What is asked for."""

    verb: str
    group: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def resource(self) -> str:
        return f"{self.plural}/{self.subresource}" if self.subresource else self.plural


@dataclass
class Access:
    """Tokens and rights of one server."""

    store: Store
    tokens: dict[str, User] = field(default_factory=dict)
    anonymous: User = field(default_factory=lambda: ADMIN)
    """Who asks without a token: over plain HTTP the Go clients send none, so all is allowed."""
    refused: list[tuple[str, Attempt]] = field(default_factory=list)
    """Every refusal, with the user's name."""
    seen: set[tuple[str, str, str]] = field(default_factory=set)
    """Every right that was used: group, resource, verb."""

    def user_of(self, authorization: str) -> User:
        """Whose request it is.

        Raises:
            ApiError: 401, the token is unknown or has expired.
        """
        if not authorization.startswith("Bearer "):
            return self.anonymous
        user = self.tokens.get(authorization.removeprefix("Bearer ").strip())
        if user is None:
            raise ApiError(401, "Unauthorized")
        return user

    def check(self, user: User, attempt: Attempt) -> None:
        """Let a request pass.

        Raises:
            ApiError: 403, nothing allows it.
        """
        if user.rules is not EVERYTHING:
            self.seen.add((attempt.group, attempt.resource, attempt.verb))
        if self.allows(user, attempt):
            return
        self.refused.append((user.name, attempt))
        where = f'in the namespace "{attempt.namespace}"' if attempt.namespace else ""
        name = f' "{attempt.name}"' if attempt.name else ""
        raise ApiError(
            403,
            f"{qualified(attempt.plural, attempt.group)}{name} is forbidden: "
            f'User "{user.name}" cannot {attempt.verb} resource "{attempt.resource}" '
            f'in API group "{attempt.group}" {where or "at the cluster scope"}',
            details=details(attempt.name, attempt.group, attempt.plural),
        )

    def check_path(self, user: User, path: str) -> None:
        """Let a request for something that is no resource pass."""
        if user is not NOBODY and path.startswith(OPEN_PATHS):
            return
        for rule in user.rules or ():
            if "*" in rule.get("nonResourceURLs", ()):
                return
        raise ApiError(403, f'forbidden: User "{user.name}" cannot get path "{path}"')

    def allows(self, user: User, attempt: Attempt) -> bool:
        return any(_fits(rule, attempt) for rule in self._rules(user, attempt.namespace))

    def service_account(self, namespace: str, name: str) -> User:
        groups = (
            "system:serviceaccounts",
            f"system:serviceaccounts:{namespace}",
            "system:authenticated",
        )
        return User(f"system:serviceaccount:{namespace}:{name}", groups)

    def _rules(self, user: User, namespace: str) -> list[Json]:
        if user.rules is not None:
            return user.rules
        found: list[Json] = []
        for kind, within in (("clusterrolebindings", ""), ("rolebindings", namespace)):
            if kind == "rolebindings" and not namespace:
                continue
            for binding in self.store.of((RBAC, kind), within):
                if any(_is(user, subject) for subject in binding.get("subjects") or ()):
                    ref = binding["roleRef"]
                    plural = "roles" if ref["kind"] == "Role" else "clusterroles"
                    place = within if ref["kind"] == "Role" else ""
                    role = self.store.find((RBAC, plural), place, ref["name"])
                    found += (role or {}).get("rules") or []
        return found


def _is(user: User, subject: Json) -> bool:
    if subject["kind"] == "ServiceAccount":
        return user.name == f"system:serviceaccount:{subject['namespace']}:{subject['name']}"
    return subject["name"] in (user.groups if subject["kind"] == "Group" else (user.name,))


def _fits(rule: Json, attempt: Attempt) -> bool:
    def has(field: str, wanted: str) -> bool:
        return bool({"*", wanted} & set(rule.get(field) or ()))

    resources = set(rule.get("resources") or ())
    named = rule.get("resourceNames")
    return (
        has("verbs", attempt.verb)
        and has("apiGroups", attempt.group)
        and bool(resources & {"*", attempt.resource, f"*/{attempt.subresource or '-'}"})
        and (not named or attempt.name in named)
    )
