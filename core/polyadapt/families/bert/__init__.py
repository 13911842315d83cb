"""BERT and its relatives with the same modules, MiniLM among them."""
