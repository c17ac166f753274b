"""The engines that simulate a chip network; all give the same integers."""
