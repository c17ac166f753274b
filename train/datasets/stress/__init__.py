"""Read the Stress-Predict data set."""
