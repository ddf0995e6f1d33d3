"""One sentence twice, side by side: once as the model likes, once with the head turned and the eyes on the viewer.

python examples/two_poses.py [PICTURE] [SPEECH] [OUT.mp4]
"""

import sys
from pathlib import Path

import numpy as np

import imtalker
from imtalker import IMTalker
from imtalker.media import write_video

samples = Path(imtalker.__file__).parent / "assets"
picture, speech, out = (
    sys.argv[1:] + [samples / "sample.png", samples / "sample.wav", "two_poses.mp4"][len(sys.argv) - 1 :]
)[:3]

talker = IMTalker.from_pretrained("mini")
source = talker.encode_source(picture)

# The head turns to its own left and back within four seconds; the eyes turn the other way and so stay on the viewer.
turn = 0.25 * np.sin(np.arange(100) / 100 * 2 * np.pi)
pose = np.stack([0 * turn, turn, 0 * turn], axis=1)
gaze = np.stack([-turn, 0 * turn], axis=1)

free = talker.animate(source, speech, seed=1)
steered = talker.animate(source, speech, seed=1, pose=pose, gaze=gaze)

# Both are made frame by frame while the video is written.
write_video(out, (np.hstack(pair) for pair in zip(free, steered)), free.fps, speech)
print(out)
