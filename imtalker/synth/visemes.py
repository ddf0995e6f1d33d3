"""Phones -> visemes -> smooth, coarticulated mouth curves.

A *segment* is (start, end, viseme name) in seconds; a *curve* is (T, 15) float32 in the order of VISEMES, every row
summing to 1 ('sil' is the shut mouth at rest).
"""
from __future__ import annotations

import re
import unicodedata

import numpy as np

from imtalker.clock import FPS

VISEMES = ("sil", "PP", "FF", "TH", "DD", "kk", "CH", "SS", "nn", "RR", "aa", "E", "I", "O", "U")
# Weight of the head's expression target at the peak of a viseme (full weight looks exaggerated on most of them).
GAIN = np.float32([0, 1, .9, .8, .7, .7, .9, .8, .7, .8, .9, .9, .9, 1, 1])

# How strongly a viseme claims the mouth, and how far (s) its claim reaches before and after its own segment: dominance
# functions after Cohen and Massaro, "Modeling coarticulation in synthetic visual speech" (1993). Lips that must close
# win at once; rounding (O, U, CH) is prepared early; tongue consonants (DD, kk, nn) leave the lips to their neighbours.
#           sil   PP   FF   TH   DD   kk   CH   SS   nn   RR   aa   E    I    O    U
STRENGTH = (1.2, 3.0, 2.5, 1.0, 0.5, 0.3, 1.6, 0.9, 0.4, 0.9, 1.2, 0.8, 0.9, 1.4, 1.6)
BEFORE = (.050, .045, .050, .050, .045, .045, .080, .050, .045, .065, .060, .055, .055, .085, .095)
AFTER = (.060, .040, .045, .045, .045, .045, .060, .050, .045, .060, .060, .055, .055, .065, .070)
# Opening of the inner lips at the peak of each viseme (mouth opening of the average head, relative to 'aa').
OPENING = np.float32([0, 0, .15, .12, .3, .35, .5, .25, .4, .3, 1, .45, .3, .45, .1])
LEAD = .02              # s that the visible movement runs ahead of the sound

_FLITE = {
    "sil": "pau brth h#", "PP": "p b m em", "FF": "f v", "TH": "th dh", "DD": "t d dx", "kk": "k g ng hh hv",
    "CH": "ch jh sh zh", "SS": "s z", "nn": "n l en el nx", "RR": "r er axr", "aa": "aa ae ah ay aw",
    "E": "ax eh ey", "I": "ih iy y ix", "O": "ao ow oy", "U": "uh uw w ux"}
FLITE = {phone: viseme for viseme, phones in _FLITE.items() for phone in phones.split()}
FLITE_GLIDE = {"ay": "I", "ey": "I", "oy": "I", "aw": "U", "ow": "U"}         # second half of a diphthong

# phones of the Festival voices that are not English: Czech, Finnish, Italian, Russian (doubled letters are stressed)
_FESTIVAL = {
    "sil": "# _ pau", "PP": "p b m pp bb mm", "FF": "f v ff vv", "DD": "t d tt dd d~ t~ d* t*",
    "kk": "k g x h kk gg hh h*", "CH": "tS dZ S Z c~ s~ z~ ch sh zh sch", "SS": "s z ts dz c ss zz dz~",
    "nn": "n l J L nn ll n* n~ N", "RR": "r rr r~ R",
    "aa": "a aa ay ae {", "E": "e E ee ei", "I": "i j y ii yy I", "O": "o O oo ou", "U": "u w uu U"}
FESTIVAL = {phone: viseme for viseme, phones in _FESTIVAL.items() for phone in phones.split()}

_IPA = {
    "PP": "p b m ɓ", "FF": "f v ɸ β ʋ ɱ pf", "TH": "θ ð", "DD": "t d ʈ ɖ ɾ ɗ ʔ",
    "kk": "k g ɡ ŋ x ɣ q ɢ χ ʁ h ɦ ħ ʕ c ɟ ç", "CH": "tʃ dʒ ʃ ʒ ɕ ʑ ʂ ʐ tɕ tʂ dʑ dʐ ɬ", "SS": "s z ts dz",
    "nn": "n l ɲ ɳ ɫ ɭ ʎ ɺ", "RR": "r ɹ ɻ ʀ ɽ ɚ ɝ ɜ", "aa": "a ä ɑ ɐ æ ʌ", "E": "e ɛ ə ɘ ɞ", "I": "i ɪ ɨ ᵻ j ʝ",
    "O": "o ɔ ɒ ɵ œ", "U": "u ʊ w ɯ ʉ y ʏ ø ɥ ɤ ɰ ʍ"}
IPA = {symbol: viseme for viseme, symbols in _IPA.items() for symbol in symbols.split()}
_LONGEST_FIRST = re.compile("|".join(sorted(map(re.escape, IPA), key=len, reverse=True)))


def from_flite(phone: str) -> list[str]:
    """Visemes of one flite phone name; an unknown phone is treated as silence."""
    first = FLITE.get(phone, "sil")
    return [first, FLITE_GLIDE[phone]] if phone in FLITE_GLIDE else [first]


def from_festival(phone: str) -> list[str]:
    """Visemes of one phone of a Festival voice; stress digits and length colons are skipped, unknown phones are 'E'."""
    phone = phone.rstrip("0123456789:")
    return [FESTIVAL.get(phone) or FLITE.get(phone, "E")]


def from_ipa(phoneme: str) -> list[str]:
    """Visemes of one IPA phoneme as espeak-ng names it ('aʊ' -> aa, U). Length, stress and tone marks are skipped;
    no symbol at all is silence. Language switches such as '(en)' give an empty list."""
    if phoneme.startswith("("):
        return []
    phoneme = "".join(c for c in phoneme if not unicodedata.combining(c))
    visemes = [IPA[symbol] for symbol in _LONGEST_FIRST.findall(phoneme)]
    return [v for i, v in enumerate(visemes) if i == 0 or v != visemes[i - 1]] or ["sil"]


def segments(phones, lookup) -> list[tuple[float, float, str]]:
    """(start, end, phone) rows -> (start, end, viseme) segments; a diphthong is cut into equal parts."""
    rows = []
    for start, end, phone in phones:
        names = lookup(phone)
        for i, name in enumerate(names):
            step = (end - start) / len(names)
            rows.append((start + i * step, start + (i + 1) * step, name))
    return rows


def curves(rows, frames: int, fps: float = FPS) -> np.ndarray:
    """Coarticulated viseme weights (frames, 15) at the frame centres, each row summing to 1.

    Every segment claims the mouth with its dominance, which falls off outside the segment; claims are normalised.
    PP and FF then get their full closure at their centre whatever their neighbours want, and pauses longer than a
    quarter second are entirely shut in their middle."""
    rate = 100.
    time = (np.arange(int(np.ceil(frames / fps * rate)) + 8) + .5) / rate
    rows = _without_gaps([r for r in rows if r[1] > r[0]])
    if not rows:
        rest = np.zeros((frames, len(VISEMES)), np.float32)
        rest[:, 0] = 1
        return rest
    rows = [(-1., rows[0][0], "sil"), *rows, (rows[-1][1], max(rows[-1][1], time[-1]) + 1, "sil")]
    start, end = np.array([[r[0], r[1]] for r in rows]).T[:, :, None] - LEAD
    index = np.array([VISEMES.index(r[2]) for r in rows])
    strength, before, after = (np.array(v)[index, None] for v in (STRENGTH, BEFORE, AFTER))
    inset = np.minimum(.25 * (end - start), .04)               # the claim is full only inside the segment
    early, late = np.maximum(start + inset - time, 0) / before, np.maximum(time - end + inset, 0) / after
    claim = strength * np.exp(-(early + late) ** 1.5)
    weights = np.zeros((len(VISEMES), len(time)))
    np.add.at(weights, index, claim)
    weights /= weights.sum(0) + 1e-9

    hold = np.exp(-(np.maximum(np.abs(time - (start + end) / 2) - .03, 0) / .036) ** 2)  # 60 ms plateau
    pause = (index == 0) & ((end - start)[:, 0] > .25)
    margin = .08
    shut = .25 * (1 + np.tanh((time - start - margin) / .036)) * (1 + np.tanh((end - margin - time) / .036))
    for name, held in (("sil", shut[pause]), ("FF", hold[index == 2]), ("PP", hold[index == 1])):
        share = held.max(0, initial=0)
        row = weights[VISEMES.index(name)].copy()
        weights *= 1 - share
        weights[VISEMES.index(name)] = row + (1 - row) * share
    centre = ((np.arange(frames) + .5) / fps * rate - .5)
    low = np.clip(centre.astype(int), 0, len(time) - 2)
    part = (centre - low)
    out = (weights[:, low] * (1 - part) + weights[:, low + 1] * part).T
    return (out / out.sum(1, keepdims=True)).astype(np.float32)


def _without_gaps(rows):
    """Silences too short for the lips to notice (closures of stops, seams between words) go to the sound before."""
    out = []
    for start, end, name in rows:
        if name == "sil" and end - start < .06 and out:
            out[-1] = (out[-1][0], end, out[-1][2])
        else:
            out.append((start, end, name))
    return out


def babble(rng: np.random.Generator, seconds: float) -> list[tuple[float, float, str]]:
    """Speech-like random segments: syllables of consonant and vowel, 4 to 6 a second, in phrases with pauses."""
    vowels, consonants = ("aa", "E", "I", "O", "U"), ("PP", "FF", "TH", "DD", "kk", "CH", "SS", "nn", "RR")
    rows, time = [], 0.
    while time < seconds:
        pace = rng.uniform(.8, 1.25)
        for _ in range(rng.integers(3, 14)):
            for name, length in ((rng.choice(consonants, p=(.16, .08, .07, .2, .13, .06, .1, .14, .06)), .075),
                                 (rng.choice(vowels, p=(.26, .28, .22, .13, .11)), .11)):
                length *= pace * rng.lognormal(0, .25)
                rows.append((time, time + length, str(name)))
                time += length
        pause = rng.choice((.12, .35, .9)) * rng.lognormal(0, .3)
        rows.append((time, time + pause, "sil"))
        time += pause
    return rows
