"""One head: from shape weights and asset names to posed vertices with everything the rasteriser and the labels need."""
from __future__ import annotations

import math
from dataclasses import dataclass, field

import numba
import numpy as np

from imtalker.synth.pack import Pack

# Draw order = material number. Skin first; the cut-out materials last.
KINDS = ("skin", "eyes", "teeth", "tongue", "tops", "hair", "brows", "lashes")
MASKED = np.array([kind in ("hair", "brows", "lashes") for kind in KINDS])
TWO_SIDED = np.array([kind in ("hair", "brows", "lashes", "tops", "teeth", "tongue") for kind in KINDS])

# Labels of the parts map.
BACKGROUND, SKIN, EYES, MOUTH, HAIR, BROWS, CLOTHES = range(7)
PART_OF_KIND = {"skin": SKIN, "eyes": EYES, "teeth": MOUTH, "tongue": MOUTH, "tops": CLOTHES, "hair": HAIR,
                "brows": BROWS, "lashes": BROWS}

# Light that falls in between the lips fades with depth behind them: decimetres to 1/e, and a further factor. Without it
# an open mouth is as bright as the lips around it.
MOUTH_SHADE = {"teeth": (0.3, 0.9), "tongue": (0.2, 0.9), "inner": (0.12, 0.6)}
# How far the pack's tongue and teeth are moved, decimetres. Its tongue lies in sight and its lower teeth stand
# above the lip; a person who talks shows the edge of the upper teeth, and darkness below it.
TONGUE_REST = np.float32([0, -0.06, -0.05])
UPPER_TEETH_REST, LOWER_TEETH_REST = np.float32([0, -0.03, 0]), np.float32([0, -0.09, -0.03])

# The template head of the surface map: the average adult. One unit of the map is 1.8 / 120 decimetres; the origin lies
# inside the head at the height of the mouth, so that head and shoulders fill about -120..120.
TEMPLATE_MACRO = {f"{race}-{gender}-young": 1 / 6
                  for race in ("african", "asian", "caucasian") for gender in ("female", "male")}
TEMPLATE_ORIGIN = np.float32([0, 6.75, 0.3])
TEMPLATE_SCALE = np.float32(120 / 1.8)


@dataclass(frozen=True)
class Shape:
    """What a head is made of: weights of macro and detail targets, and the proxy name of each kind but skin and eyes.

    hair may be "" (bald)."""
    macro: dict[str, float]
    detail: dict[str, float]
    proxies: dict[str, str] = field(default_factory=dict)


class Head:
    """Geometry of one identity.

    After construction: `triangles` (F,3) int32 into the joint vertex list (base vertices first), `uv` (F,3,2),
    `material` (F) int32, `part` (F) uint8, `visible` (V) ambient visibility, `template` (V,3)
    coordinates of the surface map."""

    def __init__(self, pack: Pack, shape: Shape):
        heads, self.pack = pack.heads, pack
        base = heads["verts"].astype(np.float32)
        pack.displace(base, "macro", shape.macro)
        pack.displace(base, "detail", shape.detail)
        # Some identities rest with a gap between the lips: close it, measured at the three middle pairs of landmarks.
        upper, lower = base[heads["lm_68"][[61, 62, 63]], 1], base[heads["lm_68"][[67, 66, 65]], 1]
        pack.displace(base, "expr", {"mouthClose": float(np.clip(((upper - lower).mean() + 0.004) / 0.3, 0, 0.08))})
        self.base, self.landmark_index = base, heads["lm_68"].astype(np.int64)
        self.expression = (heads["expr_ptr"].astype(np.int64), heads["expr_idx"].astype(np.int64),
                           heads["expr_delta"].astype(np.float32) * np.float32(1e-3))

        average = pack.displace(heads["verts"].astype(np.float32), "macro", TEMPLATE_MACRO)
        names = {"eyes": "eyes/high_poly", **{k: f"{k}/{shape.proxies[k]}" for k in KINDS[2:] if shape.proxies.get(k)}}
        hidden = np.unpackbits(pack.proxies[names["tops"] + "/hide"], count=len(heads["tri"])).astype(bool)
        faces, corners = [heads["tri"][~hidden].astype(np.int32)], [heads["uv"][heads["tri_uv"][~hidden]]]
        inner = np.isin(heads["part_names"][heads["tri_part"][~hidden]], ["mouth_inner"])
        material, part = [np.zeros(len(inner), np.int32)], [np.where(inner, MOUTH, SKIN)]
        lips = base[self.landmark_index[60:68], 2].mean()
        shade = lambda what, z: MOUTH_SHADE[what][1] * np.exp(np.minimum(z - lips, 0) / MOUTH_SHADE[what][0])
        inside = np.setdiff1d(faces[0][inner], faces[0][~inner])
        skin_visible = heads["ao"] / 255
        skin_visible[inside] *= shade("inner", base[inside, 2])
        turns, visible, template = [heads["w_head"]], [skin_visible], [average]
        bindings, count = [], len(base)
        for kind in KINDS[1:]:
            if kind not in names:
                continue
            get = lambda piece, key=names[kind]: pack.proxies[f"{key}/{piece}"]
            binding = pack.binding(names[kind], base)
            if kind == "tongue":
                binding = (*binding[:2], binding[2] + TONGUE_REST)
            elif kind == "teeth":
                jaw = pack.displace(np.zeros_like(base), "expr", {"jawOpen": 1})
                lower = _hang(jaw, *binding[:2], 0)[:, 1:2] < -0.01
                binding = (*binding[:2], binding[2] + np.where(lower, LOWER_TEETH_REST, UPPER_TEETH_REST))
            faces.append(get("tri").astype(np.int32) + count)
            corners.append(get("uv")[get("tri_uv")])
            material.append(np.full(len(get("tri")), KINDS.index(kind), np.int32))
            part.append(np.full(len(get("tri")), PART_OF_KIND[kind]))
            turns.append(get("w_head"))
            occlusion = pack.proxies.get(names[kind] + "/ao")
            if occlusion is not None:
                visible.append(occlusion / 255)
            else:                                                       # eyeballs lie in the shade of lids and brows
                visible.append(np.full(len(binding[0]), 0.6 if kind == "eyes" else 1.))
            if kind in MOUTH_SHADE:
                visible[-1] = visible[-1] * shade(kind, _hang(base, *binding)[:, 2])
            template.append(_hang(average, *pack.binding(names[kind], average)))
            if kind == "eyes":
                self.eyeballs = _hang(base, *binding)                          # eyeballs ignore the expression
                self.eye_rows = slice(count, count + len(binding[0]))
            bindings.append(binding)
            count += len(binding[0])
        self.binding = tuple(np.concatenate(column) for column in zip(*bindings))
        self.triangles, self.uv = np.concatenate(faces), np.concatenate(corners).astype(np.float32)
        self.material, self.part = np.concatenate(material), np.concatenate(part).astype(np.uint8)
        self.turn_share = np.concatenate(turns).astype(np.float32)
        self.visible = np.concatenate(visible).astype(np.float32)
        self.template = (np.concatenate(template) - TEMPLATE_ORIGIN).astype(np.float32) * TEMPLATE_SCALE

        skin = heads["vgroup"] == 0
        self.eye_centres = np.stack([base[heads["vgroup"] == group].mean(0) for group in (1, 2)])    # left, right
        self.pivot = base[skin & (np.abs(heads["w_head"] - 0.5) < 0.2)].mean(0) * np.float32([0, 1, 1])
        self.centre = base[self.landmark_index].mean(0) * np.float32([0, 1, 0])

    def pose(self, pose, gaze, weights):
        """Joint vertices (V,3) float32 in decimetres and the mouth opening, for one frame.

        pose (3) rotation vector and gaze (2) yaw, pitch in radians; weights (67) of the expression targets, without
        eyeLook*, which follow from the gaze. Opening: gap of the inner lips at the middle over the distance of the
        outer eye corners, both before the head turns."""
        weights = np.array(weights, np.float32)
        weights += self._lids(*gaze)
        vertices = np.empty((len(self.turn_share), 3), np.float32)
        _displace(self.base, *self.expression, weights, *self.binding, vertices)
        eyes = self.eyeballs
        left = eyes[:, 0] > 0
        turn = gaze_matrix(*gaze)
        vertices[self.eye_rows] = np.where(left[:, None], (eyes - self.eye_centres[0]) @ turn.T + self.eye_centres[0],
                                            (eyes - self.eye_centres[1]) @ turn.T + self.eye_centres[1])
        marks = vertices[self.landmark_index]
        opening = max(float(marks[62, 1] - marks[66, 1]), 0) / float(np.linalg.norm(marks[36] - marks[45]))
        _turn(vertices, self.turn_share, self.pivot, np.asarray(pose, np.float32))
        return vertices, opening

    def _lids(self, yaw, pitch):
        """(67) weights of the lid shapes that go with a gaze; they are full at 30 degrees sideways, 25 up or down."""
        weights, names = np.zeros(len(self.pack.expression_names), np.float32), self.pack.expression_names
        sideways, upright = min(abs(yaw) / math.radians(30), 1), min(abs(pitch) / math.radians(25), 1)
        for side, sign in (("Left", 1), ("Right", -1)):
            weights[names.index(("eyeLookOut" if sign * yaw > 0 else "eyeLookIn") + side)] = sideways
            weights[names.index(("eyeLookDown" if pitch > 0 else "eyeLookUp") + side)] = upright
        return weights


def gaze_matrix(yaw, pitch):
    """(3,3) rotation of an eyeball: first pitch (down positive) about x, then yaw (own left positive) about y."""
    cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    return np.float32([[cy, sy * sp, sy * cp], [0, cp, -sp], [-sy, cy * sp, cy * cp]])


def _hang(vertices, index, weight, offset):
    """Proxy vertices (M,3) bound to base `vertices`."""
    return np.einsum("mkc,mk->mc", vertices[index], weight) + offset


@numba.njit(cache=True, fastmath=True)
def _displace(base, start, index, delta, weights, bound, bound_weight, offset, out):
    """out (V,3): base vertices moved by the expression, followed by the proxies that hang on them."""
    count = len(base)
    for v in range(count):
        for k in range(3):
            out[v, k] = base[v, k]
    for target in range(len(weights)):
        weight = weights[target]
        if weight != 0:
            for row in range(start[target], start[target + 1]):
                for k in range(3):
                    out[index[row], k] += weight * delta[row, k]
    for m in range(len(bound)):
        for k in range(3):
            out[count + m, k] = bound_weight[m, 0] * out[bound[m, 0], k] + bound_weight[m, 1] * out[bound[m, 1], k] \
                + bound_weight[m, 2] * out[bound[m, 2], k] + offset[m, k]


@numba.njit(cache=True, fastmath=True)
def _turn(vertices, share, pivot, rotation):
    """Rotate each vertex in place about `pivot` by its share 0..1 of the rotation vector (Rodrigues' formula)."""
    angle = math.sqrt(rotation[0] ** 2 + rotation[1] ** 2 + rotation[2] ** 2)
    if angle < 1e-7:
        return
    kx, ky, kz = rotation[0] / angle, rotation[1] / angle, rotation[2] / angle
    for v in range(len(vertices)):
        if share[v] > 0:
            c, s = math.cos(angle * share[v]), math.sin(angle * share[v])
            x, y, z = vertices[v, 0] - pivot[0], vertices[v, 1] - pivot[1], vertices[v, 2] - pivot[2]
            along = (kx * x + ky * y + kz * z) * (1 - c)
            vertices[v, 0] = x * c + (ky * z - kz * y) * s + kx * along + pivot[0]
            vertices[v, 1] = y * c + (kz * x - kx * z) * s + ky * along + pivot[1]
            vertices[v, 2] = z * c + (kx * y - ky * x) * s + kz * along + pivot[2]
