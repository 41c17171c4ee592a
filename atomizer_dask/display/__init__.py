"""How a record shows itself: as a short text, as HTML, as a live widget."""
