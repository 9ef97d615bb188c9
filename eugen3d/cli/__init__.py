"""The subcommands of `eugen3d`, one file each."""

import warnings

# Deprecations inside torch and nerfstudio are nothing that who types a command could act on.
for _category in (FutureWarning, DeprecationWarning, UserWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"(torch|torchmetrics|nerfstudio)\b")
