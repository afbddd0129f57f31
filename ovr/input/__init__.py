"""From rows as a user has them to the network's input: encoders, fitted once and run wherever the model is."""
