"""The run: recipes, views, training, export and report. Runs from the checkout, is not installed."""
