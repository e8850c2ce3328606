"""Moves every batch on, in rounds over all batches that have not ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from headrace.batches.queries import finalize_batch, fold_tallies, list_active
from headrace.batches.results import CANCELLED_ERROR
from headrace.batches.state import BatchState
from headrace.catalogue.file import CatalogueFile
from headrace.events.publisher import Publisher
from headrace.jobs.cancellation import announce_cancellation
from headrace.jobs.sql.cancel import cancel_lines
from headrace.jobs.sql.lines import settle_restored_ends
from headrace.jobs.state import State
from headrace.providers.client import ProviderClient
from headrace.queue import JobQueue
from headrace.quotas.gate import Gate
from headrace.settings import Settings
from headrace.stores.connections import Row
from headrace.stores.database import Database
from headrace.stores.failures import is_unavailable
from headrace.telemetry.context import bind
from scheduler.batches.allowance import Allowances, Purse, outstanding
from scheduler.batches.feeders import Feeders
from scheduler.batches.native import NativeBatch
from scheduler.batches.output import Output
from scheduler.batches.pace import Pace
from scheduler.batches.submissions import Submissions
from scheduler.batches.turns import Turns
from scheduler.batches.validate import Validation
from scheduler.lookout import work_or_rest

log = logging.getLogger(__name__)

# Seconds between two rounds: while batches move on, and while they wait for their lines or there are none.
_BUSY_SECONDS = 0.1
_IDLE_SECONDS = 0.25
# Seconds between two folds of tallies.
_CHORES_SECONDS = 10.0
# Seconds that a batch pauses after a failure.
_PAUSE_SECONDS = 5.0
# Batches whose input is validated at one time, and as many whose output is written: of all accounts, and of one. Each
# holds a chunk of its file in memory, and takes the event loop for some milliseconds at a time.
MOST_AT_ONCE = 4
MOST_OF_ACCOUNT_AT_ONCE = 2


class _Place(NamedTuple):
    """Where a batch is: while it stays there, it waits for its lines."""

    id: str
    state: str
    fed: int
    has_ended: bool
    """Whether all its lines have ended."""


class BatchRunner:
    """The batches of every account. Everything that the runner keeps in memory can be found again in Postgres."""

    def __init__(
        self,
        settings: Settings,
        file: CatalogueFile,
        database: Database,
        *,
        queue: JobQueue,
        publisher: Publisher,
        client: ProviderClient,
        questions: ProviderClient,
        gate: Gate,
        submissions: Submissions,
    ) -> None:
        self._settings = settings
        self._file = file
        self._database = database
        self._queue = queue
        self._publisher = publisher
        self._client = client
        self._questions = questions
        self._submissions = submissions
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._paused: dict[str, float] = {}
        self._chores_at = 0.0
        self._restored_is_settled = False
        self._validations = Turns(most=MOST_AT_ONCE, most_of_account=MOST_OF_ACCOUNT_AT_ONCE)
        self._outputs = Turns(most=MOST_AT_ONCE, most_of_account=MOST_OF_ACCOUNT_AT_ONCE)
        # By the names of providers. A parcel takes up to 256 MB while it is handed over, so each provider gets one at a
        # time, and none waits for a provider that hangs.
        self._hand_overs: defaultdict[str, Turns] = defaultdict(partial(Turns, most=1, most_of_account=1))
        self._to_hand_over: dict[str, str] = {}
        """The providers whose turn batches wait for."""
        # All of them together hold one line at a time that is larger than a chunk.
        self._room = asyncio.Semaphore(1)
        self._allowances = Allowances(database, file)
        self._pace = Pace(database, file, gate)
        self._feeders = Feeders(database, queue, self._allowances, self._pace, window=settings.batch_window)

    async def run(self, batches: asyncio.Event) -> None:
        """Move batches on, soon while `batches` is set, as there are batches that have not ended; until cancelled."""
        before: Sequence[_Place] = ()
        try:
            while True:
                places: Sequence[_Place] = ()
                try:
                    places = await self._look()
                except SQLAlchemyError as error:
                    log.warning("batches wait for Postgres: %s", error)
                except Exception:
                    log.exception("could not move batches on")
                    await asyncio.sleep(_PAUSE_SECONDS)
                if places:
                    await asyncio.sleep(_IDLE_SECONDS if places == before else _BUSY_SECONDS)
                else:
                    await work_or_rest(batches, least=_IDLE_SECONDS, most=_CHORES_SECONDS)
                before = places
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _look(self) -> Sequence[_Place]:
        """Do the next step of each batch, and return where each was."""
        if time.monotonic() > self._chores_at:
            self._chores_at = time.monotonic() + _CHORES_SECONDS
            await fold_tallies(self._database)
        if not self._restored_is_settled:
            self._restored_is_settled = not await settle_restored_ends(self._database)
        batches = await list_active(self._database)
        self._forget({batch.id for batch in batches})
        await self._allowances.look(batches)
        await self._feeders.look(batches)
        self._begin_hand_overs([batch for batch in batches if batch.state == BatchState.IN_PROGRESS])
        for batch in batches:
            await self._alone(batch, self._move(batch))
        self._begin_in_turn(self._validations, [batch for batch in batches if _is_unchecked(batch)], self._validate)
        self._begin_in_turn(self._outputs, [batch for batch in batches if _is_unwritten(batch)], self._write)
        await self._feed(batches)
        return [_Place(batch.id, batch.state, batch.fed, _has_ended(batch)) for batch in batches]

    async def _move(self, batch: Row) -> None:
        if batch.state == BatchState.CANCELLING:
            await self._cancel(batch)
        elif batch.state != BatchState.IN_PROGRESS:
            return
        elif _has_ended(batch):
            await finalize_batch(self._database, batch.id)
        elif _is_served(batch) and (outstanding(batch) or self._allowances.lines(batch)):
            self._begin(batch, self._go_on(batch))

    def _is_feedable(self, batch: Row) -> bool:
        runs = batch.state == BatchState.IN_PROGRESS and batch.native_route is None
        return runs and batch.fed < batch.total and not batch.overdue and not self._pace.rests(batch)

    async def _alone(self, batch: Row, work: Coroutine[Any, Any, None]) -> None:
        """Do a short step of one batch. If it fails, this batch pauses and the others go on."""
        if self._paused.get(batch.id, 0.0) > time.monotonic():
            work.close()
            return
        try:
            with bind(batch=batch.id):
                await work
        except Exception as error:
            if isinstance(error, SQLAlchemyError) and is_unavailable(error):
                raise
            with bind(batch=batch.id):
                log.exception("could not move a batch on, trying again")
            self._paused[batch.id] = time.monotonic() + _PAUSE_SECONDS

    def _begin(self, batch: Row, work: Coroutine[Any, Any, None], *, turns: Turns | None = None) -> None:
        """Start a long step of a batch as a task, one at a time for each batch. When it ends, the batch's turn ends."""
        if batch.id in self._tasks:
            work.close()
            return
        self._tasks[batch.id] = task = asyncio.create_task(self._guard(work))

        def end(_: object) -> None:
            self._tasks.pop(batch.id, None)
            if turns is not None:
                turns.end(batch.id)

        task.add_done_callback(end)

    def _begin_in_turn(
        self, turns: Turns, waiting: Sequence[Row], work: Callable[[Row], Coroutine[Any, Any, None]]
    ) -> None:
        """Start a long step of each waiting batch whose turn it is."""
        for batch in turns.take([batch for batch in waiting if batch.id not in self._tasks]):
            with bind(batch=batch.id):
                self._begin(batch, work(batch), turns=turns)

    def _begin_hand_overs(self, batches: Sequence[Row]) -> None:
        """Start the next hand-over to each provider, of a batch whose last round has asked for a turn."""
        waiting: dict[str, list[Row]] = defaultdict(list)
        for batch in batches:
            if (provider := self._to_hand_over.get(batch.id)) is not None:
                waiting[provider].append(batch)
        for provider, some in waiting.items():
            self._begin_in_turn(self._hand_overs[provider], some, partial(self._go_on, turn=provider))

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except SQLAlchemyError as error:
            log.warning("could not move a batch on, trying again: %s", error)
            await asyncio.sleep(_PAUSE_SECONDS)
        except Exception:
            log.exception("could not move a batch on, trying again")
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _validate(self, batch: Row) -> None:
        most_lines = self._settings.batch_max_lines
        validation = Validation(self._database, self._file.current, batch, most_lines=most_lines, room=self._room)
        if await validation.run():
            log.info("the input is valid")

    async def _go_on(self, batch: Row, *, turn: str | None = None) -> None:
        """Do a round of a batch's work with its provider. It hands lines over to the provider of its `turn` alone."""
        self._to_hand_over.pop(batch.id, None)
        with self._purse(batch) as purse:
            native = NativeBatch(
                self._database,
                self._queue,
                self._client,
                self._file.current,
                batch,
                questions=self._questions,
                purse=purse,
                poll_seconds=self._settings.native_poll_seconds,
                returned=partial(self._feeders.count_returned, batch.id),
                submissions=self._submissions,
                turn=turn,
                wants_turn=partial(self._note_wish, batch.id),
            )
            await native.go_on()

    def _note_wish(self, batch_id: str, provider: str) -> None:
        """Let a batch take part in the next turn of a provider."""
        self._to_hand_over[batch_id] = provider

    def _purse(self, batch: Row) -> contextlib.AbstractContextManager[Purse]:
        """Reserve the money for a batch's provider. A batch that workers run keeps its share for them."""
        if batch.native_route is None:
            return contextlib.nullcontext(Purse(Decimal()))
        return self._allowances.purse(batch)

    async def _write(self, batch: Row) -> None:
        end = await Output(self._database, batch, room=self._room).write()
        if end is not None:
            log.info("ended: %s", end.value)

    async def _cancel(self, batch: Row) -> None:
        if batch.id in self._validations:
            self._tasks[batch.id].cancel()
        while jobs := await cancel_lines(self._database, batch.id, error=CANCELLED_ERROR):
            for job in jobs:
                # No worker has the lines in parcels, which may be many. One that has another line learns of it later.
                if job.state is State.CANCELLED or not batch.has_parcels:
                    await announce_cancellation(self._publisher, job)
        if outstanding(batch) and batch.has_parcels:
            self._begin(batch, self._go_on(batch))

    async def _feed(self, batches: Sequence[Row]) -> None:
        feedable = [batch for batch in batches if self._is_feedable(batch)]
        await self._feeders.keep(feedable)
        for batch, room in self._feeders.rooms(feedable, batches):
            await self._alone(batch, self._feeders.feed(batch, room))

    def _forget(self, active: set[str]) -> None:
        for known in (self._paused, self._to_hand_over):
            for batch_id in known.keys() - active:
                del known[batch_id]
        self._pace.forget(active)


def _is_unchecked(batch: Row) -> bool:
    return bool(batch.state == BatchState.VALIDATING)


def _is_unwritten(batch: Row) -> bool:
    cancelled = batch.state == BatchState.CANCELLING and outstanding(batch) == 0
    return bool(batch.state == BatchState.FINALIZING or cancelled)


def _is_served(batch: Row) -> bool:
    """Return whether a provider's own batch API has lines of a batch, or may get some."""
    return bool(batch.has_parcels or batch.native_route is not None)


def _has_ended(batch: Row) -> bool:
    """Return whether all lines of a batch have ended, or it is overdue and no line runs."""
    return outstanding(batch) == 0 and (batch.fed == batch.total or batch.overdue)
