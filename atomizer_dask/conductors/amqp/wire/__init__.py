"""JSON as Go peers write and read it, and the members of their messages."""
