"""The field's metrics whose networks were trained elsewhere: measured where their weights are given, else named.

A folder holds the networks as TorchScript, one file each; B pictures, values 0 to 255 where nothing else is said:

    lpips.pt                 two batches (B, 3, H, W) in -1..1 -> distances (B, ...); of the lpips package, traced
    inception-2015-12-05.pt  ((B, 3, 299, 299), return_features=True) -> (B, D); NVIDIA's, as in StyleGAN and clean-fid
    i3d_torchscript.pt       ((B, 3, 16, H, W), rescale, resize, return_features: all True) -> (B, D); as in StyleGAN-V
    arcface.pt               aligned faces (B, 3, 112, 112) in -1..1 -> (B, D)
    syncnet.pt               a module with two methods: forward_aud (B, 1, 13, 20) and forward_lip (B, 3, 5, 224, 224),
                             each -> (B, D); SyncNet (Chung and Zisserman 2016), scripted
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dct
from torch import Tensor, nn

from ..errors import InputError
from ..media import SAMPLE_RATE
from .identity import aligned_faces

FILES = {"lpips.pt": ("lpips",), "inception-2015-12-05.pt": ("fid",), "i3d_torchscript.pt": ("fvd",),
         "arcface.pt": ("csim",), "syncnet.pt": ("sync_c", "sync_d")}
BATCH = 16
CLIP = 16  # frames that I3D looks at
LIPS, STEPS = 5, 20  # frames and sound steps (100 a second) that SyncNet looks at
SHIFTS = 15  # frames to either side at which it looks for the sound


class Networks:
    """The networks that are there."""

    def __init__(self, folder: Path | None, device: torch.device | str = "cpu"):
        """folder: None for none. Raises InputError where it does not exist or a file in it is no TorchScript."""
        if folder is not None and not Path(folder).is_dir():
            raise InputError(f"the folder {str(folder)!r} of the metrics' weights does not exist: one with any of "
                             f"{', '.join(FILES)} expected")
        self.device = torch.device(device)
        self.networks, self.missing = {}, {}
        for file, metrics in FILES.items():
            if folder is not None and (Path(folder) / file).is_file():
                self.networks[file] = _load(Path(folder) / file, self.device)
            else:
                where = f"into {folder}" if folder else "into a folder and name it with --weights"
                self.missing.update(dict.fromkeys(metrics, f"put {file} {where}"))

    @torch.inference_mode()
    def lpips(self, made: np.ndarray, true: np.ndarray) -> float:
        """Mean distance of frames (T, S, S, 3) from the true ones (Zhang et al. 2018, arXiv 1801.03924)."""
        network = self.networks.get("lpips.pt")
        if network is None:
            return float("nan")
        batches = zip(self._batches(made), self._batches(true))
        return float(torch.cat([network(a / 127.5 - 1, b / 127.5 - 1).flatten() for a, b in batches]).mean())

    @torch.inference_mode()
    def csim(self, frames: np.ndarray, landmarks: np.ndarray, source: np.ndarray, source_marks: np.ndarray) -> float:
        """Mean cosine of the faces in frames (T, S, S, 3) and the source's one (1, S, S, 3), as ArcFace sees them."""
        network = self.networks.get("arcface.pt")
        if network is None:
            return float("nan")

        def see(frames: np.ndarray, landmarks: np.ndarray) -> Tensor:
            faces = aligned_faces(frames, landmarks)
            return torch.cat([network(batch / 127.5 - 1) for batch in self._batches(faces)])

        return float(F.cosine_similarity(see(frames, landmarks), see(source, source_marks)).mean())

    @torch.inference_mode()
    def features(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """By metric, what `frechet` compares: of frames ("fid") and of pieces of 16 frames ("fvd")."""
        found = {}
        if inception := self.networks.get("inception-2015-12-05.pt"):
            found["fid"] = torch.cat([inception(F.interpolate(x, (299, 299), mode="bilinear", antialias=True),
                                                return_features=True) for x in self._batches(frames)]).cpu().numpy()
        if (i3d := self.networks.get("i3d_torchscript.pt")) and len(frames) >= CLIP:
            pieces = [self._tensor(frames[a:a + CLIP]) for a in range(0, len(frames) - CLIP + 1, CLIP)]
            found["fvd"] = torch.cat([i3d(piece.transpose(0, 1)[None], rescale=True, resize=True, return_features=True)
                                      for piece in pieces]).cpu().numpy()
        return found

    @torch.inference_mode()
    def sync(self, frames: np.ndarray, waveform: np.ndarray) -> dict[str, float]:
        """sync_c, confidence, and sync_d, distance, of lips and sound (Chung and Zisserman 2016; Prajwal et al. 2020,
        arXiv 2008.10010). frames: (T, S, S, 3) framed by the crop policy, which is near to SyncNet's own framing."""
        network, count = self.networks.get("syncnet.pt"), len(frames) - LIPS + 1
        if network is None or count < 1:
            return {"sync_c": float("nan"), "sync_d": float("nan")}
        sound = mfcc(waveform)
        sound = np.pad(sound, ((0, max(4 * (count - 1) + STEPS - len(sound), 0)), (0, 0)), "edge")
        lips, heard = [], []
        for start in range(0, count, BATCH):
            at = range(start, min(start + BATCH, count))
            seen = torch.stack([self._tensor(frames[k:k + LIPS, ..., ::-1]) for k in at])  # (B, 5, 3, S, S), BGR
            seen = F.interpolate(seen.flatten(0, 1), (224, 224), mode="bilinear", antialias=True)
            lips.append(network.forward_lip(seen.unflatten(0, (-1, LIPS)).transpose(1, 2)))
            steps = np.stack([sound[4 * k:4 * k + STEPS].T for k in at])[:, None]
            heard.append(network.forward_aud(torch.from_numpy(np.float32(steps)).to(self.device)))
        lips, heard = torch.cat(lips), F.pad(torch.cat(heard), (0, 0, SHIFTS, SHIFTS))
        apart = torch.stack([F.pairwise_distance(lips, heard[k:k + count]) for k in range(2 * SHIFTS + 1)]).mean(1)
        return {"sync_c": float(apart.median() - apart.min()), "sync_d": float(apart.min())}

    def _batches(self, frames: np.ndarray) -> list[Tensor]:
        return [self._tensor(frames[start:start + BATCH]) for start in range(0, len(frames), BATCH)]

    def _tensor(self, frames: np.ndarray) -> Tensor:
        """(T, S, S, 3) uint8 -> (T, 3, S, S) float32, 0 to 255."""
        return torch.from_numpy(np.ascontiguousarray(frames)).to(self.device).permute(0, 3, 1, 2).float()


def _load(file: Path, device: torch.device) -> torch.jit.ScriptModule:
    try:
        return torch.jit.load(file, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{str(file)!r} cannot be read as TorchScript ({str(error).splitlines()[0]}): save the "
                         "network with torch.jit.trace or torch.jit.script") from error


def frechet(made: np.ndarray, true: np.ndarray) -> float:
    """Frechet distance of two sets of features (n, D) (FID: Heusel et al. 2017; FVD: Unterthiner et al. 2018); NaN for
    fewer than two of either. Sets smaller than D make it large: compare only what was measured on as many."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(len(made), len(true)) < 2:
        return float("nan")
    as_they_are = nn.Identity()
    as_they_are.num_features = made.shape[1]
    distance = FrechetInceptionDistance(feature=as_they_are)
    distance.update(torch.from_numpy(true), real=True)
    distance.update(torch.from_numpy(made), real=False)
    return float(distance.compute())


def mfcc(waveform: np.ndarray) -> np.ndarray:
    """(steps, 13) cepstral coefficients, 100 a second, of (samples,) at 16 kHz: 25 ms windows, 26 mel bands, the first
    one replaced by the log energy, lifter 22: the numbers of python_speech_features, which SyncNet was trained with."""
    samples = np.round(np.float64(waveform) * 32767)
    samples = np.append(samples[0], samples[1:] - 0.97 * samples[:-1])
    length, step, size, bands = SAMPLE_RATE // 40, SAMPLE_RATE // 100, 512, 26
    count = 1 + max(-(-(len(samples) - length) // step), 0)
    samples = np.pad(samples, (0, (count - 1) * step + length - min(len(samples), (count - 1) * step + length)))
    windows = np.lib.stride_tricks.sliding_window_view(samples, length)[::step][:count]
    power = np.abs(np.fft.rfft(windows, size)) ** 2 / size
    tiny = np.finfo(float).eps
    mel = np.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700), bands + 2)
    edges = np.floor((size + 1) * 700 * (10 ** (mel / 2595) - 1) / SAMPLE_RATE)[:, None]
    line = np.arange(size // 2 + 1)
    rise, fall = (line - edges[:-2]) / (edges[1:-1] - edges[:-2]), (edges[2:] - line) / (edges[2:] - edges[1:-1])
    bank = np.clip(np.minimum(rise, fall), 0, None)
    cepstra = dct(np.log(np.maximum(power @ bank.T, tiny)), norm="ortho")[:, :13]
    cepstra *= 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    cepstra[:, 0] = np.log(np.maximum(power.sum(1), tiny))
    return cepstra
