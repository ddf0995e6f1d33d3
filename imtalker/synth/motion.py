"""How a synthetic head moves, and the 32 numbers (the anchored motion latent) that say so.

Signs: pose x looks down, y turns to the person's own left, z lifts the own left side; gaze yaw to the own left, pitch
down; cam x right and y down in the picture. Angles are radians, times are frames at 25 a second.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imtalker.clock import FPS
from imtalker.errors import InputError
from imtalker.models.latent import FACE
from imtalker.synth.visemes import GAIN, VISEMES, babble, curves

EXPRESSIONS = tuple(                                        # the order of the head pack's expression targets
    "browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekPuff cheekSquintLeft "
    "cheekSquintRight eyeBlinkLeft eyeBlinkRight eyeLookDownLeft eyeLookDownRight eyeLookInLeft eyeLookInRight "
    "eyeLookOutLeft eyeLookOutRight eyeLookUpLeft eyeLookUpRight eyeSquintLeft eyeSquintRight eyeWideLeft "
    "eyeWideRight jawForward jawLeft jawOpen jawRight mouthClose mouthDimpleLeft mouthDimpleRight mouthFrownLeft "
    "mouthFrownRight mouthFunnel mouthLeft mouthLowerDownLeft mouthLowerDownRight mouthPressLeft mouthPressRight "
    "mouthPucker mouthRight mouthRollLower mouthRollUpper mouthShrugLower mouthShrugUpper mouthSmileLeft "
    "mouthSmileRight mouthStretchLeft mouthStretchRight mouthUpperUpLeft mouthUpperUpRight noseSneerLeft "
    "noseSneerRight tongueOut viseme_CH viseme_DD viseme_E viseme_FF viseme_I viseme_O viseme_PP viseme_RR "
    "viseme_SS viseme_TH viseme_U viseme_aa viseme_kk viseme_nn viseme_sil".split())
INDEX = {name: i for i, name in enumerate(EXPRESSIONS)}
BLINK = [INDEX["eyeBlinkLeft"], INDEX["eyeBlinkRight"]]
_VISEME_COLUMNS = [INDEX["viseme_" + v] for v in VISEMES]

# Scale of the geometric part of the latent: pose, cam, gaze, blink.
SCALE = np.float32([.3, .3, .3, .15, .08, .08, .3, .3, .5, .5])
LATENT = FACE.stop
COMPONENTS = LATENT - FACE.start


@dataclass(frozen=True)
class Motion:
    """T frames at 25 fps, float32. cam is log head scale against the nominal framing, then x, y of the head centre
    from the crop centre in crop widths."""
    pose: np.ndarray            # (T, 3) rotation vector, radians
    cam: np.ndarray             # (T, 3)
    gaze: np.ndarray            # (T, 2) yaw, pitch of the eyeballs in the head, radians
    expression: np.ndarray      # (T, 67) weights 0..1 in the order of EXPRESSIONS, blinks included, eyeLook* zero

    def __len__(self) -> int:
        return len(self.pose)

    def __getitem__(self, frames: slice) -> Motion:
        return Motion(self.pose[frames], self.cam[frames], self.gaze[frames], self.expression[frames])


# --- the latent -------------------------------------------------------------------------------------------------------

def _spread() -> np.ndarray:
    """(67, 67) covariance of expression weights assumed for the basis: a fixed table, so that a basis never changes
    when the synthesis of motion is tuned. Left and right move together (correlation 0.7)."""
    sd = {"jawOpen": .16, "mouthSmile": .16, "mouthStretch": .1, "mouthPucker": .12, "mouthFunnel": .12,
          "mouthPress": .1, "mouthUpperUp": .12, "mouthLowerDown": .12, "mouthRoll": .1, "mouthFrown": .1,
          "mouthDimple": .06, "mouthShrug": .08, "mouthClose": .05, "mouthLeft": .07, "mouthRight": .07,
          "jawLeft": .05, "jawRight": .05, "jawForward": .05, "brow": .18, "cheek": .1, "noseSneer": .07,
          "eyeSquint": .12, "eyeWide": .12}
    share = dict(PP=.10, FF=.06, TH=.05, DD=.12, kk=.08, CH=.07, SS=.08, nn=.10, RR=.06, aa=.16, E=.14, I=.13, O=.10,
                 U=.09, sil=0)
    scale = np.zeros(len(EXPRESSIONS))
    for name, i in INDEX.items():
        if name.startswith("viseme_"):
            viseme = name[7:]
            scale[i] = GAIN[VISEMES.index(viseme)] * np.sqrt(.6 * share[viseme])
        elif not name.startswith(("eyeBlink", "eyeLook", "tongue")):
            scale[i] = next(v for k, v in sd.items() if name.startswith(k))
    cov = np.diag(scale ** 2)
    for name, i in INDEX.items():
        j = INDEX.get(name.replace("Left", "Right"), i)
        if name.endswith("Left") and name not in ("jawLeft", "mouthLeft"):
            cov[i, j] = cov[j, i] = .7 * scale[i] * scale[j]
    return cov


def _targets(pack_dir) -> tuple[dict, np.ndarray]:
    """(arrays of heads.npz, dense expression displacements (67, V, 3) float64 in decimetres)."""
    path = Path(pack_dir) / "heads.npz"
    if not path.is_file():
        raise InputError(f"no head pack at {pack_dir}: expected a folder with heads.npz; give the synthetic head pack")
    with np.load(path) as file:
        heads = {k: file[k] for k in file.files if k.startswith(("expr_", "lm_")) or k in ("verts", "vgroup", "w_head")}
    if tuple(map(str, heads["expr_names"])) != EXPRESSIONS:
        raise InputError(f"{path} has other expression targets than expected; use the pack this version was made for")
    dense = np.zeros((len(EXPRESSIONS), len(heads["verts"]), 3))
    for i, (a, b) in enumerate(zip(heads["expr_ptr"][:-1], heads["expr_ptr"][1:])):
        dense[i, heads["expr_idx"][a:b]] = heads["expr_delta"][a:b] * 1e-3
    return heads, dense


def expression_basis(pack_dir) -> np.ndarray:
    """(22, 67) float32: expression weights -> the last 22 latent numbers, each of about unit deviation in our motion.

    Principal components of the displacement of the face's skin, the lips weighted threefold (they carry speech and are
    few vertices), under the fixed covariance of `_spread`; the sign makes the strongest weight of a row positive."""
    heads, dense = _targets(pack_dir)
    verts = heads["verts"]
    face = (heads["vgroup"] == 0) & (heads["w_head"] > .95)
    lips = np.concatenate([heads["lm_lips_outer_loop"], heads["lm_lips_inner_loop"]])
    near = np.abs(verts[face][:, None] - verts[lips][None]).max(-1).min(1) < .12
    moves = (dense[:, face] * np.where(near, 3., 1.)[None, :, None]).reshape(len(EXPRESSIONS), -1)
    gram = moves @ moves.T
    value, vector = np.linalg.eigh(gram)
    root = (vector * np.sqrt(np.maximum(value, 0))) @ vector.T              # isometric coordinates of displacement
    value, vector = np.linalg.eigh(root @ _spread() @ root)
    value, vector = value[::-1][:COMPONENTS], vector[:, ::-1][:, :COMPONENTS]
    basis = (root @ vector / np.sqrt(np.maximum(value, 1e-12))).T
    basis[:, BLINK + [i for n, i in INDEX.items() if n.startswith("eyeLook") or n == "tongueOut"]] = 0
    strongest = np.abs(basis).argmax(1)
    return (basis * np.sign(basis[np.arange(COMPONENTS), strongest])[:, None]).astype(np.float32)


def latent(motion: Motion, basis: np.ndarray) -> np.ndarray:
    """(T, 32) float32 anchored motion latents: pose, cam, gaze, blink left and right, 22 expression numbers."""
    geometry = np.concatenate([motion.pose, motion.cam, motion.gaze, motion.expression[:, BLINK]], 1) / SCALE
    return np.concatenate([geometry, motion.expression @ basis.T], 1).astype(np.float32)


def mouth_gap(pack_dir) -> np.ndarray:
    """(67,) float32: opening of the inner lips (middle) per unit expression weight, over the distance of the outer eye
    corners. Linear, for the average head; PP and other pressing shapes come out slightly negative."""
    heads, dense = _targets(pack_dir)
    mark = heads["lm_68"]
    width = np.linalg.norm(heads["verts"][mark[36]] - heads["verts"][mark[45]])
    return ((dense[:, mark[62], 1] - dense[:, mark[66], 1]) / width).astype(np.float32)


def mouth_decoder(basis: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """(22,) float32 least-squares weights: `latents[:, FACE] @ decoder` is the mouth opening of `mouth_gap`."""
    cov = _spread()
    b = basis.astype(np.float64)
    return np.linalg.solve(b @ cov @ b.T, b @ cov @ gap).astype(np.float32)


# --- natural movement -------------------------------------------------------------------------------------------------

def smooth_noise(rng: np.random.Generator, frames: int, columns: int, slow: float, fast: float) -> np.ndarray:
    """(frames, columns) random curves of about unit deviation: power falls above `slow` Hz and ends near `fast` Hz."""
    n = max(2 * frames, 256)
    f = np.fft.rfftfreq(n, 1 / FPS)
    shape = np.exp(-(f / fast) ** 2) / np.sqrt(1 + (f / slow) ** 2)
    shape /= np.sqrt((shape ** 2)[1:].sum() * 2) / n
    z = rng.standard_normal((2, columns, len(f)))
    return np.fft.irfft((z[0] + 1j * z[1]) * shape / np.sqrt(2), n)[:, :frames].T


def _ease(time: np.ndarray, points: list[tuple[float, float]]) -> np.ndarray:
    """Cosine-eased curve through (time, value) points."""
    x, y = np.array(points).T
    i = np.clip(np.searchsorted(x, time) - 1, 0, len(x) - 2)
    u = np.clip((time - x[i]) / np.maximum(x[i + 1] - x[i], 1e-6), 0, 1)
    return y[i] + (y[i + 1] - y[i]) * (.5 - .5 * np.cos(np.pi * u))


def blinks(rng: np.random.Generator, frames: int, rate: float = 15., at=()) -> np.ndarray:
    """(frames,) lid closure 0..1; `rate` a minute; `at` are additional times (s) of blinks evoked by gaze shifts.

    17 a minute at rest and 26 in conversation (Bentivoglio et al. 1997, Movement Disorders 12:1028), with skewed
    intervals; the lid closes in about 0.1 s and opens two to three times slower (VanderWerf et al. 2003, Journal of
    Neurophysiology 89:2784)."""
    time = (np.arange(frames) + .5) / FPS
    out, moment, due = np.zeros(frames), 0., list(at)
    moment -= rng.uniform(0, 60 / rate)
    while moment < frames / FPS:
        moment += max(.7, 60 / rate * rng.lognormal(-.18, .6))
        due.append(moment)
    last = -1.
    for start in sorted(due):
        if start - last < .7:
            continue
        last = start
        close, hold, opening = rng.uniform(.07, .11), rng.uniform(.04, .07), rng.uniform(.13, .22)
        depth = 1. if rng.random() < .9 else rng.uniform(.55, .9)
        edges = np.cumsum([start, close, hold, opening * .6, opening * .6])
        out = np.maximum(out, _ease(time, list(zip(edges, (0, depth, depth, .25 * depth, 0)))) * (time < edges[-1]))
    return out


def fixations(rng: np.random.Generator, frames: int, away: float = 1.) -> tuple[np.ndarray, list[float]]:
    """Gaze shifts about the point of interest: ((frames, 2) yaw and pitch in radians, times in s of large shifts).

    After "Eyes Alive" (Lee, Badler, Badler 2002, ACM TOG 21:637): a talker holds mutual gaze about 3.1 s and looks away
    about 0.9 s; saccade magnitude -6.9 ln(P / 15.7) degrees with P uniform in percent, duration 25 ms + 2.4 ms for each
    degree. While holding, the eyes wander over the partner's face by a degree or so. `away` scales how often the eyes
    leave."""
    times, points, large = [-.1], [np.zeros(2)], []
    moment, here = 0., rng.normal(0, .012, 2)
    until, mutual = rng.exponential(3.1), True
    while moment < frames / FPS + .1:
        if mutual:
            step = min(rng.gamma(3, .3), max(until - moment, .12))
        else:
            step = max(until - moment, .12)
        times += [moment, moment + step]
        points += [here, here]
        moment += step
        if moment >= until:
            mutual = not mutual or rng.random() > away
            until = moment + (rng.exponential(3.1) + .4 if mutual else rng.gamma(2, .35) + .15)
        if mutual:
            there = rng.normal(0, (.02, .014))
        else:
            size = np.radians(np.clip(-6.9 * np.log(rng.uniform(.3, 15) / 15.7), 2, 18))
            angle = rng.choice((0, np.pi, -np.pi / 2, np.pi / 2), p=(.33, .33, .14, .2)) + rng.normal(0, .5)
            there = size * np.array([np.cos(angle), .7 * np.sin(angle)])
        jump = np.degrees(np.linalg.norm(there - here))
        if jump > 7:
            large.append(moment)
        moment += .025 + .0024 * jump
        here = there
    grid = (np.arange(frames) + .5) / FPS
    points = np.array(points)
    return np.stack([np.interp(grid, times, points[:, k]) for k in (0, 1)], 1), large


def _bumps(rng: np.random.Generator, frames: int, moments, length, height) -> np.ndarray:
    """(frames,) sum of smooth bumps centred at `moments` (frames); length (s) and height are (low, high) ranges."""
    time, out = np.arange(frames), np.zeros(frames)
    for moment in moments:
        width = rng.uniform(*length) * FPS / 2.5
        out += rng.uniform(*height) * np.exp(-((time - moment) / width) ** 2)
    return out


def _accents(rng: np.random.Generator, energy: np.ndarray, share: float) -> np.ndarray:
    """Frames of a random share of the local maxima of speech energy."""
    smooth = np.convolve(energy, np.hanning(9) / 4, "same")
    peak = np.flatnonzero((smooth[1:-1] > smooth[:-2]) & (smooth[1:-1] >= smooth[2:]) & (smooth[1:-1] > .45)) + 1
    return peak[rng.random(len(peak)) < share]


def speech_expression(visemes: np.ndarray, energy: np.ndarray | None = None, strength: float = 1.) -> np.ndarray:
    """(T, 67) expression weights of viseme curves (T, 15); louder speech (energy 0..1) opens the vowels wider. The
    closures PP and FF keep their full weight."""
    out = np.zeros((len(visemes), len(EXPRESSIONS)), np.float32)
    loud = .8 + .25 * (np.full(len(visemes), .6) if energy is None else np.clip(energy, 0, 1))
    weights = visemes * GAIN * (strength * loud)[:, None]
    weights[:, [1, 2]] = visemes[:, [1, 2]] * GAIN[[1, 2]]
    out[:, _VISEME_COLUMNS] = np.clip(weights, 0, 1)
    # the viseme 'aa' opens the jaw but hardly lifts the upper lip; lift it so that the upper teeth show as well
    lift = .15 * weights[:, 10] + .08 * weights[:, 11]
    out[:, [INDEX["mouthUpperUpLeft"], INDEX["mouthUpperUpRight"]]] = lift[:, None]
    return out


def talking(rng: np.random.Generator, visemes: np.ndarray | None = None, energy: np.ndarray | None = None,
            frames: int | None = None, base: Motion | None = None, calm: float | None = None) -> Motion:
    """Natural motion of a person who says `visemes` (T, 15) with speech energy (T,) 0..1.

    The head stays about one base pose (random, or the first frame of `base`), with slow drift and nods on accents;
    `calm` scales head movement (random about 1 when absent). Without visemes, random syllables for `frames` frames."""
    if visemes is None:
        visemes = curves(babble(rng, frames / FPS), frames)
    frames = len(visemes)
    energy = np.clip(1 - visemes[:, 0], 0, 1) if energy is None else np.clip(energy, 0, 1)
    amount = rng.lognormal(0, .3) if calm is None else calm
    degree = np.pi / 180

    # Head. Small rotations below about 1 Hz about a resting pose, larger while speaking, with nods that go with stress:
    # Hadar et al. 1983 (Language and Speech 26:117), Munhall et al. 2004 (Psychological Science 15:133).
    rest = np.clip(rng.normal(0, (6, 12, 4)), -30, 30) * degree if base is None else base.pose[0]
    speaking = .55 + .45 * np.convolve(np.pad(energy, 25, "edge"), np.hanning(51) / 25, "valid").clip(0, 1)[:frames]
    drift = smooth_noise(rng, frames, 3, .15, .7) * (1.3, 1.8, 1.1)
    drift += smooth_noise(rng, frames, 3, .8, 1.6) * (.35, .35, .3)
    nod = _bumps(rng, frames, _accents(rng, energy, .45), (.25, .5), (.4, 2.2))
    tilt = rng.choice((-1, 1)) * _bumps(rng, frames, _accents(rng, energy, .12), (.5, 1.), (.3, 1.6))
    pose = drift * speaking[:, None] + np.stack([nod, .6 * tilt, tilt], 1)
    pose = rest + pose * degree * amount

    # Eyes. The point of interest is the camera for most people, else straight ahead of the head; the eyes counter small
    # head movements (vestibulo-ocular reflex), and the head takes part in large gaze shifts.
    shift, large = fixations(rng, frames, away=rng.uniform(.3, 1.))
    pose[:, 1] += .12 * np.convolve(np.pad(shift[:, 0], 10, "edge"), np.hanning(21) / 10, "valid")[:frames]
    if base is not None:
        aim = base.gaze[0]
    else:
        aim = -rest[[1, 0]] * rng.uniform(.7, 1.) if rng.random() < .75 else rng.normal(0, (.1, .07))
    gaze = aim + shift - .8 * (pose - rest)[:, [1, 0]]
    gaze = np.clip(gaze, np.radians([-30, -25]), np.radians([30, 25]))

    # Position: a little sway and lean besides what the turning head does.
    place = np.clip(rng.normal(0, (.07, .03, .03)), -.2, .2) if base is None else base.cam[0]
    sway = smooth_noise(rng, frames, 3, .12, .5) * (.008, .004, .004) * amount
    cam = place + sway + _swing(pose - rest)

    expression = speech_expression(visemes, energy, rng.uniform(.85, 1.1))
    expression += _mood(rng, frames, energy, None if base is None else base.expression[0])
    closing = np.maximum(visemes[:, 1], visemes[:, 2])                  # a smile must not open closed lips
    shut = INDEX["mouthPressLeft"], INDEX["mouthPressRight"]
    expression[:, shut] += (.15 * visemes[:, 1] * closing)[:, None]
    evoked = [t for t in large if rng.random() < .25]                   # gaze-evoked blinks: Evinger et al. 1994
    rate = np.clip(rng.normal(14, 3), 8, 20)
    expression[:, BLINK] = blinks(rng, frames, rate, evoked)[:, None] * (1, rng.uniform(.96, 1))
    return Motion(*(a.astype(np.float32) for a in (pose, cam, gaze, np.clip(expression, 0, 1))))


def _swing(turn: np.ndarray) -> np.ndarray:
    """(T, 3) movement in cam of a head that turns by (T, 3) radians: about the neck, so its centre moves."""
    return np.stack([np.zeros(len(turn)), .15 * turn[:, 1] - .18 * turn[:, 2], .15 * turn[:, 0]], 1)


def steered(motion: Motion, pose: np.ndarray | None = None, gaze: np.ndarray | None = None) -> Motion:
    """`motion` with another head pose (T, 3), gaze (T, 2), or both; where the head turns, its centre moves along."""
    if pose is None:
        return Motion(motion.pose, motion.cam, np.float32(gaze), motion.expression)
    cam = np.float32(motion.cam + _swing(pose - motion.pose))
    return Motion(np.float32(pose), cam, motion.gaze if gaze is None else np.float32(gaze), motion.expression)


def sweep(rng: np.random.Generator, frames: int, spread: tuple[float, ...], limit: tuple[float, ...]) -> np.ndarray:
    """(frames, columns) curves, radians, as of something moved by a hand: slowly or quickly, wide or narrow. spread and
    limit are in degrees."""
    slow = rng.uniform(.05, .4)
    wander = smooth_noise(rng, frames, len(spread), slow, 4 * slow) * spread * rng.uniform(.3, 1.3)
    return np.radians(np.clip(rng.normal(0, spread) * .5 + wander, np.negative(limit), limit)).astype(np.float32)


def _mood(rng: np.random.Generator, frames: int, energy: np.ndarray, base: np.ndarray | None) -> np.ndarray:
    """(frames, 67) what the face does besides speaking: a lasting mood, brow raises on accents (they go with pitch
    accents: Flecha-García 2010, Speech Communication 52:542), smiles now and then."""
    out = np.zeros((frames, len(EXPRESSIONS)), np.float32)
    if base is not None:
        keep = [i for n, i in INDEX.items() if not n.startswith(("viseme", "jaw", "eyeBlink", "eyeLook", "tongue"))]
        out[:, keep] += .8 * base[keep]
    else:
        for name, high, chance in (("mouthSmile", .35, .35), ("browInnerUp", .35, .25), ("browDown", .4, .25),
                                   ("browOuterUp", .3, .2), ("eyeSquint", .3, .25), ("eyeWide", .3, .15),
                                   ("mouthFrown", .3, .12), ("cheekSquint", .25, .15), ("mouthPress", .2, .1)):
            if rng.random() < chance:
                for i in (i for n, i in INDEX.items() if n.startswith(name)):
                    out[:, i] += rng.uniform(0, high)
    raised = _bumps(rng, frames, _accents(rng, energy, rng.uniform(0, .3)), (.35, .8), (.1, .5)).clip(0, .7)
    out[:, INDEX["browInnerUp"]] += raised
    for side in ("Left", "Right"):
        out[:, INDEX["browOuterUp" + side]] += .7 * raised
    smiles = rng.poisson(2 * frames / FPS / 60)
    smile = _bumps(rng, frames, rng.uniform(0, frames, smiles), (1.2, 3.), (.15, .4)).clip(0, .5)
    for side in ("Left", "Right"):
        out[:, INDEX["mouthSmile" + side]] += smile
        out[:, INDEX["cheekSquint" + side]] += .5 * smile
        out[:, INDEX["eyeSquint" + side]] += .35 * smile
    limit = [i for n, i in INDEX.items() if n.startswith("mouthSmile")]
    out[:, limit] = out[:, limit].clip(0, .6)
    wander = np.abs(smooth_noise(rng, frames, 3, .2, .6)) * .05
    out[:, [INDEX["browInnerUp"], INDEX["eyeSquintLeft"], INDEX["mouthDimpleLeft"]]] += wander
    out[:, INDEX["eyeSquintRight"]] += wander[:, 1]
    return out


def varied(rng: np.random.Generator, frames: int) -> Motion:
    """Unrelated frames that cover far more than talking does (for training a renderer and a reader): wide poses and
    gaze, closed and half-closed eyes, mouth shapes of speech, of single actions and of mixtures."""
    degree = np.pi / 180
    wide = rng.random((frames, 1)) < .25
    pose = rng.normal(0, 1, (frames, 3)) * np.where(wide, (16, 30, 12), (8, 13, 6)) * degree
    pose = np.clip(pose, -np.array([28, 55, 25]) * degree, np.array([28, 55, 25]) * degree)
    cam = np.clip(rng.normal(0, (.1, .05, .05), (frames, 3)), -.3, .3)
    gaze = np.clip(-.5 * pose[:, [1, 0]] + rng.normal(0, (10, 7), (frames, 2)) * degree,
                   np.radians([-30, -25]), np.radians([30, 25]))
    strength = rng.uniform(.6, 1.1, frames)
    sound = np.concatenate([curves(babble(rng, 3.), 6, 2.) for _ in range(-(-frames // 6))])[rng.permutation(frames)]
    expression = speech_expression(sound, None, 1.) * np.where(rng.random(frames) < .65, strength, 0)[:, None]
    actions = [n for n in EXPRESSIONS if not n.startswith(("viseme", "eyeBlink", "eyeLook", "tongue", "mouthClose"))]
    limits = {"mouthSmile": .6, "mouthFunnel": .6, "mouthPucker": .6, "jawOpen": .7, "jaw": .4, "mouthLeft": .4,
              "mouthRight": .4, "noseSneer": .6, "cheekPuff": .5}
    for row in expression:
        for name in rng.choice(actions, rng.integers(0, 5), replace=False):
            top = next((v for k, v in limits.items() if name.startswith(k)), .8)
            weight, twin = rng.uniform(0, top), name.replace("Left", "Right") if name.endswith("Left") else name
            row[INDEX[name]] = max(row[INDEX[name]], weight)
            if name not in ("jawLeft", "mouthLeft") and rng.random() < .8:
                row[INDEX[twin]] = max(row[INDEX[twin]], weight * rng.uniform(.8, 1))
        if row[INDEX["jawOpen"]] > .15 and rng.random() < .15:               # jaw down behind closed lips
            row[INDEX["mouthClose"]] = row[INDEX["jawOpen"]] * rng.uniform(.3, .9)
        lids = 0. if rng.random() < .7 else 1. if rng.random() < .4 else rng.uniform(0, 1)
        row[BLINK] = lids if rng.random() < .95 else (lids, 0)
    return Motion(*(a.astype(np.float32) for a in (pose, cam, gaze, np.clip(expression, 0, 1))))
