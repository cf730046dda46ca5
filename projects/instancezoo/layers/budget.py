"""Working memory of functions that go through many masks in chunks."""

# Bytes that one chunk may take, beside what a function returns.
DEFAULT_BUDGET = 64 * 2**20
