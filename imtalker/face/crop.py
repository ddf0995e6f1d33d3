"""The one crop policy, for source pictures, driving clips and synthetic heads alike, and the way back into the picture.

Coordinates: x right, y down, in pixels of the picture; the picture spans 0..width, so pixel (i, j) has its centre at
(j + 0.5, i + 0.5). Inside a crop, positions are fractions 0..1 of the side.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

FACE_SCALE = 1.3  # face side over the larger side of the 68 landmarks' bounds (brows to chin; 1.3 adds the forehead)
CROP_SCALE = 1.6  # crop side over face side
CROP_RISE = 0.08  # the crop's centre lies above the landmarks' centre by this many face sides: room for hair
FEATHER = 0.06  # width of the soft border of a pasted crop, in crop sides


@dataclass(frozen=True)
class Crop:
    """A square of a picture. It may leave the picture; what lies outside is made up from the edge."""

    centre: tuple[float, float]  # x, y in picture pixels
    side: float  # picture pixels
    height: int  # of the picture
    width: int

    @property
    def corner(self) -> tuple[float, float]:
        """x, y of the upper left corner, picture pixels."""
        return self.centre[0] - self.side / 2, self.centre[1] - self.side / 2

    def matrix(self, size: int) -> np.ndarray:
        """(2, 3) float64: picture pixels to pixels of the crop drawn `size` wide."""
        scale, (x, y) = size / self.side, self.corner
        return np.array([[scale, 0, -scale * x], [0, scale, -scale * y]])

    def to_fractions(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) picture pixels to fractions 0..1 of the crop."""
        return (np.asarray(points) - self.corner) / self.side

    def to_picture(self, fractions: np.ndarray) -> np.ndarray:
        """(..., 2) fractions 0..1 of the crop to picture pixels."""
        return np.asarray(fractions) * self.side + self.corner

    def apply(self, picture: np.ndarray, size: int) -> np.ndarray:
        """The crop of `picture`, (height, width, 3) uint8, (size, size, 3) uint8; areas are averaged."""
        assert picture.shape[:2] == (self.height, self.width), (picture.shape, self.height, self.width)
        fine = size * max(1, int(np.ceil(self.side / size - 1e-6)))
        enlarges = self.side < size
        drawn = cv2.warpAffine(
            np.ascontiguousarray(picture),
            _by_index(self.matrix(fine)),
            (fine, fine),
            flags=cv2.INTER_CUBIC if enlarges else cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        if fine > size:
            drawn = cv2.resize(drawn, (size, size), interpolation=cv2.INTER_AREA)
        return self._soften_outside(drawn)

    def paste(self, frame: np.ndarray, picture: np.ndarray) -> np.ndarray:
        """A copy of `picture` (height, width, 3) uint8 with `frame` (n, n, 3) uint8 in this crop's place, softly."""
        assert picture.shape[:2] == (self.height, self.width), (picture.shape, self.height, self.width)
        size = frame.shape[0]
        if self.side < size:  # shrink first, so that nothing aliases
            size = max(1, round(self.side))
            frame = cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA)
        x, y = self.corner
        x0, x1 = max(0, int(np.floor(x))), min(self.width, int(np.ceil(x + self.side)))
        y0, y1 = max(0, int(np.floor(y))), min(self.height, int(np.ceil(y + self.side)))
        result = picture.copy()
        if x0 >= x1 or y0 >= y1:
            return result
        window = Crop((self.centre[0] - x0, self.centre[1] - y0), self.side, y1 - y0, x1 - x0)
        drawn = cv2.warpAffine(
            np.ascontiguousarray(frame),
            _by_index(window.matrix(size)),
            (x1 - x0, y1 - y0),
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        # distance to the crop's border; a border outside the picture needs no softening
        reach = FEATHER * self.side
        across = _ramp(np.arange(x0, x1) + 0.5, x, x + self.side, self.width, reach)
        down = _ramp(np.arange(y0, y1) + 0.5, y, y + self.side, self.height, reach)
        share = np.minimum(down[:, None], across[None, :])
        result[y0:y1, x0:x1] = cv2.blendLinear(drawn, result[y0:y1, x0:x1], share, 1 - share)
        return result

    def _soften_outside(self, drawn: np.ndarray) -> np.ndarray:
        """Blur what lies beyond the picture, the more the farther, so that repeated edge pixels leave no streaks."""
        size = drawn.shape[0]
        x, y = self.corner
        at = (np.arange(size) + 0.5) * self.side / size
        beyond_x = np.maximum(np.maximum(-(at + x), at + x - self.width), 0)
        beyond_y = np.maximum(np.maximum(-(at + y), at + y - self.height), 0)
        beyond = np.maximum(beyond_y[:, None], beyond_x[None, :]) / self.side
        if beyond.max() * size < 1:
            return drawn
        share = np.clip(beyond / 0.08, 0, 1).astype(np.float32)[..., None]
        soft = cv2.GaussianBlur(drawn, (0, 0), size * 0.04, borderType=cv2.BORDER_REPLICATE)
        return np.rint(drawn * (1 - share) + soft * share).astype(np.uint8)


def _by_index(matrix: np.ndarray) -> np.ndarray:
    """The same map for OpenCV, which puts pixel centres at whole numbers."""
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2].sum(1) * 0.5 - 0.5
    return shifted


def _ramp(at: np.ndarray, first: float, last: float, limit: int, reach: float) -> np.ndarray:
    """(n,) float32 0..1, rising over `reach` from the ends first and last that lie inside 0..limit."""
    from_first = (at - first) / reach if first > 0 else np.ones_like(at)
    from_last = (last - at) / reach if last < limit else np.ones_like(at)
    return np.clip(np.minimum(from_first, from_last), 0, 1).astype(np.float32)


def crop_of_face(centre: tuple[float, float], face_side: float, height: int, width: int) -> Crop:
    """The crop for a face: centre x, y of its landmarks' bounds and its face side, picture pixels."""
    x, y = centre
    return Crop((float(x), float(y - CROP_RISE * face_side)), float(CROP_SCALE * face_side), int(height), int(width))


def face_square(landmarks: np.ndarray) -> tuple[tuple[float, float], float]:
    """Centre (x, y) and face side of landmarks (68, 2), in their own units."""
    low, high = landmarks.min(0), landmarks.max(0)
    x, y = (low + high) / 2
    return (float(x), float(y)), float(FACE_SCALE * (high - low).max())


def crop_from_landmarks(landmarks: np.ndarray, height: int, width: int) -> Crop:
    """The crop for 68 landmarks (68, 2) in pixels of a picture (height, width)."""
    return crop_of_face(*face_square(np.asarray(landmarks)), height, width)


def no_crop(height: int, width: int) -> Crop:
    """The largest centred square of the picture, for pictures that are framed already."""
    return Crop((width / 2, height / 2), float(min(height, width)), int(height), int(width))
