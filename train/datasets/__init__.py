"""Public emotion datasets: strict readers of their real formats, their splits, and a cache of what was prepared."""
