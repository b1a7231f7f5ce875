"""Pictures and regions in, batches of views out."""
