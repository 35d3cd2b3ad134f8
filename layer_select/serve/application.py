"""The recommender as an application that a file of Ray Serve declares.

import_path: layer_select.serve.application:build
args: {bundle: s3://models/recommender/7, route_prefix: /recommender, set: {serve.replicas: 2}}
"""

from collections.abc import Mapping
from typing import Any

from layer_select.config import LayerSelectConfig
from layer_select.serve import app
from rayrun.ray import serve_verbs
from rayrun.ray.declared import declared

PROGRAM = "layer-select"


def build(args: Mapping[str, Any]) -> Any:
    """What `layer-select deploy` puts live: the `ray.serve.Application` of a bundle.

    Its replicas open the bundle, and each answers its sample before anything else.

    Args:
        args: `rayrun.ray.declared.Arguments`.

    Raises:
        ConfigError: an argument, or a key that `set` sets, is missing, unknown or wrong; there is
            no bundle of `layer-select`, or it is another model than `model` says.
    """
    config = declared(LayerSelectConfig, PROGRAM, args)
    return app.build(config.serve, serve_verbs.bundle_of(config.inputs.bundle, PROGRAM))
