"""Does generated motion go with the speech, and do head and lids behave? Measured on latents, without rendering."""
from __future__ import annotations

import numpy as np
import torch

from ..models.audio import FeatureStream, MelEncoder
from ..models.generator import Generator
from ..models.latent import FACE, LIDS, POSE
from ..stream import MotionStream
from ..synth.motion import SCALE, latent, speech_expression, talking
from ..synth.speech import Speech
from ..synth.visemes import VISEMES
from .mouth import SHUT, against_loudness, blinks_per_minute, correlation_and_lag, jitter


def mouth_opening(motion: np.ndarray, decoder: np.ndarray) -> np.ndarray:
    """(T,) inner-lip gap over the distance of the outer eye corners, from latents (T, 32)."""
    return motion[:, FACE] @ decoder


def habits(motion: np.ndarray) -> dict[str, float]:
    """What a clip's head and lids do: blinks a minute, deviation of the pose (degrees), its jitter (degrees), drift
    (distance of the last second's mean pose from the first's, degrees)."""
    lids = motion[:, LIDS].mean(1) * SCALE[LIDS][0]
    pose = np.degrees(motion[:, POSE] * SCALE[POSE])
    return {"blinks": blinks_per_minute(lids), "pose_sd": float(pose.std(0).mean()), "jitter": jitter(pose),
            "drift": float(np.linalg.norm(pose[-25:].mean(0) - pose[:25].mean(0)))}


def spoken(generator: Generator, encoder: MelEncoder, waveform: np.ndarray, reference: np.ndarray, guidance: float,
           nfe: int, seed: int = 0) -> np.ndarray:
    """Motion latents (T, M) of a source with the latent `reference` (1, M) that speaks the waveform."""
    stream = MotionStream(FeatureStream(encoder), generator, torch.from_numpy(reference), nfe=nfe,
                          guidance_scale=guidance, seed=seed)
    stream.push(torch.from_numpy(waveform))
    return torch.cat(list(stream.rest())).numpy()


def measure_synthetic(generator: Generator | None, encoder: MelEncoder, decoder: np.ndarray, clips: list[Speech],
                      basis: np.ndarray, gap: np.ndarray, guidance: float = 1., nfe: int = 10) -> dict[str, float]:
    """Mean measures over clips whose visemes are known; without a generator, of new synthetic motion: the ceiling."""
    rows, silent, shut, apart = [], [], [], []
    for k, clip in enumerate(clips):
        visemes, energy = clip.curves(), clip.energy()
        rng = np.random.default_rng(k)
        truth = talking(rng, visemes, energy)
        reference = latent(truth, basis)
        if generator is None:
            motion = latent(talking(rng, visemes, energy), basis)
        else:
            motion = spoken(generator, encoder, clip.waveform, reference[-1:], guidance, nfe, seed=k)
        opening, wanted = mouth_opening(motion, decoder), speech_expression(visemes, energy) @ gap
        row = habits(motion)
        row["at_rest"] = float(np.degrees(np.linalg.norm((motion[:, POSE] - reference[-1:, POSE]).mean(0) * .3)))
        if clip.segments:
            row["corr"], row["lag"] = correlation_and_lag(opening, wanted)
            row["gain"] = float(opening.std() / wanted.std())
        quiet = visemes[:, 0] > .97
        silent.append(opening[quiet])
        shut.append(opening[visemes[:, [VISEMES.index("PP"), VISEMES.index("FF")]].sum(1) > .85])
        apart.append(opening[wanted > .08])
        rows.append(row)

    def share(parts: list[np.ndarray], below: bool) -> float:
        values = np.concatenate(parts)
        return float(((values < SHUT) == below).mean()) if len(values) else float("nan")

    names = dict.fromkeys(name for row in rows for name in row)  # clips without speech have fewer
    return {**{name: float(np.mean([row[name] for row in rows if name in row])) for name in names},
            "silence_shut": share(silent, True), "lips_shut": share(shut, True), "vowels_open": share(apart, False)}


def measure_recording(generator: Generator, encoder: MelEncoder, decoder: np.ndarray, waveform: np.ndarray,
                      guidance: float = 1., nfe: int = 10) -> dict[str, float]:
    """The same for a recording of which only loudness is known."""
    reference = np.zeros((1, generator.config.motion_dim), np.float32)
    motion = spoken(generator, encoder, waveform, reference, guidance, nfe)
    return {**against_loudness(mouth_opening(motion, decoder), waveform), **habits(motion)}
