"""Networks from cards: how each library builds one, and how its weights are read."""
