"""Event-camera recordings and simulated event cameras."""
