"""Training of the renderer: what the losses want, and that a run can be stopped and taken up again."""
from __future__ import annotations

import shutil
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from imtalker.errors import InputError
from imtalker.models.places import grid_of
from imtalker.models.renderer import Renderer, RendererConfig
from imtalker.models.transfer import CrossAttention
from imtalker.train import loop
from imtalker.train import renderer as train_renderer
from imtalker.train.data import HeadData, degrade, recolour, surface_code
from imtalker.train.loop import Average, descend, saving
from imtalker.train.losses import (
    PART_WEIGHTS,
    adapter_loss,
    correspondence_loss,
    discriminator_loss,
    flow_loss,
    generator_loss,
    nearest,
    openings_mask,
    parts_loss,
    perceptual_loss,
    pixel_loss,
    region_mask,
)
from imtalker.train.perceptual import perceptual_network
from imtalker.train.renderer import RendererTrainer, RendererTraining, crop, train
from imtalker.weights import load_model

CONFIG = RendererConfig(
    size=64, stem=4, widths=(8, 8, 8), encoder_residuals=0, identity_dim=8, motion_stem=4, motion_widths=(8, 8),
    adapter_hidden=8, const_channels=4, map_convs=1, attention_levels=2, heads=2, fine="sample",
    synthesis_residuals=((0, 0),) * 2, synthesis_attention=("none",) * 2)
OPTIONS = RendererTraining(reading_steps=1, geometry_steps=1, steps=4, people=2, driving=2, perceptual="none",
                           adversarial=0.1, adversarial_from=0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two people, four frames each; nothing in the pictures means anything."""
    folder, rng = tmp_path_factory.mktemp("heads"), np.random.default_rng(0)
    for person in range(2):
        files = []
        for _ in range(4):
            out = BytesIO()
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(out, "JPEG")
            files.append(out.getvalue())
        blank = {k: np.zeros((4, n), np.float32) for k, n in (("pose", 3), ("cam", 3), ("gaze", 2), ("blink", 2))}
        np.savez(folder / f"identity-{person:06d}.npz", jpeg=np.frombuffer(b"".join(files), np.uint8),
                 offsets=np.cumsum([0, *map(len, files)]), latent=rng.normal(size=(4, 32)).astype(np.float32),
                 mouth=np.zeros(4, np.float32), landmarks=rng.random((4, 68, 2), np.float32),
                 surface=rng.integers(-120, 120, (4, 64, 64, 3)).astype(np.int8),
                 parts=rng.integers(0, 7, (4, 64, 64)).astype(np.uint8), **blank)
    return folder


def test_a_run_can_be_taken_up_again(data, tmp_path):
    checkpoint = train(data, tmp_path, replace(OPTIONS, steps=3), config=CONFIG, every=1)
    first = torch.load(checkpoint, weights_only=True)
    train(data, tmp_path, replace(OPTIONS, equalised_rate=1.0), config=CONFIG, every=1)
    second = torch.load(checkpoint, weights_only=True)
    assert (first["step"], second["step"]) == (3, 4)
    factors = [[group["factor"] for group in state["optimiser"]["param_groups"]] for state in (first, second)]
    assert set(factors[0]) == {1.0, OPTIONS.equalised_rate} and set(factors[1]) == {1.0}  # as is asked for now
    assert not torch.equal(first["renderer"]["synthesis.to_rgb.weight"], second["renderer"]["synthesis.to_rgb.weight"])
    assert list(tmp_path.glob("events.*"))


def test_a_run_that_is_taken_up_says_so_and_ends_with_a_sheet(data, tmp_path, capsys):
    train(data, tmp_path, replace(OPTIONS, steps=3), config=CONFIG, every=50)
    assert "resuming" not in capsys.readouterr().err
    train(data, tmp_path, OPTIONS, config=CONFIG, every=50, start="mini")
    told = capsys.readouterr()
    assert "resuming step 3, --start is not used" in told.err and "trained on  psnr" in told.out
    assert [sheet.name for sheet in sorted((tmp_path / "sheets").iterdir())] == ["000003.png", "000004.png"]


def test_an_interrupted_run_is_kept_and_a_diverged_one_is_not(data, tmp_path, monkeypatch):
    class Interrupted(RendererTrainer):
        def update(self, views, done):
            if self.step == 2:
                raise KeyboardInterrupt
            return super().update(views, done)

    class Diverged(RendererTrainer):
        def picture(self, views):
            loss, *rest = super().picture(views)
            return loss * torch.nan, *rest

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_renderer, "RendererTrainer", Interrupted)
        train(data, tmp_path, OPTIONS, config=CONFIG)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
    with monkeypatch.context() as patch, pytest.raises(InputError, match="not finite at step 2.*--learning-rate"):
        patch.setattr(train_renderer, "RendererTrainer", Diverged)
        train(data, tmp_path, OPTIONS, config=CONFIG)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept


def test_a_run_is_saved_now_and_then_and_at_its_end(monkeypatch):
    saved = []
    with saving(lambda: saved.append(len(saved))) as now_and_then:
        now_and_then()
        assert saved == []
        monkeypatch.setattr(loop, "SAVED_EVERY", 0.0)
        now_and_then()
        assert saved == [0]
    assert saved == [0, 1]
    with pytest.raises(KeyboardInterrupt), saving(lambda: saved.append(2)):
        raise KeyboardInterrupt
    with pytest.raises(InputError), saving(lambda: saved.append(3)):
        raise InputError("what would be saved may be spoilt")
    assert saved == [0, 1, 2]


@pytest.mark.parametrize("spoilt", [lambda x: x * torch.nan, lambda x: (x - x.detach()).sqrt()])
def test_no_step_is_made_down_a_loss_or_gradient_that_is_not_finite(spoilt):
    network = torch.nn.Linear(2, 1)
    before = network.weight.detach().clone()
    with pytest.raises(InputError, match="step 7"):
        descend(spoilt(network(torch.ones(2)).sum()), network, torch.optim.SGD(network.parameters(), 0.1), 7)
    assert torch.equal(network.weight, before)


@pytest.mark.parametrize("content", [b"", b"PK not a checkpoint", "other"])
def test_checkpoints_of_no_use_are_told(data, tmp_path, content):
    checkpoint = tmp_path / "checkpoint.pt"
    if content == "other":
        train(data, tmp_path, replace(OPTIONS, steps=0), config=replace(CONFIG, adapter_hidden=16))
    else:
        checkpoint.write_bytes(content)
    for how in ({"out": tmp_path}, {"out": tmp_path / "new", "start": checkpoint}):
        with pytest.raises(InputError, match="checkpoint.pt.*name another") as caught:
            train(data, options=OPTIONS, config=CONFIG, **how)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("transfer", ["attention", "flow"])
def test_both_kinds_of_transfer_can_be_asked_for(monkeypatch, transfer):
    asked = []
    monkeypatch.setattr(train_renderer, "train", lambda *given, config, **more: asked.append(config))
    train_renderer.main(["data", "out", "--transfer", transfer])
    assert asked[0].transfer == transfer and bool(asked[0].eyes) == (transfer == "attention")


@pytest.mark.parametrize("wrong", ["--every 0", "--people 0", "--driving 0", "--minutes 0", "--minutes nan",
                                   "--limit 0", "--limit -1", "--window 7", "--average 5", "--pixel -1"])
def test_wrong_numbers_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        train_renderer.main(["data", "out", *wrong.split()])
    assert f"argument {wrong.split()[0]}: " in capsys.readouterr().err


def test_an_unknown_device_is_refused(data, tmp_path):
    with pytest.raises(InputError, match="'foo' is not known"):
        train_renderer.main([str(data), str(tmp_path / "out"), "--device", "foo"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("transfer", ["attention", "flow"])
def test_every_phase_trains_its_own_and_pictures_train_all(data, transfer):
    heads = HeadData(data)
    trainer = RendererTrainer(replace(CONFIG, transfer=transfer), OPTIONS, "cpu", bfloat16=False)
    views = heads.sample(np.random.default_rng(0), 2, 3, 64)
    moved = []
    for _ in range(4):
        before = {n: p.detach().clone() for n, p in trainer.renderer.named_parameters()}
        losses = trainer.update(views, trainer.step / OPTIONS.steps)
        moved.append({n.split(".")[0] for n, p in trainer.renderer.named_parameters() if not torch.equal(before[n], p)})
        assert all(torch.isfinite(v) for v in losses.values())
    assert moved[0] == {"motion_encoder"}
    assert {"motion_decoder", "transfer"} <= moved[1] <= {"motion_decoder", "transfer", "adapter"}
    assert moved[2] >= {"appearance_encoder", "motion_encoder", "adapter", "motion_decoder", "transfer", "synthesis"}
    assert "critic" in losses


def test_a_window_shows_what_the_whole_picture_shows_there(data):
    model = Renderer(replace(CONFIG, copy=True)).eval()
    pictures = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        aligned = model.transfer(model.motion_maps(torch.randn(2, 32), torch.zeros(1, 8)),
                                 model.encode_source(pictures).transfer)
        whole, _ = model.synthesis.paint(aligned)
        corner = torch.tensor([[0.25, 0.5], [1.0, 0.0]])
        coarse = model.synthesis.stages(aligned[:2])
        part, _ = model.synthesis.paint([crop(x, corner) for x in (coarse, *aligned[2:])], 1)
    torch.testing.assert_close(part[:, :, 12:20, 12:20], crop(whole, corner)[:, :, 12:20, 12:20])
    options = replace(OPTIONS, reading_steps=0, geometry_steps=0, window=1.0, reading=0.0)
    trainer = RendererTrainer(replace(CONFIG, copy=True), options, "cpu", bfloat16=False)
    _, losses, (frames, target) = trainer.picture(HeadData(data).sample(np.random.default_rng(0), 2, 3, 64))
    assert frames.shape == target.shape == (4, 3, 32, 32) and "anchor" not in losses


def test_what_is_sharp_may_be_a_pixel_off_where_what_is_blurred_may_not():
    target = torch.rand(1, 3, 32, 32)
    off, blurred = target.roll(2, 3), F.avg_pool2d(target, 5, 1, 2)
    dotted = ((torch.arange(32) + torch.arange(32)[:, None]) % 2.0).expand(1, 3, 32, 32)
    inside = lambda x: nearest(x, target, 2)[..., 4:-4, 4:-4].mean().item()  # noqa: E731
    assert inside(target) == inside(off) == 0 < 0.1 < min(inside(blurred), inside(dotted))
    assert nearest(target.roll(3, 3), target, 2)[..., 4:-4, 4:-4].mean() > 0.05
    mask = torch.ones(1, 1, 32, 32)
    loss = lambda shown, reach: pixel_loss(off, target, mask, mask, shown, reach)["openings"].item()  # noqa: E731
    assert loss(mask, 2) < 0.1 * loss(mask, 0)
    assert loss(0 * mask, 2) == loss(mask, 0)  # a lid must be where it is


def test_openings_are_where_eyes_would_be_and_what_they_show_is_no_skin():
    landmarks, parts = torch.full((2, 68, 2), 0.5), torch.ones(2, 64, 64, dtype=torch.uint8)
    for start, middle in ((36, 0.3), (42, 0.7)):
        landmarks[:, start:start + 6] = torch.tensor([middle, 0.4])
        landmarks[:, start, 0], landmarks[:, start + 3, 0] = middle - 0.1, middle + 0.1
    parts[0, 24:28, 16:22] = 2  # one opens an eye
    openings, shown = openings_mask(landmarks, parts, 64)
    assert openings.shape == shown.shape == (2, 1, 64, 64)
    assert openings[:, 0, 25, [19, 45]].eq(1).all() and openings[:, 0, 25, 32].eq(0).all()
    assert shown[0, 0, 25, 19] == 1 and shown[0].sum() == 24 and not shown[1].any()


def test_a_part_that_is_wrong_counts_more_at_eyes_and_mouth():
    parts = torch.full((1, 64, 64), 1)
    right = 8 * F.one_hot(parts, len(PART_WEIGHTS)).permute(0, 3, 1, 2).float()
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :8, :8] = 1

    def loss(row: int) -> float:
        wrong = right.clone()
        wrong[:, :, row: row + 4, :4] *= -1
        return parts_loss(wrong, parts, mask).item()

    assert loss(0) > 10 * loss(40) > 10 * parts_loss(right, parts, mask).item()


def test_no_data_says_how_to_make_it(tmp_path):
    with pytest.raises(InputError, match="imtalker synth"):
        HeadData(tmp_path)


def changed(data, folder, **arrays):
    """A copy of the two people, with other arrays in the second."""
    shutil.copytree(data, folder)
    with np.load(folder / "identity-000001.npz") as z:
        kept = {name: z[name] for name in z.files}
    np.savez(folder / "identity-000001.npz", **{k: v for k, v in {**kept, **arrays}.items() if v is not None})
    return folder


def test_damaged_and_mixed_people_are_named(data, tmp_path):
    whole = (data / "identity-000001.npz").read_bytes()
    for name, content in (("empty", b""), ("cut", whole[:-300]), ("text", b"Dear Sir or Madam")):
        shutil.copytree(data, tmp_path / name)
        (tmp_path / name / "identity-000001.npz").write_bytes(content)
    changed(data, tmp_path / "lost", gaze=None)
    changed(data, tmp_path / "few", mouth=np.zeros(3, np.float32))
    changed(data, tmp_path / "no picture", jpeg=np.zeros(100, np.uint8))
    large = BytesIO()
    Image.new("RGB", (96, 96)).save(large, "JPEG")
    jpeg = np.frombuffer(large.getvalue(), np.uint8)
    changed(data, tmp_path / "large", jpeg=np.tile(jpeg, 4), offsets=np.arange(5) * len(jpeg))
    for folder in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError, match="identity-000001.npz") as caught:
            HeadData(folder)
        assert "\n" not in str(caught.value)


def test_too_few_frames_are_told(data, tmp_path):
    with pytest.raises(InputError, match="4 given, 5 expected by --driving 4"):
        train(data, tmp_path, replace(OPTIONS, driving=4), config=CONFIG)
    held_out = tmp_path / "held"
    held_out.mkdir()
    with np.load(data / "identity-000000.npz") as z:
        first = {name: z[name][:1] for name in z.files if name not in ("jpeg", "offsets")}
        np.savez(held_out / "identity-000000.npz", jpeg=z["jpeg"], offsets=z["offsets"][:2], **first)
    with pytest.raises(InputError, match="1 given, 2 expected by --held-out"):
        train(data, tmp_path, OPTIONS, config=CONFIG, held_out=held_out)


def test_correspondence_wants_the_true_cell():
    torch.manual_seed(0)
    block = CrossAttention(16, 2)
    for layer in (block.q_proj, block.k_proj):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    code = surface_code(torch.randint(-120, 120, (1, 64, 64, 3)).to(torch.int8), torch.ones(1, 64, 64))
    moved = code.roll(16, 2)  # everything two cells of an 8 x 8 map to the right
    source = torch.randn(1, 16, 8, 8) * 6
    loss = lambda driving: correspondence_loss(  # noqa: E731
        block, driving, block.keys(source), moved, code, torch.ones(1, 1, 64, 64), 64)
    assert loss(source.roll(2, 3)) + 1 < loss(source)


def test_a_flow_is_wanted_to_lead_to_the_true_place():
    code = surface_code(torch.randint(-120, 120, (1, 64, 64, 3)).to(torch.int8), torch.ones(1, 64, 64))
    moved = code.roll(16, 2)  # everything two cells of an 8 x 8 map to the right
    moved[:, :, :16] = 1e6  # what came in there the source does not show

    def loss(x: float) -> float:
        offset = torch.tensor([x, 0.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
        place = offset + grid_of(offset)
        return flow_loss(place, moved, code, torch.ones(1, 1, 64, 64), 64).item()

    assert loss(-2.0) + 0.05 < loss(-1.5) < loss(0.0) < loss(1.0)


def test_background_stands_still():
    code = surface_code(torch.zeros(64, 64, 3, dtype=torch.int8), torch.zeros(64, 64))
    assert torch.equal(code[0, 1] - code[0, 0], torch.tensor([3.0, 0, 0, 0]))
    assert (code[..., 3] > 1000).all()


def test_region_is_eyes_and_mouth():
    landmarks = torch.full((1, 68, 2), 0.05)
    landmarks[0, 36:42], landmarks[0, 42:48] = torch.tensor([0.3, 0.4]), torch.tensor([0.7, 0.4])
    landmarks[0, 48:68] = torch.tensor([0.5, 0.8])
    mask = region_mask(landmarks, 100)[0, 0]
    assert mask[40, 30] == mask[40, 70] == mask[80, 50] == 1
    assert mask[5, 5] == 0 and mask[60, 50] == 0
    frames, target = torch.zeros(1, 3, 100, 100), torch.zeros(1, 3, 100, 100)
    target[:, :, 80, 50] = 1
    losses = pixel_loss(frames, target, mask[None, None], torch.zeros(1, 1, 100, 100))
    assert losses["region"] > 20 * losses["pixel"] > 0


def test_losses_know_better_from_worse():
    near, far = torch.zeros(4, 32), torch.ones(4, 32)
    assert adapter_loss(near, far, far) == 0 < adapter_loss(near, far, 3 * far)
    yes, no = torch.full((2, 1), 5.0), torch.full((2, 1), -5.0)
    assert discriminator_loss(yes, no) < discriminator_loss(no, yes)
    assert generator_loss(yes) < generator_loss(no)
    picture, mask = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
    features = lambda x: [x]  # noqa: E731
    assert perceptual_loss(features, picture, picture, mask, 2)["perceptual"] == 0
    assert perceptual_loss(features, 1 - picture, picture, mask, 2)["perceptual_region"] > 0


def test_perceptual_networks():
    assert perceptual_network("none") is None
    with pytest.raises(InputError, match="expected one of none, reader, vgg19"):
        perceptual_network("resnet")
    maps = perceptual_network("reader")(torch.rand(1, 3, 128, 128))
    assert [m.shape[-1] for m in maps] == [64, 32, 16, 8]


def test_colours_are_a_persons_and_stay_in_range():
    rng, pictures = torch.Generator().manual_seed(0), torch.rand(3, 1, 3, 16, 16).expand(3, 2, 3, 16, 16)
    coloured = recolour(pictures, rng)
    assert torch.equal(coloured[:, 0], coloured[:, 1]) and not torch.allclose(coloured, pictures)
    worn = degrade(coloured.flatten(0, 1), rng)
    assert worn.shape == (6, 3, 16, 16) and 0 <= worn.min() and worn.max() <= 1


def test_average_follows():
    network = torch.nn.BatchNorm2d(2)
    average = Average(network, 0.5)
    with torch.no_grad():
        network.weight.fill_(3)
        network.num_batches_tracked.fill_(7)
    for step in range(100, 120):
        average.update(network, step)
    torch.testing.assert_close(average.network.weight, network.weight, rtol=0, atol=1e-4)
    assert average.network.num_batches_tracked == 7


def test_a_run_can_begin_from_a_model(data, tmp_path, tiny_model, monkeypatch):
    monkeypatch.setenv("IMTALKER_CACHE", str(tiny_model.parent))
    config = load_model(tiny_model).config.renderer
    checkpoint = train(data, tmp_path, replace(OPTIONS, geometry_steps=0, steps=1), config=config, start="tiny")
    trained = torch.load(checkpoint, weights_only=True)["renderer"]
    begun = load_model(tiny_model).renderer.state_dict()
    assert all((trained[name] - begun[name]).abs().max() < 0.02 for name in begun if "weight" in name)
