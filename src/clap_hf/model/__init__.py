"""The model: everything that ships to the Hub with a checkpoint; imports only its siblings, torch and transformers."""
