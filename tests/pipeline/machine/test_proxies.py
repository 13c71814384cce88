"""Proxies that the environment names: none for this machine's own servers; bad ones are named."""

import os
import urllib.request
from collections.abc import Iterator

import httpx
import pytest

from pipeline.errors import SrpoError
from pipeline.machine.proxies import exempt_loopback, expect_usable_proxies

PROXY = "http://127.0.0.1:9"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    yield monkeypatch
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_proxy_nothing_changes() -> None:
    environment = {"NO_PROXY": "corp.example"}
    assert exempt_loopback(environment) == []
    assert environment == {"NO_PROXY": "corp.example"}


@pytest.mark.parametrize(
    ("before", "lower", "upper"),
    [
        ({}, "", ""),
        ({"no_proxy": "a.example"}, "a.example,", "a.example,"),
        ({"NO_PROXY": "a.example, b.example"}, "a.example,b.example,", "a.example,b.example,"),
        ({"no_proxy": "a.example", "NO_PROXY": "b.example"}, "a.example,", "b.example,"),
        ({"no_proxy": "*"}, "*,", "*,"),
        ({"no_proxy": "10.0.0.0/8,fe80::1"}, "10.0.0.0/8,fe80::1,", "10.0.0.0/8,fe80::1,"),
    ],
)
def test_both_spellings_name_this_machine_and_keep_their_entries(
    before: dict[str, str], lower: str, upper: str
) -> None:
    environment = {"HTTP_PROXY": PROXY, **before}
    assert exempt_loopback(environment) == []
    own = "127.0.0.1,localhost,::1"
    assert environment["no_proxy"] == lower + own
    assert environment["NO_PROXY"] == upper + own
    again = dict(environment)
    assert exempt_loopback(again) == []
    assert again == environment


@pytest.mark.parametrize("bad", ["[::1", "[::1]", "a:b:c", "http://x:y", "ä:80"])
@pytest.mark.parametrize("proxy", [PROXY, None])
@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_an_entry_that_clients_fail_on_is_left_out_and_named(
    bad: str, proxy: str | None, name: str, environment: pytest.MonkeyPatch
) -> None:
    if proxy is not None:
        environment.setenv("all_proxy", proxy)
    environment.setenv(name, f"corp.example,{bad}")
    with pytest.raises((httpx.InvalidURL, ValueError)):
        httpx.Client()
    assert exempt_loopback() == [bad]
    assert os.environ[name].startswith(
        "corp.example" if proxy is None else "corp.example,127.0.0.1"
    )
    httpx.Client().close()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("proxy", [PROXY, "socks5://127.0.0.1:9", "127.0.0.1:9"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_reached_without_the_proxy(
    name: str, proxy: str, host: str, environment: pytest.MonkeyPatch
) -> None:
    """Port 9 answers nobody, so what goes to the proxy would show in the error."""
    environment.setenv(name, proxy)
    environment.setenv("no_proxy", "corp.example")
    exempt_loopback()
    expect_usable_proxies()
    with httpx.Client() as client:
        transport = client._transport_for_url(httpx.URL(f"http://{host}:4200/api"))
        assert transport is client._transport
        assert client._transport_for_url(httpx.URL("http://far.example")) is not client._transport
    assert urllib.request.proxy_bypass(f"{host}:4200")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("all_proxy", "foo://x"),
        ("ALL_PROXY", "socks4://127.0.0.1:9"),
        ("HTTPS_PROXY", "http://h:port"),
        ("http_proxy", "http://[::1:80"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_one_line(
    name: str, value: str, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv(name, value)
    with pytest.raises(SrpoError) as error:
        expect_usable_proxies()
    text = str(error.value)
    assert text.startswith(f"the environment's {name}={value} can't be used: ")
    assert text.endswith(f"; correct it, or unset {name}")
    assert "\n" not in text


def test_the_line_shows_no_password(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ALL_PROXY", "socks4://ann:hunter2@proxy.example:1080")
    with pytest.raises(SrpoError, match=r"ALL_PROXY=socks4://…@proxy\.example:1080 can.t") as error:
        expect_usable_proxies()
    assert "hunter2" not in str(error.value)
