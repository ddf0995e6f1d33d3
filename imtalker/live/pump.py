"""The clock of one live face: sound comes as it comes, 25 moments a second go out, whatever happens.

    hear, say ─ session ─ motion ─ draw what there is time for ─ moments, each with its own sound ─ outbox

A face to whom nobody speaks idles, a second at a time; when somebody speaks again, what was not drawn of it is taken
back. Sound that was spoken too long ago is dropped, not queued; so are frames that would come too late
to be seen: their motion was made and their sound is played all the same.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..clock import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from ..errors import InputError
from .outbox import Event, Moment, Outbox
from .pace import Pace
from .refusal import in_words

if TYPE_CHECKING:
    from ..pipeline import Source
    from ..session import Session

LEAD = 0.4  # seconds before its time that a moment is made at the earliest: more would make interrupting slow
EARLY = 0.2  # seconds before its time at which a frame is drawn in any case: there is time, whatever is estimated
CUSHION = 0.05  # seconds that a moment shall be ready before it is due
IDLE = 25  # frames made at once while nobody speaks
PATIENCE = 0.12  # seconds without sound until nobody seems to speak
SOON = 0.5  # seconds in which a change of what an idle face does shall show
BATCH = 2  # frames of one face drawn in one step: more would let the first of them wait for the others
AHEAD = 4  # frames: when fewer are left to be drawn, the motion of the next ones is made, beside the drawing
LAG = 1.0  # seconds that a microphone's sound may be late, besides what the session needs to hear ahead


class Pump:
    """A session on a clock. `hear`, `say` and the others may be called from any thread; `wants`, `prepare`,
    `look_ahead`, `show` and `fail` are for the `Stage` that it is on, in the model's thread. What comes out goes to
    `outbox`.

    drawn, skipped: frames for which there was time, or none. stalls: how often the clock had to wait for motion.
    unheard: samples of a microphone that came too late. made: frames so far.
    """

    def __init__(
        self,
        source: Source,
        session: Session,
        outbox: Outbox,
        pace: Pace,
        wake: Callable[[], None],
        *,
        window: int | None = None,
        speech_seconds: float = 120.0,
        answered: Callable[[float], None] = lambda seconds: None,
    ):
        """wake: tells the scheduler that something came. window: frames of the session's windows, if they shall stay as
        short as the machine can afford; None leaves them as they are. speech_seconds: sound that may wait to be spoken.
        answered: told, for each beginning of sound after a pause, the seconds until the first frame of it was drawn."""
        self.outbox = outbox
        self.drawn = self.skipped = self.stalls = self.unheard = self.made = 0
        self.asked = time.monotonic()  # when somebody last asked for something
        self.source, self._session = source, session
        self._window = window
        self._pace, self._wake, self._speech_seconds, self._answered = pace, wake, speech_seconds, answered
        self._lock = threading.Lock()
        # Under the lock: what came from outside and was not looked at yet
        self._heard: deque[np.ndarray | None] = deque()  # None: what was heard before it is complete
        self._waiting = 0  # samples in it
        self._heard_at = -np.inf
        self._begun_at: float | None = None  # when sound began to come after a pause
        self._delay = 0.0  # seconds from then until its first frame can be made
        self._ended = False  # what was taken from it is complete; more is taken once that has been spoken
        self._orders: deque[Callable[[], None]] = deque()
        # Of the scheduler's thread; others only look at where the clock and its sound are
        self._start: float | None = None  # when frame 0 was, or would have been, due
        self._sound = _Track()
        self._pending: deque[tuple[int, Tensor]] = deque()  # frames to be drawn: number, latents (32,)
        self._under_way: deque[_Frame] = deque()  # frames that are being drawn, or left out
        self._more = False  # the session may have more motion that is due
        self._idle_from = math.inf  # frames from this number on are of silence that nobody sent
        self._credit = 0.0  # frames, or a part of one, that the share allows to be drawn
        self._awaited: tuple[int, float] | None = None  # the first frame of sound after a pause, and when it came

    # --------------------------------------------------------------------------------------------------- from outside

    def hear(self, samples: np.ndarray) -> None:
        """A microphone's sound, float32 (n,) at 16 kHz, as it is spoken. What is too late is dropped and counted."""
        with self._lock:
            if self._behind() > self._session.steady_delay + LAG:
                self.unheard += len(samples)
                return
            self._add(samples, self._session.delay)
        self._wake()

    def say(self, samples: np.ndarray) -> None:
        """Sound to be spoken, float32 (n,) at 16 kHz, as fast as it comes; not while the pump is `full`."""
        with self._lock:
            self._add(samples, 0.0)
        self._wake()

    @property
    def full(self) -> bool:
        """Whether so much waits to be spoken that whoever says more has to wait."""
        return self._behind() > self._speech_seconds

    def end(self) -> None:
        """What was heard or said so far is complete: speak it to its end without waiting for more, then tell so."""
        with self._lock:
            if not self._heard or self._heard[-1] is not None:
                self._heard.append(None)
        self._wake()

    def interrupt(self, shown: int | None = None) -> None:
        """Be silent now. shown: frames that the viewer has seen, by default those that are due by now."""
        self.asked = time.monotonic()
        with self._lock:
            self._heard.clear()
            self._waiting = 0
            self._ended = False
            self._orders.append(lambda: self._take_back(shown))
        self._wake()

    def steer(self, **controls) -> None:
        """See `Session.steer`. What is wrong with it is told through the outbox."""
        self.asked = time.monotonic()
        with self._lock:
            self._orders.append(lambda: self._change(controls))
        self._wake()

    @property
    def position(self) -> int:
        """Frames that are due by now."""
        if self._start is None:
            return 0
        return max(0, min(int((time.monotonic() - self._start) * FPS), self.made))

    # -------------------------------------------------------------------------------------------------- for the stage

    def wants(self, now: float) -> tuple[float, float]:
        """From when a step makes sense, and when its result is needed; see `scheduler.Work`."""
        due = self._due(self._next, now)
        with self._lock:
            if self._orders:
                return now, now
            if self._heard and self._idling:
                return now, due  # take back what was not drawn yet
            if self._pending or self._heard or self._more or self._ended:
                return due - LEAD, due
            at = max(due - self._time_for(1), self._heard_at + PATIENCE)
        return at, max(due, at)

    def prepare(self, now: float) -> Tensor | None:
        """Motion latents (n, 32) of frames to be drawn now and given to `show`; None: nothing is to be drawn. May be
        called again before they are shown."""
        with self._lock:
            orders, self._orders = self._orders, deque()
        for order in orders:
            try:
                order()
            except InputError as error:
                self.outbox.put(Event("error", {"error": str(error)}))
        if self._heard and self._idling:
            begun_at = self._begun_at
            self._forget(self._next if begun_at is None else max(self._next, min(self._answer(begun_at), self.made)))
        self.look_ahead(now)
        rows = self._choose()
        self._pass_by()
        return rows

    def look_ahead(self, now: float) -> bool:
        """Make the motion of the next frames if there is little left and sound for it; whether some was made."""
        made = self.made
        if len(self._pending) < AHEAD:
            self._move(now)
        return self.made > made

    def show(self, pictures: Sequence[np.ndarray]) -> None:
        """Hand out the frames that were prepared first, with their sound. pictures: uint8 (H, W, 3) RGB, one a row."""
        for picture in pictures:
            self._hand_out(self._under_way.popleft(), picture)
            self._pass_by()

    def fail(self, error: Exception) -> None:
        self.outbox.close(in_words(error))

    # --------------------------------------------------------------------------------------------------------- inside

    @property
    def _idling(self) -> bool:
        """Whether nothing but silence that nobody sent is pending."""
        return bool(self._pending) and self._next >= self._idle_from

    @property
    def _next(self) -> int:
        """Number of the next moment."""
        return self._pending[0][0] if self._pending else self.made

    def _due(self, frame: int, now: float) -> float:
        return now if self._start is None else self._start + frame / FPS

    def _add(self, samples: np.ndarray, delay: float) -> None:
        """delay: seconds until there is enough of it for its first frame."""
        now = self.asked = time.monotonic()
        if now > self._heard_at + PATIENCE and not self._waiting:
            self._begun_at, self._delay = now, delay
        self._heard_at = now
        self._heard.append(samples)
        self._waiting += len(samples)

    def _take_heard(self) -> Iterator[np.ndarray]:
        """What was heard, up to where it is complete."""
        while self._heard and not self._ended:
            samples = self._heard.popleft()
            if samples is None:
                self._ended = True
            else:
                self._waiting -= len(samples)
                yield samples

    def _behind(self) -> float:
        """Seconds of sound that came and were not due yet."""
        return (self._sound.end + self._waiting) / SAMPLE_RATE - self.position / FPS

    def _move(self, now: float) -> None:
        """Get the next frames' motion, of sound if there is some, idle if there was none for a while."""
        with self._lock:
            if self._orders:  # first: they may take back what is there, but not what has come since
                return
            heard = list(self._take_heard())
            ended, quiet = self._ended, not self._heard and now >= self._heard_at + PATIENCE
            begun_at = self._begun_at
            if heard:
                self._begun_at = None
        begun = time.perf_counter()
        if heard:
            samples = np.concatenate(heard)
            if begun_at is not None:
                self._idle_on(begun_at)
                self._awaited = self._sound.end // SAMPLES_PER_FRAME, begun_at
            self._idle_from = math.inf
            self._session.push(samples)
            self._sound.add(samples)
        self._adapt()
        motion = self._session.next_motion()
        if motion is None and ended:
            self._sound.fill()
            self._session.flush()
            motion = self._session.next_motion()
            if motion is None or self._sound.end == (self.made + len(motion)) * SAMPLES_PER_FRAME:
                with self._lock:
                    self._ended = False
                self.outbox.put(Event("said", {"frame": self._sound.end // SAMPLES_PER_FRAME}))
        if motion is None and quiet and now >= self._due(self.made, now) - self._time_for(1):
            self._sound.fill()
            self._idle_from = self._sound.end // SAMPLES_PER_FRAME
            self._sound.add(np.zeros(IDLE * SAMPLES_PER_FRAME, np.float32))
            self._session.idle(IDLE)
            motion = self._session.next_motion()
        self._more = motion is not None
        if motion is None:
            return
        self._pace.moved(len(motion), time.perf_counter() - begun)
        self._wait_for(self.made)
        self._pending.extend(enumerate(motion, self.made))
        self.made += len(motion)

    def _adapt(self) -> None:
        """Take longer windows when there is too little time for short ones, so that sound does not wait for motion."""
        if self._window is not None:
            window = self._pace.window(self._pace.faces, self._window)
            if window != self._window:
                self._window = window
                self._session.pace((window,))

    def _wait_for(self, frame: int) -> None:
        """The motion of `frame` is there: start the clock, or hold it when it is past the time."""
        now = time.monotonic()
        if self._start is None or now > self._due(frame, now):
            self.stalls += self._start is not None
            self._start = now + self._time_for(0) - frame / FPS

    def _time_for(self, windows: int) -> float:
        """Seconds that making so many windows of motion, and drawing their first frames, may take, if all faces need
        theirs at once."""
        moving = windows * max(self._pace.faces, 1) * self._pace.window_seconds
        return min(LEAD, CUSHION + moving + BATCH * self._pace.drawing_seconds)

    def _choose(self) -> Tensor | None:
        """The latents (n, 32) of the next frames for which there is time, None if it is for none; both the drawn and
        the left out ones are then under way."""
        now, share = time.monotonic(), self._pace.share
        rows: list[Tensor] = []
        for _ in range(min(2 * BATCH, len(self._pending))):
            number, latents = self._pending.popleft()
            self._credit += share
            due = self._due(number, now)
            drawn = now <= due + 1 / FPS and (self._credit >= 1 or now < due - EARLY)
            self._credit -= self._credit >= 1
            self._under_way.append(_Frame(number, drawn, self._sound.take(number)))
            if drawn:
                rows.append(latents)
            if len(rows) == BATCH:
                break
        return torch.stack(rows) if rows else None

    def _pass_by(self) -> None:
        """Hand out the frames that are left out and wait for no other."""
        while self._under_way and not self._under_way[0].drawn:
            self._hand_out(self._under_way.popleft(), None)

    def _hand_out(self, frame: _Frame, picture: np.ndarray | None) -> None:
        if frame.taken_back:
            return
        now = time.monotonic()
        self.outbox.put(Moment(frame.number, picture, frame.sound, self._due(frame.number, now)))
        self.drawn += frame.drawn
        self.skipped += not frame.drawn
        if frame.drawn and self._awaited is not None and frame.number >= self._awaited[0]:
            self._answered(now - self._awaited[1])
            self._awaited = None

    def _take_back(self, shown: int | None) -> None:
        shown = self.position if shown is None else max(0, min(shown, self.made))
        self._forget(shown)
        self.outbox.take_back(self.made)
        self.outbox.put(Event("interrupted", {"frame": self.made}))

    def _change(self, controls: dict) -> None:
        if self._idling and self.made - self._next > SOON * FPS:
            self._forget(self._next)  # not only after the idle second that is made already
        self._session.steer(**controls)

    def _answer(self, begun_at: float) -> int:
        """The first frame that can belong to sound which began to come then: until it the face idles on."""
        wait = self._delay + self._time_for(1)
        return int((begun_at + wait - self._due(0, begun_at)) * FPS)

    def _idle_on(self, begun_at: float) -> None:
        """Idle until the sound that began to come can be answered."""
        missing = self._answer(begun_at) - self.made
        if self._start is not None and missing > 0:
            self._sound.fill()
            self._sound.add(np.zeros(missing * SAMPLES_PER_FRAME, np.float32))
            self._session.idle(missing)

    def _forget(self, frame: int) -> None:
        """Go on with `frame`, as if nothing had been said or made after it."""
        self._session.interrupt(frame)
        self.made = self._session.frames
        self._pending = deque((number, latents) for number, latents in self._pending if number < self.made)
        for under_way in self._under_way:
            under_way.taken_back |= under_way.number >= self.made
        self._more, self._idle_from = False, math.inf
        self._sound.cut(self.made)


@dataclass
class _Frame:
    number: int
    drawn: bool  # or left out
    sound: np.ndarray  # float32 (640,)
    taken_back: bool = False  # somebody interrupted


class _Track:
    """The sound of the frames that were not handed out yet, on the session's clock."""

    def __init__(self):
        self._samples = np.zeros(0, np.float32)
        self._first = 0  # sample number of the first one held

    @property
    def end(self) -> int:
        """Samples on the clock so far."""
        return self._first + len(self._samples)

    def add(self, samples: np.ndarray) -> None:
        self._samples = np.concatenate([self._samples, samples])

    def fill(self) -> None:
        """Complete a begun frame with silence."""
        self.add(np.zeros(-self.end % SAMPLES_PER_FRAME, np.float32))

    def take(self, frame: int) -> np.ndarray:
        """(640,) of one frame; what is before it is forgotten."""
        begin = frame * SAMPLES_PER_FRAME - self._first
        sound = self._samples[begin : begin + SAMPLES_PER_FRAME]
        self._samples = self._samples[begin + SAMPLES_PER_FRAME :]
        self._first = (frame + 1) * SAMPLES_PER_FRAME
        return np.pad(sound, (0, SAMPLES_PER_FRAME - len(sound)))

    def cut(self, frame: int) -> None:
        """The clock goes on with `frame`, for which no sound is there; what is before it is still to be taken."""
        begin = frame * SAMPLES_PER_FRAME
        self._samples, self._first = self._samples[: max(0, begin - self._first)], min(self._first, begin)
