"""The verbs of the `knarr` command and their options."""
