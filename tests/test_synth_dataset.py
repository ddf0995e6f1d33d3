"""Ground truth of rendered heads. Needs a head pack: ../shared/synthpack or the folder in $IMTALKER_SYNTHPACK."""
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("numba", reason="needs the extra imtalker[synth]")
from imtalker.errors import InputError
from imtalker.synth import dataset
from imtalker.synth.dataset import frames_of, render_clip, write_dataset
from imtalker.synth.head import EYES, HAIR, MOUTH, SKIN
from imtalker.synth.motion import INDEX, Motion
from imtalker.synth.pack import HELD_OUT, SHARED_KINDS, load_pack
from imtalker.synth.scene import Scene
from imtalker.train.data import IRIS, mark_irises

PACK = Path(os.environ.get("IMTALKER_SYNTHPACK") or Path(__file__).parents[2] / "shared" / "synthpack")
needs_pack = pytest.mark.skipif(not (PACK / "heads.npz").is_file(),
                                reason="no head pack: put it at ../shared/synthpack or set IMTALKER_SYNTHPACK")
SIZE = 128


@pytest.fixture(scope="module")
def scene():
    return Scene(load_pack(str(PACK)), "train", [5, 1], SIZE)


def shoot(scene, pose=(0, 0, 0), cam=(0, 0, 0), gaze=(0, 0), **weights):
    expression = np.zeros(len(INDEX), np.float32)
    for name, weight in weights.items():
        for full in ([name] if name in INDEX else [name + "Left", name + "Right"]):
            expression[INDEX[full]] = weight
    return scene.render(np.float32(pose), np.float32(cam), np.float32(gaze), expression)


def test_a_missing_pack_is_the_users_error(tmp_path):
    with pytest.raises(InputError, match="--pack"):
        write_dataset(tmp_path / "out", identities=1, frames=1, pack=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


@needs_pack
def test_unknown_split_and_numbers_below_range_are_refused(tmp_path):
    with pytest.raises(InputError, match="train, heldout"):
        write_dataset(tmp_path, split="test", pack=PACK)
    with pytest.raises(InputError, match="frames is 0"):
        write_dataset(tmp_path, frames=0, pack=PACK)


@needs_pack
def test_framing_is_the_crop_policy(scene):
    marks = shoot(scene).landmarks
    low, high = marks.min(0), marks.max(0)
    assert np.isclose((high - low).max(), 1 / (1.3 * 1.6), atol=1e-3)
    assert np.allclose((low + high) / 2, [0.5, 0.5 + 0.08 / 1.6], atol=1e-3)


@needs_pack
def test_camera_numbers_mean_scale_and_shift(scene):
    still, moved = shoot(scene).landmarks, shoot(scene, cam=(0.2, 0.1, -0.05)).landmarks
    assert np.allclose(np.ptp(moved, axis=0) / np.ptp(still, axis=0), np.exp(0.2), rtol=1e-3)
    middle = lambda marks: (marks.min(0) + marks.max(0)) / 2
    assert np.allclose(middle(moved) - middle(still), [0.1, -0.05], atol=1e-3)


@needs_pack
def test_signs_of_the_pose(scene):
    still, nose, left_ear, right_ear = shoot(scene).landmarks, 30, 16, 0
    eyes = lambda marks: marks[[36, 45]].mean(0)
    assert (shoot(scene, pose=(0, 0.3, 0)).landmarks - still)[nose, 0] > 0.05              # own left is image right
    assert (shoot(scene, pose=(0.25, 0, 0)).landmarks - still)[nose, 1] > 0.03             # looks down
    rolled = shoot(scene, pose=(0, 0, 0.2)).landmarks
    assert rolled[left_ear, 1] < rolled[right_ear, 1]                                      # own left side is higher
    assert np.linalg.norm(eyes(rolled) - eyes(still)) < 0.25


@needs_pack
def test_landmarks_lie_on_the_drawn_features(scene):
    """The surface map under a landmark names the template position of that landmark's vertex, in any pose."""
    head, visible = scene.head, [27, 28, 29, 30, 33, 39, 42, 48, 51, 54, 57]
    for motion in (dict(), dict(pose=(0.1, 0.25, -0.1), cam=(-0.1, 0.05, 0.02)),
                   dict(pose=(-0.1, -0.25, 0.1), jawOpen=0.4)):
        frame = shoot(scene, **motion)
        cells = np.clip((frame.landmarks[visible] * 64).astype(int), 0, 63)
        seen = frame.surface[cells[:, 1], cells[:, 0]].astype(float)
        true = head.template[head.landmark_index[visible]]
        error = np.linalg.norm(seen - true, axis=1)
        assert np.median(error) < 4 and error.max() < 16, error             # a cell is about 2.7 units wide


@needs_pack
def test_blink_hides_the_eyeballs(scene):
    eyes = lambda **motion: (shoot(scene, cam=(0.3, 0, 0), **motion).parts == EYES).sum()
    opened, half, closed = eyes(), eyes(eyeBlink=0.5), eyes(eyeBlink=1)
    assert opened >= 8 and opened > half > closed and closed <= 1


@needs_pack
def test_irises_are_a_part_that_moves_within_the_eyes(scene):
    frames = [shoot(scene, cam=(0.3, 0, 0), gaze=(yaw, 0)) for yaw in (-0.3, 0, 0.3)]
    irises = [mark_irises(f.parts, f.surface) == IRIS for f in frames]
    assert all((f.parts[iris] == EYES).all() and 4 <= iris.sum() < (f.parts == EYES).sum() + 1
               for f, iris in zip(frames, irises))
    for half in (slice(0, 32), slice(32, 64)):                              # cells; the own left is the picture's right
        across = [np.nonzero(iris[:, half])[1].mean() for iris in irises]
        assert across[0] < across[1] < across[2] and across[2] - across[0] > 1


@needs_pack
def test_mouth_label_and_picture_open_with_the_jaw(scene):
    frames = [shoot(scene, cam=(0.3, 0, 0), jawOpen=w) for w in (0, 0.3, 0.6)]
    labels, areas = [f.mouth for f in frames], [(f.parts == MOUTH).sum() for f in frames]
    assert labels[0] < 0.02 and labels[0] < labels[1] < labels[2] and labels[2] > 0.12
    assert areas[0] <= 4 and areas[0] < areas[1] < areas[2]
    gap = np.diff(frames[2].landmarks[[62, 66], 1])[0] / np.ptp(frames[2].landmarks[[36, 45], 0])
    assert abs(gap - labels[2]) < 0.03                                      # seen frontally, 2-D and 3-D agree


@needs_pack
def test_an_open_mouth_is_darker_than_its_lips(scene):
    frame = shoot(scene, cam=(0.5, 0, 0), jawOpen=0.6)
    brightness = frame.image.mean(-1)
    at = lambda points: np.float32([brightness[y, x] for x, y in (frame.landmarks[points] * SIZE).astype(int)]).mean()
    middle = (frame.landmarks[62] + frame.landmarks[66]) / 2 * SIZE
    assert brightness[int(middle[1]), int(middle[0])] < 0.6 * at([51, 57, 50, 52, 56, 58])


@needs_pack
def test_gaze_turns_the_iris_but_not_the_landmarks(scene):
    straight, left = shoot(scene), shoot(scene, gaze=(0.4, 0))
    assert np.abs(straight.landmarks[:36] - left.landmarks[:36]).max() < 1e-3
    head, rows = scene.head, scene.head.eye_rows
    moved = head.pose(np.zeros(3), (0.4, 0), np.zeros(67))[0][rows] - head.eyeballs
    front = np.argsort(head.eyeballs[:, 2])[-20:]
    assert (moved[front, 0] > 0.02).all()                                   # own left is +x
    down = head.pose(np.zeros(3), (0, 0.3), np.zeros(67))[0][rows] - head.eyeballs
    assert (down[front, 1] < 0).all()


@needs_pack
def test_pictures_show_a_whole_person(scene):
    frame = shoot(scene)
    assert frame.image.shape == (SIZE, SIZE, 3) and frame.image.dtype == np.uint8
    assert 15 < frame.image.mean() < 240 and frame.image.std() > 15
    assert (frame.parts == SKIN).mean() > 0.12 and (frame.parts == HAIR).mean() > 0.01
    assert (frame.parts[0] == 0).any() and (frame.parts[-1] > 0).mean() > 0.5
    assert not frame.surface[frame.parts == 0].any()


@needs_pack
def test_training_and_held_out_are_apart():
    pack = load_pack(str(PACK))
    for kind in HELD_OUT:
        names = {split: {a["name"] for a in pack.choices(kind, split)} for split in ("train", "heldout")}
        assert not names["train"] & HELD_OUT[kind] and HELD_OUT[kind] <= names["heldout"]
        if kind not in SHARED_KINDS:
            assert not names["train"] & names["heldout"]
    looks = {split: [Scene(pack, split, [0, i], 64).looks for i in range(6)] for split in ("train", "heldout")}
    assert not {f for w in looks["train"] for f in w["skin"]} & {f for w in looks["heldout"] for f in w["skin"]}


@needs_pack
def test_files_hold_what_they_promise_and_repeat_by_seed(tmp_path):
    heard = []
    make = lambda name, **more: write_dataset(tmp_path / name, identities=1, frames=3, size=96, seed=4, workers=1,
                                              pack=PACK, first=2, **more)
    report = make("a", progress=lambda *numbers: heard.append(numbers))
    assert report["frames"] == 3 and report["frames_per_second"] > 0 and heard[-1][:2] == (1, 1)
    (path,) = (tmp_path / "a").iterdir()
    assert path.name == "identity-000002.npz"
    shapes = {"latent": (3, 32), "pose": (3, 3), "cam": (3, 3), "gaze": (3, 2), "blink": (3, 2), "mouth": (3,),
              "expression": (3, 67), "landmarks": (3, 68, 2), "surface": (3, 64, 64, 3), "parts": (3, 64, 64),
              "offsets": (4,)}
    kinds = {"expression": np.float16, "surface": np.int8, "parts": np.uint8, "offsets": np.int64}
    with np.load(path) as data:
        for name, shape in shapes.items():
            assert data[name].shape == shape and data[name].dtype == kinds.get(name, np.float32), name
        assert np.allclose(data["latent"][:, :3] * 0.3, data["pose"], atol=1e-5)
        assert np.allclose(data["blink"], data["expression"][:, [8, 9]], atol=1e-3)
        for a, b in zip(data["offsets"], data["offsets"][1:]):
            with Image.open(io.BytesIO(data["jpeg"][a:b].tobytes())) as image:
                assert image.size == (96, 96)
        assert json.loads(str(data["meta"]))["split"] == "train"
        make("b")
        with np.load(tmp_path / "b" / path.name) as again:
            assert all(np.array_equal(data[name], again[name]) for name in data.files)
    assert make("a")["frames"] == 0                                         # complete files are kept
    with pytest.raises(InputError, match="identity-000002.npz' was made with split train instead of heldout, steady"):
        make("a", split="heldout", steady=True)
    with pytest.raises(InputError, match="frames 3 instead of 4"):
        write_dataset(tmp_path / "a", identities=1, frames=4, size=96, seed=4, workers=1, pack=PACK, first=2)


@needs_pack
def test_clips_are_lazy_and_move():
    expression = np.zeros((3, 67), np.float32)
    pose = np.float32([[0, 0, 0], [0, 0, 0], [0, 0.3, 0]])
    motion = Motion(pose, np.zeros((3, 3), np.float32), np.zeros((3, 2), np.float32), expression)
    clip = render_clip(PACK, motion, size=64)
    a, b, c = clip
    assert a.shape == (64, 64, 3) and np.array_equal(a, b) and np.abs(a.astype(int) - c).mean() > 2


def test_training_motion_covers_closed_and_open_mouths():
    motion = frames_of(np.random.default_rng(0), 400)
    assert (np.abs(np.degrees(motion.pose)) <= [18, 32, 13]).all()
    speaking = np.delete(motion.expression, [INDEX["eyeBlinkLeft"], INDEX["eyeBlinkRight"]], 1)
    assert 0.1 < (speaking.max(1) == 0).mean() < 0.3
    opening = motion.expression[:, [INDEX["jawOpen"], INDEX["viseme_aa"], INDEX["viseme_O"]]].max(1)
    assert (opening > 0.25).mean() > 0.25


def test_a_worker_that_is_ended_from_outside_is_told():
    with pytest.raises(InputError, match="--workers"), dataset._mapping(2) as run:
        list(run(os._exit, [1, 1]))
