"""What every room of bench/ uses: the measuring core, records, workloads, limits."""
