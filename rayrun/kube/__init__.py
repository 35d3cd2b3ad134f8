"""Kubernetes: verbs as RayJobs, deployments as RayServices, and nothing left behind."""
