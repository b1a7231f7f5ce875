"""A diagnosis as a page with figures."""
