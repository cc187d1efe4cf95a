"""When: Prefect flows and the command line."""
