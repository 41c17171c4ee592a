"""Where the electrons of a run come from, and where it is taken down what becomes of them."""
