"""Time and memory of a train step on devices that are not here."""
