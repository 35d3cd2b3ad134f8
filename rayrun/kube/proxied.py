"""An HTTP service in the cluster: asked directly inside it, through the Kubernetes API outside."""

import importlib
import json
import re
import ssl
from collections.abc import Mapping
from typing import Any, cast

from rayrun.config import ConfigError, Json
from rayrun.kube.api import Api, path_of
from rayrun.kube.permissions import missing

CONNECT_S, READ_S = 5.0, 30.0


class ServiceProxy:
    """One port of one service."""

    def __init__(self, api: Api, service: str, port: int, way: str = "auto") -> None:
        """Nothing is asked.

        Args:
            api: of the namespace.
            service: its name.
            port: its number.
            way: `direct`, `proxy`, a URL that reaches it, or `auto`.
        """
        self._api = api
        if way == "auto":
            way = "direct" if api.connection.of_pod else "proxy"
        self.way = way
        if way == "proxy":
            path = path_of("services", api.namespace, f"http:{service}:{port}")
            self.address = f"{api.connection.host}{path}/proxy"
        elif way == "direct":
            self.address = f"http://{service}.{api.namespace}.svc:{port}"
        else:
            self.address = way.rstrip("/")

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Any:
        """The answer of the service (of `requests`); None: nothing answers now.

        Raises:
            ConfigError: the Kubernetes API does not let us through.
        """
        requests: Any = importlib.import_module("requests")
        settings, own = self._api.connection.settings, cast(Json, {})
        if self.way == "proxy":
            own["verify"] = (settings.ssl_ca_cert or True) if settings.verify_ssl else False
            if settings.cert_file:
                own["cert"] = (settings.cert_file, settings.key_file)
        with requests.Session() as session:
            session.trust_env = False  # a proxy for the Internet, or a ~/.netrc, is none for this
            try:
                answer = session.get(
                    self.address + path,
                    headers={**self.headers(), **(headers or {})},
                    timeout=(CONNECT_S, READ_S),
                    allow_redirects=False,
                    **own,
                )
            except (requests.RequestException, OSError):
                return None
        if answer.status_code in (401, 403) and self._is_of_the_api(answer):
            return None
        return answer

    def headers(self) -> dict[str, str]:
        """Who we are to the Kubernetes API, where that is asked."""
        return self._api.connection.headers() if self.way == "proxy" else {}

    def tls(self) -> ssl.SSLContext | None:
        """For a connection of our own to `address`."""
        return self._api.connection.tls() if self.way == "proxy" else None

    def _is_of_the_api(self, answer: Any) -> bool:
        """Whether the API server itself refuses; a token that has expired is read again."""
        try:
            told: Any = json.loads(answer.text)
        except ValueError:
            return False
        status = cast(Json, told) if isinstance(told, dict) else {}
        if self.way != "proxy" or status.get("kind") != "Status":
            return False
        if answer.status_code == 401:
            self._api.renew()
        elif re.search(r'cannot \w+ resource "', str(status.get("message"))):
            what = missing("get", "services/proxy", self._api.namespace)
            raise ConfigError(f"{what} ({status['message']})")
        return True
