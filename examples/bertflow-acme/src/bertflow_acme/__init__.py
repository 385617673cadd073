"""A model for bertflow that is no transformer: a bag of word embeddings."""
