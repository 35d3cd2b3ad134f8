"""How the Kubernetes API is reached: from a kubeconfig, or as the service account of a pod."""

import importlib
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrun.config import ConfigError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes puts the service account of a pod."""
IN_CLUSTER, KUBECONFIG = "KUBERNETES_SERVICE_HOST", "KUBECONFIG"


def configured() -> bool:
    """Whether this process was told of a Kubernetes API: it runs in a pod, or by `$KUBECONFIG`."""
    return bool(os.environ.get(KUBECONFIG)) or in_cluster()


def in_cluster() -> bool:
    """Whether this process runs in a pod that may speak to its API."""
    return bool(os.environ.get(IN_CLUSTER)) and (ACCOUNT / "token").exists()


@dataclass
class Connection:
    """An API server and who we are to it."""

    settings: Any
    """`kubernetes.client.Configuration`"""
    namespace: str
    """Of the context, or of the pod."""
    of_pod: bool = False
    """It is that of the cluster this process runs in, whose services it reaches."""

    @classmethod
    def open(cls, context: str = "") -> "Connection":
        """Read the kubeconfig, or the pod's service account where none is named; nothing is asked.

        Args:
            context: of the kubeconfig; empty: its current one.

        Raises:
            ConfigError: neither is there, or the kubeconfig cannot be used.
        """
        client: Any = importlib.import_module("kubernetes.client")
        config: Any = importlib.import_module("kubernetes.config")
        settings = client.Configuration()
        settings.retries = False  # ours are bounded by time
        if in_cluster() and not context and not os.environ.get(KUBECONFIG):
            config.load_incluster_config(settings)
            namespace = (ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
            return cls(settings, namespace, of_pod=True)
        file = os.environ.get(KUBECONFIG) or str(Path.home() / ".kube" / "config")
        try:
            known, current = config.list_kube_config_contexts(file)
            chosen = current
            if context:
                names = [str(found["name"]) for found in known]
                if context not in names:
                    raise ConfigError(
                        f"compute.context must be one of the kubeconfig's ({', '.join(names)}), "
                        f"found {context}"
                    )
                chosen = known[names.index(context)]
            config.load_kube_config(file, chosen["name"], settings, persist_config=False)
        except (config.ConfigException, OSError, TypeError, KeyError) as error:
            raise ConfigError(
                "compute: {type: kuberay} needs a Kubernetes API: run in a pod with a service "
                f"account, or name a kubeconfig in KUBECONFIG; {file} cannot be used ({error})"
            ) from None
        return cls(settings, str(chosen["context"].get("namespace") or "default"))

    @property
    def host(self) -> str:
        """`https://HOST:PORT`."""
        return str(self.settings.host).rstrip("/")

    def headers(self) -> dict[str, str]:
        """Who we are, as a header; empty with a client certificate."""
        token = self.settings.get_api_key_with_prefix("authorization")
        if token:
            return {"Authorization": str(token)}
        basic = self.settings.get_basic_auth_token() if self.settings.username else ""
        return {"Authorization": str(basic)} if basic else {}

    def tls(self) -> ssl.SSLContext | None:
        """How the server is verified and who we are to it; None for plain http."""
        if not self.host.startswith("https://"):
            return None
        context = ssl.create_default_context(cafile=self.settings.ssl_ca_cert or None)
        if not self.settings.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.settings.cert_file:
            context.load_cert_chain(self.settings.cert_file, self.settings.key_file or None)
        return context
