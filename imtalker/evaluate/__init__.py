"""How good is what we make: measurements on frames, by code that training never saw."""
