"""What is done to a bundle after training: other calibrations, other decisions, figures on new rows, a comparison with another.

A bundle is never changed: each step makes a new one, with every part that it does not touch byte for byte as it was.
"""
