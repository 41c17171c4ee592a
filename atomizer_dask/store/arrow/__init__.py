"""Columns of any values as Arrow, and back."""
