"""Policies that learn a JEPA objective in the backward pass of their algorithm."""

from sb3_jepa.policies.export import export_policy
from sb3_jepa.policies.joint import JepaPolicy, JointPolicy

__all__ = ["JepaPolicy", "JointPolicy", "export_policy"]
