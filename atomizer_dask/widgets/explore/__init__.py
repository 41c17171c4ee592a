"""Trying out an atom by hand: a control for each parameter, and the result of the electron."""
