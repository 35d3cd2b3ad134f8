"""The scorer as an application that a file of Ray Serve declares.

import_path: infnet.serve.application:build
args: {bundle: s3://models/scorer/7, route_prefix: /scorer, set: {serve.replicas: 2}}
"""

from collections.abc import Mapping
from typing import Any

from infnet.config import InfnetConfig
from infnet.serve import app
from rayrun.ray import serve_verbs
from rayrun.ray.declared import declared

PROGRAM = "infnet"


def build(args: Mapping[str, Any]) -> Any:
    """What `infnet deploy` puts live: the `ray.serve.Application` of a bundle.

    Its replicas open the bundle, and each answers its sample before anything else.

    Args:
        args: `rayrun.ray.declared.Arguments`.

    Raises:
        ConfigError: an argument, or a key that `set` sets, is missing, unknown or wrong; there is
            no bundle of `infnet`, or it is another model than `model` says.
    """
    config = declared(InfnetConfig, PROGRAM, args)
    return app.build(config.serve, serve_verbs.bundle_of(config.inputs.bundle, PROGRAM))
