"""How good is what we make: measurements on frames and on motion."""
