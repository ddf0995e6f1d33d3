"""Train the small audio encoder: augmented synthetic speech in, what the mouth does out.

The encoder's features must tell, through one linear layer, the viseme weights of either half of a frame, how far the
mouth is open, how loud the speech itself is, and whether anybody speaks at all. B batch, T frames, S samples.
"""
from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..clock import SAMPLES_PER_FRAME
from ..errors import InputError
from ..files import complete, readable
from ..models.audio import MelEncoder, MelEncoderConfig
from ..options import MINUTES, POSITIVE, SEED, SHARE, OptionParser, count_to, option, take_fields
from ..synth.speech import Speech, augment, read_corpus, read_training
from ..synth.visemes import OPENING, VISEMES, curves
from ..weights import find_model, load_model, load_weights
from .loop import OTHER_RUN, Average, Budget, Log, cosine, descend, resume, save_checkpoint, saving

HALVES = 2                                  # viseme targets per frame
READOUT = "readout.safetensors"             # beside the encoder's weights
CLOSED = [VISEMES.index("PP"), VISEMES.index("FF")]


@dataclass(frozen=True)
class AudioTraining:
    steps: int = 2500
    batch: int = option(20, count_to(10**4))    # windows
    frames: int = option(75, count_to(10**4))   # per window
    learning_rate: float = option(2e-3, POSITIVE)
    weight_decay: float = 0.01
    average: float = option(0.998, SHARE)
    seed: int = option(0, SEED)


@dataclass(frozen=True)
class SpeechBatch:
    waveform: Tensor            # (B, left + 640 T + right) float32, with the neighbourhood that the encoder sees
    visemes: Tensor             # (B, T, 2, 15) weights that sum to 1
    energy: Tensor              # (B, T) loudness of the clean speech, 0..1


class SpeechWindows:
    """Random augmented windows of a corpus, targets kept once made."""

    def __init__(self, clips: list[Speech], encoder: MelEncoder):
        self.clips, self.left, self.right = clips, encoder.left_samples, encoder.right_samples
        self.targets: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def target(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index not in self.targets:
            speech = self.clips[index]
            weights = curves(speech.segments, HALVES * speech.frames, HALVES * 25.)
            weights = weights.reshape(-1, HALVES, len(VISEMES))
            self.targets[index] = weights.astype(np.float16), speech.energy()
        return self.targets[index]

    def window(self, rng: np.random.Generator, index: int, first: int, frames: int, clean: bool = False):
        """(waveform, visemes, energy) of `frames` frames from `first` on; silence beyond the clip's ends."""
        samples, (weights, level) = self.clips[index].waveform, self.target(index)
        if not clean and rng.random() < .05:                            # noise, music or nothing: a shut mouth
            samples, weights, level = np.zeros_like(samples), np.zeros_like(weights), np.zeros_like(level)
            weights[..., 0] = 1
        start, end = first * SAMPLES_PER_FRAME - self.left, (first + frames) * SAMPLES_PER_FRAME + self.right
        piece = samples[max(start, 0): end]
        piece = np.pad(piece, (max(-start, 0), max(end - len(samples), 0)))[: end - start]
        if not clean:
            crowd = self.clips[rng.integers(len(self.clips))].waveform
            piece = augment(rng, piece, crowd)
        missing = max(first + frames - len(level), 0)
        rest = np.zeros((missing, *weights.shape[1:]), np.float16)
        rest[..., 0] = 1
        weights = np.concatenate([weights[first: first + frames], rest])
        return piece, weights, np.pad(level[first: first + frames], (0, missing))

    def sample(self, rng: np.random.Generator, batch: int, frames: int) -> SpeechBatch:
        rows = []
        for index in rng.integers(len(self.clips), size=batch):
            last = max(self.clips[index].frames - frames, 0)
            rows.append(self.window(rng, index, int(rng.integers(last + 1)), frames))
        return SpeechBatch(*(torch.from_numpy(np.stack(column).astype(np.float32)) for column in zip(*rows)))


class Readout(nn.Module):
    """Linear reading of the features, for training only: (B, T, D) -> viseme logits (B, T, 2, 15), three scalars."""

    def __init__(self, dim: int):
        super().__init__()
        self.visemes = nn.Linear(dim, HALVES * len(VISEMES))
        self.scalars = nn.Linear(dim, 3)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.visemes(features).unflatten(-1, (HALVES, len(VISEMES))), self.scalars(features)


def losses(logits: Tensor, scalars: Tensor, batch: SpeechBatch) -> dict[str, Tensor]:
    """Cross-entropy to viseme weights; L1 of opening and energy; cross-entropy of speech against rest."""
    visemes = batch.visemes
    opening = (visemes @ torch.from_numpy(OPENING)).mean(-1)
    speaking = 1 - visemes[..., 0].mean(-1)
    return {"visemes": -(visemes * logits.log_softmax(-1)).sum(-1).mean(),
            "opening": (scalars[..., 0] - opening).abs().mean() * 4,
            "energy": (scalars[..., 1] - batch.energy).abs().mean() * 2,
            "speaking": F.binary_cross_entropy_with_logits(scalars[..., 2], speaking)}


@torch.no_grad()
def validate(encoder: MelEncoder, readout: Readout, clips: list[Speech], seed: int | None = None) -> dict[str, float]:
    """Held-out clips, clean, or augmented when a seed is given: share of frames with the right strongest viseme; share
    of true lip closures found; correlation of the opening; share of silent frames found silent."""
    windows, rng, found = SpeechWindows(clips, encoder), np.random.default_rng(seed), []
    for index, speech in enumerate(clips):
        piece, weights, _ = windows.window(rng, index, 0, speech.frames, clean=seed is None)
        if seed is not None and not np.array_equal(weights, windows.target(index)[0]):
            continue
        logits, _ = readout(encoder.features(torch.from_numpy(piece.astype(np.float32))[None]))
        made = logits[0].softmax(-1).flatten(0, 1).numpy()
        found.append((made, weights.reshape(-1, len(VISEMES)).astype(np.float32)))
    guess, truth = (np.concatenate(x) for x in zip(*found))
    shut, quiet = truth[:, CLOSED].sum(1) > .8, truth[:, 0] > .95
    return {"accuracy": float((guess.argmax(1) == truth.argmax(1)).mean()),
            "closures": float((guess[shut][:, CLOSED].sum(1) > .5).mean()),
            "false_closures": float((guess[truth[:, CLOSED].sum(1) < .2][:, CLOSED].sum(1) > .5).mean()),
            "opening": float(np.corrcoef(guess @ OPENING, truth @ OPENING)[0, 1]),
            "silence": float((guess[quiet][:, 0] > .5).mean())}


def train(corpus: Path, out: Path, options: AudioTraining = AudioTraining(), minutes: float | None = None,
          every: int = 50, start: str | Path | None = None) -> Path:
    """Train on corpus/train*.npz, validate on corpus/test.npz; resumes from `out`, else begins from the encoder of the
    model `start`, a name or a folder, if given. Returns the weights' file out/audio_encoder.safetensors (moving
    average, with its configuration in the metadata); the linear reading is beside it, in readout.safetensors."""
    step, path = 0, Path(out) / "audio_encoder.pt"
    state = resume(path, "cpu", start)
    torch.manual_seed(options.seed)
    encoder = MelEncoder()
    if start and not state:
        with readable(start, "its audio encoder is of another kind: name another model"):
            encoder.load_state_dict(load_model(start).audio_encoder.state_dict())
    readout = Readout(encoder.dim)
    if start and not state and readout_path(start).is_file():
        readout.load_state_dict(load_readout(start).state_dict())
    both = nn.ModuleList([encoder, readout])
    average = Average(both, options.average)
    optimiser = torch.optim.AdamW(both.parameters(), options.learning_rate, weight_decay=options.weight_decay)
    if state:
        with readable(path, OTHER_RUN):
            both.load_state_dict(state["networks"])
            average.network.load_state_dict(state["average"])
            optimiser.load_state_dict(state["optimiser"])
        for group in optimiser.param_groups:
            group["weight_decay"] = options.weight_decay  # as is asked for now, not as it was
        step = state["step"]
    windows = SpeechWindows(read_training(corpus), encoder)
    test = read_corpus(Path(corpus) / "test.npz")
    log, budget = Log(Path(out) / "log", step, options.steps, every), Budget(options.steps, minutes)

    def save() -> None:
        save_checkpoint(path, networks=both.state_dict(), average=average.network.state_dict(),
                        optimiser=optimiser.state_dict(), step=step)
        export(average.network[0], Path(out) / "audio_encoder.safetensors")
        with complete(Path(out) / READOUT) as unfinished:
            save_file(average.network[1].state_dict(), unfinished)

    with saving(save) as now_and_then:
        while (done := budget.done(step)) < 1:
            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * cosine(step, done)
            batch = windows.sample(np.random.default_rng([options.seed, step]), options.batch, options.frames)
            terms = losses(*readout(encoder.features(batch.waveform)), batch)
            descend(sum(terms.values()), both, optimiser, step)
            average.update(both, step)
            log.add(step, {name: value.detach() for name, value in terms.items()})
            step += 1
            now_and_then()
            if step % (10 * every) == 0:
                for name, seed in (("clean", None), ("augmented", 0)):
                    scores = validate(*average.network, test[:40], seed)
                    for key, value in scores.items():
                        log.writer.add_scalar(f"{name}/{key}", value, step)
                    shown = "  ".join(f"{k} {v:.3f}" for k, v in scores.items())
                    print(f"held-out voices, {name}: {shown}", flush=True)
    return Path(out) / "audio_encoder.safetensors"


def export(encoder: MelEncoder, path: Path) -> None:
    """Weights as safetensors, the configuration beside them as JSON text in the metadata."""
    tensors = {k: v.contiguous() for k, v in encoder.state_dict().items()}
    with complete(path) as unfinished:
        save_file(tensors, unfinished, {"config": json.dumps(asdict(encoder.config)), "kind": "MelEncoder"})


# An encoder is named by the file that `export` wrote, which ends in .safetensors, or by a model's name or folder.
WANTED = "give audio_encoder.safetensors of imtalker train audio, or a model's name or folder"


def is_file(encoder: str | Path) -> bool:
    return str(encoder).endswith(".safetensors")


def load(encoder: str | Path) -> MelEncoder:
    """A frozen encoder. Raises InputError for what is none."""
    if not is_file(encoder):
        return load_model(encoder).audio_encoder.eval().requires_grad_(False)
    if not Path(encoder).is_file():
        raise InputError(f"no audio encoder at {str(encoder)!r}: {WANTED}")
    with readable(encoder, WANTED), safe_open(encoder, "pt") as file:
        if "config" not in (file.metadata() or {}):
            raise ValueError("it does not tell its configuration")
        network = MelEncoder(MelEncoderConfig(**json.loads(file.metadata()["config"])))
    load_weights(network, Path(encoder))
    return network.eval().requires_grad_(False)


def readout_path(encoder: str | Path) -> Path:
    """Where the reading of an encoder lies: beside its weights."""
    return Path(encoder).with_name(READOUT) if is_file(encoder) else find_model(encoder) / READOUT


def load_readout(encoder: str | Path) -> Readout:
    """The linear reading that was trained with the encoder."""
    path = readout_path(encoder)
    if not path.is_file():
        raise InputError(f"no {READOUT} beside {str(encoder)!r}: give the audio_encoder.safetensors in the folder that "
                         "imtalker train audio wrote")
    with readable(path, "copy it anew, or train the audio encoder again"):
        weights = load_file(path)
        readout = Readout(weights["scalars.weight"].shape[1])
        readout.load_state_dict(weights)
    return readout.eval().requires_grad_(False)


def main(arguments: list[str] | None = None) -> None:
    parser = OptionParser(prog="imtalker train audio", description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path, help="folder made by `imtalker synth FOLDER --speech CLIPS`")
    parser.add_argument("out", type=Path, help="folder for checkpoint, metrics and weights; resumes from it")
    parser.add_argument("--minutes", type=MINUTES, help="take no longer, with the whole schedule in it")
    parser.add_argument("--every", type=count_to(10**6), default=50, help="steps between lines of progress")
    parser.add_argument("--start", help="model, a name or a folder, whose audio encoder to begin from")
    parser.add_fields(AudioTraining)
    given = vars(parser.parse_args(arguments))
    options = take_fields(AudioTraining, given)
    print(train(given.pop("corpus"), given.pop("out"), options, **given))


if __name__ == "__main__":
    main()
