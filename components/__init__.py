"""Steps for Kubeflow Pipelines, one per file: thin shells around one verb of the command line each.

A component is compiled to YAML with its source inside, and runs in our image. So a module here
imports kfp and the standard library only; the body of a component, which runs in the image, imports
what runs the verb (`rayrun.step`) and fills the typed outputs (`rayrun.kfp_outputs`).

Data travel as URIs in string parameters, never as files of KFP: every verb reads and writes local
paths and object stores by itself. What a step makes goes to a store keyed by content, so KFP's own
cache, whose key knows names only, is off for every task.
"""
