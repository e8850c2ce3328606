from __future__ import annotations

import time

from api.http import authentication
from api.http.authentication import Authenticator
from headrace.keys.queries import create_key
from headrace.stores.database import Database


async def test_what_is_known_of_a_key_is_freed_a_minute_after_its_last_use(database: Database) -> None:
    authenticator = Authenticator(database)
    number = authentication._CACHE_WORTH_A_LOOK + 1
    keys = [(await create_key(database, account="acme"))[1] for _ in range(number)]
    for key in keys:
        await authenticator.authenticate(key)
    assert authenticator._marking is not None
    await authenticator._marking
    authenticator._forget(time.monotonic() + 30)
    assert len(authenticator._cache) == number  # or each use of a key would be written
    authenticator._forget(time.monotonic() + 61)
    assert not authenticator._cache
    assert (await authenticator.authenticate(keys[0])).key_hash
