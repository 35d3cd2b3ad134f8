{{/* Pairs of values that cannot work together, each refused in one sentence. */}}
{{- define "infnet-ray.checks" -}}
{{- $values := .Values }}
{{- $full := include "infnet-ray.fullname" . }}
{{- $apps := include "infnet-ray.applications" . | fromJson }}
{{- $workers := include "infnet-ray.workers" . | fromJson }}
{{- $split := eq $values.topology "split" }}

{{- if not (regexMatch "^[a-z]" $full) }}
{{- fail (printf "the names of all objects begin with %q, and must begin with a letter; set fullnameOverride" $full) }}
{{- end }}

{{- $cpus := float64 0 }}
{{- $gpus := float64 0 }}
{{- $prefixes := dict }}
{{- range $name, $app := $apps }}
{{- $where := printf "applications.%s" $name }}
{{- if not $app.bundle }}
{{- fail (printf "%s.bundle must be the output of `%s export`, as s3://BUCKET/PATH or a folder in a claim of `volumes`; or set %s.enabled=false" $where $app.program $where) }}
{{- end }}
{{- $other := index $prefixes $app.routePrefix }}
{{- if and $other (not (and $split $values.httpRoute.enabled)) }}
{{- fail (printf "%s.routePrefix and applications.%s.routePrefix are both %s; requests are shared out by `weight` only with topology=split and httpRoute.enabled" $where $other $app.routePrefix) }}
{{- end }}
{{- $_ := set $prefixes $app.routePrefix $name }}
{{- if and (not $split) (ne (float64 $app.weight) 1.0) }}
{{- fail (printf "%s.weight is of topology=split with httpRoute.enabled; topology=shared has one service for all" $where) }}
{{- end }}
{{- if and (not $split) (or $app.image.tag $app.image.digest) }}
{{- fail (printf "%s.image is of topology=split; topology=shared runs all applications in one image: set image.tag or image.digest" $where) }}
{{- end }}
{{- if and $split (gt (len (printf "%s-%s" $full $name)) 47) }}
{{- fail (printf "the RayService %s-%s has a name of more than 47 characters; set fullnameOverride, or give the application a shorter name" $full $name) }}
{{- end }}
{{- if and (ne $app.program "layer-select") (gt (float64 $app.gpusPerReplica) 0.0) }}
{{- fail (printf "%s.gpusPerReplica is of program=layer-select; a scorer runs on CPUs" $where) }}
{{- end }}
{{- if and $app.autoscaling.enabled (gt (int $app.autoscaling.minReplicas) (int $app.autoscaling.maxReplicas)) }}
{{- fail (printf "%s.autoscaling.minReplicas (%v) must be at most maxReplicas (%v)" $where $app.autoscaling.minReplicas $app.autoscaling.maxReplicas) }}
{{- end }}
{{- $replicas := float64 (ternary $app.autoscaling.minReplicas $app.replicas $app.autoscaling.enabled) }}
{{- $own := mulf $replicas (float64 $app.cpusPerReplica) }}
{{- $ownGpus := mulf $replicas (float64 $app.gpusPerReplica) }}
{{- $cpus = ternary (maxf $cpus $own) (addf $cpus $own) $split }}
{{- $gpus = ternary (maxf $gpus $ownGpus) (addf $gpus $ownGpus) $split }}
{{- end }}

{{- $haveCpus := float64 $values.head.numCpus }}
{{- $haveGpus := float64 0 }}
{{- range $name, $group := $workers }}
{{- $pods := float64 (ternary $group.maxReplicas $group.replicas $values.autoscaling.enabled) }}
{{- $haveCpus = addf $haveCpus (mulf $pods (float64 $group.numCpus)) }}
{{- $haveGpus = addf $haveGpus (mulf $pods (float64 $group.numGpus)) }}
{{- if and $values.autoscaling.enabled (gt (int $group.minReplicas) (int $group.maxReplicas)) }}
{{- fail (printf "workers.%s.minReplicas (%v) must be at most maxReplicas (%v)" $name $group.minReplicas $group.maxReplicas) }}
{{- end }}
{{- if and $values.autoscaling.enabled (or (lt (int $group.replicas) (int $group.minReplicas)) (gt (int $group.replicas) (int $group.maxReplicas))) }}
{{- fail (printf "workers.%s.replicas (%v), with which autoscaling begins, must be from minReplicas (%v) to maxReplicas (%v)" $name $group.replicas $group.minReplicas $group.maxReplicas) }}
{{- end }}
{{- if and $values.production (not (and $group.resources.limits (hasKey $group.resources.limits "memory"))) }}
{{- fail (printf "production: workers.%s.resources.limits.memory must be set, or one pod can take the node's memory" $name) }}
{{- end }}
{{- end }}
{{- if gt (mulf 2.0 $cpus) $haveCpus }}
{{- fail (printf "the replicas need %v CPUs, and as many once more while they are replaced (%v); head.numCpus and workers.*.numCpus give %v to one Ray cluster: raise them, or lower applications.*.replicas or cpusPerReplica" $cpus (mulf 2.0 $cpus) $haveCpus) }}
{{- end }}
{{- if gt (mulf 2.0 $gpus) $haveGpus }}
{{- fail (printf "the replicas need %v GPUs, and as many once more while they are replaced (%v); workers.*.numGpus give %v to one Ray cluster: raise it, or lower applications.*.gpusPerReplica" $gpus (mulf 2.0 $gpus) $haveGpus) }}
{{- end }}

{{- if and $values.autoscaling.enabled $values.kueue.queue }}
{{- fail "autoscaling.enabled and kueue.queue exclude each other: Kueue admits a cluster of a fixed size; unset one of them" }}
{{- end }}
{{- if and $values.kueue.priorityClass (not $values.kueue.queue) }}
{{- fail "kueue.priorityClass is of kueue.queue, which is empty; set it" }}
{{- end }}
{{- if eq $values.upgradeStrategy.type "NewClusterWithIncrementalUpgrade" }}
{{- if not $values.upgradeStrategy.incremental.gatewayClassName }}
{{- fail "upgradeStrategy.type=NewClusterWithIncrementalUpgrade needs upgradeStrategy.incremental.gatewayClassName: requests are moved by a Gateway" }}
{{- end }}
{{- if not $values.autoscaling.enabled }}
{{- fail "upgradeStrategy.type=NewClusterWithIncrementalUpgrade needs autoscaling.enabled=true: the new cluster grows while the old one shrinks" }}
{{- end }}
{{- else if $values.upgradeStrategy.incremental.gatewayClassName }}
{{- fail (printf "upgradeStrategy.incremental.gatewayClassName is of upgradeStrategy.type=NewClusterWithIncrementalUpgrade, which is %s; unset one of them" $values.upgradeStrategy.type) }}
{{- end }}

{{- $v := split "." (printf "%s.0" $values.rayVersion) }}
{{- if and $values.auth.enabled (or (lt (int $v._0) 2) (and (eq (int $v._0) 2) (lt (int $v._1) 52))) }}
{{- fail (printf "auth.enabled needs Ray 2.52 or newer, rayVersion is %s; take a newer image, or set auth.enabled=false" $values.rayVersion) }}
{{- end }}

{{- $gcs := $values.gcsFaultTolerance }}
{{- if and $gcs.redis.address (or (eq $gcs.backend "embedded") $gcs.embedded.claim) }}
{{- fail "gcsFaultTolerance.redis.address and the embedded backend exclude each other; unset one of them" }}
{{- end }}
{{- if and (eq $gcs.backend "redis") (not $gcs.redis.address) }}
{{- fail "gcsFaultTolerance.backend=redis needs gcsFaultTolerance.redis.address, as redis://HOST:6379" }}
{{- end }}
{{- if and (eq $gcs.backend "none") (or $gcs.redis.address $gcs.embedded.claim) }}
{{- fail "gcsFaultTolerance.backend is none, but redis.address or embedded.claim is set; set backend to redis or embedded" }}
{{- end }}
{{- if and (eq $gcs.backend "embedded") (semverCompare "<1.7.0" (printf "%s.0" $values.kuberay.version)) }}
{{- fail (printf "gcsFaultTolerance.backend=embedded needs KubeRay 1.7 or newer, kuberay.version is %s; upgrade the operator and set kuberay.version, or use redis" $values.kuberay.version) }}
{{- end }}

{{- if $values.production }}
{{- $image := $values.image }}
{{- if and (not $image.digest) (or (not $image.tag) (eq $image.tag "latest")) }}
{{- fail (printf "production: image.tag must be a fixed one or image.digest set, found %q" $image.tag) }}
{{- end }}
{{- range $name, $app := $apps }}
{{- if eq $app.image.tag "latest" }}
{{- fail (printf "production: applications.%s.image.tag must be a fixed one, found \"latest\"" $name) }}
{{- end }}
{{- end }}
{{- if not $values.auth.enabled }}
{{- fail "production: auth.enabled must be true: whoever reaches the dashboard can run code" }}
{{- end }}
{{- end }}

{{- if and $values.httpRoute.enabled (not $values.httpRoute.parentRefs) }}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs: the gateways that it belongs to, as [{name: GATEWAY}]" }}
{{- end }}
{{- if and $values.httpRoute.enabled (eq $values.upgradeStrategy.type "NewClusterWithIncrementalUpgrade") }}
{{- fail "httpRoute.enabled and upgradeStrategy.type=NewClusterWithIncrementalUpgrade exclude each other: KubeRay makes the route then" }}
{{- end }}
{{- if and $values.ingress.tls.existingSecret (not $values.ingress.host) }}
{{- fail "ingress.tls.existingSecret needs ingress.host: a certificate is of a host" }}
{{- end }}
{{- if and $values.serve.excludeHead (not $workers) }}
{{- fail "serve.excludeHead leaves nobody to answer: there are no workers" }}
{{- end }}
{{- end }}
