"""Run `.net` files on the Lava simulator, in a supervised process of its own.

run            what a worker is told, its supervision, and its results as a recording
worker         the script that runs Lava, in an interpreter that need not have knarr
compatibility  what lets Lava be imported on current Pythons, and where it lies
install        Lava's wheels, fetched into a folder of their own
"""
