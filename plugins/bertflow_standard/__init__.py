"""The plugins that ship with bertflow, in the same shape as anybody's."""
