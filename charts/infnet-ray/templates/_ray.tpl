{{/* What Ray Serve is asked for; takes {root, apps}. */}}
{{- define "infnet-ray.serveConfig" -}}
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: {{ .root.Values.serve.port }}
logging_config:
  log_level: {{ .root.Values.serve.logLevel }}
  enable_access_log: {{ .root.Values.serve.accessLog }}
applications:
{{- range sortAlpha (keys .apps) }}
{{- $app := index $.apps . }}
- name: {{ $app.name }}
  import_path: {{ $app.importPath }}
  route_prefix: {{ $app.routePrefix }}
  args:
    bundle: {{ $app.bundle | quote }}
    {{- with $app.model }}
    model: {{ . | quote }}
    {{- end }}
    route_prefix: {{ $app.routePrefix }}
    {{- $set := dict "serve.cpus_per_replica" $app.cpusPerReplica }}
    {{- if not $app.autoscaling.enabled }}{{ $_ := set $set "serve.replicas" $app.replicas }}{{ end }}
    {{- if $app.gpusPerReplica }}{{ $_ := set $set "serve.gpus_per_replica" $app.gpusPerReplica }}{{ end }}
    {{- if $app.token.existingSecret }}{{ $_ := set $set "serve.token_env" (include "infnet-ray.tokenEnv" $app) }}{{ end }}
    set:
      {{- toYaml (merge $set $app.set) | nindent 6 }}
  {{- if $app.autoscaling.enabled }}
  deployments:
  - name: {{ $app.deployment }}
    num_replicas: auto
    autoscaling_config:
      min_replicas: {{ int64 $app.autoscaling.minReplicas }}
      max_replicas: {{ int64 $app.autoscaling.maxReplicas }}
      target_ongoing_requests: {{ $app.autoscaling.targetOngoingRequests }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "infnet-ray.tokenEnv" -}}
{{ .name | upper | replace "-" "_" }}_TOKEN
{{- end }}

{{/* Environment of storage, for Ray and for the tests. */}}
{{- define "infnet-ray.storageEnv" -}}
{{- with .Values.s3 }}
{{- if .endpoint }}
- name: AWS_ENDPOINT_URL
  value: {{ .endpoint | quote }}
{{- end }}
{{- if .region }}
- name: AWS_DEFAULT_REGION
  value: {{ .region | quote }}
{{- end }}
{{- if .existingSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .accessKeyIdKey }}}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .secretAccessKeyKey }}}}
{{- end }}
{{- end }}
{{- end }}

{{- define "infnet-ray.claimMounts" -}}
{{- range $i, $volume := .Values.volumes }}
- name: claim-{{ $i }}
  mountPath: {{ $volume.mountPath }}
  {{- with $volume.subPath }}
  subPath: {{ . }}
  {{- end }}
  readOnly: {{ default false $volume.readOnly }}
{{- end }}
{{- end }}

{{- define "infnet-ray.claimVolumes" -}}
{{- range $i, $volume := .Values.volumes }}
- name: claim-{{ $i }}
  persistentVolumeClaim:
    claimName: {{ $volume.claim }}
{{- end }}
{{- end }}

{{/* Pod template of a head or of workers; takes {root, service, apps, group, isHead, own}.
Nothing in it may change with the chart's version or with monitoring: KubeRay would start a second
cluster. `app.kubernetes.io/name` is KubeRay's own: its services select the head by it. */}}
{{- define "infnet-ray.podTemplate" -}}
{{- $values := .root.Values }}
{{- $autoscaler := and .isHead $values.autoscaling.enabled -}}
metadata:
  labels:
    {{- $fixed := dict "app.kubernetes.io/instance" .root.Release.Name "app.kubernetes.io/part-of" "infnet-ray" "infnet-ray/service" .service }}
    {{- toYaml (merge $fixed .group.labels) | nindent 4 }}
  {{- $noted := dict }}
  {{- if .apps }}
  {{- /* KubeRay 1.6 overlooks these changes of a RayService; what is noted here it does not. */}}
  {{- if not .isHead }}
  {{- $_ := set $noted "infnet-ray/replicas" (ternary (printf "%d-%d" (int64 .group.minReplicas) (int64 .group.maxReplicas)) (toString (int64 .group.replicas)) $values.autoscaling.enabled) }}
  {{- end }}
  {{- with .group.tolerations }}{{ $_ := set $noted "infnet-ray/tolerations" (toJson . | sha256sum | trunc 16) }}{{ end }}
  {{- end }}
  {{- with merge $noted .group.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ if $autoscaler }}{{ include "infnet-ray.fullname" .root }}-autoscaler{{ else }}{{ include "infnet-ray.serviceAccount" .root }}{{ end }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with include "infnet-ray.pullSecrets" .root }}
{{- . | nindent 2 }}
{{- end }}
  securityContext:
    {{- toYaml $values.podSecurityContext | nindent 4 }}
  terminationGracePeriodSeconds: {{ int64 .group.terminationGracePeriodSeconds }}
  {{- with .group.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .group.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .group.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .group.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .group.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
  - name: {{ ternary "ray-head" "ray-worker" .isHead }}
    image: {{ include "infnet-ray.image" . }}
    imagePullPolicy: {{ $values.image.pullPolicy }}
    ports:
    {{- if .isHead }}
    - {name: gcs-server, containerPort: 6379}
    - {name: dashboard, containerPort: 8265}
    - {name: client, containerPort: 10001}
    {{- end }}
    - {name: serve, containerPort: {{ $values.serve.port }}}
    - {name: metrics, containerPort: 8080}
    env:
    - {name: HOME, value: /tmp}
    - {name: RAY_USAGE_STATS_ENABLED, value: "0"}
    - {name: RAY_SERVE_ENABLE_HA_PROXY, value: {{ ternary "1" "0" $values.serve.haproxy | quote }}}
    {{- with include "infnet-ray.storageEnv" .root }}
{{- . | nindent 4 }}
{{- end }}
    {{- range sortAlpha (keys .apps) }}
    {{- $app := index $.apps . }}
    {{- if $app.token.existingSecret }}
    - name: {{ include "infnet-ray.tokenEnv" $app }}
      valueFrom: {secretKeyRef: {name: {{ $app.token.existingSecret }}, key: {{ $app.token.key }}}}
    {{- end }}
    {{- end }}
    {{- with concat $values.env .group.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with $values.envFrom }}
    envFrom:
    {{- toYaml . | nindent 4 }}
    {{- end }}
    lifecycle:
      preStop: {exec: {command: [/bin/sh, -c, "ray stop"]}}
    {{- if and (not .isHead) .apps }}
    readinessProbe:  # KubeRay's own asks by wget; the proxy of this pod answers the same question
      httpGet: {path: /-/healthz, port: serve}
      initialDelaySeconds: 10
      periodSeconds: 5
      timeoutSeconds: 5
      failureThreshold: 1
    {{- end }}
    {{- $resources := deepCopy .group.resources }}
    {{- if .group.numGpus }}
    {{- $_ := set $resources "limits" (merge (dict .group.gpuResource .group.numGpus) (default dict $resources.limits)) }}
    {{- end }}
    resources:
      {{- toYaml $resources | nindent 6 }}
    securityContext:
      {{- toYaml $values.containerSecurityContext | nindent 6 }}
    volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: shm, mountPath: /dev/shm}
    {{- with include "infnet-ray.claimMounts" .root }}
{{- . | nindent 4 }}
{{- end }}
  volumes:
  - {name: tmp, emptyDir: {}}
  - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ .group.shm }}}}
  {{- with include "infnet-ray.claimVolumes" .root }}
{{- . | nindent 2 }}
{{- end }}
  {{- if $autoscaler }}
  - name: autoscaler-token  # mounted by the autoscaler's container alone
    projected:
      sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
      - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
  {{- end }}
{{- end }}

{{- define "infnet-ray.rayStartParams" -}}
{{- $fixed := dict "num-cpus" (toString (int .group.numCpus)) "metrics-export-port" "8080" }}
{{- if .isHead }}{{ $_ := set $fixed "dashboard-host" "0.0.0.0" }}{{ end }}
{{- if .group.objectStoreBytes }}{{ $_ := set $fixed "object-store-memory" (toString (int64 .group.objectStoreBytes)) }}{{ end }}
{{- toYaml (merge $fixed .group.rayStartParams) }}
{{- end }}

{{/* spec of a RayCluster; takes {root, service, apps, own}. */}}
{{- define "infnet-ray.clusterSpec" -}}
{{- $values := .root.Values }}
{{- $context := . -}}
rayVersion: {{ $values.rayVersion | quote }}
{{- if $values.auth.enabled }}
authOptions:
  mode: token
  {{- with $values.auth.existingSecret }}
  secretName: {{ . }}
  {{- end }}
{{- else }}
authOptions:
  mode: disabled
{{- end }}
{{- if $values.autoscaling.enabled }}
enableInTreeAutoscaling: true
autoscalerOptions:
  version: {{ $values.autoscaling.version }}
  idleTimeoutSeconds: {{ int64 $values.autoscaling.idleTimeoutSeconds }}
  upscalingMode: {{ $values.autoscaling.upscalingMode }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  resources:
    {{- toYaml $values.autoscaling.resources | nindent 4 }}
  securityContext:
    {{- toYaml $values.containerSecurityContext | nindent 4 }}
  env:
  - {name: HOME, value: /tmp}
  volumeMounts:
  - {name: tmp, mountPath: /tmp}
  - {name: autoscaler-token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}
{{- with $values.gcsFaultTolerance }}
{{- if eq .backend "redis" }}
gcsFaultToleranceOptions:
  redisAddress: {{ .redis.address | quote }}
  {{- if .redis.existingSecret }}
  redisPassword:
    valueFrom: {secretKeyRef: {name: {{ .redis.existingSecret }}, key: {{ .redis.passwordKey }}}}
  {{- if .redis.usernameKey }}
  redisUsername:
    valueFrom: {secretKeyRef: {name: {{ .redis.existingSecret }}, key: {{ .redis.usernameKey }}}}
  {{- end }}
  {{- end }}
{{- else if eq .backend "embedded" }}
gcsFaultToleranceOptions:
  backend: rocksdb
  storage:
    {{- if .embedded.claim }}
    claimName: {{ .embedded.claim }}
    {{- else }}
    size: {{ .embedded.size }}
    {{- with .embedded.storageClassName }}
    storageClassName: {{ . }}
    {{- end }}
    {{- end }}
{{- end }}
{{- end }}
headGroupSpec:
  {{- $head := merge (dict "group" $values.head "isHead" true) $context }}
  rayStartParams:
    {{- include "infnet-ray.rayStartParams" $head | nindent 4 }}
  template:
    {{- include "infnet-ray.podTemplate" $head | nindent 4 }}
{{- $workers := include "infnet-ray.workers" .root | fromJson }}
{{- with $workers }}
workerGroupSpecs:
{{- range sortAlpha (keys $workers) }}
{{- $group := index $workers . }}
{{- $worker := merge (dict "group" $group "isHead" false) $context }}
- groupName: {{ . }}
  replicas: {{ int64 $group.replicas }}
  minReplicas: {{ int64 (ternary $group.minReplicas $group.replicas $values.autoscaling.enabled) }}
  maxReplicas: {{ int64 (ternary $group.maxReplicas $group.replicas $values.autoscaling.enabled) }}
  rayStartParams:
    {{- include "infnet-ray.rayStartParams" $worker | nindent 4 }}
  template:
    {{- include "infnet-ray.podTemplate" $worker | nindent 4 }}
{{- end }}
{{- end }}
{{- end }}
