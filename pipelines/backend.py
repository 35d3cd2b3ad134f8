"""A KFP backend as this command line talks to it: KFP's own client, with time limits, one address,
credentials from the environment or files, and errors in one line.
"""

# pyright: reportArgumentType=false
# KFP's annotations do not say that an argument may be None.
import contextlib
import io
import json
import logging
import os
import socket
import urllib.parse
import warnings
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import urllib3
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials
from kfp_server_api.rest import RESTClientObject

from pipelines.compiled import PipelineError

ENDPOINT, UI = "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT"
TOKEN_PATH = "KF_PIPELINES_SA_TOKEN_PATH"
MOUNTED_TOKEN = "/var/run/secrets/kubeflow/pipelines/token"
"""Where KFP's client looks for the address, the address of the pages, and a mounted token."""

CONNECT_S, READ_S = 5.0, 60.0
LETTERS = 300
"""Of what a server says of an error; the rest is its stack."""


@dataclass(frozen=True)
class Address:
    """Where a backend is and who asks; as given on the command line."""

    host: str = ""
    """URL of the API; empty: `$KF_PIPELINES_ENDPOINT`."""
    namespace: str = ""
    token_env: str = ""
    """Name of the environment variable that holds a token. Empty: a token that is mounted in the
    pod, what KFP's own variables say, or none."""
    ca_file: str = ""
    """Certificates to trust, where the backend's is not signed by a public one."""

    @property
    def url(self) -> str:
        """The API, without a slash at its end.

        Raises:
            PipelineError: it is not given, or is no URL.
        """
        given = self.host or os.environ.get(ENDPOINT, "")
        parts = urllib.parse.urlsplit(given)
        if not given:
            raise PipelineError(
                f"--host must be the URL of a KFP API and is not given; in a pod of its cluster it "
                f"is http://ml-pipeline.kubeflow.svc.cluster.local:8888 ({ENDPOINT} sets it too)"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise PipelineError(f"--host must be http://… or https://…, found {given!r}")
        return given.rstrip("/")

    @property
    def page(self) -> str:
        """What the addresses of pages for people begin with."""
        return f"{os.environ.get(UI, '').rstrip('/') or self.url}/#"

    def token(self) -> str:
        """The token, or nothing.

        Raises:
            PipelineError: the variable is not set.
        """
        if not self.token_env:
            return ""
        found = os.environ.get(self.token_env, "").strip()
        if not found:
            raise PipelineError(
                f"--token-env {self.token_env}: the environment variable {self.token_env} is not "
                "set; export the token there"
            )
        return found


class Backend(kfp.Client):
    """KFP's client: it asks once whether a backend is there, and waits for no answer for ever."""

    def get_kfp_healthz(self, sleep_duration: int = 0) -> kfp_server_api.V2beta1GetHealthzResponse:
        """Whether a KFP is there, asked once: the command that failed can be typed again."""
        answer: Any = self._healthz_api.healthz_service_get_healthz(
            _preload_content=False, _request_timeout=(CONNECT_S, READ_S)
        )
        try:
            found = json.loads(answer.data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise PipelineError(
                f"what answers at --host {self._existing_config.host} is no KFP API (its "
                "/apis/v2beta1/healthz is no JSON); check the address and the path"
            )
        return kfp_server_api.V2beta1GetHealthzResponse(multi_user=found.get("multi_user"))

    def wait_no_longer(self) -> None:
        """Give every later call its time limits."""
        api_client = self._run_api.api_client
        api_client.rest_client = _Limited(api_client.configuration)


class _Limited(RESTClientObject):
    def request(self, *args: Any, _request_timeout: Any = None, **more: Any) -> Any:
        return super().request(
            *args, _request_timeout=_request_timeout or (CONNECT_S, READ_S), **more
        )


def connect(address: Address) -> Backend:
    """KFP's client for a backend that answers.

    Raises:
        PipelineError: nobody answers, what answers is no KFP, or it refuses the token.
    """
    url, token = address.url, address.token()
    _check_listening(url)
    mounted = Path(os.environ.get(TOKEN_PATH, "") or MOUNTED_TOKEN)
    credentials = None
    if not token and (TOKEN_PATH in os.environ or mounted.exists()):
        if not mounted.is_file():
            raise PipelineError(f"{TOKEN_PATH} must name a file with a token, found {mounted}")
        credentials = ServiceAccountTokenVolumeCredentials()  # read again for every request
    with one_line(address), quietly():
        client = Backend(
            host=url,
            existing_token=token or None,
            credentials=credentials,
            ssl_ca_cert=address.ca_file or None,
            **({"namespace": address.namespace} if address.namespace else {}),
        )
        client.wait_no_longer()
        client.get_kfp_healthz()
    return client


@contextlib.contextmanager
def one_line(address: Address) -> Generator[None]:
    """What goes wrong between us and a backend, as a `PipelineError` that says what to do."""
    try:
        yield
    except kfp_server_api.ApiException as error:
        raise PipelineError(_told(address, error)) from None
    except PipelineError:
        raise
    except ValueError as error:  # KFP's client: several experiments of one name, an invalid package
        raise PipelineError(f"KFP's client refused it: {error}") from None
    except urllib3.exceptions.HTTPError as error:
        raise PipelineError(
            f"no answer of the KFP at {address.url} ({reason(error)}); check --host and the network"
        ) from None


@contextlib.contextmanager
def quietly() -> Generator[None]:
    """Without the lines that KFP's client prints; ours say the same, once."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def reason(error: BaseException) -> str:
    """Why a connection failed, in a few words."""
    inner = getattr(error, "reason", None)
    if isinstance(inner, BaseException):
        return reason(inner)
    text = str(error)
    return text.rpartition(": ")[2].strip() or type(error).__name__


def said(error: kfp_server_api.ApiException) -> str:
    """The first line of what a server said; without the stack of the Go program."""
    body: Any = error.body
    if isinstance(body, bytes):
        body = body.decode("utf-8", errors="replace")
    try:
        found = json.loads(body or "")
    except ValueError:
        found = {}
    text = ""
    if isinstance(found, Mapping):
        text = str(found.get("message") or found.get("error") or "")
    lines = [line for line in (text or str(error.reason or "")).splitlines() if line.strip()]
    return (lines[0].strip() if lines else "it said nothing")[:LETTERS]


# ---------------------------------------------------------------------------------------------


def _check_listening(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=CONNECT_S).close()
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise PipelineError(
            f"nobody listens at --host {url} ({why}); check the address, or start the port-forward "
            "(kubectl port-forward -n kubeflow svc/ml-pipeline 8888)"
        ) from None


def _told(address: Address, error: kfp_server_api.ApiException) -> str:
    told, status = said(error), error.status
    where = f"the KFP at {address.url}"
    if status == 0:  # certificates
        return f"{where} is not trusted ({told}); give its certificates by --ca-file"
    if status == 401 or "Unauthenticated" in told:
        given = f"the token of {address.token_env}" if address.token_env else "no token was given"
        return f"{where} wants another token ({status}: {told}); {given}: check --token-env"
    if status == 403:
        return f"{where} forbids it ({told}); check --namespace, and the rights of the token there"
    if status == 404:
        return f"{where} does not know it ({told}); check --host with its path, and --namespace"
    if int(status or 0) >= 500:
        return f"{where} failed ({status}: {told}); look at its log, or try again"
    return f"{where} refused it ({status}: {told})"
