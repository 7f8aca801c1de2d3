"""What is run once on each new GPU: probes, contract, sanitizer, limits and timings."""
