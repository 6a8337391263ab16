"""Let the main branch's own Hydra scripts find the plugin by themselves.

Hydra imports every package under `hydra_plugins` when an application starts. By then
main_pretrain.py has imported solo.methods, so the registry is there to be changed; in any other
Hydra application nothing happens. Recipes can be named as pkg://ressl_plugin.recipes.
"""

import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class RessLPluginSearchPath(SearchPathPlugin):
    """Register when solo-learn is running; offer the recipes."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called once by Hydra while it sets up an application."""
        if "solo.methods" not in sys.modules:
            return
        from ressl_plugin.method.registry import register_for_host_scripts

        register_for_host_scripts()
        search_path.append("ressl_plugin", "pkg://ressl_plugin.recipes")
