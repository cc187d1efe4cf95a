"""When: Prefect flows and the command line."""

# In a recipe's run folder: a link to its last bundle, and the record of its last run.
BUNDLE_LINK = "bundle"
RUN_FILE = "run.json"
