"""The cluster that a conductor connects to: address, credentials, processes, packages."""
