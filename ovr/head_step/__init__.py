"""The training step of very many heads: loss, gradient and update chunk by chunk, in place."""
