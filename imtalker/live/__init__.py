"""Live: sound in, face out, while it is being spoken; a server of it, and its page."""
