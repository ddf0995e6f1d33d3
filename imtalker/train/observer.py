"""Train evaluation's observer, which reads pose, gaze, lids and mouth off rendered people."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ..devices import multiplies_bfloat16
from ..evaluate.observer import Observer, as_pictures, cut_patches, load_observer, observe
from ..face import Reader, default_reader, no_crop
from ..face.reader import look_closer, turn_between
from ..models.reader import MIRROR
from ..options import OptionParser, count_to
from .judge import command
from .loop import cosine
from .reader import save_reader
from .reader_data import Heads

COPIES = 2  # times every picture is used, each time blurred anew
BATCH = 256
CHUNK = 256  # pictures in memory at once
SCALE = torch.tensor([0.3, 0.3, 0.3, 0.3, 0.3, 0.5, 0.5, 0.1])  # of pose, gaze, lids and mouth


def examples(heads: Heads, rng: np.random.Generator, reader: Reader) -> tuple[Tensor, Tensor, Tensor]:
    """(patches as uint8, landmarks, truth (N, 8)) of all frames as the observer will meet them: landmarks are read."""
    patches, marks = [], []
    for start in range(0, len(heads), CHUNK):
        pictures = [soften(heads.picture(i), rng) for i in range(start, min(start + CHUNK, len(heads)))]
        read = look_closer(pictures, no_crop(*pictures[0].shape[:2]), reader).landmarks
        marks.append(torch.from_numpy(np.float32(read + rng.normal(0, 0.002, read.shape))))
        seen = cut_patches(as_pictures(torch.from_numpy(np.stack(pictures))), marks[-1])
        patches.append((255 * seen).round().to(torch.uint8))
    columns = [heads.truth["pose"], heads.truth["gaze"], heads.truth["blink"], heads.truth["mouth"][:, None]]
    return torch.cat(patches), torch.cat(marks), torch.from_numpy(np.float32(np.concatenate(columns, 1)))


def mirrored(patches: Tensor, landmarks: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same seen in a mirror."""
    flipped = torch.stack([1 - landmarks[..., 0], landmarks[..., 1]], -1)[:, MIRROR]
    signs = torch.tensor([1, -1, -1, -1, 1, 1, 1, 1]).to(truth)
    return patches[:, [1, 0, 2, 3]].flip(-1), flipped, (truth * signs)[:, [0, 1, 2, 3, 4, 6, 5, 7]]


def soften(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur most pictures: made frames are softer than rendered ones."""
    return cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.5)) if rng.random() < 0.6 else picture


def train(data: Path, out: Path, steps: int = 3000, seed: int = 0, say=print) -> Observer:
    """Train on the people in `data`, a folder of `imtalker synth`; weights go to `out`, in half precision."""
    torch.manual_seed(seed)
    heads, rng, reader = Heads(data), np.random.default_rng(seed), default_reader()
    seen = [torch.cat(column) for column in zip(*(examples(heads, rng, reader) for _ in range(COPIES)))]
    observer, halves = Observer(), multiplies_bfloat16()  # other CPUs take many times as long for it
    optimiser = torch.optim.AdamW(observer.parameters(), weight_decay=0.02)
    loss_sum = 0.0
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * cosine(step, step / steps)
        chosen = torch.randint(len(seen[0]), (BATCH,))
        patches, marks, truth = (column[chosen] for column in seen)
        if step % 2:
            patches, marks, truth = mirrored(patches, marks, truth)
        with torch.autocast("cpu", torch.bfloat16, enabled=halves):
            error = (observer(patches.float() / 255, marks) - truth) / SCALE
        looking = 1 - truth[:, 5:7].amax(1, keepdim=True)  # closed eyes look nowhere
        weight = torch.ones_like(error)
        weight[:, 3:5], weight[:, 7] = 2 * looking, 2
        nothing = torch.zeros_like(error)
        loss = (nn.functional.smooth_l1_loss(error, nothing, beta=0.2, reduction="none") * weight).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss_sum += float(loss.detach())
        if (step + 1) % 500 == 0:
            say(f"step {step + 1}/{steps}  loss {loss_sum / 500:.4f}")
            loss_sum = 0.0
    save_reader(observer.state_dict(), out)
    return observer.eval().requires_grad_(False)


def measure(weights: Path, data: Path) -> None:
    """Print errors on the people in `data`, landmarks read and not known: the observer's, and the face reader's own."""
    observer, reader, heads = load_observer(weights), default_reader(), Heads(data)
    frames = np.stack([heads.picture(i) for i in range(len(heads))])
    truth = heads.truth
    looking = truth["blink"].max(1) < 0.4

    def errors(read) -> dict[str, float]:
        gaze = np.linalg.norm(read.gaze - truth["gaze"], axis=1)[looking]
        turns = [turn_between(a, b) for a, b in zip(read.pose, truth["pose"])]
        return {"pose_error_deg": float(np.degrees(turns).mean()), "gaze_error_deg": float(np.degrees(gaze).mean()),
                "blink_error": float(np.abs(read.blink - truth["blink"]).mean()),
                "mouth_correlation": float(np.corrcoef(read.mouth, truth["mouth"])[0, 1])}

    for name, read in (("observer", observe(frames, reader, observer)), ("reader", reader(frames))):
        print(f"{name:10s}" + "  ".join(f"{key} {value:.3g}" for key, value in errors(read).items()))


def main(arguments: list[str] | None = None) -> None:
    def steps(parser: OptionParser) -> None:
        parser.add_argument("--steps", type=count_to(10**6), default=3000, metavar="N", help="(default: 3000)")

    command("observer", __doc__, train, measure, arguments, steps)


if __name__ == "__main__":
    main()
