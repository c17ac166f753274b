"""Place a chip network on the cores of a chip, or say why it does not fit."""
