"""Read, label and generate CMU-MOSI clips."""
