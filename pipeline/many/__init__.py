"""Many runs: grids, sweeps and Pareto searches."""
