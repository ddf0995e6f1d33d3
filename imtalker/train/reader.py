"""Train the face reader, which finds landmarks, pose, gaze and lids of a face, on synthetic heads."""

from __future__ import annotations

import math
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ..face.reader import load_reader, turn_between
from ..files import complete
from ..models.reader import MIRROR, FaceReader, Prediction
from ..options import MINUTES, SEED, OptionParser, count_to
from .loop import Average, Budget, descend, prepare, saving
from .reader_data import Heads, Sample
from .reader_faces import face
from .reader_negatives import no_face

# of pose, gaze, lids and mouth in the loss
STATE_WEIGHTS = torch.tensor([1.0, 1, 1, 1.5, 1.5, 0.7, 0.7, 3])
SPREAD = 1.2  # of the target around a landmark's place, cells of the heat map


def train_reader(
    data: Path,
    out: Path,
    minutes: float = 15.0,
    *,
    start: Path | None = None,
    batch: int = 32,
    rate: float = 2e-3,
    seed: int = 0,
    most: int | None = None,
    say=print,
) -> FaceReader:
    """Train for `minutes` on the identities of `data`; write float16 weights to `out`, also now and then meanwhile.

    data: a folder written by `imtalker synth`. start: weights to go on from. most: use only so many identities.
    The learning rate rises for a twentieth of the time, then falls to zero along a cosine; late weights are averaged.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    cv2.setNumThreads(0)
    heads = Heads(data, most)
    say(f"{len(heads)} frames of {heads.identity[-1] + 1} identities")
    model = FaceReader()
    if start is not None:
        model.load_state_dict(load_reader(start).state_dict())
    else:
        _fit_geometry(model, heads, rng, seconds=0.04 * minutes * 60)
    model = model.to(memory_format=torch.channels_last).train()
    average = Average(model, 0.998)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3)
    budget, step, sums = Budget(math.inf, minutes), 0, {}
    with saving(lambda: save_reader(average.network.state_dict(), out)) as now_and_then:
        while (done := budget.done(step)) < 1:
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, done * 20 + 0.02) * (0.5 + 0.5 * np.cos(np.pi * done))
            samples = [draw(heads, rng) for _ in range(batch)]
            losses = reader_losses(model(images(samples), hints(samples, rng)), samples)
            descend(sum(losses.values()), model, optimiser, step, steepest=5.0)
            average.update(model, step)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.item()
            step += 1
            if step % 50 == 0:
                say(f"{step:6d} {100 * done:5.1f} %  " + "  ".join(f"{k} {v / 50:.4f}" for k, v in sums.items()))
                sums = {}
            now_and_then()
    return average.network


def _fit_geometry(model: FaceReader, heads: Heads, rng: np.random.Generator, seconds: float) -> None:
    """Teach the network what landmarks alone tell, from the true ones made a little unsure; that needs no pictures."""
    truth = {k: torch.from_numpy(np.asarray(v, np.float32)) for k, v in heads.truth.items() if k != "parts"}
    optimiser = torch.optim.Adam(model.geometry.parameters(), lr=2e-3)
    begun = time.monotonic()
    while (done := (time.monotonic() - begun) / seconds) < 1:
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 - done)
        which = torch.from_numpy(rng.integers(len(heads), size=256))
        landmarks, pose, gaze, blink, mouth = (truth[k][which] for k in ("landmarks", "pose", "gaze", "blink", "mouth"))
        if rng.random() < 0.5:
            landmarks = (landmarks * torch.tensor([-1.0, 1.0]))[:, MIRROR]
            pose, gaze, blink = pose * torch.tensor([1.0, -1, -1]), gaze * torch.tensor([-1.0, 1]), blink.flip(1)
        unsure = 0.012 * torch.rand(len(which), 1, 1) * torch.randn_like(landmarks) + 0.01 * torch.randn_like(
            landmarks[:, :1]
        )
        state = model.state_of(landmarks + unsure)
        wanted = torch.cat([pose, gaze, blink, mouth[:, None]], 1)
        loss = (F.smooth_l1_loss(state, wanted, beta=0.05, reduction="none") * STATE_WEIGHTS).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def draw(heads: Heads, rng: np.random.Generator, faces: float = 0.78) -> Sample:
    """One random training sample, a face with chance `faces`."""
    i = int(rng.integers(len(heads)))
    if rng.random() < faces:
        return face(heads, i, rng)
    return no_face(heads, i, rng)


def images(samples: list[Sample]) -> Tensor:
    """(B, 3, 128, 128) float 0..1."""
    stacked = torch.from_numpy(np.stack([s.image for s in samples]))
    return stacked.permute(0, 3, 1, 2).float().div_(255).contiguous(memory_format=torch.channels_last)


def hints(samples: list[Sample], rng: np.random.Generator) -> Tensor:
    """(B, 68, 2): for half of the faces the true landmarks, a little unsure; else NaN.

    With them, eyes and mouth are looked at in the right place from the first step on.
    """
    hint = np.full((len(samples), 68, 2), np.nan, np.float32)
    for i, sample in enumerate(samples):
        if sample.landmarks is not None and rng.random() < 0.5:
            hint[i] = sample.landmarks + rng.normal(size=(68, 2)) * rng.uniform(0, 0.012) + rng.normal(size=2) * 0.008
    return torch.from_numpy(hint)


def save_reader(state: dict[str, Tensor], path: Path) -> None:
    """Weights as float16; the file appears only when complete."""
    tensors = {k: (v.detach().half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}
    with complete(Path(path)) as unfinished:
        save_file(tensors, unfinished)


def reader_losses(reading: Prediction, samples: list[Sample]) -> dict[str, Tensor]:
    """Weighted losses, each a scalar; their sum is to be minimised."""
    opinion = torch.tensor([s.framed is not None for s in samples])
    framed = torch.tensor([s.framed or 0.0 for s in samples])
    losses = {"score": 0.6 * F.binary_cross_entropy_with_logits(reading.score[opinion], framed[opinion])}
    known = torch.tensor([i for i, s in enumerate(samples) if s.landmarks is not None])
    faces = [samples[i] for i in known]
    if not faces:
        return losses
    landmarks, pose, gaze, blink, mouth, _, parts, heat = (x[known] for x in reading)
    truth = torch.from_numpy(np.stack([s.landmarks for s in faces]))
    wanted = {
        name: torch.from_numpy(np.stack([np.asarray(getattr(s, name), np.float32) for s in faces]))
        for name in ("pose", "gaze", "blink", "mouth")
    }
    inside = ((truth > 0) & (truth < 1)).all(-1).float()
    weight = inside + 0.1
    losses["landmarks"] = 20 * (F.smooth_l1_loss(landmarks, truth, beta=0.01, reduction="none").sum(-1) * weight).mean()
    losses["heat"] = 0.15 * -((heat * _targets(truth, heat.shape[-1])).flatten(2).sum(-1) * inside).mean()
    losses["pose"] = 2.0 * F.smooth_l1_loss(pose, wanted["pose"], beta=0.05)
    open_eyes = (1 - wanted["blink"].mean(1)).clamp(0, 1)[:, None]
    losses["gaze"] = 3.0 * (F.smooth_l1_loss(gaze, wanted["gaze"], beta=0.05, reduction="none") * open_eyes).mean()
    losses["blink"] = 1.5 * F.smooth_l1_loss(blink, wanted["blink"], beta=0.1)
    losses["mouth"] = 3.0 * F.smooth_l1_loss(mouth, wanted["mouth"], beta=0.03)
    losses["parts"] = 0.3 * F.cross_entropy(parts, torch.from_numpy(np.stack([s.parts for s in faces])).long())
    return losses


def _targets(landmarks: Tensor, cells: int) -> Tensor:
    """(B, 68, cells, cells), each map summing to 1: a bell around each landmark."""
    at = (torch.arange(cells) + 0.5).to(landmarks)
    across = torch.exp(-(((at - landmarks[..., 0:1] * cells) / SPREAD) ** 2) / 2)
    down = torch.exp(-(((at - landmarks[..., 1:2] * cells) / SPREAD) ** 2) / 2)
    bell = down[..., :, None] * across[..., None, :]
    return bell / bell.sum((2, 3), keepdim=True).clamp_min(1e-6)


@torch.inference_mode()
def measure_reader(model: FaceReader, heads: Heads, count: int = 512, seed: int = 1) -> dict[str, float]:
    """Errors on `count` frames of `heads`, slightly off the policy's framing, and how often else passes for a face.

    landmark_nme: mean distance over the distance of the outer eye corners; angles in degrees (gaze: of open eyes).
    """
    rng = np.random.default_rng(seed)
    which = rng.permutation(len(heads))[:count]
    samples = [heads.crop(int(i), rng.uniform(-0.06, 0.06, 2), rng.uniform(0.9, 1.1), rng.normal() * 4) for i in which]
    read = [model(images(samples[a : a + 32])) for a in range(0, len(samples), 32)]
    landmarks, pose, gaze, blink, mouth, score = (torch.cat([r[k] for r in read]).numpy() for k in range(6))
    true = {
        name: np.stack([np.asarray(getattr(s, name)) for s in samples])
        for name in ("landmarks", "pose", "gaze", "blink", "mouth")
    }
    eyes = np.linalg.norm(true["landmarks"][:, 36] - true["landmarks"][:, 45], axis=-1)
    frontal = np.abs(true["pose"][:, 1]) < np.radians(40)  # beyond, the distance of the eyes vanishes
    turns = [turn_between(a, b) for a, b in zip(pose, true["pose"])]
    looking = true["blink"].max(1) < 0.4
    others = [no_face(heads, int(rng.integers(len(heads))), rng) for _ in range(count)]
    false = torch.cat([model(images(others[a : a + 32])).score for a in range(0, len(others), 32)]).numpy()

    def correlation(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])

    return dict(
        landmark_nme=float((np.linalg.norm(landmarks - true["landmarks"], axis=-1).mean(1) / eyes)[frontal].mean()),
        landmark_fraction=float(np.linalg.norm(landmarks - true["landmarks"], axis=-1).mean()),
        pose_deg=float(np.degrees(turns).mean()),
        gaze_deg=float(np.degrees(np.linalg.norm(gaze - true["gaze"], axis=-1)[looking].mean())),
        gaze_correlation=correlation(gaze[looking], true["gaze"][looking]),
        blink_correlation=correlation(blink, true["blink"]),
        mouth_correlation=correlation(mouth, true["mouth"]),
        mouth_error=float(np.abs(mouth - true["mouth"]).mean()),
        missed=float((score < 0).mean()),
        false=float((false > 0).mean()),
    )


def main(arguments: list[str] | None = None) -> None:
    parser = OptionParser(prog="imtalker train reader", description=__doc__)
    parser.add_argument("data", type=Path, help="folder made by `imtalker synth`")
    parser.add_argument("out", type=Path, help="weights to write, a .safetensors file")
    parser.add_argument("--minutes", type=MINUTES, default=15.0, metavar="N", help="how long (default: 15)")
    parser.add_argument("--start", type=Path, metavar="FILE", help="weights to go on from")
    parser.add_argument("--limit", type=count_to(10**7), dest="most", metavar="N", help="use only so many people")
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="(default: 0)")
    parser.add_argument("--measure", action="store_true", help="train nothing; print how well the weights in OUT read")
    given = vars(parser.parse_args(arguments))
    if given.pop("measure"):
        measured = measure_reader(load_reader(given["out"]), Heads(given["data"], given["most"]))
        print("  ".join(f"{name} {value:.3g}" for name, value in measured.items()))
    else:
        prepare(given["out"])
        train_reader(**given)
        print(given["out"])


if __name__ == "__main__":
    main()
