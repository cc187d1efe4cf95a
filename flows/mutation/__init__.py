"""The gate is tested by mutation: faults in real graphs, sound engines beside them, other tools."""
