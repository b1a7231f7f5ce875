"""Controlled pictures: scenes or photos, blank pages, exchanged surroundings."""
