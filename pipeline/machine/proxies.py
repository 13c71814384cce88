"""Proxies that the environment names: none for this machine's own servers, and none that fail.

Libraries read `http_proxy` and its kin, in lower and upper case, by rules of their own: some prefer
one spelling, some fail on an entry of `no_proxy` that they can't parse.
"""

import ipaddress
import os
import re
from collections.abc import MutableMapping

from pipeline.errors import SrpoError
from pipeline.text import printable

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EXEMPT = ("no_proxy", "NO_PROXY")
"""Variables that name hosts to reach without a proxy."""
_CREDENTIALS = re.compile(r"//[^@/]*@")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def exempt_loopback(environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """Name this machine in both spellings of `no_proxy`; return entries left out as unreadable.

    Nothing changes where no proxy is named, but that HTTP clients fail on such entries even then.
    """
    proxied = bool(proxies(environment))
    lower, upper = (environment.get(name) for name in EXEMPT)
    unreadable: list[str] = []
    # Each spelling keeps its own entries. One that isn't there takes the other's: for libraries
    # that prefer it, it would hide them.
    found = {EXEMPT[0]: upper if lower is None else lower, EXEMPT[1]: upper or lower}
    for name, value in found.items():
        entries = [entry.strip() for entry in (value or "").split(",") if entry.strip()]
        unreadable += [entry for entry in entries if not _is_readable(entry)]
        kept = [entry for entry in entries if _is_readable(entry)]
        if proxied:
            environment[name] = ",".join([*kept, *(own for own in LOOPBACK if own not in kept)])
        elif kept != entries and name in environment:
            environment[name] = ",".join(kept)
    return list(dict.fromkeys(unreadable))


def expect_usable_proxies() -> None:
    """Check that each proxy that the environment names is one that HTTP clients here can use.

    Raises:
        SrpoError: one isn't; the line names the variable.
    """
    import httpx  # here: most commands need no network

    for name, value in proxies(os.environ).items():
        try:
            httpx.Client(proxy=value if "://" in value else f"http://{value}", verify=False).close()
        except (ValueError, ImportError, httpx.InvalidURL) as error:
            reason = _CREDENTIALS.sub("//…@", " ".join(str(error).split()))
            raise SrpoError(
                f"the environment's {name}={printable(_CREDENTIALS.sub('//…@', value), 80)} can't "
                f"be used: {printable(reason, 200)}; correct it, or unset {name}"
            ) from None


def proxies(environment: MutableMapping[str, str]) -> dict[str, str]:
    """Return the proxies that an environment names, by the variable's name as it is spelled."""
    return {
        name: value.strip()
        for name, value in environment.items()
        if name.lower() in _PROXIES and value.strip()
    }


def _is_readable(entry: str) -> bool:
    """Tell whether HTTP clients can read an entry of `no_proxy`; one that they can't stops them."""
    import httpx

    try:
        ipaddress.ip_address(entry.partition("/")[0])
        return True
    except ValueError:
        pass
    try:
        httpx.URL(entry if "://" in entry else f"all://*{entry}")
        return True
    except httpx.InvalidURL:
        return False
