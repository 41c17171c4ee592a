"""What an atom is, what it may ask for, and how its code travels."""
