"""Train the renderer on rendered heads (stage one of IMTalker's training).

Three phases. *Reading*: the motion encoder learns to read the anchored latent off pictures. *Geometry* needs no
pictures: the motion decoder learns to draw the parts of a face, and transfer's queries and keys where things go, from
the rendered surface. *Picture* trains everything: pixels, features, eyes and mouth, identity-adapter distance, and
towards its end adversarially.

    python -m imtalker.train.renderer DATA OUT
"""
from __future__ import annotations

import os
import random
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..devices import choose_device
from ..face.reader import load_reader
from ..files import readable
from ..models.layers import EqualConv2d, EqualLinear, ModulatedConv
from ..models.motion import LandmarkMotionEncoder
from ..models.renderer import MINI_RENDERER, Renderer, RendererConfig, SourceFeatures, map_tensors
from ..models.warping import FlowTransfer
from ..options import MINUTES, POSITIVE, SEED, SHARE, OptionParser, count_to, option, take_fields
from ..weights import load_model
from .data import HeadData, Views, degrade, recolour
from .discriminator import Discriminator
from .loop import (
    OTHER_RUN,
    Average,
    Budget,
    Log,
    check_finite,
    cosine,
    descend,
    load_checkpoint,
    resume,
    save_checkpoint,
    saving,
    sheet,
)
from .losses import (
    PART_WEIGHTS,
    adapter_loss,
    correspondence_loss,
    discriminator_loss,
    flow_loss,
    generator_loss,
    openings_mask,
    parts_loss,
    perceptual_loss,
    pixel_loss,
    region_mask,
)
from .perceptual import perceptual_network


@dataclass(frozen=True)
class RendererTraining:
    """Options of a run; loss weights of zero switch a loss off."""

    reading_steps: int = 2000
    geometry_steps: int = 2000
    steps: int = 40000  # reading and geometry included
    people: int = option(4, count_to(1000))  # sources in a batch
    driving: int = option(3, count_to(1000))  # driving frames of each
    learning_rate: float = option(1e-3, POSITIVE)
    equalised_rate: float = 4.0  # times the learning rate, for layers whose stored weights have unit variance
    reading_rate: float = 3.0  # times the learning rate, for a motion encoder that begins trained
    reading: float = option(0.5, SHARE)  # of people moved as their pictures are read; 0: by the truth, nothing is read
    window: float = option(0.0, SHARE)  # of steps that look at half the side around the face, in half the time
    perceptual: str = "reader"  # none, reader or vgg19
    scales: int = option(2, count_to(8))  # of the perceptual pyramid
    pixel: float = 1.0
    region: float = 2.0
    openings: float = 1.0  # of eyes and mouth
    reach: int = 0  # pixels that what openings show may be off: so what is sharp is cheaper than what is blurred
    painted: float = 0.5  # of what is painted, before the source's pixels join it
    features: float = 0.3
    features_region: float = 0.3
    anchor: float = 0.3
    correspondence: float = 0.1
    parts: float = 0.3
    adapter: float = 0.02
    adversarial: float = 0.0
    adversarial_from: float = option(0.7, SHARE)  # share of the run after which the adversary joins
    focus: float = 0.0  # how much more often frames drive in which mouth and eyes do more
    average: float = option(0.999, SHARE)
    seed: int = option(0, SEED)


def repeat(source: SourceFeatures, times: int) -> SourceFeatures:
    """One row per driving frame: every source's features `times` times."""
    return map_tensors(lambda rows: rows.repeat_interleave(times, 0), source)


def adam(network: nn.Module, options: RendererTraining, betas: tuple[float, float]) -> torch.optim.Adam:
    """Adam with rates of their own for equalised layers, whose weights are large, so that the same step changes them
    less, and for a motion encoder that reads landmarks."""
    rates, kinds = {"": 1.0, "equalised": options.equalised_rate, "reading": options.reading_rate}, {}
    for module in network.modules():
        if isinstance(module, (EqualLinear, EqualConv2d, ModulatedConv)):
            kinds |= dict.fromkeys(module.parameters(), "equalised")
        if isinstance(module, LandmarkMotionEncoder):
            kinds |= dict.fromkeys(module.parameters(), "reading")
    groups: dict[str, list] = {}
    for parameter in network.parameters():
        groups.setdefault(kinds.get(parameter, ""), []).append(parameter)
    return torch.optim.Adam([{"params": parameters, "factor": rates[kind], "lr": options.learning_rate * rates[kind]}
                             for kind, parameters in groups.items()], betas=betas, fused=True)


class PartsProbe(nn.Module):
    """Reads the parts of the face off the finest driving map: a map that knows them tells synthesis what to paint.

    (B, C, G, G) to logits (B, 8, 64, 64), see `data.IRIS`. Training only.
    """

    def __init__(self, config: RendererConfig):
        super().__init__()
        self.times = max(1, 64 // (config.first_size << config.attention_levels - 1))
        width = config.widths[config.attention_levels - 1]
        self.conv = nn.Conv2d(width, len(PART_WEIGHTS) * self.times ** 2, 3, padding=1)
        nn.init.zeros_(self.conv.weight)

    def forward(self, driving_map: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(driving_map), self.times)


def crop(maps: Tensor, corner: Tensor) -> Tensor:
    """Half the side of maps (B, C, H, H) from `corner` (B, 2), x and y in half sides."""
    side = maps.shape[-1] // 2
    places = (corner * side).round().int().tolist()
    return torch.stack([m[:, y:y + side, x:x + side] for m, (x, y) in zip(maps, places)])


class RendererTrainer:
    """Networks, optimisers and the step of every phase. `device` runs them; `bfloat16` halves the time where it can."""

    def __init__(self, config: RendererConfig, options: RendererTraining, device: str | torch.device, bfloat16: bool):
        torch.manual_seed(options.seed)
        self.options, self.device, self.bfloat16 = options, device, bfloat16
        self.renderer = Renderer(config).to(device, memory_format=torch.channels_last)
        self.average = Average(self.renderer, options.average)
        self.parts = PartsProbe(config).to(device)
        self.optimiser = adam(nn.ModuleList([self.renderer, self.parts]), options, betas=(0.9, 0.99))
        self.features = perceptual_network(options.perceptual)
        if self.features:
            self.features.to(device)
        self.critics = [Discriminator(config.size >> k).to(device) for k in range(2)] if options.adversarial else []
        self.critic_optimiser = adam(nn.ModuleList(self.critics), options, betas=(0.0, 0.99)) if self.critics else None
        self.rng = torch.Generator(device).manual_seed(options.seed)
        self.dice = random.Random(options.seed)  # for what is decided without asking the device
        self.step = 0

    def begin_reading(self, heads: HeadData, steps: int = 3000) -> None:
        """Begin the motion encoder from the face reader, and its geometry from true landmarks without pictures."""
        encoder = self.renderer.motion_encoder
        encoder.reader.load_state_dict(load_reader().state_dict())
        landmarks, latent = (heads.labels[k].flatten(0, 1) for k in ("landmarks", "latent"))
        draw = {"generator": self.rng, "device": self.device}
        optimiser = torch.optim.Adam(encoder.geometry.parameters(), 2e-3)
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = 2e-3 * cosine(step, step / steps)
            rows = torch.randint(len(latent), (256,), **draw)
            noisy = landmarks[rows] + 0.004 * torch.randn(256, *landmarks.shape[1:], **draw)
            loss = F.smooth_l1_loss(encoder.from_landmarks(noisy), latent[rows], beta=0.5)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        print(f"landmarks to latent: {loss.item():.4f}", flush=True)

    def read(self, views: Views) -> tuple[Tensor, Tensor]:
        """Motion latents (B, 32) float32 that the encoder reads off degraded pictures, and the loss of reading."""
        pictures, latent = degrade(views.pictures, self.rng), views.latent
        encoder = self.renderer.motion_encoder
        if not isinstance(encoder, LandmarkMotionEncoder):
            read = encoder(pictures).float()
            return read, F.smooth_l1_loss(read, latent, beta=0.5)
        read, landmarks = encoder.observe(pictures)
        off = (landmarks - views.landmarks).abs().mean()
        return read.float(), F.smooth_l1_loss(read.float(), latent, beta=0.5) + 10 * off

    def autocast(self):
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bfloat16)

    def correspondence(self, driving_maps: list[Tensor], keys: list[Tensor], driving: Tensor, source: Tensor,
                       mask: Tensor) -> Tensor:
        """Mean over the attention levels; surface codes (B, 64, 64, 4), the source's once per driving frame; mask
        (B, 1, S, S) of eyes and mouth."""
        transfer, known = self.renderer.transfer, (driving, source, 0.1 + mask, 192)
        if isinstance(transfer, FlowTransfer):
            return sum(flow_loss(place, *known) for place, _ in transfer.places(driving_maps, keys)) / len(keys)
        return sum(correspondence_loss(level, maps, key, *known)
                   for level, maps, key in zip(transfer.levels, driving_maps, keys)) / len(keys)

    def noisy(self, latent: Tensor) -> Tensor:
        """True latents, a little less certain than that; those that are read are less so by far."""
        return latent + 0.02 * torch.randn(latent.shape, generator=self.rng, device=latent.device)

    def geometry(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the second phase, from latents, surfaces and parts alone."""
        model, frames = self.renderer, views.latent.shape[1]
        views = views.flat(0)
        identity = views.latent.new_zeros(1, model.config.identity_dim)
        maps = model.motion_maps(self.noisy(views.latent), identity)
        keys = model.transfer.source_keys(maps)
        # Every frame of a person drives, and the next frame of the same person is its source.
        following = torch.arange(len(views.latent), device=views.latent.device).view(-1, frames).roll(-1, 1).flatten()
        mask = region_mask(views.landmarks, 64)
        losses = {"correspondence": self.correspondence(maps, [k[following] for k in keys], views.surface,
                                                        views.surface[following], mask),
                  "parts": parts_loss(self.parts(maps[-1]), views.parts, mask)}
        return losses["correspondence"] + self.options.parts * losses["parts"], losses

    def picture(self, views: Views) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Loss of the third phase; also the frames and their targets, (B, 3, S, S)."""
        model, o, times = self.renderer, self.options, views.latent.shape[1] - 1
        source, driving = views.flat(0, 1), views.flat(1)
        own, motion = self.noisy(source.latent), self.noisy(driving.latent)
        losses = {}
        if o.reading:
            own, anchor_source = self.read(source)
            read, anchor = self.read(driving)
            as_read = torch.rand(len(own), generator=self.rng, device=own.device) < o.reading
            motion = torch.where(as_read.repeat_interleave(times)[:, None], read, motion)
            losses["anchor"] = o.anchor * (anchor + anchor_source)
        features = repeat(model.encode_source(source.pictures, own), times)
        adapted = model.adapter(motion, features.identity)
        maps = model.motion_decoder(adapted)
        other = model.adapter(motion, features.identity.roll(times, 0))
        target = driving.pictures
        mask = region_mask(driving.landmarks, target.shape[-1])
        openings, shown = openings_mask(driving.landmarks, driving.parts, target.shape[-1])
        losses |= {
            "correspondence": o.correspondence * self.correspondence(
                maps, features.transfer.keys, driving.surface, source.surface.repeat_interleave(times, 0), mask),
            "parts": o.parts * parts_loss(self.parts(maps[-1]), driving.parts, region_mask(driving.landmarks, 64)),
            "adapter": o.adapter * adapter_loss(motion, adapted.float(), other.float())}

        aligned, first = model.transfer(maps, features.transfer, model.gaze(features, motion)), 0
        if self.dice.random() < o.window:
            first = model.config.attention_levels - 1
            aligned = [model.synthesis.stages(aligned[:first + 1]), *aligned[first + 1:]]
            corner = self.around_face(driving.landmarks, aligned[0].shape[-1] // 2)
            cut = (crop(x, corner) for x in (*aligned, target, mask, openings, shown))
            *aligned, target, mask, openings, shown = cut
        painted, trust = model.synthesis.paint(aligned, first)
        frames = model.synthesis.blend(painted, trust, aligned).float()
        weights = {"pixel": o.pixel, "region": o.region, "openings": o.openings}
        losses |= {k: weights[k] * v for k, v in pixel_loss(frames, target, mask, openings, shown, o.reach).items()}
        if trust is not None:  # what is painted must be right where it is not shown, too: else it would never learn
            losses["painted"] = o.painted * sum(
                weights[k] * v for k, v in pixel_loss(painted.float(), target, mask, openings).items())
        if self.features:
            seen = perceptual_loss(self.features, frames, target, mask, o.scales)
            losses |= {"perceptual": o.features * seen["perceptual"],
                       "perceptual_region": o.features_region * seen["perceptual_region"]}
        return sum(losses.values()), losses, (frames, target)

    def around_face(self, landmarks: Tensor, steps: int) -> Tensor:
        """Corners for `crop` (B, 2), in `steps` to the half side, that put faces somewhere near its middle."""
        middle = (landmarks.amin(1) + landmarks.amax(1)) / 2
        wander = (torch.rand(middle.shape, generator=self.rng, device=middle.device) - 0.5) * 0.3
        return ((2 * (middle + wander) - 0.5).clamp(0, 1) * steps).round() / steps

    def adversary(self, frames: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Update the critics, then the renderer's adversarial loss."""
        pyramid = lambda x: [x if k == 0 else F.avg_pool2d(x, 1 << k) for k in range(len(self.critics))]  # noqa: E731
        judged = sum(discriminator_loss(critic(real), critic(fake)) for critic, real, fake
                     in zip(self.critics, pyramid(target), pyramid(frames.detach())))
        check_finite(judged, self.step)
        self.critic_optimiser.zero_grad(set_to_none=True)
        judged.backward()
        self.critic_optimiser.step()
        fooled = sum(generator_loss(critic(fake)) for critic, fake in zip(self.critics, pyramid(frames)))
        return fooled, {"critic": judged.detach(), "adversarial": fooled}

    @property
    def phase(self) -> str:
        """Of the step that comes next: reading, geometry or picture."""
        first, second = self.options.reading_steps, self.options.reading_steps + self.options.geometry_steps
        return "reading" if self.step < first else "geometry" if self.step < second else "picture"

    def update(self, views: Views, done: float) -> dict[str, Tensor]:
        """One step on a batch when `done`, 0 to 1, of the run is over; returns its losses."""
        o = self.options
        rate = o.learning_rate * cosine(self.step, done)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        with self.autocast():
            phase = self.phase
            if phase == "reading":
                _, total = self.read(views.flat(0))
                losses = {"anchor": total}
            elif phase == "geometry":
                total, losses = self.geometry(views)
            else:
                total, losses, (frames, target) = self.picture(views)
                if self.critics and done >= o.adversarial_from:
                    fooled, more = self.adversary(frames, target)
                    total, losses = total + o.adversarial * fooled, losses | more
        descend(total, self.renderer, self.optimiser, self.step)
        self.average.update(self.renderer, self.step)
        self.step += 1
        return {name: value.detach() for name, value in losses.items()}

    def state(self) -> dict:
        critics = {"critics": [c.state_dict() for c in self.critics],
                   "critic_optimiser": self.critic_optimiser.state_dict()} if self.critics else {}
        return {"step": self.step, "config": asdict(self.renderer.config), "renderer": self.renderer.state_dict(),
                "average": self.average.network.state_dict(), "parts": self.parts.state_dict(),
                "optimiser": self.optimiser.state_dict(), **critics}

    def begin(self, start: str | Path) -> None:
        """Begin from the weights of a checkpoint, or of a model, given by name or as a folder."""
        with readable(start, OTHER_RUN):
            if os.path.isfile(start):
                state = load_checkpoint(start, self.device)
                weights = state["average"]
                self.parts.load_state_dict(state["parts"])
            else:
                weights = load_model(start).renderer.state_dict()
            self.renderer.load_state_dict(weights)
            self.average.network.load_state_dict(weights)

    def load(self, state: dict) -> None:
        self.step = state["step"]
        self.rng.manual_seed(self.options.seed + self.step)  # not what was drawn before once more
        self.dice.seed(self.options.seed + self.step)
        self.renderer.load_state_dict(state["renderer"])
        self.average.network.load_state_dict(state["average"])
        self.parts.load_state_dict(state["parts"])
        factors = [group["factor"] for group in self.optimiser.param_groups]
        self.optimiser.load_state_dict(state["optimiser"])
        for group, factor in zip(self.optimiser.param_groups, factors):
            group["factor"] = factor  # as is asked for now, not as it was
        if self.critics and "critics" in state:
            for critic, weights in zip(self.critics, state["critics"]):
                critic.load_state_dict(weights)
            self.critic_optimiser.load_state_dict(state["critic_optimiser"])


@torch.no_grad()
def validate(renderer: Renderer, views: Views) -> tuple[dict[str, float], list[list[Tensor]]]:
    """PSNR of frames driven by the encoder's latents and by true ones, of copying the source, and rows to look at."""
    source, driving, times = views.flat(0, 1), views.flat(1), views.latent.shape[1] - 1
    features = repeat(renderer.encode_source(source.pictures), times)
    read = renderer.encode_motion(driving.pictures)
    made = {"psnr": renderer.render(features, read), "psnr_true_latent": renderer.render(features, driving.latent),
            "psnr_copy": source.pictures.repeat_interleave(times, 0)}
    error = lambda x: (x - driving.pictures).square().mean((1, 2, 3))  # noqa: E731
    metrics = {name: float(-10 * torch.log10(error(x)).mean()) for name, x in made.items()}
    metrics["latent_error"] = float((read - driving.latent).abs().mean())
    rows = [[source.pictures[k // times], driving.pictures[k], made["psnr"][k], made["psnr_true_latent"][k]]
            for k in range(0, len(read), times)]
    return metrics, rows


def train(data: Path, out: Path, options: RendererTraining, *, held_out: Path | None = None, device: str = "cpu",
          bfloat16: bool = False, minutes: float | None = None, every: int = 50, config: RendererConfig = MINI_RENDERER,
          start: str | Path | None = None, limit: int | None = None) -> Path:
    """Train until `options.steps` or for `minutes`; resumes from OUT/checkpoint.pt. Returns the checkpoint's path.

    OUT gets checkpoint.pt, TensorBoard files, and sheets of held-out people as pictures, or of training's where there
    are none. `start` is a checkpoint or a model, a name or a folder, whose renderer to begin from when there is nothing
    to resume.
    """
    device = choose_device(device)
    checkpoint = out / "checkpoint.pt"
    state = resume(checkpoint, device, start)
    heads = HeadData(data, limit, device)
    heads.expect(options.driving + 1, f"--driving {options.driving}")
    judge, judged = (HeadData(held_out, limit, device), "held out") if held_out else (heads, "trained on")
    if held_out:
        judge.expect(2, "--held-out")
    trainer = RendererTrainer(config, options, device, bfloat16)
    if state:
        with readable(checkpoint, OTHER_RUN):
            trainer.load(state)
    elif start:
        trainer.begin(start)
    elif config.motion_encoder == "landmarks":
        trainer.begin_reading(heads)
    rng = np.random.default_rng([options.seed, trainer.step])
    test = judge.sample(np.random.default_rng(0), min(8, len(judge)), min(3, judge.frames), config.size)
    log, budget = Log(out, trainer.step, options.steps, every), Budget(options.steps, minutes)

    def show() -> None:
        metrics, rows = validate(trainer.average.network, test)
        sheet(rows, out / "sheets" / f"{trainer.step:06d}.png")
        for name, value in metrics.items():
            log.writer.add_scalar(f"{judged.replace(' ', '_')}/{name}", value, trainer.step)
        print(f"{judged}  " + "  ".join(f"{k} {v:.3f}" for k, v in metrics.items()), flush=True)

    shown = trainer.step
    with saving(lambda: save_checkpoint(checkpoint, **trainer.state())) as now_and_then:
        while (done := budget.done(trainer.step)) < 1:
            sizes = {"reading": 128 if config.motion_encoder == "landmarks" else config.size, "geometry": 0}
            size = sizes.get(trainer.phase, config.size)
            views = heads.sample(rng, options.people, options.driving + 1, size, options.focus)
            views = Views(recolour(views.pictures, trainer.rng), *(getattr(views, f.name) for f in fields(Views)[1:]))
            log.add(trainer.step, trainer.update(views, done))
            now_and_then()
            if trainer.step % (10 * every) == 0 and trainer.phase == "picture":
                show()
                shown = trainer.step
    if trainer.phase == "picture" and shown != trainer.step:
        show()
    return checkpoint


def main(arguments: list[str] | None = None) -> None:
    parser = OptionParser(prog="imtalker train renderer", description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder made by `imtalker synth`")
    parser.add_argument("out", type=Path, help="folder for checkpoint, metrics and sheets; resumes from it")
    parser.add_argument("--held-out", type=Path, help="folder of people that training never sees, for the sheets")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or mps")
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision: about twice as fast where supported")
    parser.add_argument("--minutes", type=MINUTES, help="take no longer, with the whole schedule in it")
    parser.add_argument("--every", type=count_to(10**6), default=50, help="steps between lines of progress")
    parser.add_argument("--start", help="checkpoint, or model, a name or a folder, whose renderer to begin from")
    parser.add_argument("--limit", type=count_to(10**7), help="use only so many people")
    parser.add_argument("--transfer", choices=("attention", "flow"), default="attention",
                        help="flow: the explicit kind, to compare with (default: attention)")
    parser.add_fields(RendererTraining)
    given = vars(parser.parse_args(arguments))
    options = take_fields(RendererTraining, given)
    config = MINI_RENDERER
    if given.pop("transfer") == "flow":
        config = replace(config, transfer="flow", eyes=0.0)  # eyeballs are moved by attention alone
    train(given.pop("data"), given.pop("out"), options, config=config, **given)


if __name__ == "__main__":
    main()
