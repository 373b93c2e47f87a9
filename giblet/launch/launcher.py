"""The life of one node of a job: meet the others, start ranks, watch them, and decide what their end means.

What a fresh set of ranks may cure (a rank that crashed, a node that came or went) is cured here, without a new pod.
Everything else ends this process with its own exit code (giblet/errors.py), and the operator does what that code says.
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from giblet.checkpoint import starts
from giblet.checkpoint.history import budget_environment
from giblet.config import GibletConfig
from giblet.errors import (
    EXIT_CRASHED,
    EXIT_OK,
    GibletError,
    HungError,
    StoppedError,
    StorageUnavailableError,
)
from giblet.launch.budget import RestartBudget
from giblet.launch.ending import Ending, of_error, of_outcomes
from giblet.launch.hang import HangWatch, print_stacks
from giblet.launch.logs import KeptLogs
from giblet.launch.meeting import Change, EndedError, Meeting
from giblet.launch.settings import LaunchSettings
from giblet.storage import Storage
from giblet.telemetry.logs import get_logger
from giblet.training.outcome import Outcome
from giblet.training.processes import SETTLE_SECONDS, rank_environment
from giblet.training.ranks import Place, Ranks
from giblet.training.zygote import Zygote

LOOK_SECONDS = 0.25
"""Between two looks at ranks, peers and signals: soon enough for every fault, at less than 0.5 % of the ranks' work."""
ECHO_SECONDS = 6.0
"""How long a node that only saw a connection break waits for another one to say why."""
log = get_logger(__name__)


class Launcher:
    """One node. `run()` returns how the job ended here."""

    def __init__(
        self,
        config: GibletConfig,
        dataset_path: Path,
        settings: LaunchSettings,
        meeting: Meeting,
        budget: RestartBudget,
        storage: Storage,
        signals: Sequence[int],
        zygote: Zygote,
        logs: KeptLogs,
    ) -> None:
        self._config, self._dataset_path, self._settings = config, dataset_path, settings
        self._meeting, self._budget, self._storage, self._signals = meeting, budget, storage, signals
        self._zygote, self._logs = zygote, logs

    @property
    def stopping(self) -> bool:
        """Has this node been asked to stop."""
        return bool(self._signals)

    def run(self) -> Ending:
        """Start after start, until one is the last."""
        while True:
            ending = self._next()
            last = self._is_last(ending)
            log.info(
                "ended" if last else "starting again", cause=ending.cause, exit_code=ending.exit_code,
                step=ending.step, start=ending.start, reason=ending.message.partition("\n")[0],
                **ending.what_to_do,
            )  # fmt: skip
            if last:
                if ending.exit_code == EXIT_OK:
                    self._meeting.finish_together()
                if ending.permanent or ending.exit_code == EXIT_OK:
                    self._meeting.tell_end(ending)
                self._meeting.leave()
                return ending
            self._logs.ended()

    def _next(self) -> Ending:
        """One start: its end, or why there was none."""
        try:
            left = self._budget.check(lambda: self.stopping)
            place = self._meeting.join()
        except EndedError as error:
            return error.ending
        except GibletError as error:
            return of_error(error)
        log.info("met", node=place.node, nodes=place.nodes, world_size=place.world_size, master=place.master_address)
        with tempfile.TemporaryDirectory(prefix="giblet-") as folder:
            environment = rank_environment(place.master_address) | budget_environment(self._settings.max_restarts, left)
            ranks = Ranks.start(Path(folder), place, self._config, self._dataset_path, environment, self._zygote)
            try:
                ending = self._watch(ranks)
            finally:
                ranks.kill()
        if ending.echo:
            ending = self._real_cause(ending)
        elif ending.cause not in ("done", "stopped", "rescaled", "node_lost"):
            self._meeting.tell_fault(ending)
        self._account(ending, place)
        return ending

    def _watch(self, ranks: Ranks) -> Ending:
        """Until the ranks have ended, by themselves or because they should."""
        watch, passed_on, deadline, rescaling = HangWatch(self._config.telemetry), 0, float("inf"), False
        claimed = 0
        while ranks.running:
            time.sleep(LOOK_SECONDS)
            beats = ranks.beats()
            number = max(beat.start for beat in beats.values())
            if number != claimed:
                claimed = number
                self._budget.progressed()
                self._logs.started(number)
            failed = [outcome for outcome in ranks.poll() if outcome.exit_code != EXIT_OK]
            if failed:
                return self._settle(ranks, failed, deadline)
            if len(self._signals) > passed_on:
                passed_on = len(self._signals)
                ranks.signal(signal.SIGTERM)
                deadline = min(deadline, time.monotonic() + self._settings.shutdown_seconds)
            if time.monotonic() > deadline or self._signals.count(signal.SIGINT) > 1:
                return self._ending(
                    ranks, "crashed", EXIT_CRASHED,
                    f"the ranks had not saved {self._settings.shutdown_seconds:g} s after they were asked to stop",
                )  # fmt: skip
            if (told := watch.late(beats)) is not None:
                return self._hung(ranks, told)
            if (ended := self._from_others(ranks)) is not None:
                return ended
            change = self._meeting.change()
            if change is Change.LOST:
                return self._lost(ranks)
            if change is not None and not rescaling:
                log.info("asking the ranks to save and meet again", reason=change.value)
                rescaling = True
                ranks.signal(signal.SIGTERM)
                deadline = min(deadline, time.monotonic() + self._settings.shutdown_seconds)
        return self._of_outcomes(ranks, ranks.poll())

    def _settle(self, ranks: Ranks, failed: list[Outcome], deadline: float) -> Ending:
        """A rank has ended: let the others end as well, as long as they may be saving, or telling why."""
        saving = all(outcome.exit_code == StoppedError.exit_code for outcome in failed)
        allowed = self._settings.shutdown_seconds if saving else SETTLE_SECONDS
        ranks.wait(min(allowed, max(deadline - time.monotonic(), SETTLE_SECONDS)))
        return self._of_outcomes(ranks, ranks.poll())

    def _hung(self, ranks: Ranks, told: str) -> Ending:
        ending = self._ending(ranks, "hung", HungError.exit_code, told)
        log.error("hung", reason=told, step=ending.step)
        self._meeting.tell_fault(ending)
        print_stacks(ranks)
        return ending

    def _from_others(self, ranks: Ranks) -> Ending | None:
        """Another node's ranks hang, or the job is over: then here as well."""
        if (fault := self._meeting.fault()) is not None and fault.cause == "hung":
            log.error("hung", reason=f"another node says: {fault.message}")
            print_stacks(ranks)
            return replace(self._ending(ranks, "hung", fault.exit_code, fault.message), echo=True)
        end = self._meeting.end()
        if end is not None and end.exit_code != EXIT_OK:
            ranks.wait(SETTLE_SECONDS)
            return replace(end, echo=True)
        return None

    def _lost(self, ranks: Ranks) -> Ending:
        """A node is gone: the ranks stand in a collective that cannot end, or will notice now."""
        if ranks.wait(SETTLE_SECONDS):
            ending = self._of_outcomes(ranks, ranks.poll())
            if not ending.echo:
                return ending
        return self._ending(ranks, "node_lost", HungError.exit_code, "another node is gone without a word")

    def _ending(self, ranks: Ranks, cause: str, exit_code: int, message: str) -> Ending:
        beats = ranks.beats().values()
        return Ending(
            cause, exit_code, message, None, max(beat.step for beat in beats), max(beat.start for beat in beats)
        )

    def _of_outcomes(self, ranks: Ranks, outcomes: list[Outcome]) -> Ending:
        beats = ranks.beats().values()
        step, start = max(beat.step for beat in beats), max(beat.start for beat in beats)
        ending = of_outcomes(outcomes, step=step, start=start)
        if self.stopping and ending.message and all(o.signal == "SIGTERM" for o in outcomes):
            return replace(ending, cause="stopped", exit_code=StoppedError.exit_code)  # before anything was trained
        if ending.cause == "stopped" and not self.stopping:
            return replace(ending, cause="rescaled", message="saved, to go on with other nodes")
        return ending

    def _real_cause(self, ending: Ending) -> Ending:
        """What another node says of the fault that this one only saw the echo of."""
        deadline = time.monotonic() + ECHO_SECONDS
        while time.monotonic() < deadline and not self.stopping:
            told = self._meeting.fault() or self._meeting.end()
            if told is not None:
                return replace(told, step=max(told.step, ending.step), start=ending.start, echo=True)
            time.sleep(0.2)
        return ending

    def _account(self, ending: Ending, place: Place) -> None:
        """Keep how this start ended, in storage, or here if it never claimed a number."""
        if not ending.start:
            if not ending.echo and ending.cause not in ("done", "stopped", "rescaled", "node_lost"):
                self._budget.failed_unclaimed(f"{ending.cause}: {ending.message}")
            return
        try:
            starts.record_end(
                self._storage, self._config.run.name, ending.start,
                cause=ending.cause, exit_code=ending.exit_code, step=ending.step, message=ending.message,
            )  # fmt: skip
        except GibletError as error:
            log.warning("how this start ended could not be recorded", start=ending.start, error=error.message)

    def _is_last(self, ending: Ending) -> bool:
        """Whether a fresh set of ranks in this pod would be no remedy."""
        if self.stopping or ending.exit_code < EXIT_CRASHED:
            return True
        if ending.cause == "hung":
            return True  # a fresh pod is the remedy for whatever does not move
        return not ending.start and ending.exit_code == StorageUnavailableError.exit_code
