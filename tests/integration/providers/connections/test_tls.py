"""Connections over TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from headrace.providers.client import ProviderClient, Upload
from tests.integration.providers.connections.peers import answering, ask, failure_of, pieces_of, serving

CERTIFICATES = Path(__file__).parents[3] / "certificates"


def certified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "server.pem", CERTIFICATES / "server.key")
    return context


async def test_tls_to_a_server_with_a_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "ca.pem"))
    client, body, names = ProviderClient(connections=2), bytes(1_000_000), []
    tls = certified()
    tls.sni_callback = lambda _socket, name, _context: names.append(name)
    async with serving(answering, tls) as server:
        for _ in range(3):
            assert await ask(client, server.provider) == b"{}"
        assert await ask(client, server.provider, Upload(len(body), pieces_of(body))) == b"{}"
        assert server.peers[0].requests[-1][1] == body
        assert (len(server.peers), names) == (1, ["localhost"])
        await client.close()


async def test_a_certificate_that_is_not_trusted_is_told(client: ProviderClient) -> None:
    async with serving(answering, certified()) as server:
        assert "certificate" in (await failure_of(client, server.provider)).lower()
        assert "certificate" in (await failure_of(client, server.provider)).lower()
