"""What several tests need: small data sets, workspaces and configs."""
