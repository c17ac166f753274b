"""Tables and sentences that the command prints."""
