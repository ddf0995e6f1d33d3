"""How an anchored motion latent is laid out: what its numbers mean is known, because the data that taught it says so.

Published latents have no such order. `synth.motion` makes anchored ones, and says in what units.
"""

POSE = slice(0, 3)  # rotation vector of the head
CAM = slice(3, 6)  # log scale, x and y of the head in the crop
HEAD = slice(POSE.start, CAM.stop)  # both
GAZE = slice(6, 8)  # yaw to the own left and pitch down of the eyeballs in the head
LIDS = slice(8, 10)  # how far the left and the right eye is shut
FACE = slice(10, 32)  # expression: principal components
