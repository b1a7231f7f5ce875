"""Cards and the results page: everything that is said about a model, rendered from JSON."""
