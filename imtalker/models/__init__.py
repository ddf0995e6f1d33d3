"""The networks and their configs: torch, and for a CPU threads and loops of our own; nothing above is imported here."""
