"""What carries electrons: one module per transport."""
