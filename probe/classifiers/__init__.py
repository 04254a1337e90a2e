"""The classifiers of a probe behind one interface, and what is done to features before them."""
