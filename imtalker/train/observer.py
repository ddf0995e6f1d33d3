"""Train evaluation's observer, which reads pose, gaze, lids and mouth off rendered people."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ..evaluate.observer import COMPONENTS, SCALE, Observer, cut_patches, load_observer, observe
from ..face import default_reader
from ..face.reader import turn_between
from ..options import OptionParser, count_to
from .judge import command
from .reader import save_reader
from .reader_data import Heads

COPIES = 4  # times every picture is used, each time blurred and with landmarks as unsure as they are when read
BATCH = 256


def examples(heads: Heads, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(patches, landmarks, truth (N, 8)) of all frames as the observer will meet them."""
    rows = []
    for i in range(len(heads)):
        picture, marks = heads.picture(i), heads.truth["landmarks"][i]
        if rng.random() < 0.6:  # made frames are softer than rendered ones
            picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.5))
        marks = marks + rng.normal(0, rng.uniform(0.001, 0.006), marks.shape) + rng.normal(0, 0.003, 2)
        rows.append((cut_patches(picture, marks), np.float32(marks)))
    patches, marks = (torch.from_numpy(np.stack(column)) for column in zip(*rows))
    truth = np.concatenate([heads.truth["pose"], heads.truth["gaze"], heads.truth["blink"],
                            heads.truth["mouth"][:, None]], 1)
    return patches, marks, torch.from_numpy(np.float32(truth))


def train(data: Path, out: Path, steps: int = 6000, seed: int = 0, say=print) -> Observer:
    """Train on the people in `data`, a folder of `imtalker synth`; weights go to `out`, in half precision."""
    torch.manual_seed(seed)
    heads, rng = Heads(data), np.random.default_rng(seed)
    patches, marks, truth = (torch.cat(column) for column in zip(*(examples(heads, rng) for _ in range(COPIES))))
    observer = Observer()
    observer.mean.copy_(patches.mean(0))
    _, size, components = torch.pca_lowrank(patches, COMPONENTS, niter=3)
    observer.components.copy_(components / (size / len(patches) ** 0.5 + 0.05))
    optimiser = torch.optim.AdamW(observer.layers.parameters(), 2e-3, weight_decay=0.02)
    loss_sum = 0.0
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1, step / 100 + 0.01) * (1 - step / steps)
        chosen = torch.randint(len(patches), (BATCH,))
        patch = patches[chosen]
        error = (observer(patch + 0.1 * torch.randn_like(patch), marks[chosen]) - truth[chosen]) / SCALE
        looking = 1 - truth[chosen, 5:7].amax(1, keepdim=True)  # closed eyes look nowhere
        weight = torch.ones_like(error)
        weight[:, 3:5], weight[:, 7] = 2 * looking, 2
        nothing = torch.zeros_like(error)
        loss = (nn.functional.smooth_l1_loss(error, nothing, beta=0.2, reduction="none") * weight).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss_sum += float(loss.detach())
        if (step + 1) % 1000 == 0:
            say(f"step {step + 1}/{steps}  loss {loss_sum / 1000:.4f}")
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
        parser.add_argument("--steps", type=count_to(10**6), default=6000, metavar="N", help="(default: 6000)")

    command("observer", __doc__, train, measure, arguments, steps)


if __name__ == "__main__":
    main()
