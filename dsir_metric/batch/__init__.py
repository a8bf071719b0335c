"""Many registrations: from a table of pairs to a folder each, on one machine or a cluster."""
