"""An atom tried out by hand: a control for each parameter, and what comes of it."""
