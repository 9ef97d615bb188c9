"""`eugen3d experiment`: many settings or scenes, as jobs on this machine or a cluster, with one report for all."""
