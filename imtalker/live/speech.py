"""Text to sound, by whatever synthesizer there is; espeak-ng if it is installed."""

from __future__ import annotations

import importlib
import logging
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import soxr

from ..clock import SAMPLE_RATE
from ..errors import InputError
from .outbox import Event
from .refusal import in_words

if TYPE_CHECKING:
    from .pump import Pump

log = logging.getLogger("imtalker.live")

Speaker = Callable[[str], Iterator[np.ndarray]]
"""Text -> its sound, float32 (n,) at 16 kHz, in portions as they are made. Closing the iterator stops it."""

_BLOCK = 8192  # bytes read at once
_RATE_AT, _HEADER = 24, 44  # where a WAV header says its rate; its length as espeak-ng writes it


def espeak(text: str, voice: str = "en") -> Iterator[np.ndarray]:
    """Text spoken by espeak-ng. Raises InputError when it is not installed or cannot speak with this voice."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise InputError(
            "text cannot be spoken: espeak-ng is not installed here; install it (Debian: apt-get install espeak-ng), "
            "or serve with another synthesizer: --speaker MODULE:FUNCTION"
        )
    # The text goes in over a pipe, so that nothing in it can be taken for an option.
    process = subprocess.Popen(
        [program, "--stdin", "--stdout", "-b", "1", "-v", voice],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.stdin.write(text.encode() + b"\n")
        process.stdin.close()
        header = process.stdout.read(_HEADER)
        if len(header) < _HEADER:
            raise InputError(f"espeak-ng made no sound with the voice {voice!r}: does it speak when called by hand?")
        rate = int.from_bytes(header[_RATE_AT : _RATE_AT + 4], "little")
        resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        while block := process.stdout.read(_BLOCK):
            samples = np.frombuffer(block[: len(block) // 2 * 2], "<i2").astype(np.float32) / 2**15
            yield resampler.resample_chunk(samples)
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def load_speaker(name: str) -> Speaker:
    """The speaker called "espeak", "espeak:VOICE", or "MODULE:FUNCTION". Raises InputError if it is not there."""
    module, _, function = name.partition(":")
    if module == "espeak":
        return lambda text: espeak(text, function or "en")
    try:
        speaker = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"speaker {name!r} cannot be loaded ({error}): espeak, espeak:VOICE or MODULE:FUNCTION expected"
        ) from None
    return speaker


class Utterance:
    """Sound that is being handed to a face as it is made, by a thread of its own, no faster than the face takes it."""

    def __init__(
        self,
        face: Pump,
        sound: Iterator[np.ndarray],
        after: Utterance | None = None,
        done: Callable[[], None] = lambda: None,
    ):
        """sound: portions, float32 (n,) at 16 kHz. after: what is said before it. done: called at the end, whatever
        happens."""
        self._face, self._sound, self._after, self._done = face, sound, after, done
        self._stopped = threading.Event()
        self._turn = threading.Lock()  # so that nothing is said any more once `stop` has returned
        self._thread = threading.Thread(target=self._run, name="utterance", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> None:
        with self._turn:
            self._stopped.set()

    def _run(self) -> None:
        try:
            if self._after is not None:
                self._after._thread.join()
                self._after = None
            for samples in () if self._stopped.is_set() else self._sound:
                while self._face.full and not self._stopped.wait(0.1):
                    pass
                if not self._told(self._face.say, samples):
                    return
            self._told(self._face.end)
        except Exception as error:
            if not isinstance(error, InputError):
                log.error("speaking failed", exc_info=error)
            self._face.outbox.put(Event("error", {"error": in_words(error)}))
        finally:
            if hasattr(self._sound, "close"):  # a generator; any other iterator will do, too
                self._sound.close()
            self._done()

    def _told(self, tell: Callable, *what) -> bool:
        with self._turn:
            if self._stopped.is_set():
                return False
            tell(*what)
        return True
