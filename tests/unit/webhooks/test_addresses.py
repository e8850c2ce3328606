from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest

from headrace.errors import InvalidRequestError
from headrace.runtime.lookups import Lookups
from headrace.webhooks import addresses
from headrace.webhooks.addresses import ForbiddenAddressError, ascii_host, check_url, is_public, resolve
from headrace.webhooks.signing import derive_secret, sign
from scheduler.webhooks import _AT_ONCE
from tests.resolver import Resolver, resolving
from tests.waiting import PATIENCE, eventually

KEY = "k" * 32


def test_a_signature_is_what_the_specification_says() -> None:
    secret = derive_secret(KEY, "secret_1")
    headers = sign([secret], webhook_id="evt_1", sent_at=datetime(2026, 1, 2, tzinfo=UTC), payload='{"a":"ä"}')
    raw = base64.b64decode(secret.removeprefix("whsec_"))
    assert len(raw) == 32
    expected = hmac.new(raw, 'evt_1.1767312000.{"a":"ä"}'.encode(), hashlib.sha256).digest()
    assert headers == {
        "webhook-id": "evt_1",
        "webhook-timestamp": "1767312000",
        "webhook-signature": "v1," + base64.b64encode(expected).decode(),
    }


def test_every_valid_secret_signs() -> None:
    secrets = [derive_secret(KEY, "secret_1"), derive_secret(KEY, "secret_2")]
    headers = sign(secrets, webhook_id="evt_1", sent_at=datetime.now(UTC), payload="{}")
    first, second = headers["webhook-signature"].split(" ")
    assert first != second


def test_secrets_differ_by_row_and_by_key() -> None:
    assert len({derive_secret(key, row) for key in (KEY, KEY + "x") for row in ("secret_1", "secret_2")}) == 4


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "168.63.129.17",
        "2606:4700:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2002:808:808::1",
        "2001:0:808:808:0:0:f7f7:f7f7",  # Teredo's client 8.8.8.8
    ],
)
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.10",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # the clouds' metadata
        "100.64.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",  # a cloud's metadata
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::",
        "::127.0.0.1",
        "::8.8.8.8",  # IPv4-compatible, which no router forwards
        "::ffff:0:127.0.0.1",
        "64:ff9b:1::7f00:1",
        "2001:0:808:808:0:0:80ff:fffe",  # Teredo's client 127.0.0.1
        "2606:4700::5efe:10.0.0.1",
        "2606:4700::200:5efe:10.0.0.1",
        "fec0::1",
        "feff::1",
        "100::1",
        "5f00::1",
        "4000::1",
        "::ffff:168.63.129.16",
        "192.0.0.192",  # a cloud's metadata
        "192.31.196.1",
        "192.52.193.1",
        "192.88.99.1",
        "192.175.48.1",
        "2620:4f:8000::1",
        "3fff::1",
        "::ffff:192.0.0.192",
        "168.63.129.16",  # Azure's, with keys for its machines
    ],
)
def test_addresses_that_webhooks_may_not_go_to(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x",
        "http://[::1]:8080/x",
        "https://169.254.169.254/latest/meta-data",
        "http://localhost:9/x",
        "http://a.localhost/x",
        "http://LOCALHOST/x",
        "http://[::ffff:10.0.0.1]/x",
        "http://user:secret@10.1.2.3/x",
        "http://127.1/x",
        "http://2130706433/x",
        "http://0x7f.1/x",
        "http://localhost./x",
        "http://[fe80::1%25eth0]/x",
        "http://[nonsense]/x",
    ],
)
def test_a_url_with_such_an_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_url(url, allow_private=False)
    assert refused.value.param == "webhook"


@pytest.mark.parametrize(
    "url",
    [
        "http://x.invalid:99999/",
        "http://x.invalid:0/",
        "http://x..invalid/",
        f"http://{'a' * 64}.invalid/",
        f"http://{'a.' * 127}invalid/",
        "http:///path",
        "http://\u2603.invalid/",  # IDNA 2008 has no such character
        "http://x%20y.invalid/",
        "http://%6cocalhost/",
        "http://a,b.invalid/",
        "http://*.invalid/",
    ],
)
def test_a_url_that_cannot_be_called_is_refused_when_it_is_given(url: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_url(url, allow_private=True)
    assert refused.value.param == "webhook"


def test_a_name_is_looked_up_by_idna_2008() -> None:
    assert ascii_host(httpx.URL("http://stra\u00dfe.invalid/")) == "xn--strae-oqa.invalid"
    assert ascii_host(httpx.URL("http://[::1]:80/")) == "::1"


def test_other_urls_are_taken() -> None:
    check_url("https://hooks.example.com/x", allow_private=False)
    check_url("http://127.0.0.1:8080/x", allow_private=True)
    check_url("https://user:secret@my_host.example.com.:8443/x?y=z", allow_private=False)
    check_url("https://stra\u00dfe.example.com/", allow_private=False)
    check_url("http://[::1]:8080/x", allow_private=True)


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f000001", "2130706433", "017700000001"])
async def test_a_name_is_judged_by_where_it_leads(host: str) -> None:
    with pytest.raises(ForbiddenAddressError):
        await resolve(host, allow_private=False)


async def test_development_may_allow_them() -> None:
    assert await resolve("127.0.0.1", allow_private=True) == "127.0.0.1"


async def test_a_host_that_is_not_there() -> None:
    with pytest.raises(ForbiddenAddressError, match="not known"):
        await resolve("nowhere.invalid", allow_private=True)


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    with resolving() as resolver:
        yield resolver


def begin(host: str) -> asyncio.Task[str]:
    return asyncio.create_task(resolve(host, allow_private=True))


async def test_as_many_lookups_may_hang_as_deliveries_are_in_flight(resolver: Resolver) -> None:
    hanging = [begin(f"hanging-{number}.invalid") for number in range(_AT_ONCE)]
    await eventually(lambda: len(resolver.asked) == _AT_ONCE, "all lookups to hang")
    async with asyncio.timeout(PATIENCE):
        assert await begin("quick.invalid") == "127.0.0.1"
    resolver.answered.set()
    await asyncio.gather(*hanging)


async def test_lookups_that_hang_are_not_without_number(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_lookups", Lookups(most=1))
    hanging = begin("hanging.invalid")
    await eventually(lambda: resolver.asked, "the lookup to hang")
    with pytest.raises(ForbiddenAddressError, match="Too many"):
        await begin("quick.invalid")
    resolver.answered.set()
    assert await hanging == "127.0.0.1"
