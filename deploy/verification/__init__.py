"""Compare Norse, NIR, the chip simulator and Lava, layer by layer.

verify  the runs, the stages' views and their comparison
result  what a verification found
"""
