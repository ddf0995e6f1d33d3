"""The networks and their configs: pure torch, nothing above them is imported here."""
