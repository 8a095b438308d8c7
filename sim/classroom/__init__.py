"""A class budget: students buy runs, predict a larger one, and are scored."""
