"""Speed and cost: how fast a model runs on this machine, beside the same networks run plainly."""
