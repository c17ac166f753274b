"""Read DEAP and MAHNOB-HCI recordings."""
