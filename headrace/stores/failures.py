"""What a failed statement means: whether Postgres is unavailable, and whether the statement may have taken effect."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

# The SQLSTATE of a write on a server that is not, or no longer, the primary.
_READ_ONLY = "25006"
STALE = frozenset({_READ_ONLY, "0A000"})
"""SQLSTATEs that a new connection would not get: the old one leads to a server that is no longer the primary, or has
prepared statements from before a change of the schema."""
# SQLSTATEs of a missing column or table: the schema is being migrated, or is that of another release.
_UNKNOWN = frozenset({"42703", "42P01"})
# The SQLSTATE of a lock that was not granted within `lock_timeout`.
_LOCK_NOT_AVAILABLE = "55P03"


class NoAnswerError(sa.exc.TimeoutError):
    """Postgres did not answer in time. The statement may have taken effect, or may still take effect."""


def no_answer(patience_seconds: float) -> NoAnswerError:
    """Return the error of a statement that got no answer within `patience_seconds`."""
    return NoAnswerError(f"Postgres did not answer within {patience_seconds:g} s.")


def was_certainly_refused(error: SQLAlchemyError) -> bool:
    """Return whether a statement that failed with `error` certainly had no effect, in its first and in its second run.

    A statement whose connection broke or got no answer may have taken effect.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, NoAnswerError) or (isinstance(cause, DBAPIError) and _broke(cause)):
            return False
        cause = cause.__context__
    return True


def _broke(error: DBAPIError) -> bool:
    """Return whether a connection broke during its statement. A stale one refused it and was closed for that."""
    return error.connection_invalidated and getattr(error.orig, "sqlstate", None) not in STALE


def leave_stale(context: sa.engine.ExceptionContext) -> None:
    """Have SQLAlchemy's engine close a stale connection, and all that are as old."""
    if getattr(context.original_exception, "sqlstate", None) in STALE:
        context.is_disconnect = True


def is_foreign_schema(error: SQLAlchemyError) -> bool:
    """Return whether a statement failed because the schema lacks a table or column of this release."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in _UNKNOWN


def is_locked(error: DBAPIError) -> bool:
    """Return whether a statement gave up waiting for a lock, after its `lock_timeout`."""
    return getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE


def is_unavailable(error: SQLAlchemyError) -> bool:
    """Return whether Postgres cannot serve now. Otherwise it refused the statement itself."""
    if not isinstance(error, DBAPIError):
        return True  # no answer came, or no connection became free
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    # Classes of connection failures, conflicts, lacking resources, shutdowns and time-outs; then a server that is no
    # longer the primary, or whose schema is being changed.
    unavailable = state.startswith(("08", "40", "53", "57")) or state in STALE | _UNKNOWN
    return error.connection_invalidated or unavailable
