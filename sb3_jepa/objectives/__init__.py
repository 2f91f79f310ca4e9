"""Objectives: what is learned beside the policy. Pure PyTorch, one class per method."""

from sb3_jepa.objectives.next_latent import NextLatentPrediction

__all__ = ["NextLatentPrediction"]
