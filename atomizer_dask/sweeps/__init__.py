"""Tables of inputs: grids, tables and streams, and what an electron gets of them."""
