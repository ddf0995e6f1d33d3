"""IMTalker: one picture of a face, plus speech or a driving video, makes a talking video.

from imtalker import IMTalker

talker = IMTalker.from_pretrained("mini")
source = talker.encode_source("face.png")
talker.animate(source, "speech.wav").save("talk.mp4")
"""

from .errors import InputError

__version__ = "0.1.0"
__all__ = ["IMTalker", "Source", "Clip", "InputError", "__version__"]


def __getattr__(name: str):
    # The pipeline brings torch, which takes seconds to import: load it when it is first asked for.
    if name in ("IMTalker", "Source", "Clip"):
        from . import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
