"""Training of the networks: data, losses and one loop per network."""
