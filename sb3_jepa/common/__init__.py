"""What all rooms use. Only actions, privates and next observations know Stable-Baselines3."""
