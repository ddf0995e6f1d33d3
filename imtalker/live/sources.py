"""Pictures that clients may animate: encoded once, kept for a while."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..bundled import ASSETS
from ..face import no_crop, source_crop
from ..media import load_picture
from .limits import PICTURES, Limits
from .refusal import missing

if TYPE_CHECKING:
    from ..pipeline import IMTalker, Source

SAMPLE = ASSETS / "sample.png"
AT_ONCE = 2  # pictures that are decoded at once: a large one takes a quarter of a gigabyte meanwhile


class Sources:
    """Encoded pictures by id; "sample" is the bundled one. The one unused for longest is forgotten first."""

    def __init__(self, talker: IMTalker, limits: Limits, on_model: Callable[[Callable], Awaitable], crop: bool):
        """on_model: runs a function in the model's thread. crop: find the face in the bundled picture."""
        self._talker, self._limits, self._on_model, self._crop = talker, limits, on_model, crop
        self._decoding = asyncio.Semaphore(AT_ONCE)
        self._kept: dict[str, tuple[float, Source]] = {}  # id -> when it was last used, in the order of that

    async def encode(self, picture: Path, face: int = 0, crop: bool = True) -> Source:
        """Finding the face takes long and needs no model, so it runs beside it. Raises InputError."""

        def cut():
            pixels = load_picture(picture, self._limits.pixels, PICTURES)
            where = source_crop(pixels, face, "the picture") if crop else no_crop(*pixels.shape[:2])
            return where.apply(pixels, self._talker.config.size)

        async with self._decoding:
            square = await asyncio.to_thread(cut)
        return await self._on_model(lambda: self._talker.encode_source(square, crop=False))

    def keep(self, source: Source) -> str:
        """Its new id."""
        name = secrets.token_urlsafe(12)
        self._use(name, source)
        while len(self._kept) > self._limits.sources + 1:  # and the sample
            self._kept.pop(next(kept for kept in self._kept if kept != "sample"))
        return name

    async def get(self, name: str) -> Source:
        """Raises Refusal for an id that is not known (any more)."""
        if name == "sample" and name not in self._kept:
            self._use(name, await self.encode(SAMPLE, crop=self._crop))
        if name not in self._kept:
            raise missing("the source")
        source = self._kept[name][1]
        self._use(name, source)
        return source

    def drop(self, name: str) -> None:
        if name == "sample" or self._kept.pop(name, None) is None:
            raise missing("the source")

    def expire(self, in_use: Iterable[str]) -> None:
        """Forget what nobody used for long. in_use: ids that are being used now."""
        for name in in_use:
            if name in self._kept:
                self._use(name, self._kept[name][1])
        now = time.monotonic()
        for name, (used, _) in list(self._kept.items()):
            if name != "sample" and now - used > self._limits.keep_seconds:
                del self._kept[name]

    def __len__(self) -> int:
        return len(self._kept)

    def _use(self, name: str, source: Source) -> None:
        self._kept.pop(name, None)
        self._kept[name] = time.monotonic(), source
