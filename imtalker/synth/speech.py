"""Synthetic speech with known phone times, its corpus on disk, and what rooms, lines and crowds do to it.

Optional programs speak: flite (US English, BSD-like), eSpeak NG (about 130 languages, GPL, used as an external library)
and, where it is installed with voices, Festival (recorded diphones of several languages). Only training needs them.
"""
from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import tempfile
import wave
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soxr
from scipy.signal import butter, fftconvolve, sosfilt

from imtalker.errors import InputError
from imtalker.files import complete, readable
from imtalker.media import SAMPLE_RATE as RATE
from imtalker.media import frame_count, loudness
from imtalker.synth import visemes
from imtalker.synth.texts import LANGUAGES, sentence

FLITE_VOICES = ("kal", "kal16", "awb", "rms", "slt")
ESPEAK_VARIANTS = ("", "+f1", "+f2", "+f3", "+f4", "+f5", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m7", "+m8",
                   "+Annie", "+Andy", "+Alicia", "+belinda", "+benjamin", "+caleb", "+David", "+ed", "+Gene",
                   "+grandma", "+grandpa", "+iven", "+john", "+klatt", "+klatt2", "+klatt3", "+Lee", "+linda",
                   "+Mario", "+max", "+Michael", "+pablo", "+paul", "+quincy", "+rob", "+sandro", "+shelby", "+steph",
                   "+travis", "+victor", "+whisperf", "+zac")
FESTIVAL_VOICES = {                         # voice -> language (words from texts.py) and the encoding it reads
    "ked_diphone": ("en", "ascii"), "lp_diphone": ("it", "latin-1"), "pc_diphone": ("it", "latin-1"),
    "hy_fi_mv_diphone": ("fi", "latin-1"), "suo_fi_lj_diphone": ("fi", "latin-1"), "czech_dita": ("cs", "iso8859-2"),
    "czech_machac": ("cs", "iso8859-2"), "msu_ru_nsh_clunits": ("ru", "utf-8")}
# Voices never trained on
HELD_OUT = ("rms", "hy_fi_mv_diphone", "+m5", "+f4", "+Annie", "+victor", "+klatt3", "+linda")


@dataclass(frozen=True)
class Speech:
    """`waveform` (S,) float32 in [-1, 1] at 16 kHz; `segments` are (start s, end s, viseme); `voice`: who speaks."""
    waveform: np.ndarray
    segments: list[tuple[float, float, str]]
    voice: str = ""

    @property
    def frames(self) -> int:
        """ceil(samples / 640)."""
        return frame_count(len(self.waveform))

    def curves(self) -> np.ndarray:
        """(T, 15) coarticulated viseme weights."""
        return visemes.curves(self.segments, self.frames)

    def energy(self) -> np.ndarray:
        """(T,) loudness of speech 0..1: decibels of the frame from 35 below the clip's loud frames up to them. Zeros
        where nobody speaks at all, whatever is to be heard."""
        if all(viseme == "sil" for *_, viseme in self.segments):
            return np.zeros(self.frames, np.float32)
        level = loudness(self.waveform)
        return np.clip((level - np.percentile(level, 95)) / 35 + 1, 0, 1).astype(np.float32)


# --- the programs -----------------------------------------------------------------------------------------------------

def flite(text: str, voice: str = "slt", stretch: float = 1., pitch: float | None = None) -> Speech:
    """Speak US English with the flite program. `stretch` > 1 is slower; `pitch` is the mean in Hz.
    Raises InputError when flite is not installed or does not know the voice."""
    if not shutil.which("flite"):
        raise InputError("flite is not installed; install it (Debian: apt-get install flite) or use eSpeak NG voices")
    if voice not in FLITE_VOICES:
        raise InputError(f"unknown flite voice {voice!r}; use one of {', '.join(FLITE_VOICES)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        command = ["flite", "-voice", voice, "-psdur", "--setf", f"duration_stretch={stretch}"]
        if pitch:
            command += ["--setf", f"int_f0_target_mean={pitch}"]
        done = subprocess.run([*command, "-t", text, "-o", str(path)], capture_output=True, text=True, check=True)
        rate, pcm = read_wav(path)
    phones, start = [], 0.
    for pair in done.stdout.split():
        phone, end = pair.rsplit(":", 1)
        phones.append((start, float(end), phone))
        start = float(end)
    return Speech(soxr.resample(pcm, rate, RATE), visemes.segments(phones, visemes.from_flite), voice)


def read_wav(path) -> tuple[int, np.ndarray]:
    """(rate, (S,) float32 mono) of a 16-bit mono WAV file."""
    with wave.open(str(path)) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        return file.getframerate(), pcm.astype(np.float32) / 32768


@lru_cache(maxsize=1)
def festival_voices() -> tuple[str, ...]:
    """The voices of FESTIVAL_VOICES that are installed; none without Festival."""
    if not shutil.which("festival"):
        return ()
    done = subprocess.run(["festival", "--pipe"], input="(print (voice.list))", capture_output=True, text=True)
    return tuple(v for v in FESTIVAL_VOICES if v in done.stdout)


def festival(text: str, voice: str, stretch: float = 1.) -> Speech:
    """Speak with Festival. `stretch` > 1 is slower. Raises InputError when the voice is not installed."""
    if voice not in festival_voices():
        raise InputError(f"Festival voice {voice!r} is not installed; install festival and its festvox packages")
    _, encoding = FESTIVAL_VOICES[voice]
    text = "".join(c for c in text if c not in '"\\')
    with tempfile.TemporaryDirectory() as folder:
        sound, label = Path(folder) / "speech.wav", Path(folder) / "speech.lab"
        program = (f"(voice_{voice})(Parameter.set 'Duration_Stretch {stretch:.2f})(set! u (SynthText \"{text}\"))"
                   f"(utt.save.wave u \"{sound}\" 'riff)(utt.save.segs u \"{label}\")")
        done = subprocess.run(["festival", "--pipe"], input=program.encode(encoding, "ignore"), capture_output=True)
        if not sound.is_file():
            raise RuntimeError(f"festival failed on {text!r}: {done.stderr.decode('utf8', 'replace').strip()[-200:]}")
        rate, pcm = read_wav(sound)
        lines = [line.split() for line in label.read_text(encoding, "replace").splitlines() if not line.startswith("#")]
    lines = [line for line in lines if len(line) >= 3]
    ends = [float(line[0]) for line in lines]
    phones = [(start, end, line[2]) for start, end, line in zip([0., *ends], ends, lines)]
    lookup = visemes.from_flite if voice == "ked_diphone" else visemes.from_festival
    return Speech(soxr.resample(pcm, rate, RATE), visemes.segments(phones, lookup), voice)


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):             # espeak_EVENT of speak_lib.h
    _fields_ = [("type", ctypes.c_int), ("unique", ctypes.c_uint), ("text_position", ctypes.c_int),
                ("length", ctypes.c_int), ("audio_ms", ctypes.c_int), ("sample", ctypes.c_int),
                ("user", ctypes.c_void_p), ("id", _Id)]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@lru_cache(maxsize=1)
def _espeak() -> tuple[ctypes.CDLL, int]:
    """(library, sample rate): from the espeakng-loader package, else the system's."""
    data = None
    try:
        import espeakng_loader
        name, data = espeakng_loader.get_library_path(), espeakng_loader.get_data_path().encode()
    except ImportError:
        name = "libespeak-ng.so.1"
    try:
        library = ctypes.CDLL(name)
    except OSError:
        raise InputError("eSpeak NG is not installed; install it (pip install espeakng-loader, or Debian: apt-get "
                         "install espeak-ng) or use flite voices") from None
    synchronous, events_with_ipa = 2, 1 | 2
    rate = library.espeak_Initialize(synchronous, 0, data, events_with_ipa)
    if rate <= 0:
        raise InputError("eSpeak NG does not start (voice data missing?); reinstall it or use flite voices")
    return library, rate


def espeak(text: str, voice: str = "en-us", speed: int = 165, pitch: int = 50) -> Speech:
    """Speak with eSpeak NG. `voice` is a language with an optional variant ('de+f2'), `speed` words a minute, `pitch`
    0..99. A phoneme lasts until the next one starts. Raises InputError when absent or the voice is unknown."""
    library, rate = _espeak()
    pcm, marks = bytearray(), []

    @_CALLBACK
    def collect(samples, count, events):
        if samples and count > 0:
            pcm.extend(ctypes.string_at(samples, 2 * count))
        i = 0
        while events[i].type != 0:                                          # end of list
            if events[i].type == 7:                                         # phoneme
                name = bytes(events[i].id.string).split(b"\0")[0].decode("utf8", "ignore")
                marks.append((events[i].audio_ms / 1000, name))
            i += 1
        return 0

    library.espeak_SetSynthCallback(collect)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise InputError(f"eSpeak NG has no voice {voice!r}; give a language such as en-us, de, fr+f2 "
                         "(see espeak-ng --voices)")
    library.espeak_SetParameter(1, int(speed), 0)
    library.espeak_SetParameter(3, int(pitch), 0)
    raw = text.encode()
    library.espeak_Synth(raw, ctypes.c_size_t(len(raw) + 1), 0, 0, 0, 1, None, None)    # 1: text is UTF-8
    library.espeak_Synchronize()
    waveform = np.frombuffer(bytes(pcm), np.int16).astype(np.float32) / 32768
    marks = [m for m in marks if not m[1].startswith("(")]                  # (en) marks a change of language
    ends = [m[0] for m in marks[1:]] + [len(waveform) / rate]
    phones = [(start, end, name) for (start, name), end in zip(marks, ends) if end > start]
    rows = visemes.segments(phones, visemes.from_ipa)
    return Speech(soxr.resample(waveform, rate, RATE), rows, voice)


# --- clips ------------------------------------------------------------------------------------------------------------

def in_turn(parts: list[Speech]) -> Speech:
    """Parts one after the other."""
    rows, time = [], 0.
    for part in parts:
        rows += [(time + a, time + b, v) for a, b, v in part.segments]
        time += len(part.waveform) / RATE
    return Speech(np.concatenate([part.waveform for part in parts]), rows, "+".join(part.voice for part in parts))


def join(parts: list[Speech], pauses: list[float]) -> Speech:
    """Parts with `pauses` (s) before each of them and one after the last."""
    silences = [Speech(np.zeros(quiet, np.float32), [(0., quiet / RATE, "sil")])
                for quiet in (int(pause * RATE) for pause in pauses)]
    whole = in_turn([piece for pair in zip(silences, parts) for piece in pair] + silences[len(parts):])
    merged: list[tuple[float, float, str]] = []
    for row in whole.segments:                          # neighbouring silences are one pause
        if merged and row[2] == merged[-1][2] == "sil":
            row = (merged.pop()[0], *row[1:])
        merged.append(row)
    return Speech(whole.waveform, merged, parts[0].voice if parts else "none")


def faster(speech: Speech, factor: float) -> Speech:
    """Play `factor` times faster: pitch and formants rise with it, as with a smaller speaker."""
    waveform = soxr.resample(speech.waveform, RATE * factor, RATE)
    return Speech(waveform, [(a / factor, b / factor, v) for a, b, v in speech.segments], speech.voice)


def clip(rng: np.random.Generator, held_out: bool = False) -> Speech:
    """A random clean clip of some seconds: a sentence or two of one voice with pauses, rarely no speech at all.
    `held_out` picks among the voices kept for testing, otherwise never one of them."""
    if rng.random() < .04:
        return Speech(np.zeros(int(rng.uniform(3, 6) * RATE), np.float32), [], "none")
    parts, stretch = [], rng.uniform(.85, 1.2)
    size = rng.choice((1., rng.uniform(.85, 1.2)), p=(.35, .65))
    others = [v for v in festival_voices() if (v in HELD_OUT) == held_out]
    # Mostly recorded voices: they are nearer to people.
    share = np.array((.4, .3, .3) if others else (.5, 0, .5))
    share *= [bool(shutil.which("flite")), True, bool(shutil.which("espeak-ng"))]
    if not share.any():
        raise InputError("nothing here speaks; install flite or espeak-ng (Debian: apt-get install flite espeak-ng)")
    kind = rng.choice(3, p=share / share.sum())
    if kind == 1:
        voice = str(rng.choice(others))
        for _ in range(rng.integers(1, 3)):
            parts.append(festival(sentence(rng, FESTIVAL_VOICES[voice][0]), voice, stretch * size))
    elif kind == 0:
        voice = str(rng.choice([v for v in FLITE_VOICES if (v in HELD_OUT) == held_out]))
        middle = {"slt": 165, "awb": 130}.get(voice, 105)
        pitch = middle * rng.uniform(.85, 1.25)
        for _ in range(rng.integers(1, 3)):
            parts.append(flite(sentence(rng), voice, stretch * size, pitch))
    else:
        language = str(rng.choice(LANGUAGES, p=[.3, *[.7 / (len(LANGUAGES) - 1)] * (len(LANGUAGES) - 1)]))
        name = language
        if language == "en":
            name = str(rng.choice(("en-us", "en-us", "en-gb-x-rp", "en-gb-scotland", "en-029")))
        name += str(rng.choice([v for v in ESPEAK_VARIANTS if (v in HELD_OUT) == held_out]))
        pitch = rng.integers(25, 80)
        for _ in range(rng.integers(1, 3)):
            parts.append(espeak(sentence(rng, language), name, int(165 / stretch / size), pitch))
    pauses = [rng.uniform(.05, .5), *rng.choice((0., .3, .8, 1.5), len(parts) - 1), rng.uniform(.1, 1.)]
    return faster(join(parts, pauses), size)


def check_new(folder) -> None:
    """Raise InputError where `write_corpus` would write over a corpus."""
    for file in (Path(folder) / "train.npz", Path(folder) / "test.npz"):
        if file.exists():
            raise InputError(f"{str(file)!r} is there already and would be lost: name another folder, or delete it")


def write_corpus(folder, clips: int, seed: int = 0, held_out: bool = False, report=print) -> Path:
    """Write `clips` clean clips to folder/train.npz or folder/test.npz: int16 `waveform` (all joined), `offsets`,
    JSON `segments` and `voices`. About 5 seconds each."""
    rng = np.random.default_rng([seed, held_out])
    waves, rows, voices = [], [], []
    while len(waves) < clips:
        speech = clip(rng, held_out)
        if len(speech.waveform) < RATE:
            continue
        waves.append((speech.waveform.clip(-1, 1) * 32767).astype(np.int16))
        rows.append([(round(a, 4), round(b, 4), v) for a, b, v in speech.segments])
        voices.append(speech.voice)
        if report and len(waves) % 100 == 0:
            report(f"speech: {len(waves)} of {clips} clips, {sum(map(len, waves)) / RATE / 60:.1f} minutes")
    path = Path(folder) / ("test.npz" if held_out else "train.npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    with complete(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, waveform=np.concatenate(waves), offsets=np.cumsum([0, *map(len, waves)]),
                 segments=json.dumps(rows), voices=json.dumps(voices))
    return path


def read_corpus(path) -> list[Speech]:
    """All clips of a file of `write_corpus`."""
    if not Path(path).is_file():
        raise InputError(f"no speech corpus at {path}; make one with `imtalker synth FOLDER --speech 1500` first")
    with readable(path, "make it again with `imtalker synth FOLDER --speech CLIPS`"):
        with np.load(path) as file:
            waveform, offsets = file["waveform"], file["offsets"]
            rows, voices = json.loads(str(file["segments"])), json.loads(str(file["voices"]))
        if not 0 < len(rows) == len(voices) == len(offsets) - 1 or (np.diff(offsets) <= 0).any():
            raise ValueError("its clips and their segments do not match")
        if offsets[-1] != len(waveform):
            raise ValueError(f"{len(waveform)} samples, {offsets[-1]} expected")
    return [Speech(waveform[a:b].astype(np.float32) / 32767, [tuple(r) for r in segments], voice)
            for a, b, segments, voice in zip(offsets[:-1], offsets[1:], rows, voices)]


def read_training(folder) -> list[Speech]:
    """All clips of folder/train*.npz."""
    files = sorted(Path(folder).glob("train*.npz")) or [Path(folder) / "train.npz"]
    return [clip for file in files for clip in read_corpus(file)]


# --- rooms, lines, crowds ---------------------------------------------------------------------------------------------

def coloured_noise(rng: np.random.Generator, samples: int, slope: float) -> np.ndarray:
    """(samples,) float32 noise of unit deviation, its amplitude falls with f ** -slope (0 white, 0.5 pink, 1 brown)."""
    n = 1 << int(np.ceil(np.log2(max(samples, 2))))
    f = np.fft.rfftfreq(n, 1 / RATE)
    spectrum = rng.standard_normal((2, len(f))) * np.maximum(f, 40) ** -slope
    noise = np.fft.irfft(spectrum[0] + 1j * spectrum[1], n)[:samples]
    return (noise / (noise.std() + 1e-9)).astype(np.float32)


def music(rng: np.random.Generator, samples: int) -> np.ndarray:
    """(samples,) float32 of unit deviation: plucked and bowed tones of random chords with a beat, no voice."""
    time = np.arange(samples) / RATE
    out, beat = np.zeros(samples), rng.uniform(.2, .6)
    for start in np.arange(0, time[-1], beat):
        span = slice(int(start * RATE), min(samples, int((start + 3 * beat) * RATE)))
        local = time[span] - start
        for note in rng.choice(24, rng.integers(1, 4)):
            pitch = 110 * 2 ** (note / 12)
            decay = np.exp(-local / rng.uniform(.1, 1.)) * np.minimum(local / .01, 1)
            for k in range(1, rng.integers(2, 7)):
                out[span] += decay * np.sin(2 * np.pi * pitch * k * local) / k
        if rng.random() < .6:
            out[span] += 1.5 * np.exp(-local / .04) * rng.standard_normal(len(local))
    return (out / (out.std() + 1e-9)).astype(np.float32)


def room(rng: np.random.Generator) -> np.ndarray:
    """Impulse response of a random room: direct sound and decaying noise, reverberation time 0.1 to 0.7 s."""
    length = rng.uniform(.1, .7)
    time = np.arange(int(length * RATE)) / RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / length)
    tail[: int(rng.uniform(.001, .008) * RATE)] = 0
    tail *= rng.uniform(.1, .8) / (np.sqrt((tail ** 2).sum()) + 1e-9)
    tail[0] = 1
    return tail.astype(np.float32)


def augment(rng: np.random.Generator, waveform: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """The same speech at the same times as other microphones, rooms and lines would give it: filters, reverberation,
    noise or music beneath, clipping, 8 kHz and telephone bands, level from -45 to -12 dB. `crowd` may be other speech,
    mixed in far below. (S,) float32 -> (S,) float32."""
    out, n = waveform, len(waveform)
    level = np.sqrt((out ** 2).mean()) + 1e-9
    silent = level < 1e-4
    if rng.random() < .5:                                   # microphone and voice colour: a gentle random equaliser
        f = np.fft.rfftfreq(n, 1 / RATE)
        knots = rng.normal(0, 4, 7)
        gain = 10 ** (np.interp(np.log2(np.maximum(f, 60)), np.linspace(6, 13, 7), knots) / 20)
        out = np.fft.irfft(np.fft.rfft(out) * gain, n)
    if rng.random() < .4:
        out = fftconvolve(out, room(rng))[:n]
    if not silent and rng.random() < .6:                    # noise within the clip: hiss, hum, music, other people
        ratio = 10 ** (-rng.uniform(5, 35) / 20)
        kind = rng.choice(3, p=(.6, .2, .2))
        if kind == 2 and crowd is not None:
            other = np.resize(crowd, n)
            other = other / (other.std() + 1e-9) * min(ratio, .15)
        else:
            other = ratio * (music(rng, n) if kind == 1 else coloured_noise(rng, n, rng.uniform(0, 1)))
        out = out + level * other
    elif silent and rng.random() < .8:                      # nothing but noise or music: the mouth stays shut
        out = .05 * (music(rng, n) if rng.random() < .45 else coloured_noise(rng, n, rng.uniform(0, 1)))
    if rng.random() < .25:                                  # narrow lines
        band = rng.choice(("phone", "8k", "low"), p=(.4, .4, .2))
        edges = {"phone": (300, 3400), "8k": (60, 3900), "low": (80, rng.uniform(2500, 6000))}[str(band)]
        out = sosfilt(butter(4, edges, "band", fs=RATE, output="sos"), out)
    peak = np.abs(out).max() + 1e-9
    if rng.random() < .08:
        out = np.clip(out, -.4 * peak, .4 * peak)
    out = out * (10 ** (rng.uniform(-45, -12) / 20) / (np.sqrt((out ** 2).mean()) + 1e-9))
    if rng.random() < .7:                                   # the hiss of the recorder
        out = out + 10 ** (rng.uniform(-90, -55) / 20) * rng.standard_normal(n)
    return np.clip(out, -1, 1).astype(np.float32)
