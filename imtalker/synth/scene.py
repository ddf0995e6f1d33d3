"""A person in front of a camera: random identity, textures, light, background, framing, the picture of one frame."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from imtalker.face.crop import CROP_RISE, CROP_SCALE, FACE_SCALE
from imtalker.synth import raster
from imtalker.synth.head import KINDS, MASKED, TWO_SIDED, Head, Shape
from imtalker.synth.pack import Pack

SPLITS = ("train", "heldout")
MAP_CELLS = 64

# Linear-light hair colours. Held-out identities have tints of their own.
HAIR_TINTS = {
    "train": [(.018, .015, .014), (.035, .024, .018), (.075, .042, .025), (.17, .10, .055), (.40, .27, .14),
              (.26, .085, .03)],
    "heldout": [(.024, .017, .014), (.05, .033, .022), (.115, .062, .034), (.31, .19, .085), (.18, .055, .028)],
}
# (diffuse wrap rgb, specular strength, shininess, share of ambient occlusion) in the order of KINDS
MATERIALS = np.float32([[.28, .13, .09, .32, 16, 1], [.12, .12, .12, .95, 240, .8], [.16, .12, .10, .45, 70, 1],
                        [.25, .12, .10, .45, 45, 1], [.12, .12, .12, .05, 8, 1], [.28, .28, .28, .2, 14, .9],
                        [.3, .3, .3, 0, 8, 1], [.3, .3, .3, 0, 8, 1]])


@dataclass(frozen=True)
class Frame:
    """One rendered frame. image (S,S,3) uint8 RGB; landmarks (68,2) float32 crop fractions; surface (64,64,3) int8;
    parts (64,64) uint8; mouth: opening of the lips over the distance of the outer eye corners."""
    image: np.ndarray
    landmarks: np.ndarray
    surface: np.ndarray
    parts: np.ndarray
    mouth: float


class Scene:
    """Everything that the frames of one identity share, decided by `split` and `seed`; frames are `size` pixels square.

    studio: friendly light, quiet background and a face nearer to the average, not random ones (for portraits)."""

    def __init__(self, pack: Pack, split: str, seed, size: int = 256, samples: int = 2, studio: bool = False):
        assert split in SPLITS
        self.size, self.samples = size, samples
        rng = np.random.default_rng([SPLITS.index(split), *np.atleast_1d(seed)])
        shape, looks = _identity(pack, split, rng, spread=.6 if studio else 1)
        self.head, self.looks = Head(pack, shape), looks
        self._dress(pack, looks, shape, rng)
        self._light(rng, studio)
        self.background = _background(rng, size, studio) / self.exposure    # as bright as drawn, however lit the face
        self._frame(rng)

    def _dress(self, pack, looks, shape, rng):
        """Textures of the identity, packed with their mip levels."""
        texture = lambda file: pack.texture(file, 2 if self.size <= 320 else 1)     # finer ones would not be looked at
        skin = texture(looks["skin"][0]).copy()
        if looks["skin_mix"]:                                           # all skins share one layout: mix two
            skin += np.float32(looks["skin_mix"]) * (texture(looks["skin"][1]) - skin)
        if looks["tone"]:
            with Image.open(pack.folder / pack.assets["tone_ratio"]) as image:
                ratio = (np.asarray(image.convert("RGB"), np.float32) / 255) ** (2 * looks["tone"])
            for k in range(3):
                skin[..., k] *= np.asarray(Image.fromarray(ratio[..., k]).resize(skin.shape[1::-1], Image.BILINEAR))
        skin[..., :3] *= np.float32(looks["skin_tint"])
        textures = {"skin": skin}
        for kind in KINDS[1:]:
            textures[kind] = texture(looks[kind]) if looks.get(kind) else np.ones((8, 8, 4), np.float32)
        if looks["hair"]:
            textures["hair"] = _recolour(textures["hair"], looks["hair_tint"], 0.5)
        if looks["tops_tint"] is not None:
            textures["tops"] = _recolour(textures["tops"], looks["tops_tint"], 0.9)
        for kind, colour in (("brows", np.multiply(looks["hair_tint"], .5)), ("lashes", (.012, .01, .01))):
            flat = textures[kind].copy()
            flat[..., :3] = colour
            textures[kind] = flat
        self.texels, self.mips = raster.pack_textures([textures[kind] for kind in KINDS])
        corners = self.head.uv
        a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        texture_size = self.mips[self.head.material, 0, 1:].prod(1)
        self.uv_area = (np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) * 0.5 * texture_size).astype(np.float32)
        self.table = MATERIALS.copy()
        self.table[0, 3:5] *= rng.uniform(.5, 1.5), rng.uniform(.7, 1.5)     # matt to shiny skin

    def _light(self, rng, studio):
        """Key, fill and rim light, sky and ground, exposure."""
        if studio:
            yaw, pitch, hardness, warmth, rim = np.radians(rng.choice([-30, 30])), np.radians(28), 3.2, .03, .25
            key, fill, ambient = .95, .42, .34
        else:
            yaw, pitch = rng.normal(0, np.radians(48)), np.radians(rng.uniform(-8, 62))
            hardness, warmth, rim = rng.uniform(.6, 5), rng.normal(0, .08), rng.uniform(0, .6) * (rng.random() < .4)
            key, fill, ambient = rng.uniform(.35, 1.3), rng.uniform(0, .45), rng.uniform(.14, .6)
        direction = lambda y, p: np.array([np.sin(y) * np.cos(p), np.sin(p), np.cos(y) * np.cos(p)])
        colour = lambda strength, warm: strength * np.array([1 + warm, 1, 1 - warm])
        side = -np.sign(yaw or 1)
        self.lights = np.float32([[*direction(yaw, pitch), *colour(key, warmth)],
                                  [*direction(side * np.radians(rng.uniform(30, 80)), np.radians(rng.uniform(-10, 30))),
                                   *colour(fill, rng.normal(0, .08))],
                                  [*direction(side * np.radians(rng.uniform(125, 165)), np.radians(20)),
                                   *colour(rim, 0)]])
        tint = rng.normal(0, .05)
        self.sky = np.float32(colour(ambient, tint))
        self.ground = np.float32(colour(ambient * rng.uniform(.35, .8), .1 + tint))
        self.softness = np.float32(hardness)
        # Expose for a frontal patch of the skin's mean brightness, as a camera would, but not fully.
        facing = np.maximum(self.lights[:, 2] + .2, 0) / 1.2
        light = float((self.lights[:, 3:].mean(1) * facing).sum() + .8 * self.sky.mean())
        self.exposure = np.float32((1.3 / light) ** .8 * (1.45 if studio else rng.uniform(.75, 1.25)))

    def _frame(self, rng):
        """Camera in front of the neutral face; the crop policy applied to its landmarks is the nominal framing."""
        distance = np.float32(rng.uniform(9, 18))
        self.eye = self.head.centre + np.float32([0, rng.normal(0, .15), distance])
        neutral, _ = self.head.pose(np.zeros(3), np.zeros(2), np.zeros(len(self.head.pack.expression_names)))
        points = self._project(neutral[self.head.landmark_index])[:, :2]
        low, high = points.min(0), points.max(0)
        face_side = FACE_SCALE * (high - low).max()
        self.face_centre, self.crop_side = (low + high) / 2, CROP_SCALE * face_side
        self.crop_corner = self.face_centre - [0, CROP_RISE * face_side] - self.crop_side / 2

    def _project(self, points):
        """(N,3) world -> (N,3): x, y in the plane one unit in front of the camera (y down), and depth."""
        relative = points - self.eye
        depth = -relative[:, 2]
        return np.stack([relative[:, 0] / depth, -relative[:, 1] / depth, depth], 1)

    def crop_points(self, points, cam=(0, 0, 0)):
        """(N,3) world -> (N,3): x, y in crop fractions and depth, under camera jitter cam (log scale, x, y)."""
        view = self._project(points)
        view[:, :2] = (view[:, :2] - self.face_centre) * np.exp(cam[0]) + self.face_centre
        view[:, :2] = (view[:, :2] - self.crop_corner) / self.crop_side + [cam[1], cam[2]]
        return view.astype(np.float32)

    def render(self, pose, cam, gaze, weights) -> Frame:
        """The frame of one motion sample: pose (3), cam (3), gaze (2), expression weights (67)."""
        head, samples = self.head, self.samples
        vertices, mouth = head.pose(pose, gaze, weights)
        view = self.crop_points(vertices, cam)
        screen = view * np.float32([self.size * samples, self.size * samples, 1])
        normals = raster.vertex_normals(vertices, head.triangles)
        depth, ids, bary1, bary2 = raster.rasterise(screen, head.triangles, head.uv, self.uv_area, head.material,
                                                    MASKED, TWO_SIDED, self.texels, self.mips, self.size * samples,
                                                    samples)
        shadow, to_shadow = self._shadow_map(vertices)
        linear = raster.shade(depth, ids, bary1, bary2, samples, vertices, normals, head.visible, screen,
                              head.triangles, head.uv, self.uv_area, head.material, self.texels, self.mips, self.table,
                              self.lights, self.sky, self.ground, self.eye.astype(np.float32), shadow,
                              to_shadow, self.softness, self.background)
        surface, parts = raster.sample_surface(ids, bary1, bary2, head.triangles, head.template, head.part, MAP_CELLS)
        return Frame(raster.develop(linear, self.exposure), view[head.landmark_index, :2], surface, parts, mouth)

    def _shadow_map(self, vertices, size=256, reach=3.6):
        """Depths (size,size) seen from the key light over a square of `reach` decimetres, and the map to it (3,4)."""
        toward = self.lights[0, :3]
        right = np.cross([0, 1, 0], toward)
        right /= np.linalg.norm(right)
        scale = size / reach
        rows = np.stack([right * scale, -np.cross(toward, right) * scale, -toward])
        shift = np.array([size / 2, size / 2, 20]) - rows @ self.head.centre
        to_shadow = np.concatenate([rows, shift[:, None]], 1).astype(np.float32)
        screen = vertices @ to_shadow[:, :3].T + to_shadow[:, 3]
        everything = np.ones(len(KINDS), np.bool_)                           # hair and sleeves are open sheets
        depth = raster.rasterise(screen, self.head.triangles, self.head.uv, self.uv_area, self.head.material, MASKED,
                                 everything, self.texels, self.mips, size, 0)[0]
        return depth, to_shadow


def _identity(pack, split, rng, spread=1):
    """Random shape and looks, from the assets of `split`. `spread` scales how far faces are from average."""
    pick = lambda options: options[rng.integers(len(options))]
    sex = pick(["female", "male"])
    fits = lambda kind: [a for a in pack.choices(kind, split) if a.get("gender", sex) in ("any", sex)]
    gender = float(np.clip((.1 if sex == "female" else .9) + rng.normal(0, .12), 0, 1))
    age = float(np.clip(rng.normal(1.2, .3), .8, 1.9))                      # 0 child, 1 young, 2 old
    races = rng.dirichlet([.5, .5, .5])
    ages = {"child": max(0, 1 - age), "young": 1 - abs(age - 1), "old": max(0, age - 1)}
    build = float(np.clip(rng.normal(0, .5), -1, 1))
    macro = {}
    for sex_name, sex_weight in (("male", gender), ("female", 1 - gender)):
        for age_name, age_weight in ages.items():
            for race, race_weight in zip(("african", "asian", "caucasian"), races):
                macro[f"{race}-{sex_name}-{age_name}"] = float(race_weight * sex_weight * age_weight)
            size = "maxweight" if build > 0 else "minweight"
            macro[f"universal-{sex_name}-{age_name}-averagemuscle-{size}"] = abs(build) * sex_weight * age_weight
    detail = {}
    for pair in pack.assets["detail_pairs"]:
        amount = float(np.clip(rng.normal(0, spread * pair["sigma"]), -1, 1))
        detail.update(dict.fromkeys(pair["plus" if amount > 0 else "minus"], abs(amount)))

    tone = races[0] * rng.uniform(.55, 1.1) + races[1] * rng.uniform(0, .2) + rng.uniform(-.1, .12)
    tone = float(np.clip(tone, 0, 1))
    skins = [s for s in fits("skin") if not s["makeup"]]
    light = [s for s in skins if s["tone"] == "light"]
    dark = [s for s in skins if s["tone"] == "dark"]
    if dark and tone > .6:
        skins, tone = dark, 0.
    else:
        skins = [s for s in light if age < 1.4 or s["age"] != "young"] or light
    skin = (pick(skins)["file"], pick(skins)["file"])
    black = HAIR_TINTS[split][0]
    tint = np.array(black if tone > .4 or skins is dark or rng.random() < races[1] * .5 else pick(HAIR_TINTS[split]))
    tint = tint * rng.uniform(.8, 1.2)
    if age > 1.45 and rng.random() < .6:                                    # grey hair
        tint = tint * .4 + rng.uniform(.05, .3)
    hair = pick([h for h in fits("hair") if h["covers"] == "none" or rng.random() < .06])
    if sex == "male" and rng.random() < .06:
        hair = {"name": "", "file": ""}
    top, eyes = pick(fits("tops")), [e for e in fits("eyes") if e["dark"] or skins is not dark and tone < .35]
    worn = {kind: pick(fits(kind)) for kind in ("teeth", "tongue", "brows", "lashes")}
    eyes = pick(eyes or fits("eyes"))
    looks = {"skin": skin, "skin_mix": float(rng.uniform(0, 1)) if skin[0] != skin[1] else 0.,
             "skin_tint": (rng.uniform(.88, 1.12) * np.exp(rng.normal(0, (.02, .035, .05)))).clip(.7, 1.25).tolist(),
             "tone": tone, "hair": hair["file"], "hair_tint": tint.tolist(), "tops": top["file"], "eyes": eyes["file"],
             "tops_tint": rng.uniform(.02, .6, 3).tolist() if top["tintable"] and rng.random() < .75 else None,
             **{kind: record["file"] for kind, record in worn.items()}}
    proxies = {"hair": hair["name"], "tops": top["name"], **{kind: record["name"] for kind, record in worn.items()}}
    return Shape(macro, detail, proxies), {"sex": sex, "age": age, "proxies": proxies, **looks}


def _recolour(texture, tint, contrast):
    """RGBA texture with the colour `tint` at its mean luminance; contrast is an exponent of the luminance."""
    texture = texture.copy()
    luminance = (texture[..., :3] @ np.float32([.2126, .7152, .0722])) ** np.float32(contrast)
    mean = luminance[texture[..., 3] > .5].mean() + 1e-4
    texture[..., :3] = np.clip(luminance / mean, 0, 2.5)[..., None] * np.float32(tint)
    return texture


def _background(rng, size, studio):
    """Linear background (S,S,3): plain, gradient, clouds of noise, or blurred shapes."""
    colour = lambda: (rng.uniform(.01, .75) * np.exp(rng.normal(0, .35, 3))).clip(0, .9)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - .5
    if studio:
        hue = np.array([.20, .25, .30]) * np.exp(rng.normal(0, .12, 3))
        glow = np.exp(-((x ** 2 + (y + .05) ** 2) / .28))
        return (hue * (.55 + .75 * glow[..., None])).astype(np.float32)
    kind = rng.choice(["plain", "gradient", "clouds", "shapes"], p=[.12, .23, .3, .35])
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.clip(.5 + (x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(.5, 1.2), 0, 1)[..., None]
    if kind == "plain":
        ramp = ramp * .15
    image = colour() * (1 - ramp) + colour() * ramp
    if kind == "clouds":
        mask = np.zeros((size, size), np.float32)
        for octave in range(1, 6):
            cells = 2 ** octave + 1
            noise = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
            mask += np.asarray(noise.resize((size, size), Image.BICUBIC)) / rng.uniform(1.3, 2.2) ** octave
        mask = 1 / (1 + np.exp(-rng.uniform(1, 5) * mask))[..., None]
        image = image * (1 - mask) + colour() * mask
    if kind == "shapes":
        for _ in range(rng.integers(4, 16)):
            cx, cy, w, h = *rng.uniform(-.6, .6, 2), *rng.uniform(.03, .35, 2)
            turn, soft = rng.uniform(0, np.pi), rng.uniform(8, 60)
            u, v = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn), (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
            away = np.hypot(u / w, v / h) - 1 if rng.random() < .5 else np.maximum(np.abs(u) / w, np.abs(v) / h) - 1
            mask = (rng.uniform(.4, 1) / (1 + np.exp(np.clip(away * min(w, h) * soft * 2, -30, 30))))[..., None]
            image = image * (1 - mask) + colour() * mask
    return image.astype(np.float32)
