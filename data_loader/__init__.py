"""Your data sets, loaders and transforms. A config can use all names defined in this folder."""
