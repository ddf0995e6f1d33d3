"""The one clock: sound has 16 000 samples a second, pictures come 25 times a second."""

SAMPLE_RATE = 16_000  # samples per second of the mono sound that the networks hear
FPS = 25  # frames per second of motion
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS  # 640: exact, so frame k starts at sample 640 * k
assert SAMPLES_PER_FRAME * FPS == SAMPLE_RATE


def frame_count(samples: int) -> int:
    """Number of frames that cover `samples` samples at 16 kHz: a begun frame counts, so 10 ms of sound is one frame."""
    return -(-samples // SAMPLES_PER_FRAME)
