"""Compare Norse, NIR, the chip simulator and Lava, layer by layer."""
