"""Place a chip network on the cores of a chip, or say why it does not fit.

place       a network on cores
layer       what the cores of one layer need, and its smallest split
chips       the limits of chips, read from chips.json
result      what a placement says, and its table
"""
