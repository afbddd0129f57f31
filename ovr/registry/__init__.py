"""Where bundles are kept as versions of a model, with names that move from one version to another: aliases.

`entries` is what a store holds, `aliases` moves them, `lineage` tells where a version came from; `directory` and `mlflow` are the
stores. Knows bundles, not what is served or trained from them.
"""
