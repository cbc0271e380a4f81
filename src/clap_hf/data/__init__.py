"""Where sounds and captions come from: data sets, text rules, streaming and collation."""
