"""Pictures of a source: their files, their bytes, their boxes."""
