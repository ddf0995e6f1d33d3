"""Train the motion generator on synthetic speech and synthesized motion, and measure what it makes of held-out voices.

Nothing is rendered: audio features (frozen encoder) and anchored motion latents are enough, and motion for the same
speech is synthesized anew again and again, so that it never repeats. B batch, C context, W window, N = C + W frames.

What differs from the published recipe, and why:
- Squared instead of absolute error: its minimiser is the mean velocity, so samples keep the distribution of the data.
  The median of the L1 norm forgets what is rare, and a blink fills less than a tenth of the frames.
- Pose, cam and gaze are mostly dropped together: nearly everybody drives with audio alone. A share of the motions goes
  over the whole range of pose and gaze; there they are always given, so that nobody moves so unasked.
- Windows may end early, their last condition repeated, as the sampler fills them at a clip's end and when live; after
  the short first windows of a live session only a part of the context has happened.
- The mouth to learn is the one that can be heard: visemes as the audio encoder's linear reading tells them, not as they
  were spoken. What cannot be heard would be sampled, and a sample is as far from the truth as the mean is, once more.
"""
from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError
from ..evaluate.motion import measure_recording, measure_synthetic
from ..files import complete, readable
from ..flow import interpolate, target_velocity
from ..media import load_audio
from ..models.audio import MelEncoder
from ..models.generator import CONTROLS, Generator, GeneratorConfig
from ..models.latent import CAM, FACE, GAZE, POSE
from ..options import MINUTES, POSITIVE, SEED, SHARE, OptionParser, count_to, option, take_fields
from ..synth.motion import (
    SCALE,
    expression_basis,
    latent,
    mouth_decoder,
    mouth_gap,
    steered,
    sweep,
    talking,
)
from ..synth.speech import Speech, augment, read_corpus, read_training
from ..weights import load_model, load_weights, read_dataclass
from .audio import Readout, load_readout
from .audio import load as load_audio_encoder
from .loop import OTHER_RUN, Average, Budget, Log, descend, resume, save_checkpoint, saving

DESCRIPTION = "generator.json"  # beside the weights: their configuration, and the mouth decoder


@dataclass(frozen=True)
class GeneratorTraining:
    steps: int = 6000
    batch: int = option(32, count_to(10**4))        # windows
    learning_rate: float = option(1e-3, POSITIVE)
    average: float = option(0.998, SHARE)
    clips: int = option(2000, count_to(10**7))      # at most, of the corpus; motion for them is always synthesized anew
    variants: int = option(3, count_to(1000))       # times each clip is heard: once clean, then by other microphones
    renewed: int = 4                                # clips that get new motion in each step
    drop_audio: float = option(0.1, SHARE)
    drop_controls: float = option(0.6, SHARE)       # all of them; else each alone with 0.25
    drop_context: float = option(0.25, SHARE)
    part_context: float = option(0.1, SHARE)        # windows before which only some of the context's frames were
    cut: float = option(0.5, SHARE)                 # windows whose conditions end early, mostly after less than half
    wide: float = option(0.35, SHARE)               # motions over the whole range of pose and gaze
    mouth: float = 10.                              # weight of the mouth's opening, beside 1.5 of any other direction
    heard: float = option(1., SHARE)                # of the motions made from heard visemes, not from spoken ones
    sharp: float = 1.2                              # exponent of heard visemes: the mean of what may be said is faint
    seed: int = option(0, SEED)


@dataclass(frozen=True)
class MotionBatch:
    motion: Tensor              # (B, N, 32), context first
    reference: Tensor           # (B, 32)
    audio: Tensor               # (B, N, 128)
    controls: dict[str, Tensor]  # pose, cam (B, N, 3), gaze (B, N, 2)
    needed: dict[str, Tensor]   # (B,) float, 1 where a control must not be dropped
    known: Tensor               # (B,) frames of the window that have conditions of their own


@dataclass(frozen=True)
class Take:
    """One motion for one hearing of a clip."""

    hearing: int
    motion: np.ndarray          # (T, 32)
    wide: tuple[str, ...]       # controls that go over their whole range


class MotionPool:
    """Features of all clips, and for each clip a motion that is renewed now and then."""

    def __init__(self, clips: list[Speech], encoder: MelEncoder, readout: Readout, basis: np.ndarray,
                 config: GeneratorConfig, options: GeneratorTraining, report=print):
        self.basis, self.config, self.options = basis, config, options
        length = config.context + config.window
        self.clips = [clip for clip in clips if clip.frames >= length]
        if not self.clips:
            raise InputError(f"no clip of the corpus has {length} frames; make longer ones")
        self.encoder, self.readout = encoder, readout
        rng = np.random.default_rng([options.seed, 1])
        self.features, self.visemes, self.energy = [], [], []   # each (hearings, T, ...)
        for index, clip in enumerate(self.clips):
            sounds = [clip.waveform] + [augment(rng, clip.waveform, clips[rng.integers(len(clips))].waveform)
                                        for _ in range(options.variants - 1)]
            self._hear(torch.from_numpy(np.stack(sounds)))
            if report and (index + 1) % 500 == 0:
                report(f"features of {index + 1} of {len(self.clips)} clips")
        self.takes: list[Take | None] = [None] * len(self.clips)

    @torch.no_grad()
    def _hear(self, sounds: Tensor) -> None:
        features = self.encoder(sounds)
        logits, scalars = self.readout(features)
        said = logits.softmax(-1).mean(2) ** self.options.sharp
        self.features.append(features.half())
        self.visemes.append((said / said.sum(-1, keepdim=True)).half().numpy())
        self.energy.append(scalars[..., 1].clamp(0, 1).numpy())

    def renew(self, rng: np.random.Generator, index: int) -> None:
        hearing, clip = int(rng.integers(len(self.features[index]))), self.clips[index]
        if rng.random() < self.options.heard:
            visemes, energy = self.visemes[index][hearing].astype(np.float32), self.energy[index][hearing]
        else:
            visemes, energy = clip.curves(), clip.energy()
        motion, wide = talking(rng, visemes, energy), ()
        if rng.random() < self.options.wide:
            wide = (("pose",), ("gaze",), ("pose", "gaze"))[rng.integers(3)]
            motion = steered(motion,
                             sweep(rng, len(motion), (9, 14, 7), (22, 35, 16)) if "pose" in wide else None,
                             sweep(rng, len(motion), (11, 9), (28, 24)) if "gaze" in wide else None)
        self.takes[index] = Take(hearing, latent(motion, self.basis), wide)

    def sample(self, rng: np.random.Generator) -> MotionBatch:
        options, window = self.options, self.config.window
        length = self.config.context + window
        chosen = rng.integers(len(self.clips), size=options.batch)
        for k, index in enumerate(chosen):
            if self.takes[index] is None or k < options.renewed:
                self.renew(rng, index)
        takes, rows = [self.takes[index] for index in chosen], []
        for index, take in zip(chosen, takes):
            first = rng.integers(len(take.motion) - length + 1)
            rows.append((take.motion[first: first + length], take.motion[rng.integers(len(take.motion))],
                         self.features[index][take.hearing, first: first + length].float().numpy()))
        motion, reference, audio = (torch.from_numpy(np.stack(column)) for column in zip(*rows))
        scale = torch.from_numpy(SCALE)
        places = {"pose": POSE, "cam": CAM, "gaze": GAZE}
        controls = {name: motion[..., place] * scale[place] for name, place in places.items()}
        needed = {name: torch.tensor([float(name in take.wide) for take in takes]) for name in CONTROLS}
        cut = rng.random(options.batch) < options.cut
        short = np.exp(rng.uniform(np.log(3), np.log(window + 1), options.batch)).astype(int)
        return MotionBatch(motion, reference, audio, controls, needed, torch.from_numpy(np.where(cut, short, window)))


def flow_loss(generator: Generator, batch: MotionBatch, decoder: Tensor, options: GeneratorTraining,
              rng: torch.Generator) -> dict[str, Tensor]:
    """Squared error of the window's velocity, of its temporal difference and of what it does to the mouth's opening
    (decoder: (22,) see `mouth_decoder`), over frames that have conditions."""
    config, size = generator.config, len(batch.motion)
    context, window = config.context, config.window

    def keep(probability: float) -> Tensor:
        return (torch.rand(size, generator=rng) >= probability).float()

    frame = torch.arange(context + window)
    frame = torch.minimum(frame.expand(size, -1), context + batch.known[:, None] - 1)    # the last one repeats
    conditions = generator.project(batch.audio, **batch.controls).map(
        lambda x: x.gather(1, frame[..., None].expand(-1, -1, x.shape[-1])))
    audible, given = keep(options.drop_audio), keep(options.drop_controls)
    # A clip's start has no context; soon after it some of it is there.
    there = torch.where(keep(options.part_context) > 0, context, torch.randint(1, context, (size,), generator=rng))
    there = there * keep(options.drop_context)
    before = (torch.arange(context) >= context - there[:, None]).float()
    whole = torch.cat([before, torch.ones(size, window)], 1)
    masks = {name: whole * torch.maximum(given * keep(.25), batch.needed[name])[:, None] for name in CONTROLS}
    masks["audio"] = torch.cat([before, audible[:, None].expand(-1, window)], 1)
    conditions = conditions.keep(**masks)

    past, x_1 = batch.motion[:, :context], batch.motion[:, context:]
    # Generated pasts are not perfect, nor are measured references. Of what hardly moves even a little noise would hide
    # where it was, and heads would jump from window to window.
    past = (past + .04 * generator.noise_scale * torch.randn(past.shape, generator=rng)) * before[..., None]
    reference = batch.reference + .06 * torch.randn(batch.reference.shape, generator=rng)
    x_0 = torch.randn(x_1.shape, generator=rng) * generator.noise_scale
    t = torch.sigmoid(.8 + 1.1 * torch.randn(size, generator=rng))      # most effort where little noise is left
    error = generator.velocity(interpolate(x_0, x_1, t), t, conditions, reference, past) - target_velocity(x_0, x_1)
    inside = (torch.arange(window) < batch.known[:, None]).float()[..., None]
    weight = torch.full((config.motion_dim,), 1.5)
    weight[POSE], weight[CAM], weight[GAZE] = 8., 8., 3.    # they vary little within a clip, and a shaking head is ugly
    difference = error[:, 1:] - error[:, :-1]
    opening = error[..., FACE] @ (decoder / decoder.norm())

    def mean(x: Tensor, inside: Tensor) -> Tensor:
        return (x.square() * inside).sum() / (inside.sum() * config.motion_dim)

    return {"velocity": mean(error * weight.sqrt(), inside),
            "difference": mean(difference * weight.sqrt(), inside[:, 1:]),
            "mouth": options.mouth * mean(opening[..., None], inside)}


def train(corpus: Path, out: Path, encoder: str | Path, pack: Path, options: GeneratorTraining = GeneratorTraining(),
          config: GeneratorConfig = GeneratorConfig.mini(), minutes: float | None = None, every: int = 50,
          start: str | Path | None = None) -> Path:
    """Train on corpus/train*.npz; resumes from `out`, else begins from the generator of the model `start`, a name or a
    folder, if given. `encoder` is the file train.audio wrote, its reading beside it, or a model; `pack` the head pack.
    Returns out/generator.safetensors (moving average); config and mouth decoder are in out/generator.json."""
    out = Path(out)
    step, path = 0, out / "generator.pt"
    state = resume(path, "cpu", start)
    torch.manual_seed(options.seed)
    basis = expression_basis(pack)
    generator = Generator(config)
    if start and not state:
        with readable(start, "its generator is of another size: name another model"):
            generator.load_state_dict(load_model(start).generator.state_dict())
    average = Average(generator, options.average)
    optimiser = torch.optim.AdamW(generator.parameters(), options.learning_rate, betas=(.9, .99), weight_decay=.01)
    if state:
        with readable(path, OTHER_RUN):
            generator.load_state_dict(state["generator"])
            average.network.load_state_dict(state["average"])
            optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    clips = read_training(corpus)
    if len(clips) > options.clips:
        print(f"{options.clips} of {len(clips)} clips are taken: --clips takes more", file=sys.stderr, flush=True)
    clips = [clips[i] for i in np.random.default_rng(options.seed).permutation(len(clips))[:options.clips]]
    pool = MotionPool(clips, load_audio_encoder(encoder), load_readout(encoder), basis, config, options)
    decoder = mouth_decoder(basis, mouth_gap(pack))

    def save() -> None:
        save_checkpoint(path, generator=generator.state_dict(), average=average.network.state_dict(),
                        optimiser=optimiser.state_dict(), step=step)
        tensors = {k: v.contiguous() for k, v in average.network.state_dict().items()}
        with complete(out / "generator.safetensors") as unfinished:
            save_file(tensors, unfinished)
        with complete(out / DESCRIPTION) as unfinished:
            unfinished.write_text(json.dumps(
                {"generator": asdict(config), "mouth_decoder": decoder.tolist(), "step": step}, indent=1))

    log, budget = Log(out / "log", step, options.steps, every), Budget(options.steps, minutes)
    with saving(save) as now_and_then:
        while (done := budget.done(step)) < 1:
            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * min(1, (step + 1) / 100, .05 + .95 * max(0, 1 - done) / .5)
            rng = np.random.default_rng([options.seed, 2, step])
            batch, noise = pool.sample(rng), torch.Generator().manual_seed(int(rng.integers(2**63)))
            terms = flow_loss(generator, batch, torch.from_numpy(decoder), options, noise)
            descend(sum(terms.values()), generator, optimiser, step)
            average.update(generator, step)
            log.add(step, {name: value.detach() for name, value in terms.items()})
            step += 1
            now_and_then()
    return out / "generator.safetensors"


def load(folder: Path) -> tuple[Generator, np.ndarray]:
    """(generator, mouth decoder (22,)) of a training folder."""
    file = Path(folder) / DESCRIPTION
    if not file.is_file():
        raise InputError(f"{str(folder)!r} holds no {DESCRIPTION}: give the folder that imtalker train generator wrote")
    with readable(file, "it is damaged: copy it anew, or train again"):
        values = json.loads(file.read_text())
        generator = Generator(read_dataclass(GeneratorConfig, values["generator"], "generator."))
        decoder = np.float32(values["mouth_decoder"])
    load_weights(generator, Path(folder) / "generator.safetensors")
    return generator.eval().requires_grad_(False), decoder


def measure(folder: Path, encoder: str | Path, corpus: Path, pack: Path, recordings: list[Path] = (), clips: int = 40,
            guidances: tuple[float, ...] = (1., 1.5, 2., 3.)) -> None:
    """Print tables of measures: held-out voices (with the ceiling: newly synthesized motion), then recordings."""
    basis, gap = expression_basis(pack), mouth_gap(pack)
    generator, decoder = load(folder)
    audio = load_audio_encoder(encoder)
    test = [clip for clip in read_corpus(Path(corpus) / "test.npz") if clip.frames > 75][:clips]
    if not test:
        raise InputError(f"no clip of {str(Path(corpus) / 'test.npz')!r} has more than 75 frames: make longer ones")

    def show(name: str, row: dict[str, float]) -> None:
        print(f"{name:24s}" + "  ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)

    show("ceiling", measure_synthetic(None, audio, decoder, test, basis, gap))
    for scale in guidances:
        show(f"guidance {scale:g}", measure_synthetic(generator, audio, decoder, test, basis, gap, scale))
    for scale in guidances[:3]:
        for file in recordings:
            row = measure_recording(generator, audio, decoder, load_audio(file), scale)
            show(f"{Path(file).stem[:18]} {scale:g}", row)


def main(arguments: list[str] | None = None) -> None:
    parser = OptionParser(prog="imtalker train generator", description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path, help="folder made by `imtalker synth FOLDER --speech CLIPS`")
    parser.add_argument("out", type=Path, help="folder for checkpoint, metrics and weights; resumes from it")
    parser.add_argument("--encoder", required=True,
                        help="audio_encoder.safetensors of `imtalker train audio`, or a model's name or folder")
    parser.add_argument("--pack", type=Path, required=True, help="the synthetic head pack")
    parser.add_argument("--minutes", type=MINUTES, help="take no longer, with the whole schedule in it")
    parser.add_argument("--every", type=count_to(10**6), default=50, help="steps between lines of progress")
    parser.add_argument("--start", help="model, a name or a folder, whose generator to begin from")
    parser.add_argument("--measure", action="store_true", help="train nothing; print what the weights in OUT do")
    parser.add_argument("--recordings", type=Path, nargs="*", default=[], help="with --measure: recordings of people")
    parser.add_fields(GeneratorTraining)
    given = vars(parser.parse_args(arguments))
    options = take_fields(GeneratorTraining, given)
    recordings = given.pop("recordings")
    if given.pop("measure"):
        measure(given["out"], given["encoder"], given["corpus"], given["pack"], recordings)
    else:
        print(train(**given, options=options))


if __name__ == "__main__":
    main()
