"""The shape of every table, the artifact store, and readers of outside data sets."""
