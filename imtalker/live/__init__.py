"""Live: sessions that listen and talk, the server around them, and its page."""
