"""What the clients are made of: addresses, requests as bytes, connections, retries. Knows nothing of probabilities."""
