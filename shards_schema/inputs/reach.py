"""Whether somebody answers: at an address, and of the Hugging Face hub. It is asked before a library waits for minutes.

"Could not ask" is another thing than "is not there", and libraries mix the two up: for a hub that is out of reach
huggingface_hub raises its "no such entry", after five rounds of waiting for each file. One connection, of a few
seconds, tells.
"""

from __future__ import annotations

import socket
import threading
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

SECONDS = 5.0
"""For a connection to stand; a cluster's own network needs milliseconds, another continent half a second."""


def silence(host: str, port: int, seconds: float = SECONDS) -> str | None:
    """Why nobody answers at an address, in words; None where somebody does."""
    found: list[str | None] = []

    def ask() -> None:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
            found.append(None)
        except OSError as error:
            found.append(error.strerror or str(error) or type(error).__name__)

    # a resolver without a network takes its own time, and cannot be told to hurry
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds + 1)
    return found[0] if found else f"no answer in {seconds:.0f} s"


def silence_of_hub() -> str | None:
    """Why the Hugging Face hub cannot be asked, in words; None where it can be."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so the hub was not asked"
    endpoint = urlsplit(constants.ENDPOINT)
    proxy = None if proxy_bypass(endpoint.hostname or "") else getproxies().get(endpoint.scheme)
    asked = urlsplit(proxy if proxy and "://" in proxy else f"http://{proxy}") if proxy else endpoint
    port = asked.port or (443 if asked.scheme == "https" else 80)
    why = silence(asked.hostname or "", port)
    return why and f"the hub could not be reached ({asked.hostname}:{port}: {why})"


def in_cache(repository: str) -> str:
    """What to do about files of a repository that the hub cannot be asked for, and that no cache here has."""
    from huggingface_hub import constants

    return (
        f"{constants.HF_HUB_CACHE} does not hold them: fetch them where there is a network (`hf download {repository}`)"
        " and set HF_HOME to that cache, or give a local path"
    )
