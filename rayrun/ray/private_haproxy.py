"""HAProxy as Ray starts it, kept to this machine: `python private_haproxy.py BINARY ARGUMENTS…`.

Ray's template opens two more ports, for statistics and for Prometheus, on every interface, and no
option says otherwise. This program stands in HAProxy's place (RAY_SERVE_HAPROXY_BINARY_PATH): it
moves both to sockets of the folder that holds the configuration, asks the kernel to end HAProxy
when the process that started it ends, and becomes HAProxy. Only the standard library, nothing of
this package: it runs at every reload.
"""

import ctypes
import os
import re
import signal
import sys

PR_SET_PDEATHSIG = 1

OPEN_TO_ALL = re.compile(
    r"^(?P<section>frontend prometheus|listen stats)\n(?P<indent>\s+)bind \S*:\d+$", re.MULTILINE
)


def keep_private(text: str, folder: str) -> str:
    """The configuration with both listeners on sockets of `folder`.

    Raises:
        ValueError: it does not have the two lines that are known; nothing may be started then.
    """
    text, found = OPEN_TO_ALL.subn(
        lambda match: (
            f"{match['section']}\n{match['indent']}"
            f"bind unix@{folder}/{match['section'].split()[1]}.sock mode 600"
        ),
        text,
    )
    if found != 2:
        raise ValueError(
            f"HAProxy's configuration must have two listeners to move, found {found}; "
            "set serve.ingress: python"
        )
    return text


def main(arguments: list[str]) -> None:
    """Rewrite the file behind `-f` and become the binary."""
    binary = arguments[0]
    if "-f" in arguments:
        place = arguments[arguments.index("-f") + 1]
        with open(place, encoding="utf-8") as file:
            text = file.read()
        with open(place + ".private", "w", encoding="utf-8") as file:
            file.write(keep_private(text, os.path.dirname(place)))
        os.replace(place + ".private", place)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.execv(binary, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
