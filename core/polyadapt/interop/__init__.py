"""Other libraries' checkpoints, read into artifacts and written from them."""
