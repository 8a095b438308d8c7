"""Training: one trunk of constant learning rate, cooldown branches, a batch of seeds."""
