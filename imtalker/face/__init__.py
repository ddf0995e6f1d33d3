"""Faces: where they are, the one crop policy, what they do, and the way back into the picture."""

from imtalker.face.crop import Crop, crop_from_landmarks, no_crop
from imtalker.face.detect import Face, find_faces
from imtalker.face.reader import Curves, Reader, Reading, default_reader, read_curves
from imtalker.face.select import driving_crop, source_crop

__all__ = [
    "Curves",
    "Crop",
    "Face",
    "Reader",
    "Reading",
    "crop_from_landmarks",
    "default_reader",
    "driving_crop",
    "find_faces",
    "no_crop",
    "read_curves",
    "source_crop",
]
