"""A config: every key and its default (schema), read, filled in and checked once, compared."""

from ressl_plugin.config.filling import fill_method, finish, finish_linear, known_keys
from ressl_plugin.config.loading import (
    RECIPES,
    find,
    load,
    quoted,
    recipes,
    refuse_two_places,
    ungrammatical,
)
