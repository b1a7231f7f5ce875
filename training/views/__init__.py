"""One picture and its regions -> the views of the method."""
