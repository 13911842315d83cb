"""From a voice of one speaker to one that speaks as whom it hears: the corpus and the stages of its training."""
