"""When: Prefect flows and the command line."""

RUN_FILE = "run.json"  # in a recipe's run folder, the record of its last run
