"""What runs on the scheduler: plugins, which travel there with their code."""
