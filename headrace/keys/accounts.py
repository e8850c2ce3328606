"""Every statement on accounts."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from headrace.ids import new_id
from headrace.keys.tables import accounts
from headrace.quotas.rules import Limits
from headrace.stores.connections import Connections, Row
from headrace.stores.database import Database, execute
from headrace.stores.tables import unix_seconds

DEFAULT_ACCOUNT = "default"

_ACCOUNTS = sa.select(accounts.c.id, accounts.c.name, accounts.c.limits, unix_seconds(accounts.c.created_at))


async def ensure_account(database: Database, name: str) -> str:
    """Return the id of the account with this name, and create the account if it is new."""
    statement = (
        insert(accounts)
        .values(id=new_id("acct"), name=name)
        .on_conflict_do_update(index_elements=["name"], set_={"name": name})
        .returning(accounts.c.id)
    )
    account_id: str = (await execute(database.durable, statement))[0][0]
    return account_id


async def find_account(database: Database, *, name: str | None = None, account_id: str | None = None) -> Row | None:
    """Return the `id`, `name`, `limits` and `created_at` (Unix seconds) of the account by this name or id, if any."""
    query = _ACCOUNTS.where(accounts.c.name == name if account_id is None else accounts.c.id == account_id)
    rows = await execute(database.relaxed, query)
    return rows[0] if rows else None


async def lock_account(transaction: Connections, account_id: str) -> None:
    """Lock the account until the transaction ends.

    No other transaction that takes this lock can add to what this one counts.
    """
    await execute(transaction, "SELECT id FROM accounts WHERE id = %(id)s FOR NO KEY UPDATE", {"id": account_id})


async def limit_account(database: Database, account_id: str, limits: Limits) -> None:
    """Set the limits of all keys of an account together."""
    await execute(
        database.durable, sa.update(accounts).where(accounts.c.id == account_id).values(limits=limits.render())
    )


async def list_accounts(database: Database, *, after: str | None, limit: int, descending: bool) -> Sequence[Row]:
    """Return up to `limit` accounts past the account `after`, in order of creation, as `find_account` does."""
    query = _ACCOUNTS.order_by(accounts.c.id.desc() if descending else accounts.c.id).limit(limit)
    if after is not None:
        query = query.where(accounts.c.id < after if descending else accounts.c.id > after)
    return await execute(database.relaxed, query)
