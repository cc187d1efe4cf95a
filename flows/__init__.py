"""When: Prefect flows and the command line."""

RUN_FILE = "run.json"  # in a recipe's run folder, the record of its last run
POOL = "fucina"  # Prefect's work pool, of which scheduled runs come
RELEASES = "fucina-releases"  # Prefect's limit of how many releases of a zoo run side by side
