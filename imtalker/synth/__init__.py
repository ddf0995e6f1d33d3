"""Synthetic talking heads with exact ground truth, rendered on the CPU; need `imtalker[synth]` and a head pack."""
