"""What a train step takes on devices that are not here."""
