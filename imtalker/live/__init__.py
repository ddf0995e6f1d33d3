"""Live: sound in, face out, while it is being spoken."""
