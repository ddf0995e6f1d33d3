"""The head pack on disk: meshes, shape targets and textures, and the split of its assets into training and held-out."""
from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from imtalker.errors import InputError

# Assets that only held-out identities wear. Training identities never see them; where the pack has too little variety
# (hair, mouths, clothes) held-out identities may also wear the others, in tints of their own (see `scene.HAIR_TINTS`).
HELD_OUT = {
    "skin": {"young_lightskinned_female_diffuse3", "young_lightskinned_male_diffuse2",
             "middleage_lightskinned_male_diffuse", "middleage_darkskinned_male_diffuse"},
    "hair": {"short04"},
    "brows": {"eyebrow004", "eyebrow008", "eyebrow011"},
    "lashes": {"eyelashes03"},
    "eyes": {"brownlight", "green", "grey"},
    "tops": {"female_elegantsuit01", "male_casualsuit03", "male_elegantsuit01"},
}
SHARED_KINDS = ("hair", "teeth", "tongue", "tops")


class Pack:
    """Arrays of a head pack. Lengths are in decimetres; x to the person's left, y up, z forward."""

    def __init__(self, folder):
        self.folder = Path(folder)
        for name in ("heads.npz", "proxies.npz", "MANIFEST.json", "textures"):
            if not (self.folder / name).exists():
                raise InputError(f"no head pack in {str(self.folder)!r}: {name} is missing; "
                                 "give the folder of the synthetic head pack with --pack DIR")
        with np.load(self.folder / "heads.npz") as heads:
            self.heads = {name: heads[name] for name in heads.files}
        with np.load(self.folder / "proxies.npz") as proxies:
            self.proxies = {name: proxies[name] for name in proxies.files}
        self.assets = json.loads((self.folder / "MANIFEST.json").read_text())["assets"]
        self.expression_names = [str(name) for name in self.heads["expr_names"]]
        self._slots = {kind: {str(name): i for i, name in enumerate(self.heads[f"{kind}_names"])}
                       for kind in ("macro", "detail", "expr")}
        self.texture = lru_cache(maxsize=80)(self._texture)

    def displace(self, vertices, kind, weights):
        """Add weights (name -> weight) times targets of `kind` (macro, detail, expr) to (N,3) vertices in place."""
        start, index, delta = (self.heads[f"{kind}_{part}"] for part in ("ptr", "idx", "delta"))
        for name, weight in weights.items():
            if weight:
                slot = self._slots[kind][name]
                rows = slice(start[slot], start[slot + 1])
                vertices[index[rows]] += np.float32(weight * 1e-3) * delta[rows]     # targets are in 1/1000 dm
        return vertices

    def binding(self, proxy, vertices):
        """How a proxy hangs on base `vertices` (N,3): indices (M,3), weights (M,3), offsets (M,3) in decimetres."""
        get = lambda part: self.proxies[f"{proxy}/{part}"]
        ends = vertices[get("scale_ref")]                                   # axis, end, xyz
        size = np.abs(ends[[0, 1, 2], 0, [0, 1, 2]] - ends[[0, 1, 2], 1, [0, 1, 2]]) / get("scale_den")
        return get("ref").astype(np.int32), get("w").astype(np.float32), (get("off") * size).astype(np.float32)

    def choices(self, kind, split):
        """Asset records of `kind` that identities of `split` ("train" or "heldout") may wear."""
        held = HELD_OUT.get(kind, set())
        return [a for a in self.assets[kind] if (a["name"] in held) == (split == "heldout")
                or (split == "heldout" and kind in SHARED_KINDS)]

    def _texture(self, file, shrink=1):
        """Linear-light float32 RGBA (H/shrink,W/shrink,4) in 0..1 of an sRGB image; shared, read-only."""
        with Image.open(self.folder / file) as image:
            image = image.convert("RGBA")
            codes = np.asarray(image.reduce(shrink) if shrink > 1 else image)
        texture = _LINEAR[codes]
        texture[..., 3] = codes[..., 3] / np.float32(255)
        texture.flags.writeable = False
        return texture


def to_linear(value):
    """sRGB values 0..1 to linear light 0..1 (IEC 61966-2-1)."""
    value = np.asarray(value, np.float32)
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


_LINEAR = to_linear(np.arange(256) / 255)


@lru_cache(maxsize=2)
def load_pack(folder) -> Pack:
    """The pack in `folder`, read once per process. Raises InputError when it is not there."""
    return Pack(folder)
