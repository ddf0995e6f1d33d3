"""How good is what we make: measurements on frames and on motion."""

PROTOCOLS = ("self_reenactment", "cross_reenactment", "audio_driven", "pose_controlled", "gaze_controlled", "silence")
