"""What one looks at after runs: a report of all experiments, and pictures of one."""
