"""One builder per kind of source."""
