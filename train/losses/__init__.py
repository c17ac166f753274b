"""Distillation losses: small pure functions of tensors."""
