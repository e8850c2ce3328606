"""What a failure of a statement means: whether Postgres is unavailable, and whether the statement may be done."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

_READ_ONLY = "25006"
# What a connection says that a new one does not: it leads to a server that is no primary any more, or its prepared
# statements are older than a change of the schema.
STALE = frozenset({_READ_ONLY, "0A000"})
# A column or a table is not there: the schema is changed meanwhile, or is not that of this release.
_UNKNOWN = frozenset({"42703", "42P01"})


class NoAnswerError(sa.exc.TimeoutError):
    """Postgres did not answer in time: what was asked of it may be done, or may yet be."""


def no_answer(patience_seconds: float) -> NoAnswerError:
    """Return the error of a statement that got no answer in time."""
    return NoAnswerError(f"Postgres did not answer within {patience_seconds:g} s.")


def was_certainly_refused(error: SQLAlchemyError) -> bool:
    """Tell whether a statement that failed by `error` did nothing, also where it was tried twice.

    That of a connection that broke under it, or from which no answer came, may have been done.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, NoAnswerError) or (isinstance(cause, DBAPIError) and _broke(cause)):
            return False
        cause = cause.__context__
    return True


def _broke(error: DBAPIError) -> bool:
    """Tell whether a connection broke under its statement, rather than be left as one to a server that refused it."""
    return error.connection_invalidated and getattr(error.orig, "sqlstate", None) not in STALE


def leave_stale(context: sa.engine.ExceptionContext) -> None:
    """Have the engine close a connection that a new one should replace, and all that are as old."""
    if getattr(context.original_exception, "sqlstate", None) in STALE:
        context.is_disconnect = True


def is_foreign_schema(error: SQLAlchemyError) -> bool:
    """Tell whether a statement failed as the schema lacks what this release expects."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in _UNKNOWN


def is_unavailable(error: SQLAlchemyError) -> bool:
    """Tell whether Postgres cannot serve now, rather than that it refused a statement."""
    if not isinstance(error, DBAPIError):
        return True  # nobody answered, or no connection came free
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    # Connections, conflicts, resources, a server that shuts down or took too long; and one that is no primary any more,
    # or whose schema is being changed.
    unavailable = state.startswith(("08", "40", "53", "57")) or state in STALE | _UNKNOWN
    return error.connection_invalidated or unavailable
