"""The networks and their configs: torch, and for a CPU threads and loops of our own. Nothing above is imported here,
only `clock`, `flow` and `workers`, which import nothing of ours themselves."""
