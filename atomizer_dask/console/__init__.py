"""What atoms print, log and warn of: caught where they run, electron by electron."""
